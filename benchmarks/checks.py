"""Whether the triton backend on a GPU is as near to float64 as the reference, and gives the same twice.

The tests compare far more cases, but in triton's interpreter; these are chosen for what only a GPU shows: vectors,
many programs, rounding, positions beyond 32 bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from softjaccard import SmoothedLabel, TeacherLabel, region_statistics

Size = tuple[int, int]
_DIFFERENTIABLE = ("prediction", "overlap", "cross_entropy", "product", "prediction_square")
#: The triton backend's error may be this multiple of the other's in the same precision, and a few roundings.
_FACTOR, _FEW, _FEW_OF_MANY = 2, 2e-6, 2e-5


@dataclass(frozen=True)
class CheckCase:
    """One call of the triton backend, forward and backward, with everything it can sum."""

    shape: tuple[int, int, int, int] = (2, 19, 67, 93)
    """(B, C, H, W) of the label's resolution."""
    low: Size | None = None
    """The logits' resolution, if another."""
    label: str = "hard"
    dtype: str = "float32"
    mask: str | None = None
    gradient: str = "exact"
    align_corners: bool = False
    channels_last: bool = False
    teacher_low: Size | None = None
    """The resolution of a teacher's logits, if another than the logits'."""
    against: str = "reference"
    """The backend to compare with: chunked where the reference would need more memory than there is."""

    @property
    def name(self) -> str:
        """The case in a line: what differs from the most usual one."""
        usual, mine = vars(CheckCase()), vars(self)
        return " ".join(["check", *(f"{name}={mine[name]}" for name in mine if mine[name] != usual[name])])

    def measure(self, device: torch.device, _: float) -> dict[str, object]:
        """The errors of the triton backend and of the other one in the same precision, both against float64."""
        torch.manual_seed(0)
        dtype, (images, classes, *full) = getattr(torch, self.dtype), self.shape
        low = self.low or full
        logits = 2 * torch.randn(images, classes, *low, device=device)
        if self.channels_last:
            logits = logits.to(memory_format=torch.channels_last)
        logits = logits.to(dtype).requires_grad_()
        label = self._draw_label(self.teacher_low or low, dtype, device)
        keep = torch.rand(images, *full, device=device)
        mask = {None: None, "bool": keep > 0.3, "weights": keep * (keep > 0.3)}[self.mask]
        slopes = {name: torch.randn(images, classes, dtype=torch.float64, device=device) for name in _DIFFERENTIABLE}

        mine, again = (self._sums("triton", logits, label, mask, slopes) for _ in range(2))
        plain = self._sums(self.against, logits, label, mask, slopes)
        wide_label = _wide(label) if isinstance(label, Tensor) else label.map(_wide)
        wide_mask = None if mask is None else _wide(mask)
        truth = self._sums(self.against, _wide(logits).requires_grad_(), wide_label, wide_mask, slopes)

        few = _FEW if self.against == "reference" else _FEW_OF_MANY
        errors = {name: (_error(mine[name], truth[name]), _error(plain[name], truth[name])) for name in truth}
        allowed = {name: _FACTOR * other + few for name, (_, other) in errors.items()}
        if device.type != "cuda" and self.dtype != "float32":  # triton's interpreter cuts bfloat16 off; a GPU rounds
            allowed["gradient"] += torch.finfo(dtype).eps
        too_large = [name for name, (error, _) in errors.items() if not error <= allowed[name]]
        same_twice = all(torch.equal(mine[name], again[name]) for name in mine)
        return {
            "errors": {name: {"triton": error, self.against: other} for name, (error, other) in errors.items()},
            "too_large": too_large,
            "same_twice": same_twice,
            "passed": same_twice and not too_large,
        }

    def _draw_label(self, teacher_size: Size | list[int], dtype: torch.dtype, device: torch.device) -> Any:
        images, classes, *full = self.shape
        index = torch.randint(classes, (images, *full), device=device)
        index[torch.rand(index.shape, device=device) < 0.05] = -100
        if self.label == "smoothed":
            return SmoothedLabel(index, 0.5, torch.rand(index.shape, device=device) < 0.1)
        if self.label == "dense":  # shares of eight votes, which no precision rounds
            votes = torch.randint(classes, (8, *index.shape), device=device)
            return F.one_hot(votes, classes).float().mean(0).movedim(-1, 1).to(dtype).contiguous()
        if self.label == "teacher":
            return TeacherLabel(2 * torch.randn(images, classes, *teacher_size, device=device).to(dtype), 1.5)
        return index

    def _sums(
        self, backend: str, logits: Tensor, label: Any, mask: Tensor | None, slopes: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """All statistics, and the gradient of their combination."""
        options: dict[str, Any] = {"mask": mask, "gradient": self.gradient, "backend": backend}
        if self.low or self.teacher_low:
            options |= {"upsample": "bilinear", "size": self.shape[2:], "align_corners": self.align_corners}
        found = region_statistics(logits, label, **options)
        value = torch.stack([(found[name].double() * slope).sum() for name, slope in slopes.items()]).sum()
        fields = {name: field.detach() for name, field in found.fields().items()}
        return {**fields, "gradient": torch.autograd.grad(value, logits)[0]}


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().double() if tensor.is_floating_point() else tensor


def _error(actual: Tensor, expected: Tensor) -> float:
    """The largest deviation relative to the largest value, in float64 as ``expected``; infinite if one isn't finite."""
    error = float((actual - expected).abs_().max() / expected.abs().max().clamp(min=1e-30))
    return error if math.isfinite(error) else math.inf


_LOW = (17, 24)
_WIDE = CheckCase((2, 150, 64, 80))
_LARGE = CheckCase((8, 19, 256, 512))
_HUGE = CheckCase((1, 300, 2048, 4096), dtype="bfloat16", against="chunked")
#: The most usual first; those that need most memory last.
CHECKS: tuple[CheckCase, ...] = (
    *(CheckCase(low=low, label=label) for label in ("hard", "teacher") for low in (None, _LOW)),
    CheckCase(label="smoothed"),
    CheckCase(label="smoothed", low=_LOW, align_corners=True),
    CheckCase(label="dense"),
    *(CheckCase(low=low, dtype=dtype) for low in (None, _LOW) for dtype in ("bfloat16", "float16")),
    _WIDE,
    replace(_WIDE, low=(16, 20)),
    replace(_WIDE, dtype="bfloat16"),
    CheckCase((2, 19, 64, 96), dtype="bfloat16"),
    _LARGE,
    replace(_LARGE, low=(64, 128)),
    CheckCase(mask="bool", gradient="error_scaled"),
    CheckCase(mask="weights", low=_LOW),
    CheckCase(channels_last=True),
    CheckCase(channels_last=True, low=_LOW),
    replace(_WIDE, channels_last=True, dtype="bfloat16"),
    CheckCase(label="teacher", low=_LOW, teacher_low=(9, 31), align_corners=True),
    CheckCase(label="teacher", teacher_low=(9, 31)),
    *(CheckCase((2, classes, 33, 70), low) for low in (None, (9, 20)) for classes in (2, 3, 17, 151, 300, 1024)),
    *(CheckCase(label=label, mask="weights", gradient="error_scaled") for label in ("smoothed", "dense")),
    *(replace(_WIDE, label="teacher", dtype="bfloat16", low=low) for low in (None, (16, 20))),
    CheckCase((1, 24, 1024, 2048)),
    replace(_HUGE, low=(512, 1024)),
    _HUGE,
)


def tiny_checks() -> list[CheckCase]:
    """The same with small images and few classes, for triton's interpreter."""

    def tiny(case: CheckCase) -> CheckCase:
        return replace(
            case,
            shape=(1, min(case.shape[1], 5), 5, 7),
            low=case.low and (2, 3),
            teacher_low=case.teacher_low and (3, 2),
        )

    return list(dict.fromkeys(map(tiny, CHECKS)))
