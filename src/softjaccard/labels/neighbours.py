"""Labels that are softened by those of the pixels around."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from softjaccard.labels.boundaries import expect_window
from softjaccard.labels.kinds import NeighbourLabel

_LEAST_SIGMA = 0.1
"""With less the nearest neighbours have all say, to the last bit; far below, numbers are no longer finite."""

_OUTSIDE = -(2**31)
"""No class id, and nobody's `ignore_index`."""


def neighbourhood(index: Tensor, epsilon: float = 0.5, kernel_size: int = 3, sigma: float = 1.0) -> NeighbourLabel:
    r"""A hard label, mixed with those of the pixels around.

    .. math:: y_i = (1 - \epsilon)\, e_{c_i} + \epsilon \sum_{j \ne i} w_{ij}\, e_{c_j}, \qquad
              w_{ij} \propto \exp(-\|i - j\|^2 / 2 \sigma^2), \quad \sum_j w_{ij} = 1

    over the other pixels j of the window around i, with e_c the one-hot vector of class c; pixels that are ignored or
    outside the image count as of class c_i. So only boundaries become soft, and only classes nearby get a share there,
    whereas a :class:`SmoothedLabel` gives one to every class. With the defaults this is spatially varying label
    smoothing (SVLS; Islam and Glocker, IPMI 2021, arXiv 2104.05788), but for the image's border, whose pixels come
    again outside there.

    Args:
        index: integer class ids ``(B, *spatial)``, any number of spatial dimensions.
        epsilon: the share of the neighbours, in [0, 1].
        kernel_size: side of the window in pixels, odd; 3 softens a band two pixels wide, one on each side of an edge.
        sigma: how fast the say of neighbours falls off, in pixels.

    Returns:
        The ids in the window around each pixel, as votes of annotators.

    Raises:
        TypeError: ``index`` is not an integer tensor.
        ValueError: ``epsilon`` is outside [0, 1], ``kernel_size`` not odd or below 3, ``sigma`` below 0.1, or
            ``index`` has no spatial dimension.

    Example:
        >>> neighbourhood(torch.tensor([[0, 0, 0, 1, 1, 1]])).dense(2)[0][0, 1]
        tensor([0.0000, 0.0000, 0.2500, 0.7500, 1.0000, 1.0000])
    """
    expect_window(index, kernel_size, least=3)
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon: expected a number in [0, 1], got {epsilon}")
    if not _LEAST_SIGMA <= sigma < math.inf:
        raise ValueError(f"sigma: expected a finite number of at least {_LEAST_SIGMA}, got {sigma}")
    reach, spatial = kernel_size // 2, index.shape[1:]
    around = functional.pad(index.to(torch.int32), [reach] * 2 * len(spatial), value=_OUTSIDE)
    offsets = list(itertools.product(range(kernel_size), repeat=len(spatial)))
    votes = torch.stack([_cut(around, offset, spatial) for offset in offsets], 1)
    distances = torch.tensor([math.dist(offset, [reach] * len(spatial)) for offset in offsets])
    own = distances == 0
    others = (-((distances / sigma) ** 2) / 2).masked_fill(own, -math.inf).softmax(0)
    weights = torch.where(own, 1 - epsilon, epsilon * others)
    return NeighbourLabel(votes, weights.to(index.device))


def _cut(around: Tensor, offset: Sequence[int], spatial: Sequence[int]) -> Tensor:
    """The part of a padded map (B, *padded) that begins at ``offset``."""
    for axis, (start, length) in enumerate(zip(offset, spatial, strict=True), 1):
        around = around.narrow(axis, start, length)
    return around
