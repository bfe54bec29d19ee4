"""The tables of docs/architectures.md: `python tests/architecture_tables.py` writes them, a test compares them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import timm
import torch
from segmentation_models_pytorch.encoders import get_encoder
from torch import nn

from softjaccard.files import write_text
from softjaccard.models import ARCHITECTURES, AuxiliarySettings, create_architecture

DOCUMENT = Path(__file__).parents[1] / "docs" / "architectures.md"

#: Parameters of classifiers with 1000 classes, in millions: timm's results/results-imagenet.csv, and the SegFormer
#: paper's Table 7 as the documentation of transformers gives it.
PUBLISHED_ENCODERS = {
    "tu-resnet18d": 11.71,
    "tu-resnet34d": 21.82,
    "tu-resnet50d": 25.58,
    "tu-resnet101d": 44.57,
    "tu-mobilenetv2_100": 3.50,
    "tu-xception65": 39.92,
    "tu-efficientnet_b0": 5.29,
    "tu-mobilevitv2_100": 4.90,
    "tu-convnext_base.fb_in22k_ft_in1k_384": 88.59,
    "mit_b0": 3.7,
    "mit_b1": 14.0,
    "mit_b2": 25.4,
    "mit_b3": 45.2,
    "mit_b4": 62.6,
    "mit_b5": 82.0,
}

#: Whole networks with the 150 classes of ADE20K: name, changes to its settings, parameters in millions, source.
PUBLISHED_NETWORKS: tuple[tuple[str, dict[str, Any], str, str], ...] = (
    ("upernet-convnext-base", {"auxiliary": AuxiliarySettings(channels=256)}, "122", "README of ConvNeXt"),
    ("segformer-mit-b0", {"options": {"decoder_segmentation_channels": 256}, "auxiliary": None}, "3.8", "[1]"),
    ("segformer-mit-b4", {"options": {"decoder_segmentation_channels": 768}, "auxiliary": None}, "64.1", "[1]"),
    ("segformer-mit-b5", {"options": {"decoder_segmentation_channels": 768}, "auxiliary": None}, "84.7", "[1]"),
)


@contextmanager
def without_memory() -> Iterator[None]:
    """Build modules without values; one encoder reads its rates of stochastic depth from a tensor, which stays."""
    with torch.device("meta"), patch("torch.linspace", partial(torch.linspace, device="cpu")):
        yield


def millions(*modules: nn.Module | None) -> float:
    return sum(parameter.numel() for module in modules if module for parameter in module.parameters()) / 1e6


def network_row(name: str) -> str:
    """Strides, widths and parameters of a network with 19 classes."""
    settings = ARCHITECTURES[name]
    with without_memory():
        network = create_architecture(name, 19)
    width = network.body.segmentation_head[0].in_channels
    encoder, whole, auxiliary = millions(network.encoder), millions(network.body), millions(network.auxiliary)
    return (
        f"| `{name}` | `{settings['encoder']}` | {network.stride} | {width} | {settings['auxiliary']['channels']} | "
        f"{encoder:.2f} | {whole:.2f} | {auxiliary:.2f} |"
    )


def encoder_row(encoder: str) -> str:
    """Parameters of an encoder with the classifier that it was published with."""
    with without_memory():
        if encoder.startswith("tu-"):
            classifier = millions(timm.create_model(encoder.removeprefix("tu-")))
        else:
            body = get_encoder(encoder)
            classifier = millions(body, nn.Linear(body.out_channels[-1], 1000))
    published = PUBLISHED_ENCODERS[encoder]
    digits = len(str(published).partition(".")[2]) if encoder.startswith("mit") else 2
    return f"| `{encoder}` | {classifier:.2f} | {published:.{digits}f} |"


def published_row(name: str, changes: dict[str, Any], published: str, source: str) -> str:
    """Parameters of a whole network as it was published."""
    with without_memory():
        network = create_architecture(name, 150, **changes)
    width = network.body.segmentation_head[0].in_channels
    auxiliary = "with" if network.auxiliary else "without"
    return f"| `{name}`, width {width}, {auxiliary} auxiliary head | {millions(network):.2f} | {published} | {source} |"


def filled_in(text: str) -> str:
    """The document with its tables' rows made anew."""
    tables = {
        "networks": map(network_row, ARCHITECTURES),
        "encoders": map(encoder_row, PUBLISHED_ENCODERS),
        "published": (published_row(*row) for row in PUBLISHED_NETWORKS),
    }
    for name, rows in tables.items():
        pattern = rf"(<!-- {name} -->\n(?:\|.*\n){{2}})(?:\|.*\n)*"
        text, found = re.subn(pattern, lambda match, rows=rows: match[1] + "".join(f"{row}\n" for row in rows), text)
        assert found == 1, name
    return text


if __name__ == "__main__":
    write_text(DOCUMENT, filled_in(DOCUMENT.read_text(encoding="utf-8")))
