"""The named networks: each trains, predicts and comes back from a file, and the document says how large it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import architecture_tables
from softjaccard.errors import InputError
from softjaccard.models import ARCHITECTURES, create_architecture

FAST = {
    "deeplabv3-mobilenetv2",
    "deeplabv3plus-mobilevitv2",
    "pspnet-resnet18d",
    "unet-mobilenetv2",
    "segformer-mit-b0",
}
#: Of the logits and of the auxiliary head's.
STRIDES = {
    "deeplabv3": (8, 8),
    "deeplabv3plus": (4, 8),
    "pspnet": (8, 8),
    "unet": (1, 16),
    "upernet": (4, 16),
    "segformer": (4, 16),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in ARCHITECTURES]
)
def test_trains_predicts_and_comes_back_from_a_file(name: str, tmp_path: Path) -> None:
    network = create_architecture(name, 7)
    image, label = torch.rand(2, 3, 64, 96), torch.randint(7, (2,))
    output = network.outputs(image)
    stride, middle = STRIDES[name.partition("-")[0]]
    assert output.logits.shape == (2, 7, 64 // stride, 96 // stride)
    assert output.auxiliary.shape == (2, 7, 64 // middle, 96 // middle)
    means = [logits.mean((2, 3)) for logits in (output.logits, output.auxiliary)]
    sum(torch.nn.functional.cross_entropy(mean, label) for mean in means).backward()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name

    groups = network.parameter_groups(0.1, 10.0, 0.01)
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(members) == sorted(id(parameter) for parameter in network.parameters())
    assert all(parameter.ndim == 1 for group in groups if not group["weight_decay"] for parameter in group["params"])
    torch.optim.SGD(groups).step()

    torch.save(network.state_dict(), tmp_path / "network.pt")
    prediction = network.predict(image[..., :51, :77])
    assert prediction.shape == (2, 7, 51, 77)
    del network, output, groups
    again = create_architecture(name, 7)
    again.load_state_dict(torch.load(tmp_path / "network.pt", weights_only=True))
    torch.testing.assert_close(again.predict(image[..., :51, :77]), prediction)


@pytest.mark.parametrize("name", sorted(FAST))
def test_the_document_has_the_parameters(name: str) -> None:
    assert architecture_tables.network_row(name) in architecture_tables.DOCUMENT.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_document_has_all_tables() -> None:
    text = architecture_tables.DOCUMENT.read_text(encoding="utf-8")
    assert architecture_tables.filled_in(text) == text


def test_settings_are_plain_data() -> None:
    assert len(ARCHITECTURES) == 27
    assert yaml.safe_load(yaml.safe_dump(ARCHITECTURES)) == ARCHITECTURES


def test_settings_can_be_added_and_names_are_checked() -> None:
    network = create_architecture("unet-mobilenetv2", 3, auxiliary=None, channels_last=True, dropout=0.5)
    assert (network.auxiliary, network.dropout.p, network.memory_format) == (None, 0.5, torch.channels_last)
    with pytest.raises(InputError, match=r"'unet-resnet19d' is unknown; .*unet-resnet18d"):
        create_architecture("unet-resnet19d", 3)


def test_the_tables_would_show_another_size(monkeypatch: pytest.MonkeyPatch) -> None:
    changed: dict[str, Any] = {**ARCHITECTURES["segformer-mit-b0"], "model_options": {}}
    monkeypatch.setitem(ARCHITECTURES, "segformer-mit-b0", changed)
    assert architecture_tables.network_row("segformer-mit-b0") not in architecture_tables.DOCUMENT.read_text()
