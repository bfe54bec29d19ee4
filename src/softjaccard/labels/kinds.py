"""The kinds of label, and what each says about a pixel."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from softjaccard.labels.checks import ValueCheck, describe, is_integer, tolerance

Activation: TypeAlias = Literal["softmax", "sigmoid"] | None


class Resolved(NamedTuple):
    """What a label says about some pixels."""

    value: Tensor
    """The distribution (B, C, *spatial); some finite value where not counted."""
    counted: Tensor | None
    """Boolean (B, 1 or C, *spatial): the pixels with a label; None if all have one."""


def probabilities(logits: Tensor, activation: Activation) -> Tensor:
    """Probabilities ``(B, C, *spatial)`` of logits of that shape; under None the input is probabilities already."""
    if activation == "softmax":
        return torch.softmax(logits, 1)
    # Contiguous, because strides can change sigmoid's last bit, and equal logits have to give equal probabilities.
    return torch.sigmoid(logits.contiguous()) if activation == "sigmoid" else logits


@dataclass(frozen=True, eq=False)
class Label(ABC):
    """A label of any kind; its tensors are ``(B, *spatial)`` or ``(B, K, *spatial)``."""

    @abstractmethod
    def expect(self, shape: torch.Size, activation: Activation) -> Label:
        """This label made fit for logits of ``shape`` (B, C, *spatial); raises where shapes or dtypes don't fit."""

    @abstractmethod
    def resolve(
        self, shape: torch.Size, dtype: torch.dtype, options: LabelOptions, selected: Tensor | None, check: ValueCheck
    ) -> Resolved:
        """What this label (made fit for ``shape``) says; ``selected`` is the boolean mask of pixels that matter."""

    @property
    def soft(self) -> bool:
        """Whether this kind of label is a distribution: by its type, whatever its values."""
        return True

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that this label holds, by field name."""
        fields = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {name: value for name, value in fields if isinstance(value, Tensor)}

    def map(self, function: Callable[[Tensor], Tensor]) -> Label:
        """The same label with ``function`` applied to each of its tensors, such as a slice of the pixels."""
        changes: dict[str, Any] = {name: function(tensor) for name, tensor in self.tensors().items()}
        return dataclasses.replace(self, **changes)

    def dense(
        self,
        num_classes: int,
        ignore_index: int = -100,
        *,
        activation: Activation = "softmax",
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The distribution of every pixel as one tensor; see :func:`dense`."""
        return dense(self, num_classes, ignore_index, activation=activation, dtype=dtype)


LabelLike: TypeAlias = Tensor | Label


@dataclass(frozen=True)
class LabelOptions:
    """What the meaning of a label depends on besides the label."""

    ignore_index: int = -100
    activation: Activation = "softmax"
    temperature: float = 1.0


def _spatial(shape: torch.Size) -> str:
    return f"(B, *spatial) = {(shape[0], *shape[2:])}"


def _expect_index(name: str, index: Tensor, shape: torch.Size, activation: Activation) -> Tensor:
    """Integer ids that fit ``shape``: (B, *spatial) classes, or (B, C, *spatial) maps of 0 and 1."""
    if not is_integer(index):
        raise TypeError(f"{name}: expected integer class ids, got {describe(index)}")
    maps = activation != "softmax"
    if maps and index.shape == shape:
        return index
    if index.shape == (shape[0], *shape[2:]):
        if activation == "sigmoid" and shape[1] > 1:
            raise ValueError(
                f"{name}: under sigmoid with C = {shape[1]} every class has a map of its own; expected integers 0/1 of "
                f"shape (B, C, *spatial) = {tuple(shape)}, got {describe(index)}; class ids can be turned into maps by "
                f"softjaccard.dense(label, {shape[1]})"
            )
        return index.unsqueeze(1) if maps and shape[1] == 1 else index
    expected = _spatial(shape) + (f" or (B, C, *spatial) = {tuple(shape)}" if maps else "")
    hint = ""
    if index.ndim == len(shape) and index.shape[1] == 1:
        hint = "; remove the channel dimension with label.squeeze(1)"
    elif index.shape == shape:
        hint = "; one-hot integers become a distribution with label.float()"
    elif index.ndim == len(shape) - 1 and index.shape[0] == shape[0]:
        hint = "; logits of a lower resolution than the label are interpolated by upsample='bilinear'"
    raise ValueError(f"{name}: expected integers of shape {expected} for these logits, got {describe(index)}{hint}")


def class_ids(
    index: Tensor, classes: int, ignore_index: int, selected: Tensor | None, check: ValueCheck, *, votes: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Ids of any integer dtype as int64 within the classes, and where they count; None if they do everywhere.

    The second axis has one entry, or the channels of maps, or several ``votes``: one invalid vote spoils the pixel.
    """
    # Widened before any comparison: 156 in uint8 is not -100.
    ids = index.to(torch.int64)
    if check.raises and ids.numel() and not 0 <= ignore_index < classes:
        low, high = torch.aminmax(ids)
        if low >= 0 and high < classes:
            return ids, None
    counted = ids != ignore_index
    invalid = counted & ((ids < 0) | (ids >= classes))
    if selected is not None:
        invalid = invalid & selected
    check.flag(
        invalid.any(1, keepdim=True) if votes else invalid,
        lambda: _explain_ids(
            "label.votes" if votes else "label", ids.expand_as(invalid)[invalid], classes, ignore_index
        ),
    )
    return ids.clamp(0, classes - 1), counted


def _resolve_index(
    index: Tensor,
    shape: torch.Size,
    dtype: torch.dtype,
    options: LabelOptions,
    selected: Tensor | None,
    check: ValueCheck,
) -> Resolved:
    """One-hot maps of class ids (B, *spatial), or the 0/1 maps (B, C, *spatial) as they are."""
    if index.ndim == len(shape):
        ids, counted = class_ids(index, 2, options.ignore_index, selected, check)
        return Resolved(ids.to(dtype), counted)
    ids, counted = class_ids(index.unsqueeze(1), shape[1], options.ignore_index, selected, check)
    one_hot = torch.zeros((shape[0], shape[1], *shape[2:]), dtype=dtype, device=index.device)
    return Resolved(one_hot.scatter_(1, ids, 1.0), counted)


def _explain_ids(name: str, found: Tensor, classes: int, ignore_index: int) -> str:
    values: list[int] = torch.unique(found).tolist()
    shown = ", ".join(str(value) for value in values[:5]) + (", ..." if len(values) > 5 else "")
    return (
        f"{name}: expected class ids from 0 to {classes - 1}, or ignore_index ({ignore_index}) at pixels that do not "
        f"count; found {shown} at {found.numel()} pixels. If {values[-1]} marks pixels to leave out, pass "
        f"ignore_index={values[-1]}" + ("; if it is the foreground of a mask, pass label > 0" if classes == 2 else "")
    )


@dataclass(frozen=True, eq=False)
class HardLabel(Label):
    """One class for each pixel; a plain integer tensor becomes this."""

    index: Tensor

    @property
    def soft(self) -> bool:
        """Hard."""
        return False

    def expect(self, shape: torch.Size, activation: Activation) -> HardLabel:
        """See :meth:`Label.expect`."""
        return HardLabel(_expect_index("label", self.index, shape, activation))

    def resolve(
        self, shape: torch.Size, dtype: torch.dtype, options: LabelOptions, selected: Tensor | None, check: ValueCheck
    ) -> Resolved:
        """One-hot maps."""
        return _resolve_index(self.index, shape, dtype, options, selected, check)


@dataclass(frozen=True, eq=False)
class DenseLabel(Label):
    """A distribution at each pixel; a plain float tensor becomes this."""

    probability: Tensor

    def expect(self, shape: torch.Size, activation: Activation) -> DenseLabel:
        """See :meth:`Label.expect`."""
        if self.probability.shape != shape:
            hint = ""
            if self.probability.shape == (shape[0], 1, *shape[2:]):
                hint = "; class ids belong in an integer tensor without channels: label.squeeze(1).long()"
            if self.probability.shape == (shape[0], *shape[2:]):
                hint = (
                    "; a float label without a channel dimension is not a distribution: use an integer dtype for class "
                    "ids (label.long()), or label.unsqueeze(1) for the probability of a single class"
                )
            raise ValueError(
                f"label: expected a float label of the logits' shape (B, C, *spatial) = {tuple(shape)}, got "
                f"{describe(self.probability)}{hint}"
            )
        return self

    def resolve(
        self, shape: torch.Size, dtype: torch.dtype, options: LabelOptions, selected: Tensor | None, check: ValueCheck
    ) -> Resolved:
        """The values as they are, checked to be probabilities."""
        stored = self.probability
        value = stored.to(dtype)
        if selected is not None:
            value = torch.where(selected, value, 0.0)
        slack = tolerance(stored.dtype)
        outside = ~((value >= -slack) & (value <= 1 + slack))
        check.flag(
            outside,
            lambda: (
                f"label: expected probabilities in [0, 1], found values from {value.min().item():.4g} to "
                f"{value.max().item():.4g}; a teacher's logits go into TeacherLabel(logits)"
            ),
        )
        if options.activation == "softmax":
            total = value.sum(1, keepdim=True)
            off = ~((total - 1).abs() <= slack)
            if selected is not None:
                off = off & selected
            check.flag(
                off,
                lambda: (
                    f"label: expected the {shape[1]} probabilities of each pixel to sum to 1, found sums from "
                    f"{total[off].min().item():.4g} to {total[off].max().item():.4g}; leave pixels without a label out "
                    "with mask, or use activation='sigmoid' for classes that may overlap"
                ),
            )
        return Resolved(value, None)


@dataclass(frozen=True, eq=False)
class SmoothedLabel(Label):
    """A hard label, smoothed everywhere or at chosen pixels; never stored densely.

    At a smoothed pixel the distribution is ``(1 - epsilon) * one_hot + epsilon / C``; elsewhere it is the one-hot. For
    binary and multilabel maps (sigmoid) it is ``(1 - epsilon) * t + epsilon / 2``. ``epsilon`` = 0.5 at boundaries of
    ``kernel_size`` 3 is the released default of Jaccard Metric Losses (arXiv 2302.05666).

    Args:
        index: integer class ids ``(B, *spatial)``; under sigmoid integers 0/1, ``(B, *spatial)`` for one class or
            ``(B, C, *spatial)``.
        epsilon: how much of the mass is spread evenly over the classes, in [0, 1].
        where: boolean, of ``index``'s shape: the pixels to smooth, such as ``boundary(index)``; None smooths all. For
            multilabel maps the boundary is taken of each map: ``boundary(index.flatten(0, 1)).view_as(index)``.

    Raises:
        TypeError: ``index`` is not integer or ``where`` not boolean.
        ValueError: ``epsilon`` is outside [0, 1], or the shapes differ.

    Example:
        >>> label = SmoothedLabel(torch.tensor([[0, 1]]), epsilon=0.5, where=torch.tensor([[False, True]]))
        >>> label.dense(2)[0]
        tensor([[[1.0000, 0.2500],
                 [0.0000, 0.7500]]])
    """

    index: Tensor
    epsilon: float = 0.5
    where: Tensor | None = None

    def __post_init__(self) -> None:
        """Check the fields against each other."""
        if not is_integer(self.index):
            raise TypeError(f"index: expected integer class ids, got {describe(self.index)}")
        if not 0 <= self.epsilon <= 1:
            raise ValueError(f"epsilon: expected a number in [0, 1], got {self.epsilon}")
        if self.where is not None and (not isinstance(self.where, Tensor) or self.where.dtype != torch.bool):
            raise TypeError(f"where: expected a boolean map such as boundary(index), got {describe(self.where)}")
        if self.where is not None and self.where.shape != self.index.shape:
            raise ValueError(
                f"where: expected the shape of index {tuple(self.index.shape)}, got {describe(self.where)}"
            )

    def expect(self, shape: torch.Size, activation: Activation) -> SmoothedLabel:
        """See :meth:`Label.expect`."""
        index = _expect_index("index", self.index, shape, activation)
        where = None if self.where is None else self.where.view_as(index)
        return SmoothedLabel(index, self.epsilon, where)

    def resolve(
        self, shape: torch.Size, dtype: torch.dtype, options: LabelOptions, selected: Tensor | None, check: ValueCheck
    ) -> Resolved:
        """Smoothed one-hot maps."""
        maps = self.index.ndim == len(shape)
        if self.where is None:
            epsilon = torch.full((), self.epsilon, dtype=dtype, device=self.index.device)
        else:
            epsilon = (self.where if maps else self.where.unsqueeze(1)).to(dtype) * self.epsilon
        if maps:
            hard, counted = _resolve_index(self.index, shape, dtype, options, selected, check)
            return Resolved(hard * (1 - epsilon) + epsilon / 2, counted)
        ids, counted = class_ids(self.index.unsqueeze(1), shape[1], options.ignore_index, selected, check)
        spread = (epsilon / shape[1]).expand(shape).clone(memory_format=torch.contiguous_format)
        return Resolved(spread.scatter_add_(1, ids, (1 - epsilon).expand(ids.shape)), counted)


@dataclass(frozen=True, eq=False)
class TeacherLabel(Label):
    """A teacher's predictions as the label.

    Args:
        logits: float ``(B, C, *spatial)``, evaluated without gradients.
        temperature: divides these logits; None takes the temperature that divides the student's.

    Raises:
        TypeError: ``logits`` is not a float tensor.
        ValueError: ``temperature`` is not positive.

    Example:
        >>> TeacherLabel(torch.tensor([[[0.0], [0.0]]])).dense(2)[0]
        tensor([[[0.5000],
                 [0.5000]]])
    """

    logits: Tensor
    temperature: float | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        if not isinstance(self.logits, Tensor) or not self.logits.is_floating_point():
            raise TypeError(f"logits: expected a float tensor (B, C, *spatial), got {describe(self.logits)}")
        if self.temperature is not None and not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature: expected a positive number, got {self.temperature}")

    def expect(self, shape: torch.Size, activation: Activation) -> TeacherLabel:
        """See :meth:`Label.expect`."""
        if self.logits.shape != shape:
            raise ValueError(
                f"label: expected a teacher's logits of the student's shape (B, C, *spatial) = {tuple(shape)}, got "
                f"{describe(self.logits)}"
            )
        return self

    def resolve(
        self, shape: torch.Size, dtype: torch.dtype, options: LabelOptions, selected: Tensor | None, check: ValueCheck
    ) -> Resolved:
        """The teacher's probabilities."""
        temperature = options.temperature if self.temperature is None else self.temperature
        activation = options.activation or ("softmax" if shape[1] > 1 else "sigmoid")
        logits = self.logits.to(dtype)
        if selected is not None:  # softmax needs the logits of every channel
            matters = selected.any(1, keepdim=True) if activation == "softmax" else selected
            logits = torch.where(matters, logits, 0.0)
        return Resolved(probabilities(logits if temperature == 1 else logits / temperature, activation), None)


@dataclass(frozen=True, eq=False)
class RaterLabel(Label):
    """The votes of several annotators: the distribution of a pixel is the share of each class in its votes.

    Args:
        votes: integer class ids ``(B, R, *spatial)``, one map for each of R annotators; for a single class (C = 1)
            0 or 1. Votes of ``ignore_index`` drop out; a pixel without votes is ignored.
        weights: how much each annotator counts, non-negative, ``(R,)`` or ``(B, R)``; None counts all alike.

    Raises:
        TypeError: ``votes`` is not integer.
        ValueError: ``weights`` does not fit ``votes``.

    Example:
        >>> RaterLabel(torch.tensor([[[0], [1], [1], [-100]]])).dense(2)[0]
        tensor([[[0.3333],
                 [0.6667]]])
    """

    votes: Tensor
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        """Check the fields against each other."""
        if not is_integer(self.votes):
            raise TypeError(f"votes: expected integer class ids (B, R, *spatial), got {describe(self.votes)}")
        if self.votes.ndim < 3 or self.votes.shape[1] == 0:
            raise ValueError(f"votes: expected (B, R, *spatial) with R of at least 1, got {describe(self.votes)}")
        if self.weights is None:
            return
        if not isinstance(self.weights, Tensor) or not self.weights.is_floating_point():
            raise TypeError(f"weights: expected a float tensor (R,) or (B, R), got {describe(self.weights)}")
        raters = tuple(self.votes.shape[:2])
        # Inside the library the weights are spread over the pixels, so that every tensor of a label is cut alike.
        if tuple(self.weights.shape) not in (raters[1:], raters, tuple(self.votes.shape)):
            raise ValueError(
                f"weights: expected one number for each annotator, (R,) = {raters[1:]} or (B, R) = {raters}, got "
                f"{describe(self.weights)}"
            )

    @property
    def decisive(self) -> Tensor:
        """The votes of which a pixel needs one that is not ignored, to count."""
        return self.votes

    def expect(self, shape: torch.Size, activation: Activation) -> RaterLabel:
        """See :meth:`Label.expect`."""
        if self.votes.shape[:1] + self.votes.shape[2:] != shape[:1] + shape[2:]:
            raise ValueError(
                f"votes: expected (B, R, *spatial) that fits the logits' (B, C, *spatial) = {tuple(shape)}, got "
                f"{describe(self.votes)}"
            )
        if activation == "sigmoid" and shape[1] > 1:
            raise ValueError(
                f"votes: under sigmoid votes are for a single class, but the logits have C = {shape[1]}; pass the "
                "share of votes for each class as a float label (B, C, *spatial)"
            )
        if self.weights is None:
            return self
        weights = self.weights.expand(self.votes.shape[:2]).reshape(*self.votes.shape[:2], *[1] * (len(shape) - 2))
        return dataclasses.replace(self, weights=weights.expand_as(self.votes))

    def resolve(
        self, shape: torch.Size, dtype: torch.dtype, options: LabelOptions, selected: Tensor | None, check: ValueCheck
    ) -> Resolved:
        """Shares of the votes."""
        classes = max(shape[1], 2)
        if selected is not None:  # a vote is about all classes: it matters if any channel does
            selected = selected.any(1, keepdim=True)
        votes, kept = class_ids(self.votes, classes, options.ignore_index, selected, check, votes=True)
        if self.weights is not None:
            weights = self.weights.to(dtype)
            valid = ((weights >= 0) & (weights < float("inf"))).all(1, keepdim=True)
            check.flag(
                ~valid,
                lambda: (
                    "weights: expected finite numbers of at least 0, found values from "
                    f"{weights.min().item():.4g} to {weights.max().item():.4g}"
                ),
            )
        else:
            weights = torch.ones_like(votes, dtype=dtype)
        if kept is not None:
            weights = torch.where(kept, weights, 0.0)
        share = torch.zeros((shape[0], classes, *shape[2:]), dtype=dtype, device=votes.device)
        share = share.scatter_add_(1, votes, weights)
        total = share.sum(1, keepdim=True)
        counted = total > 0
        share = share / torch.where(counted, total, 1.0)
        return Resolved(share if shape[1] > 1 else share[:, 1:], counted)


@dataclass(frozen=True, eq=False)
class NeighbourLabel(RaterLabel):
    """A hard label mixed with those of the pixels around; :func:`neighbourhood` makes it.

    Votes are the class ids in the window around each pixel, its own in their middle. Where that is ``ignore_index`` the
    pixel is ignored, and other ignored ones count as of the pixel's own class.
    """

    @property
    def decisive(self) -> Tensor:
        """The pixels' own ids ``(B, 1, *spatial)``."""
        return self.votes.narrow(1, self.votes.shape[1] // 2, 1)

    def expect(self, shape: torch.Size, activation: Activation) -> RaterLabel:
        """See :meth:`Label.expect`."""
        _expect_index("index", self.decisive.squeeze(1), shape, activation)
        return super().expect(shape, activation)

    def resolve(
        self, shape: torch.Size, dtype: torch.dtype, options: LabelOptions, selected: Tensor | None, check: ValueCheck
    ) -> Resolved:
        """Shares of the votes."""
        classes, own = max(shape[1], 2), self.decisive
        matters = None if selected is None else selected.any(1, keepdim=True)
        _, counted = class_ids(own, classes, options.ignore_index, matters, check)
        known = (self.votes >= 0) & (self.votes < classes) & (self.votes != options.ignore_index)
        votes = torch.where(known if counted is None else known & counted, self.votes, own)
        return RaterLabel(votes, self.weights).resolve(shape, dtype, options, selected, check)


def as_label(label: LabelLike, shape: torch.Size, activation: Activation = "softmax") -> Label:
    """The label as one of the kinds, checked against logits of ``shape`` (B, C, *spatial).

    Raises:
        TypeError: ``label`` is neither a tensor nor one of the kinds of label.
        ValueError: its shape does not fit.
    """
    if isinstance(label, Tensor):
        if label.is_complex():
            raise TypeError(f"label: expected integers (hard) or floats (a distribution), got {describe(label)}")
        label = DenseLabel(label) if label.is_floating_point() else HardLabel(label)
    if not isinstance(label, Label):
        raise TypeError(
            "label: expected an integer tensor (B, *spatial), a float tensor (B, C, *spatial), SmoothedLabel, "
            f"TeacherLabel or RaterLabel, got {describe(label)}"
        )
    return label.expect(shape, activation)


def _shape_of(label: LabelLike, num_classes: int, activation: Activation) -> torch.Size:
    """The shape of the logits that this label is meant for."""
    tensor = label if isinstance(label, Tensor) else next(iter(label.tensors().values()))
    has_channels = tensor.is_floating_point() or isinstance(label, RaterLabel)
    if not has_channels and activation == "sigmoid" and num_classes > 1:
        has_channels = True
    spatial = tensor.shape[2:] if has_channels else tensor.shape[1:]
    return torch.Size((tensor.shape[0], num_classes, *spatial))


def dense(
    label: LabelLike,
    num_classes: int,
    ignore_index: int = -100,
    *,
    activation: Activation = "softmax",
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The distribution of every pixel as one tensor, with the mask of the pixels that count.

    The losses never need this; it is for looking at labels, and for code that takes only dense ones. The statistics of
    the returned pair ``(label, mask)`` equal those of the label itself, and so do losses that name their ``classes``
    (``"auto"`` goes by the type of the label).

    Args:
        label: a label of any kind; a teacher without a temperature of its own is taken at 1.
        num_classes: C.
        ignore_index: the id of pixels (or votes) that do not count.
        activation: ``"sigmoid"`` for binary integers ``(B, *spatial)`` (C = 1) and multilabel integers
            ``(B, C, *spatial)`` (C > 1), else ``"softmax"`` or None.
        dtype: of the result; None takes torch's default dtype.

    Returns:
        The distribution ``(B, C, *spatial)``, zero where a pixel does not count, and the boolean mask ``(B, *spatial)``
        of the pixels that do; for multilabel integer maps the mask is ``(B, C, *spatial)``.

    Raises:
        TypeError: ``label`` is no label.
        ValueError: a shape or a value does not fit.

    Example:
        >>> label, mask = dense(torch.tensor([[0, 1, 255]]), num_classes=2, ignore_index=255)
        >>> label
        tensor([[[1., 0., 0.],
                 [0., 1., 0.]]])
        >>> mask
        tensor([[ True,  True, False]])
    """
    if not isinstance(label, (Tensor, Label)):
        as_label(label, torch.Size((1, num_classes, 1)))  # raises and says what a label is
    dtype = dtype or torch.get_default_dtype()
    shape = _shape_of(label, num_classes, activation)
    fitted = as_label(label, shape, activation)
    options = LabelOptions(ignore_index, activation)
    value, counted = fitted.resolve(shape, dtype, options, None, ValueCheck(raises=True))
    if counted is None:
        return value, torch.ones((shape[0], *shape[2:]), dtype=torch.bool, device=value.device)
    return torch.where(counted, value, 0.0), counted if counted.shape[1] > 1 else counted.squeeze(1)
