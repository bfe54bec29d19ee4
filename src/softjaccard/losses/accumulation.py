"""Gradients of a batch that is too large for memory: exactly, and not as the mean of its parts' losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from softjaccard.losses.base import StatisticsLoss
from softjaccard.statistics.region import RegionStatistics

MicroBatch = TypeVar("MicroBatch")
BatchNorm: TypeAlias = Literal["refuse", "allow"]


def accumulated_backward(
    network: nn.Module,
    loss: StatisticsLoss,
    micro_batches: Iterable[MicroBatch],
    statistics: Callable[[MicroBatch], RegionStatistics] | None = None,
    *,
    scale: Callable[[Tensor], Tensor] | None = None,
    batch_norm: BatchNorm = "refuse",
) -> Tensor:
    """Backpropagate the loss of one large batch, of which only a micro-batch has to fit in memory.

    The mean of the micro-batches' region losses is not the loss of the batch. Here the network runs twice: first
    without gradients, to sum up the statistics of all micro-batches; then, after the loss of these and its gradient
    with respect to each of them, micro-batch by micro-batch with gradients. It takes about a third longer than plain
    accumulation. The gradients are added to ``parameter.grad``, as by ``loss(network(images), label).backward()`` with
    the images of all micro-batches at once.

    The second run repeats the first: the states of torch's random generators (of the CPU and of the network's devices)
    are replayed and the network's buffers set back, so that dropout draws the same and running averages advance once;
    after the call both are as after one run. Randomness of other libraries must not enter ``statistics``. A
    DistributedDataParallel that broadcasts rank 0's buffers does so at the start of both runs.

    Batch norm in training mode normalises each micro-batch by itself, as it does in any accumulation. That is not what
    it does with one large batch, so it is refused unless ``batch_norm="allow"``; in evaluation mode it is exact.

    Args:
        network: where the gradients go. Of a DistributedDataParallel, gradients are averaged over ranks once, with the
            last micro-batch; give the loss a ``process_group`` to have the batch joined over ranks as well.
        loss: any loss of this package that is a scalar.
        micro_batches: of any sizes, and of any kind if ``statistics`` is given; else tuples ``(input, label)`` or
            ``(input, label, mask)``. All are held until the end, so move them to the device in ``statistics``.
        statistics: makes the statistics of a micro-batch; None means
            ``loss.statistics(network(input), label, mask)``. Autocast belongs in here.
        scale: what to multiply the gradients with, as a function of the loss: ``scaler.scale`` of a gradient scaler.
        batch_norm: ``"refuse"`` or ``"allow"``, see above.

    Returns:
        The loss of all micro-batches, not scaled and without gradient.

    Raises:
        ValueError: there is no micro-batch, the loss is not a scalar, the network has batch norm in training mode or no
            parameter to train, or gradients are disabled. Buffers and generators are then as before the call.

    Example:
        >>> from softjaccard import CompoundLoss, JaccardLoss
        >>> network, loss = torch.nn.Conv2d(3, 5, 1), CompoundLoss(JaccardLoss())
        >>> images, label = torch.randn(6, 3, 8, 8), torch.randint(5, (6, 8, 8))
        >>> value = accumulated_backward(network, loss, zip(images.split(2), label.split(2)))
        >>> bool((value - loss(network(images), label)).abs() < 1e-6)
        True

        With mixed precision and a gradient scaler:

        >>> def statistics(batch):
        ...     with torch.autocast("cpu", torch.bfloat16):
        ...         return loss.statistics(network(batch[0]), batch[1])
        >>> scaler = torch.amp.GradScaler("cpu")
        >>> batches = zip(images.split(2), label.split(2))
        >>> value = accumulated_backward(network, loss, batches, statistics, scale=scaler.scale)
    """
    _expect_gradients(network)
    if batch_norm not in get_args(BatchNorm):
        raise ValueError(f"batch_norm: expected 'refuse' or 'allow', got {batch_norm!r}")
    if batch_norm == "refuse":
        _refuse_batch_norm(network)
    run = statistics or _default(network, loss)
    batches = list(micro_batches)

    states, parts = [], []
    with _undone(network), torch.no_grad():
        for batch in batches:
            states.append(_random_states(network))
            parts.append(run(batch))
    value, gradients = _loss_and_gradients(loss, parts, scale)

    no_sync = getattr(network, "no_sync", nullcontext)
    for number, (batch, state) in enumerate(zip(batches, states, strict=True)):
        torch.clear_autocast_cache()  # older torch keeps weights cast without gradient (PyTorch issue 158232)
        _restore_random_states(state)
        with no_sync() if number + 1 < len(batches) else nullcontext():
            _backward(run(batch), {name: slopes[number] for name, slopes in gradients.items()})
    return value


def _default(network: nn.Module, loss: StatisticsLoss) -> Callable[[Any], RegionStatistics]:
    def statistics(batch: Any) -> RegionStatistics:
        images, *label_and_mask = batch
        return loss.statistics(network(images), *label_and_mask)

    return statistics


def _expect_gradients(network: nn.Module) -> None:
    if not torch.is_grad_enabled():
        raise ValueError("accumulated_backward: expected gradients to be enabled; call it outside of torch.no_grad()")
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError("network: expected a parameter that requires a gradient, got none; all are frozen")


def _refuse_batch_norm(network: nn.Module) -> None:
    norms = [(name, module) for name, module in network.named_modules() if isinstance(module, _BatchNorm)]
    names = [name for name, norm in norms if norm.training or norm.running_mean is None]
    if names:
        raise ValueError(
            f"network: batch norm in training mode ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}) "
            "normalises each micro-batch by itself, so that micro-batches do not equal one batch; use its .eval(), "
            "another normalisation, or batch_norm='allow' to accept this"
        )


@contextmanager
def _undone(network: nn.Module) -> Iterator[None]:
    """What runs of the network in here change is set back: buffers, random generators, whether ranks share buffers."""
    buffers = [buffer.clone() for buffer in network.buffers()]
    states = _random_states(network)
    # DistributedDataParallel broadcasts rank 0's buffers in the first run only; the next first run has to do it, too.
    wrappers = [module for module in network.modules() if isinstance(module, DistributedDataParallel)]
    broadcasts = [wrapper.require_forward_param_sync for wrapper in wrappers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in zip(network.buffers(), buffers, strict=True):
                buffer.copy_(before)
        _restore_random_states(states)
        for wrapper, broadcast in zip(wrappers, broadcasts, strict=True):
            wrapper.require_forward_param_sync = broadcast


def _random_states(network: nn.Module) -> dict[torch.device, Tensor]:
    """The states of the generators of the CPU and of the network's devices."""
    others = {parameter.device for parameter in network.parameters() if parameter.device.type not in ("cpu", "meta")}
    states = {device: torch.get_device_module(device).get_rng_state(device) for device in others}
    return {torch.device("cpu"): torch.get_rng_state(), **states}


def _restore_random_states(states: dict[torch.device, Tensor]) -> None:
    for device, state in states.items():
        generators = torch if device.type == "cpu" else torch.get_device_module(device)
        generators.set_rng_state(state, *(() if device.type == "cpu" else (device,)))


def _loss_and_gradients(
    loss: StatisticsLoss, parts: list[RegionStatistics], scale: Callable[[Tensor], Tensor] | None
) -> tuple[Tensor, dict[str, tuple[Tensor, ...]]]:
    """The loss of all parts, and its scaled gradient with respect to the fields of each."""
    joined = RegionStatistics.cat(parts)
    leaves = {name: value.requires_grad_() for name, value in joined.fields().items()}
    value = loss.from_statistics(joined)
    if value.ndim:
        raise ValueError(f"loss: expected a scalar, got a tensor of shape {tuple(value.shape)}; use reduction='mean'")
    slopes = torch.autograd.grad(value if scale is None else scale(value), list(leaves.values()), allow_unused=True)
    sizes = [len(next(iter(part.fields().values()))) for part in parts]
    used = {name: slope for name, slope in zip(leaves, slopes, strict=True) if slope is not None}
    return value.detach(), {name: torch.split(slope, sizes) for name, slope in used.items()}


def _backward(statistics: RegionStatistics, gradients: dict[str, Tensor]) -> None:
    differentiable = {name: statistics[name] for name in gradients if statistics[name].requires_grad}
    torch.autograd.backward(list(differentiable.values()), [gradients[name] for name in differentiable])
