"""The auxiliary head: a second, simpler classifier that keeps the encoder's middle informative while it trains."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from softjaccard.errors import check_settings


@dataclass(frozen=True)
class AuxiliarySettings:
    """An auxiliary head on the encoder's second-last stage.

    It is trained with cross-entropy only, as in the paper's code (arXiv 2302.05666).

    Args:
        share: Its part of the loss's cross-entropy; the main head has the rest.
        channels: Width of its hidden layer.
        dropout: Probability of leaving out a hidden channel.
    """

    share: float = 0.5
    channels: int = 256
    dropout: float = 0.1

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            InputError: If one is out of its range.
        """
        checks = (
            ("share", 0 < self.share < 1, "between 0 and 1"),
            ("channels", self.channels >= 1, "at least 1"),
            ("dropout", 0 <= self.dropout < 1, "from 0 to below 1"),
        )
        check_settings("auxiliary", self, checks)


class AuxiliaryHead(nn.Sequential):
    """3x3 convolution, batch norm, ReLU, dropout, 1x1 convolution: logits (B, C, h, w) of a stage (B, D, h, w)."""

    def __init__(self, in_channels: int, num_classes: int, settings: AuxiliarySettings) -> None:
        """See the class."""
        super().__init__(
            nn.Conv2d(in_channels, settings.channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(settings.channels),
            nn.ReLU(inplace=True),
            nn.Dropout2d(settings.dropout),
            nn.Conv2d(settings.channels, num_classes, 1),
        )
