"""From logits to one class for each pixel."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from softjaccard.errors import InputError

#: Names of the rules, and the score that `rankseg` maximises for each.
DECODINGS = {"argmax": None, "rankseg-iou": "iou", "rankseg-dice": "dice"}


def check_decoding(method: str) -> None:
    """Check that a rule can be used here.

    Raises:
        InputError: If there is no such rule, or the package it needs is not installed.
    """
    if method not in DECODINGS:
        raise InputError(f"decoding '{method}' is unknown; there are: {', '.join(DECODINGS)}.")
    if DECODINGS[method] and find_spec("rankseg") is None:
        raise InputError(f"decoding '{method}' needs the package rankseg: pip install \"softjaccard[rankseg]\"")


def decode(logits: Tensor, method: str = "argmax", *, from_logits: bool = True) -> Tensor:
    """Return class maps.

    - `argmax`: the most probable class of each pixel.
    - `rankseg-iou`, `rankseg-dice`: the map whose expected IoU or Dice is largest, where pixels are independent given
      the image (approximately: RankSEG-RMA of Wang and Dai, NeurIPS 2025, arXiv 2510.15362, by the authors' package).
      Each image and class is decided for itself, so the scores meant are those of `per="image"` and `per="class"`.
      A class whose probability exceeds ½ at no pixel of the image is not predicted there (unless that holds for all).

    Args:
        logits: (B, C, *spatial) with at least two classes, all finite; or probabilities.
        method: The rule.
        from_logits: Whether they are logits; for probabilities, which sum to 1 over the classes, False.

    Returns:
        int64 (B, *spatial).

    Raises:
        InputError: If there is no such rule, its package is not installed, or the logits have another shape.

    Example:
        >>> decode(torch.tensor([[0.2, 0.8, 0.6], [0.8, 0.2, 0.4]])[None], from_logits=False)
        tensor([[1, 0, 0]])
    """
    check_decoding(method)
    if logits.ndim < 3 or logits.shape[1] < 2:
        raise InputError(f"logits are {tuple(logits.shape)}; expected (B, C, *spatial) with at least two classes C.")
    score = DECODINGS[method]
    if score is None:
        return logits.argmax(1)
    from rankseg import RankSEG

    dtype = torch.promote_types(logits.dtype, torch.float32)
    classes: Tensor = RankSEG(metric=score)(logits.softmax(1, dtype=dtype) if from_logits else logits)
    return classes
