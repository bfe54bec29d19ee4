"""Build networks by name and fill their encoders with pretrained weights."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.func import functional_call

from softjaccard.errors import InputError, first_line
from softjaccard.models.auxiliary import AuxiliaryHead, AuxiliarySettings
from softjaccard.models.network import NetworkOutput, SegmentationNetwork


def create_model(
    architecture: str = "deeplabv3plus",
    encoder: str = "tu-tf_efficientnet_lite0",
    num_classes: int = 11,
    *,
    encoder_weights: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    channels_last: bool = False,
    compile: bool = False,  # noqa: A002
    dropout: float = 0.0,
    auxiliary: AuxiliarySettings | None = None,
    options: Mapping[str, Any] | None = None,
) -> SegmentationNetwork:
    """Build a segmentation network.

    Args:
        architecture: A name of segmentation_models.pytorch, such as "deeplabv3plus" or "unet".
        encoder: A name of segmentation_models.pytorch, such as "resnet18", or "tu-" and a name of timm.
        num_classes: Channels of the logits.
        encoder_weights: None for random ones; the name of published ones, such as "imagenet", or for "tu-" encoders a
            tag of timm's, such as "a1_in1k", which are downloaded; or the path of a file with the encoder's state, in
            .safetensors or torch's format (for "tu-" encoders as timm publishes it).
        mean: Of the images' channels in [0, 1], as the weights expect it; by default timm's for "tu-" encoders,
            ImageNet's for others.
        std: Likewise.
        channels_last: Keep channels last in memory, which is faster on CPUs and in half precision on GPUs.
        compile: Compile encoder, decoder and head with torch.compile when they are first used.
        dropout: Probability of leaving out a channel of the decoder's output before the logits are made of it, beside
            the dropout that some architectures have themselves.
        auxiliary: Add a head on the encoder's second-last stage.
        options: Further arguments of the architecture's class in segmentation_models.pytorch.

    Raises:
        InputError: If a name is unknown, a file is missing, or weights do not fit the encoder.

    Example:
        >>> model = create_model("unet", "resnet18", num_classes=5)
        >>> model(torch.rand(2, 3, 64, 96)).shape
        torch.Size([2, 5, 64, 96])
    """
    if architecture not in smp.MODEL_ARCHITECTURES_MAPPING:
        known = ", ".join(smp.MODEL_ARCHITECTURES_MAPPING)
        raise InputError(f"architecture '{architecture}' is unknown; segmentation_models.pytorch has: {known}.")
    if not 0 <= dropout < 1:
        raise InputError(f"dropout is {dropout}, but must be from 0 to below 1.")
    path = weights_path(encoder, encoder_weights)
    published = None if path else encoder_weights
    if published in _tags(encoder):
        encoder = f"{encoder.partition('.')[0]}.{published}"
    arguments = dict(options or {})
    if "upsampling" in inspect.signature(smp.MODEL_ARCHITECTURES_MAPPING[architecture]).parameters:
        arguments.setdefault("upsampling", 1)
    try:
        body = smp.create_model(
            architecture,
            encoder_name=encoder,
            # timm's encoders have the tag of their weights in their name, and take True for these weights.
            encoder_weights=True if published and encoder.startswith("tu-") else published,
            classes=num_classes,
            **arguments,
        )
    except (KeyError, RuntimeError, OSError, TypeError, ValueError) as error:
        wanted = f" with weights '{published}'" if published else ""
        raise InputError(f"{architecture} with encoder '{encoder}'{wanted} cannot be built: {error}") from error
    if path:
        load_encoder_weights(body.encoder, path)
    configuration = getattr(getattr(body.encoder, "model", None), "pretrained_cfg", {})
    network = SegmentationNetwork(
        body,
        mean=mean or configuration.get("mean", IMAGENET_DEFAULT_MEAN),
        std=std or configuration.get("std", IMAGENET_DEFAULT_STD),
        auxiliary=AuxiliaryHead(body.encoder.out_channels[-2], num_classes, auxiliary) if auxiliary else None,
        dropout=dropout,
        channels_last=channels_last,
    )
    size = configuration["input_size"] if configuration.get("fixed_input_size") else (3, 256, 256)
    _drop_unused(network.encoder, _unused_parameters(network, size))
    if compile:
        # One by one, because the body is not called as a whole; in place, so that names of the state stay.
        for part in (body.encoder, body.decoder, body.segmentation_head):
            part.compile()
    return network


class _Outputs(nn.Module):
    """A network whose call gives all its outputs."""

    def __init__(self, network: SegmentationNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> NetworkOutput:
        return self.network.outputs(image)


def _unused_parameters(network: SegmentationNetwork, size: Sequence[int]) -> set[int]:
    """Return which parameters (by id) have no part in any logits, found out on tensors that have only a shape."""
    outputs = _Outputs(network.eval())
    shapes = {
        name: torch.empty_like(tensor, device="meta", requires_grad=isinstance(tensor, nn.Parameter))
        for name, tensor in [*outputs.named_parameters(), *outputs.named_buffers()]
    }
    output = functional_call(outputs, shapes, torch.empty(1, *size, device="meta"))
    network.train()
    logits = [each.sum() for each in (output.logits, output.auxiliary) if each is not None]
    parameters = dict(outputs.named_parameters())
    gradients = torch.autograd.grad(sum(logits), [shapes[name] for name in parameters], allow_unused=True)
    return {
        id(parameter) for parameter, gradient in zip(parameters.values(), gradients, strict=True) if gradient is None
    }


def _drop_unused(encoder: nn.Module, unused: set[int]) -> None:
    """Remove an encoder's unused stages, and freeze unused parameters that are deeper inside.

    DistributedDataParallel waits for the gradient of every parameter that could have one.
    """
    containers = [encoder, getattr(encoder, "model", encoder)]
    for container in containers:
        for name, child in list(container.named_children()):
            ids = {id(parameter) for parameter in child.parameters()}
            # A list of modules is gone through, which an identity cannot be.
            if ids and ids <= unused and not isinstance(child, nn.ModuleList):
                setattr(container, name, nn.Identity())
            elif isinstance(child, nn.Sequential):
                containers.append(child)
    for parameter in encoder.parameters():
        parameter.requires_grad_(id(parameter) not in unused)


def weights_path(encoder: str, weights: str | None) -> Path | None:
    """Return the file that an encoder's weights are in, or None for random and published weights.

    Raises:
        InputError: If it is missing, or there are no published weights of that name.
    """
    if weights is None:
        return None
    path = Path(weights).expanduser()
    if path.is_file():
        return path
    if any(separator in weights for separator in {"/", os.sep}):
        raise InputError(
            f"encoder_weights: there is no file {weights}. Put it there, or name another one, or published weights "
            "(imagenet)."
        )
    known = smp.encoders.encoders.get(encoder, {"pretrained_settings": ["imagenet"]})
    published = ["imagenet", *_tags(encoder)] if encoder.startswith("tu-") else list(known["pretrained_settings"])
    if weights not in published:
        raise InputError(
            f"encoder_weights: there is no file {weights}, and the published weights of '{encoder}' are: "
            f"{', '.join(published)}."
        )
    return None


def _tags(encoder: str) -> list[str]:
    """Return the tags of the weights that timm has for an encoder ("tu-" and its name, with or without a tag)."""
    name = encoder.removeprefix("tu-").partition(".")[0]
    return [tagged.partition(".")[2] for tagged in timm.list_models(f"{name}.*", pretrained=True)]


def load_encoder_weights(encoder: nn.Module, path: Path) -> None:
    """Fill an encoder from a file; every tensor must be there and fit, only a classifier's may be left over.

    Args:
        encoder: An encoder of segmentation_models.pytorch; for one that wraps timm's, the file has timm's keys (where
            timm's feature extractors write `stages_0` for `stages.0`, either will do).
        path: A state dictionary in .safetensors, or in torch's format (loaded with `weights_only=True`).

    Raises:
        InputError: If the file is missing or unreadable, or its tensors do not fit.
    """
    target = encoder.model if isinstance(getattr(encoder, "model", None), nn.Module) else encoder
    assert isinstance(target, nn.Module)
    state, expected = _read_state(path), target.state_dict()
    # timm flattens containers to extract features, and joins their names by "_".
    joined = {key.replace(".", "_"): key for key in expected}
    state = {joined.get(key.replace(".", "_"), key): value for key, value in state.items()}
    # Files of whole classifiers have parts that an encoder has not, such as "classifier.weight".
    parts = {key.split(".")[0] for key in expected}
    state = {key: value for key, value in state.items() if key.split(".")[0] in parts}
    problems = {
        "missing": [key for key in expected if key not in state],
        "unknown": [key for key in state if key not in expected],
        "of another shape": [key for key in state if key in expected and state[key].shape != expected[key].shape],
    }
    if any(problems.values()):
        counts = ", ".join(f"{len(keys)} {what} (such as {keys[0]})" for what, keys in problems.items() if keys)
        raise InputError(f"The weights in {path} do not fit the encoder: of its {len(expected)} tensors, {counts}.")
    target.load_state_dict(state)


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"encoder_weights: there is no file {path}.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make torch stumble over anything
        raise InputError(f"encoder_weights: {path} cannot be read as a file of tensors: {first_line(error)}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"encoder_weights: {path} does not hold a dictionary of tensors.")
    return state
