"""Networks by name, pretrained files, and what a network does with an image."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import save_file
from torch.nn.functional import interpolate

from softjaccard.errors import InputError
from softjaccard.models import AuxiliarySettings, create_model

TINY = "tu-test_resnet"
DEFAULT_TAG = timm.get_pretrained_cfg("resnet18d").tag


def tiny(architecture: str = "deeplabv3plus", **settings: Any) -> torch.nn.Module:
    return create_model(architecture, TINY, 5, **settings).eval()


@pytest.mark.parametrize(
    ("architecture", "stride"),
    [
        *[("deeplabv3plus", 4), ("deeplabv3", 8), ("unet", 1), ("fpn", 4), ("pspnet", 8), ("upernet", 4)],
        ("segformer", 4),
    ],
)
def test_logits_keep_their_stride_and_predictions_have_the_images_size(architecture: str, stride: int) -> None:
    network = tiny(architecture)
    image = torch.rand(2, 3, 64, 96)
    logits = network(image)
    assert logits.shape == (2, 5, 64 // stride, 96 // stride)
    prediction = network.predict(image)
    torch.testing.assert_close(prediction, interpolate(logits, size=(64, 96), mode="bilinear"))
    assert not prediction.requires_grad
    assert network.predict(image[..., :51, :77]).shape == (2, 5, 51, 77)


def test_predict_leaves_the_mode_as_it_was_and_pads_with_the_mean_colour() -> None:
    network = tiny()
    image = torch.rand(1, 3, 32, 40)
    padded = network.mean.expand(1, 3, 32, 48).clone()
    padded[..., :40] = image
    torch.testing.assert_close(network.predict(image), network.predict(padded)[..., :40])
    network.train()
    network.encoder.eval()
    modes = [module.training for module in network.modules()]
    network.predict(image)
    with pytest.raises(RuntimeError):
        network.predict(torch.rand(1, 5, 32, 40))
    with pytest.raises(TypeError):
        network.predict(image.to(torch.complex64).numpy())
    assert [module.training for module in network.modules()] == modes
    assert len(set(modes)) == 2


@pytest.mark.parametrize(
    ("encoder", "last"),
    [
        ("resnet18", "layer2.1.bn2.bias"),
        ("mobilenet_v2", "features.6.conv.3.bias"),
        ("tu-test_efficientnet", "model.blocks.2.0.bn2.bias"),
        (TINY, "model.layer2.0.downsample.2.bias"),
    ],
)
def test_stages_that_are_not_used_are_dropped(encoder: str, last: str) -> None:
    network = create_model("pspnet", encoder, 5)
    assert network.training
    assert list(dict(network.encoder.named_parameters()))[-1] == last
    image = torch.rand(2, 3, 64, 96)
    logits = network.eval()(image)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    whole = smp.create_model("pspnet", encoder, encoder_weights=None, classes=5, upsampling=1).eval()
    missing, unknown = whole.load_state_dict(network.body.state_dict(), strict=False)
    assert not unknown
    assert bool(missing) == (encoder != TINY)  # most of timm's feature extractors drop them themselves
    torch.testing.assert_close(whole(network._normalise(image)), logits)


@pytest.mark.parametrize("auxiliary", [None, AuxiliarySettings(channels=8)])
def test_unused_parts_inside_a_stage_are_frozen(auxiliary: AuxiliarySettings | None) -> None:
    network = create_model("pspnet", "tu-hrnet_w18_small", 5, auxiliary=auxiliary)
    output = network.outputs(torch.rand(2, 3, 64, 64))
    sum(logits.sum() for logits in output[:2] if logits is not None).backward()
    assert all((weight.grad is not None) == weight.requires_grad for weight in network.parameters())
    assert not all(weight.requires_grad for weight in network.parameters())


@pytest.mark.parametrize(
    ("weights", "tags"), [(None, []), ("imagenet", [DEFAULT_TAG, "ra2_in1k"]), ("ra2_in1k", ["ra2_in1k"] * 2)]
)
def test_published_weights_of_timm_by_tag(
    weights: str | None, tags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []

    def load_pretrained(model: torch.nn.Module, pretrained_cfg: dict[str, Any], **_: Any) -> None:
        loaded.append(pretrained_cfg["tag"])

    monkeypatch.setattr("timm.models._builder.load_pretrained", load_pretrained)
    for encoder in ("tu-resnet18d", "tu-resnet18d.ra2_in1k"):
        create_model("unet", encoder, 5, encoder_weights=weights)
    assert loaded == tags


def test_weights_of_encoders_that_are_not_timms(tmp_path: Path) -> None:
    state = create_model("segformer", "mit_b0", 5).encoder.state_dict()
    classifier = {"head.weight": torch.zeros(1000, 256), "head.bias": torch.zeros(1000)}  # as its authors publish it
    torch.save(state | classifier, tmp_path / "weights.pth")
    torch.manual_seed(1)
    network = create_model("segformer", "mit_b0", 5, encoder_weights=str(tmp_path / "weights.pth"))
    for name, value in network.encoder.state_dict().items():
        torch.testing.assert_close(value, state[name])


def test_dropout_before_the_logits() -> None:
    with pytest.raises(InputError, match=r"dropout is 1.0"):
        tiny(dropout=1.0)
    network = tiny("unet", dropout=0.5)
    image = torch.rand(2, 3, 64, 96)
    torch.testing.assert_close(network(image), network.body(network._normalise(image)))
    network.dropout.train()
    output = network.outputs(image)
    assert output.features.flatten(2).any(2).all()
    assert not output.logits.allclose(network.body.segmentation_head(output.features))


def test_compiling_changes_neither_values_nor_names(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    compiled, compile_fully = [], torch.compile

    def compile_quickly(function: Any) -> Any:
        compiled.append(function)
        return compile_fully(function, backend="eager")

    monkeypatch.setattr(torch, "compile", compile_quickly)
    plain = tiny("unet", auxiliary=AuxiliarySettings(channels=8))
    network = tiny("unet", auxiliary=AuxiliarySettings(channels=8), compile=True)
    network.load_state_dict(plain.state_dict())
    assert len(compiled) == 3
    image = torch.rand(2, 3, 64, 96)
    for each in (plain, network):
        output = each.outputs(image)
        (output.logits.square().mean() + output.auxiliary.mean()).backward()
    torch.testing.assert_close(network(image), plain(image))
    for parameter, other in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad)
    copy = deepcopy(network)  # as for a teacher that follows the student
    torch.nn.init.zeros_(copy.body.segmentation_head[0].weight)
    assert not copy(image).allclose(network(image))


def test_sizes_that_do_not_divide_are_refused() -> None:
    network = tiny()
    with pytest.raises(InputError, match=r"40x64.*multiples of 16"):
        network(torch.rand(1, 3, 40, 64))


def test_channels_last_changes_nothing_but_the_layout() -> None:
    plain, other = tiny(), tiny(channels_last=True)
    other.load_state_dict(plain.state_dict())
    image = torch.rand(2, 3, 64, 64)
    assert other(image).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(other(image), plain(image))


def test_the_networks_normalisation_is_its_encoders() -> None:
    lite = create_model(encoder="tu-tf_efficientnet_lite0", num_classes=11)
    assert lite.mean.flatten().tolist() == lite.std.flatten().tolist() == [0.5, 0.5, 0.5]
    native = create_model("unet", "resnet18", num_classes=2)
    torch.testing.assert_close(native.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    given = tiny(mean=[0.1, 0.2, 0.3], std=[1.0, 2.0, 3.0])
    given.load_state_dict({**(plain := tiny()).state_dict(), "mean": given.mean, "std": given.std})
    image = torch.rand(1, 3, 32, 32)
    same = (image - given.mean) / given.std * plain.std + plain.mean
    torch.testing.assert_close(given(image), plain(same), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_file(tmp_path: Path, suffix: str) -> None:
    classifier = timm.create_model("test_resnet", pretrained=False)
    path = tmp_path / f"weights{suffix}"
    state = classifier.state_dict()  # has the classifier's last layer too
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    encoder = tiny(encoder_weights=str(path)).encoder.model.state_dict()
    assert set(state) - set(encoder) == {"fc.weight", "fc.bias"}
    for name, value in encoder.items():
        torch.testing.assert_close(value, state[name])


def test_weights_of_networks_that_timm_flattens(tmp_path: Path) -> None:
    state = timm.create_model("test_convnext", pretrained=False).state_dict()
    torch.save(state, tmp_path / "weights.pth.tar")
    network = create_model("unet", "tu-test_convnext", 5, encoder_weights=str(tmp_path / "weights.pth.tar"))
    encoder = network.encoder.model.state_dict()
    assert any(name.startswith("stages_3.") for name in encoder)
    for name, value in encoder.items():
        torch.testing.assert_close(value, state[name.replace("stages_", "stages.").replace("stem_", "stem.")])


@pytest.mark.parametrize(
    ("encoder", "weights", "words"),
    [
        (TINY, "imagnet", "no file imagnet.*are: imagenet, r160_in1k"),
        (TINY, "ssl", "no file ssl.*are: imagenet"),
        (TINY, "x.pth.tar", "no file x.pth.tar"),
        (TINY, "weights/enc.ckpt", "no file weights/enc.ckpt"),
        ("resnet18", "imagnet", "are: imagenet, ssl"),
    ],
)
def test_names_of_weights_that_mean_nothing(encoder: str, weights: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        create_model("unet", encoder, 5, encoder_weights=weights)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    state = timm.create_model("test_resnet", pretrained=False).state_dict()
    del state["bn1.bias"]
    state["bn1.strange"] = torch.zeros(1)
    state["conv1.0.weight"] = torch.zeros(2, 3, 3, 3)
    torch.save(state, path)
    with pytest.raises(InputError) as caught:
        tiny(encoder_weights=str(path))
    for words in (str(path), "1 missing (such as bn1.bias)", "1 unknown (such as bn1.strange)", "conv1.0.weight"):
        assert words in str(caught.value)


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    for name, content in (("a.pth", b"text"), ("b.safetensors", b"text"), ("c.pt", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            tiny(encoder_weights=str(tmp_path / name))
    torch.save(torch.nn.Linear(1, 1), tmp_path / "module.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("module.pth", "list.pth", "missing.pth"):
        with pytest.raises(InputError, match=name):
            tiny(encoder_weights=str(tmp_path / name))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nonet", TINY), "'nonet' is unknown.*deeplabv3plus"),
        (("unet", "tu-nonsense"), "'tu-nonsense'"),
        (("unet", "nonsense"), "'nonsense'"),
        (("unet", TINY, 5, {"options": {"sauce": 1}}), "sauce"),
    ],
)
def test_unknown_names(arguments: tuple[Any, ...], words: str) -> None:
    *positional, settings = arguments if isinstance(arguments[-1], dict) else (*arguments, {})
    with pytest.raises(InputError, match=words):
        create_model(*positional, **settings)


def test_parameter_groups_hold_every_parameter_once() -> None:
    network = tiny()
    groups = {group["name"]: group for group in network.parameter_groups(0.1, 10.0, 0.01)}
    members = [id(parameter) for group in groups.values() for parameter in group["params"]]
    assert sorted(members) == sorted(id(parameter) for parameter in network.parameters())
    encoder = {id(parameter) for parameter in network.encoder.parameters()}
    for name, group in groups.items():
        assert group["lr"] == pytest.approx(0.1 if name.startswith("encoder") else 1.0)
        assert group["weight_decay"] == (0.01 if name.endswith("weights") else 0.0)
        assert all((id(parameter) in encoder) == name.startswith("encoder") for parameter in group["params"])
        assert all((parameter.ndim > 1) == name.endswith("weights") for parameter in group["params"])


@pytest.mark.parametrize(
    ("architecture", "encoder", "tables"),
    [("dpt", "tu-test_vit", {"cls_token", "pos_embed"}), ("unet", "tu-test_maxvit", {"relative_position_bias_table"})],
)
def test_tokens_and_tables_of_positions_do_not_decay(architecture: str, encoder: str, tables: set[str]) -> None:
    network = create_model(architecture, encoder, 5)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    undecayed = [
        parameter
        for group in network.parameter_groups(0.1, 10.0, 0.01)
        if not group["weight_decay"]
        for parameter in group["params"]
    ]
    found = {names[id(parameter)].rpartition(".")[2] for parameter in undecayed if parameter.ndim > 1}
    assert found == tables


@pytest.mark.parametrize("architecture", ["deeplabv3plus", "unet", "pspnet", "segformer"])
def test_outputs_have_the_auxiliary_head_and_what_the_logits_are_made_of(architecture: str) -> None:
    network = tiny(architecture, auxiliary=AuxiliarySettings(channels=8))
    image = torch.rand(2, 3, 64, 96)
    output = network.outputs(image)
    torch.testing.assert_close(output.logits, network(image))
    torch.testing.assert_close(network.body.segmentation_head(output.features), output.logits)
    stage = network.encoder(network._normalise(image))[-2]
    assert output.auxiliary.shape == (2, 5, *stage.shape[-2:])
    output.auxiliary.sum().backward()
    touched = {name.split(".")[0] for name, weight in network.named_parameters() if weight.grad is not None}
    assert touched == {"body", "auxiliary"}
    names = {group["name"]: group["params"] for group in network.parameter_groups(1.0, 10.0, 0.1)}
    assert any(weight is network.auxiliary[0].weight for weight in names["decoder_weights"])
    assert tiny(architecture).outputs(image).auxiliary is None


def test_settings_of_the_auxiliary_head_are_checked() -> None:
    with pytest.raises(InputError, match=r"auxiliary: share is 1.0, but must be between 0 and 1"):
        AuxiliarySettings(share=1.0)


@pytest.mark.parametrize("encoder", ["tu-test_resnet", "tu-test_vit", "mit_b0"])
def test_perturbed_features_give_other_logits_of_the_same_images(encoder: str) -> None:
    architecture = "dpt" if "vit" in encoder else "unet"
    auxiliary = None if architecture == "dpt" else AuxiliarySettings(channels=8)
    network = create_model(architecture, encoder, 5, auxiliary=auxiliary).eval()
    image = torch.rand(3, 3, 160, 160) if architecture == "dpt" else torch.rand(3, 3, 64, 96)
    expected = network.outputs(image)
    clean, undropped = network.perturbed_outputs(image, 2, 0.0)
    for name, value in expected._asdict().items():
        torch.testing.assert_close(getattr(clean, name), value)
    torch.testing.assert_close(undropped, expected.logits[1:])
    clean, dropped = network.perturbed_outputs(image, 2, 0.5)
    torch.testing.assert_close(clean.logits, expected.logits)
    assert not torch.allclose(dropped, undropped)


def test_features_are_left_out_by_channel_and_doubled_where_they_stay() -> None:
    network = tiny("unet")
    seen: list[list[torch.Tensor]] = []
    network.body.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network.perturbed_outputs(torch.rand(3, 3, 64, 64), 2, 0.5)
    (stages,) = seen
    assert torch.equal(stages[0][3:], stages[0][1:3])  # the images
    for stage in stages[1:]:
        clean, dropped = stage[1:3], stage[3:]
        kept = dropped.flatten(2).any(2)
        torch.testing.assert_close(dropped, torch.where(kept[:, :, None, None], 2 * clean, 0))
        assert 0.2 < kept.float().mean() < 0.8
