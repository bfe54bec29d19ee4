"""The networks of the paper's code by name, as settings."""

from __future__ import annotations

from typing import Any

from softjaccard.errors import InputError
from softjaccard.models.auxiliary import AuxiliarySettings
from softjaccard.models.factory import create_model
from softjaccard.models.network import SegmentationNetwork

_ENCODERS = {
    **{name: f"tu-{name}" for name in ("resnet18d", "resnet34d", "resnet50d", "resnet101d", "xception65")},
    "mobilenetv2": "tu-mobilenetv2_100",
    "efficientnet-b0": "tu-efficientnet_b0",
    "mobilevitv2": "tu-mobilevitv2_100",
    "convnext-base": "tu-convnext_base.fb_in22k_ft_in1k_384",
    **{f"mit-b{size}": f"mit_b{size}" for size in range(6)},
}

_COMBINATIONS = {
    "deeplabv3": ("resnet18d", "resnet50d", "resnet101d", "mobilenetv2", "xception65"),
    "deeplabv3plus": (
        *("resnet18d", "resnet34d", "resnet50d", "resnet101d"),
        *("mobilenetv2", "efficientnet-b0", "mobilevitv2"),
    ),
    "pspnet": ("resnet18d", "resnet101d"),
    "unet": ("resnet18d", "resnet50d", "resnet101d", "mobilenetv2"),
    "upernet": ("resnet101d", "convnext-base", "mit-b4"),
    "segformer": tuple(f"mit-b{size}" for size in range(6)),
}

_SMALL = {"resnet18d", "resnet34d", "mobilenetv2", "efficientnet-b0", "mobilevitv2"}


def _settings(architecture: str, encoder: str) -> dict[str, Any]:
    small = encoder in _SMALL
    return {
        "architecture": architecture,
        "encoder": _ENCODERS[encoder],
        "dropout": 0.1,
        "auxiliary": {"channels": 64 if small else 256},
        "model_options": _options(architecture, 128 if small else 512),
    }


def _options(architecture: str, width: int) -> dict[str, Any]:
    """Return an architecture's further arguments; dropout is left to the head, which all of them have."""
    if architecture in ("deeplabv3", "deeplabv3plus"):
        return {
            "encoder_output_stride": 8,
            "decoder_channels": width,
            "decoder_atrous_rates": [12, 24, 36],
            "decoder_aspp_dropout": 0.0,
        }
    if architecture == "pspnet":
        return {"encoder_depth": 5, "output_stride": 8, "psp_out_channels": width, "psp_dropout": 0.0}
    if architecture == "unet":
        # The width at full resolution is an eighth; it doubles with each halving of the resolution.
        return {
            "decoder_channels": [width // 8 * factor for factor in (16, 8, 4, 2, 1)],
            "decoder_interpolation": "bilinear",
        }
    return {"decoder_segmentation_channels" if architecture == "segformer" else "decoder_channels": width}


ARCHITECTURES: dict[str, dict[str, Any]] = {
    f"{architecture}-{encoder}": _settings(architecture, encoder)
    for architecture, encoders in _COMBINATIONS.items()
    for encoder in encoders
}
"""By name, such as deeplabv3plus-resnet50d: architecture, encoder, dropout, auxiliary and model_options, which are
`init_args` of a training module, as plain data. They are the 27 configurations of the paper's code
(github.com/zifuwanggg/JDTLosses, configs/models); docs/architectures.md says what differs from it."""


def create_architecture(name: str, num_classes: int, **settings: Any) -> SegmentationNetwork:
    """Build a network of the paper's code.

    Args:
        name: One of `ARCHITECTURES`.
        num_classes: Channels of the logits.
        settings: Further arguments of `create_model`, such as encoder_weights.

    Raises:
        InputError: If the name is unknown, or as `create_model`.

    Example:
        >>> create_architecture("deeplabv3plus-mobilenetv2", 19).stride
        8
    """
    if name not in ARCHITECTURES:
        raise InputError(f"architecture '{name}' is unknown; there are: {', '.join(ARCHITECTURES)}.")
    known = dict(ARCHITECTURES[name])
    options, auxiliary = known.pop("model_options"), AuxiliarySettings(**known.pop("auxiliary"))
    return create_model(num_classes=num_classes, **{**known, "options": options, "auxiliary": auxiliary, **settings})
