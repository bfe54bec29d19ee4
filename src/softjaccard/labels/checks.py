"""How errors about tensors are said, and how invalid values are found without stalling a device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: By how much a probability or a sum of probabilities may miss its bounds; more for the half precisions.
_TOLERANCE = 1e-4


def describe(value: object) -> str:
    """What came, for an error message: dtype and shape of a tensor or array, else the type and the value.

    Example:
        >>> describe(torch.zeros(2, 3))
        'a float32 tensor of shape (2, 3)'
    """
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        kind = f"{type(value).__module__}.{type(value).__name__}"
        return f"a {kind} of {value.dtype} and shape {tuple(value.shape)}; torch.as_tensor(...) makes a tensor of it"
    return f"{type(value).__name__} {value!r:.80}"


def is_integer(value: object) -> bool:
    """Whether this is a tensor of an integer dtype; booleans count as the integers 0 and 1."""
    return isinstance(value, Tensor) and not value.is_floating_point() and not value.is_complex()


def tolerance(dtype: torch.dtype) -> float:
    """By how much the probabilities of one pixel, stored in this dtype, may miss the sum 1."""
    return max(_TOLERANCE, 8 * torch.finfo(dtype).eps)


class ValueCheck:
    """Finds invalid pixel values: raises at once, or collects where they are.

    Raising needs to look at the values, which would stall an accelerator and cannot be traced; where ``raises`` is
    false the pixels found are kept in ``invalid`` and get the weight NaN, so that the result is NaN and not wrong.
    """

    def __init__(self, raises: bool) -> None:
        """Start with no invalid pixel known; see the class."""
        self.raises = raises
        self.invalid: Tensor | None = None

    def flag(self, condition: Tensor, explain: Callable[[], str]) -> None:
        """Note that the pixels where ``condition`` holds, ``(B, 1 or C, *spatial)``, are invalid."""
        if not self.raises:
            self.invalid = condition if self.invalid is None else self.invalid | condition
        elif bool(condition.any()):
            raise ValueError(explain())
