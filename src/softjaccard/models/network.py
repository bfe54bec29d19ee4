"""A segmentation network: normalisation, encoder and decoder in one module."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from timm.models.mobilevit import MobileVitBlock, MobileVitV2Block
from torch import Tensor, nn
from torch.nn import functional

from softjaccard.errors import InputError

# timm's names of parameters with more than one dimension that are no weights of a layer: class tokens and positions.
_UNDECAYED = re.compile(r"(_token|pos_embed|relative_position_bias_table|rel_pos_[hw])$")


class NetworkOutput(NamedTuple):
    """What a network makes of images, each map at its own resolution."""

    logits: Tensor
    """(B, C, h, w)."""
    auxiliary: Tensor | None
    """Logits of the auxiliary head (B, C, h', w'), if there is one."""
    features: Tensor | None
    """(B, D, h'', w''): the decoder's output, from which the logits are made; None where only logits are known."""


class SegmentationNetwork(nn.Module):
    """A network from images in [0, 1] to logits at the network's own resolution.

    The normalisation its encoder was trained with is part of the network, so that networks with different encoders
    (a teacher and a student) take the same images.

    Args:
        body: A model of segmentation_models.pytorch that takes normalised images.
        mean: Of each image channel, subtracted first.
        std: Of each image channel, divided by.
        auxiliary: From the encoder's second-last stage to logits; used by `outputs` alone.
        dropout: Probability of leaving out a channel of the decoder's output before the logits are made of it.
        channels_last: Keep channels last in memory, which is faster on CPUs and in half precision on GPUs.
    """

    mean: Tensor
    std: Tensor
    stride: int
    """Height and width of an image must be multiples of this."""

    def __init__(
        self,
        body: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        auxiliary: nn.Module | None = None,
        dropout: float = 0.0,
        channels_last: bool = False,
    ) -> None:
        """See the class."""
        super().__init__()
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.body = body.to(memory_format=self.memory_format)
        self.auxiliary = auxiliary.to(memory_format=self.memory_format) if auxiliary else None
        self.dropout = nn.Dropout2d(dropout)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        # MobileViT's blocks cut their maps, in the end at the encoder's stride, into patches, and else resize them.
        patches = (max(m.patch_size) for m in body.modules() if isinstance(m, (MobileVitBlock, MobileVitV2Block)))
        self.stride = int(self.encoder.output_stride) * max(patches, default=1)  # type: ignore[arg-type]

    @property
    def encoder(self) -> nn.Module:
        """The pretrained part."""
        encoder = self.body.encoder
        assert isinstance(encoder, nn.Module)
        return encoder

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, C, h, w) of images (B, 3, H, W); h and w are H and W over the logits' stride.

        Raises:
            InputError: If H or W is not a multiple of `stride`.
        """
        self._expect_size(image)
        return self._run(self._normalise(image))[0].logits

    def outputs(self, image: Tensor) -> NetworkOutput:
        """Return logits with what they are made of, and the auxiliary head's, of images (B, 3, H, W).

        Raises:
            InputError: If H or W is not a multiple of `stride`.
        """
        self._expect_size(image)
        output, stages = self._run(self._normalise(image))
        return output if self.auxiliary is None else output._replace(auxiliary=self.auxiliary(stages[-2]))

    @torch.no_grad()
    def predict(self, image: Tensor) -> Tensor:
        """Return logits (B, C, H, W) of images (B, 3, H, W) of any size, without gradient and in evaluation mode."""
        height, width = image.shape[-2:]
        # Padded with the mean colour, which is what the network takes for zero.
        padded = functional.pad(self._normalise(image), (0, -width % self.stride, 0, -height % self.stride))
        with evaluation_mode(self):
            logits = self._run(padded)[0].logits
        logits = functional.interpolate(logits, size=padded.shape[-2:], mode="bilinear", align_corners=False)
        return logits[..., :height, :width]

    def perturbed_outputs(self, image: Tensor, perturbed: int, dropout: float) -> tuple[NetworkOutput, Tensor]:
        """Return `outputs` of images, and other logits of the last ones of them, made of features with dropout.

        Whole channels of each of the encoder's stages are left out. The decoder gets all features, clean and perturbed,
        as one batch.

        Args:
            image: (B, 3, H, W).
            perturbed: The number n of images to perturb.
            dropout: Probability of leaving out a channel.

        Returns:
            The output, and logits (n, C, h, w).

        Raises:
            InputError: If H or W is not a multiple of `stride`.
        """
        self._expect_size(image)
        encoded = self._encode(self._normalise(image))
        pair = isinstance(encoded, tuple)
        clean, tokens = encoded if pair else (encoded, ())
        pixels, *features = clean
        dropped = [functional.dropout2d(stage[-perturbed:], dropout) for stage in features]
        stages = [torch.cat(both) for both in zip(clean, (pixels[-perturbed:], *dropped), strict=True)]
        tokens = [each if each is None else torch.cat((each, each[-perturbed:])) for each in tokens]
        both = self._decode((stages, tokens) if pair else stages)
        assert both.features is not None
        count = len(image)
        auxiliary = None if self.auxiliary is None else self.auxiliary(clean[-2])
        return NetworkOutput(both.logits[:count], auxiliary, both.features[:count]), both.logits[count:]

    def parameter_groups(
        self, learning_rate: float, decoder_factor: float, weight_decay: float
    ) -> list[dict[str, Any]]:
        """Split the parameters into groups for an optimiser.

        Args:
            learning_rate: Of the encoder.
            decoder_factor: The rest of the network learns this many times faster.
            weight_decay: Of weights; biases and scales (1-D parameters), class tokens and tables of positions have
                none.
        """
        encoder = {id(parameter) for parameter in self.encoder.parameters()}
        decaying = {
            id(parameter)
            for name, parameter in self.named_parameters()
            if parameter.ndim > 1 and not _UNDECAYED.search(name)
        }
        groups = []
        for part, factor in (("encoder", 1.0), ("decoder", decoder_factor)):
            members = [p for p in self.parameters() if p.requires_grad and (id(p) in encoder) == (part == "encoder")]
            for kind, decay in (("weights", weight_decay), ("biases", 0.0)):
                parameters = [p for p in members if (id(p) in decaying) == (kind == "weights")]
                groups.append(
                    {
                        "name": f"{part}_{kind}",
                        "params": parameters,
                        "lr": learning_rate * factor,
                        "weight_decay": decay,
                    }
                )
        return [group for group in groups if group["params"]]

    def _normalise(self, image: Tensor) -> Tensor:
        return (image - self.mean) / self.std

    def _expect_size(self, image: Tensor) -> None:
        height, width = image.shape[-2:]
        if height % self.stride or width % self.stride:
            raise InputError(
                f"Images of {height}x{width} do not fit this network: height and width must be multiples of "
                f"{self.stride}. Choose such a crop and padding (data.crop, data.pad_multiple)."
            )

    def _run(self, normalised: Tensor) -> tuple[NetworkOutput, Sequence[Tensor]]:
        """Return the output, without an auxiliary head's, and the encoder's stages."""
        encoded = self._encode(normalised)
        return self._decode(encoded), encoded[0] if isinstance(encoded, tuple) else encoded

    def _encode(self, normalised: Tensor) -> Any:
        """Return the encoder's stages, the images first; DPT's in a pair with what else its decoder takes."""
        return self.encoder(normalised.contiguous(memory_format=self.memory_format))

    def _decode(self, encoded: Any) -> NetworkOutput:
        body: Any = self.body
        features = body.decoder(*encoded) if isinstance(encoded, tuple) else body.decoder(encoded)
        return NetworkOutput(body.segmentation_head(self.dropout(features)), None, features)


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and then each of its modules into the mode it was in before."""
    modes = {module: module.training for module in network.modules()}
    try:
        network.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training
