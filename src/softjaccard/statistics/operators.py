"""What the backends with a hand-written gradient share: sums and their gradient as one step that autograd knows.

Such a backend is a pair of functions of logits, label, mask and options: one for the sums ``(len(want), B, C)``, one
for the gradient of the logits from that of the sums. Nothing but the arguments is saved between the two.

In eager mode the pair is an autograd function. Under torch.compile it is a pair of opaque operators, which are left
whole; their first use would load the compiler, which takes a second, so that eager mode does without.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn, TypeAlias

import torch
from torch import Tensor

from softjaccard.labels.checks import describe
from softjaccard.labels.kinds import (
    Activation,
    DenseLabel,
    HardLabel,
    Label,
    NeighbourLabel,
    RaterLabel,
    SmoothedLabel,
    TeacherLabel,
)
from softjaccard.statistics.pixels import Options, sum_dtype

#: The statistics through which a gradient flows.
DIFFERENTIABLE = ("prediction", "overlap", "cross_entropy", "product", "prediction_square")

Sums: TypeAlias = Callable[[Tensor, Label, Tensor | None, Options], Tensor]
Gradient: TypeAlias = Callable[[Tensor, Tensor, Label, Tensor | None, Options], Tensor]
Backend: TypeAlias = Callable[[Tensor, Label, Tensor | None, Options], dict[str, Tensor]]


def make_backend(name: str, sums: Sums, gradient: Gradient) -> Backend:
    """The backend ``name`` made of its two functions."""
    function = _as_function(name, sums, gradient)
    operator = _as_operator(name, sums, gradient)

    def backend(logits: Tensor, label: Label, mask: Tensor | None, options: Options) -> dict[str, Tensor]:
        if not options.want:
            return {}
        for argument, tensors in (("label", [*label.tensors().values()]), ("mask", [] if mask is None else [mask])):
            if any(tensor.requires_grad for tensor in tensors):
                raise ValueError(
                    f"{argument}: {describe(tensors[0])} requires grad, but this backend gives gradients to the logits "
                    "only; detach it (or evaluate the teacher under torch.no_grad()), or use backend='reference'"
                )
        if torch.compiler.is_compiling():
            found = operator(logits, *_pack(label, mask, options))
        else:
            found = function.apply(logits, label, mask, options)
        named = dict(zip(options.want, found, strict=True))
        return {field: value if field in DIFFERENTIABLE else value.detach() for field, value in named.items()}

    backend.__doc__ = "The sums ``(B, C)`` in ``options.want``; ``mask`` is ``(B, 1 or C, *spatial)``."
    return backend


def _refuse(name: str) -> NoReturn:
    raise RuntimeError(f"the {name} backend gives no double backward; use backend='reference'")


def _as_function(name: str, sums: Sums, gradient: Gradient) -> type[torch.autograd.Function]:
    class Slope(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Tensor:
            return gradient(*arguments)

        @staticmethod
        def backward(ctx: Any, upstream: Tensor) -> NoReturn:
            _refuse(name)

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, logits: Tensor, label: Label, mask: Tensor | None, options: Options) -> Tensor:
            held = label.tensors()
            ctx.save_for_backward(logits, mask, *held.values())
            plain = {name: value for name, value in vars(label).items() if name not in held}
            ctx.names, ctx.label, ctx.options = tuple(held), partial(type(label), **plain), options
            return sums(logits, label, mask, options)

        @staticmethod
        def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
            logits, mask, *held = ctx.saved_tensors
            label = ctx.label(**dict(zip(ctx.names, held, strict=True)))
            return Slope.apply(upstream, logits, label, mask, ctx.options), None, None, None

    return Function


# An operator takes tensors and plain values only; label and options are packed for it.
_ARGUMENTS = (
    "Tensor logits, str kind, Tensor label, Tensor? extra, float number, Tensor? mask, int ignore_index, "
    "str activation, float temperature, bool error_scaled, str want, bool per_channel, bool check, SymInt[]? size, "
    "bool align_corners"
)
_WANT = 9  # its place behind the logits


def _as_operator(name: str, sums: Sums, gradient: Gradient) -> Callable[..., Tensor]:
    def operator_sums(logits: Tensor, *packed: Any) -> Tensor:
        return sums(logits, *_unpack(*packed))

    def operator_gradient(upstream: Tensor, logits: Tensor, *packed: Any) -> Tensor:
        return gradient(upstream, logits, *_unpack(*packed))

    def save(ctx: Any, inputs: tuple[object, ...], output: Tensor) -> None:
        ctx.save_for_backward(*(value if isinstance(value, Tensor) else None for value in inputs))
        ctx.plain = [None if isinstance(value, Tensor) else value for value in inputs]

    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        pairs = zip(ctx.saved_tensors, ctx.plain, strict=True)
        inputs = [value if tensor is None else tensor for tensor, value in pairs]
        return gradient_operator(upstream, *inputs), *(None,) * (len(inputs) - 1)

    def fake_sums(logits: Tensor, *packed: Any) -> Tensor:
        fields = packed[_WANT].split(",")
        return logits.new_empty((len(fields), *logits.shape[:2]), dtype=sum_dtype(logits.dtype))

    define = torch.library.custom_op
    sums_operator = define(
        f"softjaccard::{name}_sums", operator_sums, mutates_args=(), schema=f"({_ARGUMENTS}) -> Tensor"
    )
    gradient_operator = define(
        f"softjaccard::{name}_gradient",
        operator_gradient,
        mutates_args=(),
        schema=f"(Tensor upstream, {_ARGUMENTS}) -> Tensor",
    )
    sums_operator.register_fake(fake_sums)
    gradient_operator.register_fake(lambda upstream, logits, *packed: torch.empty_like(logits))
    sums_operator.register_autograd(backward, setup_context=save)
    gradient_operator.register_autograd(lambda ctx, upstream: _refuse(name))
    return sums_operator


def _pack(label: Label, mask: Tensor | None, options: Options) -> tuple[object, ...]:
    return (
        *_pack_label(label),
        mask,
        options.ignore_index,
        options.activation or "none",
        options.temperature,
        options.error_scaled,
        ",".join(options.want),
        options.per_channel,
        options.check,
        options.size,
        options.align_corners,
    )


def _pack_label(label: Label) -> tuple[str, Tensor, Tensor | None, float]:
    match label:
        case HardLabel(index):
            return "hard", index, None, 0.0
        case DenseLabel(probability):
            return "dense", probability, None, 0.0
        case SmoothedLabel(index, epsilon, where):
            return "smoothed", index, where, float(epsilon)
        case TeacherLabel(logits, temperature):
            return "teacher", logits, None, float(temperature or 0.0)
        case NeighbourLabel(votes, weights):
            return "neighbours", votes, weights, 0.0
        case RaterLabel(votes, weights):
            return "raters", votes, weights, 0.0
    raise TypeError(f"label: under torch.compile no {type(label).__name__} is known; use backend='reference'")


def _unpack_label(kind: str, label: Tensor, extra: Tensor | None, number: float) -> Label:
    match kind:
        case "hard":
            return HardLabel(label)
        case "dense":
            return DenseLabel(label)
        case "smoothed":
            return SmoothedLabel(label, number, extra)
        case "teacher":
            return TeacherLabel(label, number or None)
        case "neighbours":
            return NeighbourLabel(label, extra)
        case _:
            return RaterLabel(label, extra)


def _unpack(
    kind: str,
    label: Tensor,
    extra: Tensor | None,
    number: float,
    mask: Tensor | None,
    ignore_index: int,
    activation: str,
    temperature: float,
    error_scaled: bool,
    want: str,
    per_channel: bool,
    check: bool,
    size: list[int] | None,
    align_corners: bool,
) -> tuple[Label, Tensor | None, Options]:
    names: dict[str, Activation] = {"softmax": "softmax", "sigmoid": "sigmoid", "none": None}
    options = Options(
        ignore_index=ignore_index,
        activation=names[activation],
        temperature=temperature,
        error_scaled=error_scaled,
        want=tuple(want.split(",")),
        per_channel=per_channel,
        check=check,
        size=None if size is None else (size[0], size[1]),
        align_corners=align_corners,
    )
    return _unpack_label(kind, label, extra, number), mask, options
