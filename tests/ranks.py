"""Several processes with torch.distributed on one machine, and what they compute in the tests.

A module of its own because the processes import it; pytest's names for test modules mean nothing to them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import product
from multiprocessing import set_forkserver_preload
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import softjaccard as sj
from softjaccard.statistics import distributed

SECONDS = 120  # after which a hanging collective, or a worker, is an error
set_forkserver_preload(["torch", "softjaccard"])  # imported once for all processes


@contextmanager
def initialised(rank: int, ranks: int, folder: Path) -> Any:
    """A gloo group that meets in a file."""
    dist.init_process_group(
        "gloo", f"file://{folder}/meeting", rank=rank, world_size=ranks, timeout=timedelta(seconds=SECONDS / 2)
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def _work(rank: int, ranks: int, folder: Path, worker: Callable[[int, int], Any]) -> None:
    torch.set_num_threads(1)
    with initialised(rank, ranks, folder):
        torch.save(worker(rank, ranks), folder / f"{rank}.pt")
        dist.barrier()


def run(worker: Callable[[int, int], Any], ranks: int, folder: Path) -> list[Any]:
    """What ``worker(rank, ranks)`` returns on each rank; an error there, or none coming to an end, is one here."""
    context = mp.start_processes(_work, (ranks, folder, worker), ranks, join=False, start_method="forkserver")
    deadline = time.monotonic() + SECONDS
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < deadline, "the ranks wait for each other"
    finally:
        for process in context.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(ranks)]


# --- a small problem --------------------------------------------------------------------------------

CLASSES = 5
WEIGHT = (1.0, 2.0, 0.5, 3.0, 1.5)
#: How many images each rank, or micro-batch, has; the last image has no pixels that count.
SPLITS: dict[int, tuple[tuple[int, ...], ...]] = {1: ((7,),), 2: ((5, 2), (6, 1)), 3: ((3, 1, 3),), 4: ((3, 2, 1, 1),)}

PERS: tuple[Any, ...] = ("dataset", "image", "class", {"dataset": 0.2, "class": 0.5, "image": 0.3})
OTHERS: tuple[dict[str, Any], ...] = (
    {"class_weight": WEIGHT, "gamma": 1.5},
    {"form": "metric2", "log": True},
    {"form": "product", "smooth": 0.0, "class_weight": WEIGHT},
)


def _losses() -> dict[str, Callable[..., Any]]:
    """Losses and the kind of their label, by name: all ways to average with all rules, other options in turn."""
    result: dict[str, Callable[..., Any]] = {}
    for number, (per, rule, kind) in enumerate(
        product(PERS, ("present", "predicted", "either", "all"), ("hard", "soft"))
    ):
        options = {"per": per, "classes": rule} | OTHERS[number % len(OTHERS)]
        region = (sj.JaccardLoss, sj.DiceLoss)[number % 2]
        name = per if isinstance(per, str) else "mapping"
        result[f"{kind} {region.__name__} {name} {rule}"] = _maker(region, options)
    result["soft TverskyLoss listed"] = lambda **options: sj.TverskyLoss(0.3, 0.7, classes=[0, 3], **options)
    for kind in ("hard", "soft"):
        result[f"{kind} CrossEntropyLoss"] = _maker(sj.CrossEntropyLoss, {"class_weight": WEIGHT})
        result[f"{kind} KLDivergenceLoss"] = _maker(sj.KLDivergenceLoss, {"temperature": 2.0})
        for per in PERS[:2]:
            result[f"{kind} CompoundLoss {per}"] = _compound(per=per, class_weight=WEIGHT)
    result["maps CompoundLoss sigmoid"] = _compound(activation="sigmoid", per={"dataset": 0.5, "image": 0.5})
    return result


def _maker(loss: Callable[..., Any], fixed: Mapping[str, Any]) -> Callable[..., Any]:
    return lambda **options: loss(**fixed, **options)


def _compound(**fixed: Any) -> Callable[..., Any]:
    return lambda **options: sj.CompoundLoss(sj.JaccardLoss(**fixed, **options), class_weight=WEIGHT)


LOSSES = _losses()


def kind_of(name: str) -> str:
    """The kind of label of a loss in `LOSSES`."""
    return name.split(maxsplit=1)[0]


def make_network(dtype: torch.dtype, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Dropout(dropout), nn.Conv2d(4, CLASSES, 3))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3.0)  # some probabilities above 1/2
    return network.to(dtype)


class Data:
    """Seven images with labels of three kinds, and a mask that leaves nothing of the last image."""

    def __init__(self, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(2)
        images = sum(SPLITS[1][0])
        self.images = torch.randn(images, 3, 9, 8, generator=generator).to(dtype)
        index = torch.randint(-1, CLASSES - 1, (images, 7, 6), generator=generator)  # the last class never occurs
        index[1][index[1] > 1] = 0  # and some not in every image
        index[index == -1] = -100
        # In double precision: the last bits of single differ with the number of threads.
        soft = (2 * torch.randn(images, CLASSES, 7, 6, generator=generator)).double().softmax(1).to(dtype)
        maps = torch.randint(0, 2, (images, CLASSES, 7, 6), generator=generator)
        self.labels = {"hard": index, "soft": soft, "maps": maps}
        self.mask = torch.rand(images, 7, 6, generator=generator) * (torch.arange(images) < images - 1).view(-1, 1, 1)

    def part(self, kind: str, images: slice = slice(None)) -> tuple[Tensor, Tensor, Tensor]:
        """Image, label and mask of some of the images."""
        return self.images[images], self.labels[kind][images], self.mask[images]


def slices(sizes: Sequence[int]) -> list[slice]:
    """Where the parts of these sizes lie."""
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def value_and_gradients(network: nn.Module, value: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient by all parameters in one vector."""
    if value.requires_grad:
        value.backward()
    gradients = [parameter.grad.flatten() for parameter in network.parameters()]
    network.zero_grad()
    return value.detach(), torch.cat(gradients)


def joined(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The reference: all images in one batch, plain autograd in float64; data and weights as they are in ``dtype``."""
    network, data = make_network(dtype).double(), Data(dtype)
    images, label, mask = data.part(kind_of(name))
    label = label.double() if label.is_floating_point() else label
    value = LOSSES[name](backend="reference")(network(images.double()), label, mask.double())
    return value_and_gradients(network, value)


# --- what the ranks do ------------------------------------------------------------------------------


def losses_of_parts(rank: int, ranks: int) -> dict[Any, Any]:
    """Every loss with DistributedDataParallel, each rank with its part of the images."""
    results = {}
    for dtype in (torch.float32, torch.float64):
        network, data = DistributedDataParallel(make_network(dtype)), Data(dtype)
        for sizes, name in product(SPLITS[ranks], LOSSES):
            images, label, mask = data.part(kind_of(name), slices(sizes)[rank])
            value = LOSSES[name](process_group="world")(network(images), label, mask)
            results[dtype, sizes, name] = value_and_gradients(network, value)
    others = {"other": _others(rank, ranks), "errors": _disagreements(rank), "unnoticed": _unnoticed(rank)}
    return results | others


def make_logits(seed: int = 3) -> Tensor:
    """Logits for the labels of `Data`."""
    return 2 * torch.randn(7, CLASSES, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def peaks(part: slice = slice(None), **options: Any) -> Tensor:
    """A loss with one predicted class; the probability of another is below 1/2 on each rank, but not added up."""
    logits = torch.zeros(7, CLASSES, 7, 6, dtype=torch.float64)
    logits[:, 0], logits[0, 1, 0, 0] = 0.9, 5.0
    return sj.JaccardLoss(classes="predicted", **options)(logits[part], Data(torch.float64).labels["hard"][part])


def _others(rank: int, ranks: int) -> dict[str, Any]:
    """Cases that need no network; gradients are those of the rank's logits."""
    part = slices(SPLITS[ranks][0])[rank]
    data = Data(torch.float64)
    results: dict[str, Any] = {}
    for name in LOSSES:
        logits = make_logits()[part].requires_grad_()
        _, label, mask = data.part(kind_of(name), part)
        value = LOSSES[name](process_group=dist.group.WORLD)(logits, label, mask)
        results[name] = value.detach(), torch.autograd.grad(value, logits)[0]

    logits = make_logits()[part]
    _, label, mask = data.part("hard", part)
    for per in ("dataset", "image"):
        loss = sj.JaccardLoss(per=per, reduction="none", process_group="world")
        results[f"none {per}"] = loss(logits, label, mask)

    results["peaks"] = peaks(part, process_group="world")

    loss = sj.CompoundLoss(sj.JaccardLoss(per="image", process_group="world"))
    _, soft, _ = data.part("soft", part)
    box = torch.zeros(7, 6, dtype=torch.bool)
    box[2:5, 1:4] = True
    pasted = loss.statistics(logits, label, mask * box) + loss.statistics(logits, soft, mask * ~box)
    results["pasted"] = loss.from_statistics(pasted)

    group = dist.new_group([0, 1])
    if rank < 2:
        results["first two"] = sj.DiceLoss(process_group=group)(logits, label, mask)
    return results


def _disagreements(rank: int) -> list[str]:
    """The errors of ranks with different classes, ways to average, kinds of label; then they agree again.

    Then some had agreed on the layouts before: on all of them but for one rank's, and on all of them.
    """
    messages = []
    logits, label = torch.zeros(1, 3 + (rank == 1), 4), torch.zeros(1, 4, dtype=torch.int64)
    cases = (
        (logits, label, {}),
        (logits, label, {"per": "image"}),
        (logits[:, :3], label, {"per": "class" if rank else "dataset"}),
        (logits[:, :3], sj.SmoothedLabel(label, 0.1) if rank else label, {"classes": "all"}),
        (logits[:, :3].to(torch.float64 if rank else torch.float32), label, {"form": "product"}),
    )
    for logits, label, options in cases:
        try:
            sj.JaccardLoss(process_group="world", **options)(logits, label)
        except ValueError as error:
            messages.append(str(error))
    kinds = label, sj.SmoothedLabel(label, 0.1)
    loss, logits = sj.JaccardLoss(process_group="world"), torch.zeros(1, 3, 4)
    for kind in kinds:
        loss(logits, kind)
    for case in ((torch.zeros(1, 3 + (rank == 1), 4), label), (logits, kinds[rank == 1])):
        try:
            loss(*case)
        except ValueError as error:
            messages.append(str(error))
    loss(logits, label)
    return messages


def _unnoticed(rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Losses with hard labels on all ranks but one, and their gradients, where layouts are compared only once."""
    data, results = Data(torch.float64), {}
    compared, distributed._ALWAYS_COMPARED = distributed._ALWAYS_COMPARED, ()
    for name in LOSSES:
        if kind_of(name) != "maps":
            for kind in ("hard", "soft", "soft" if rank == 1 else "hard"):
                logits = make_logits().requires_grad_()
                value = LOSSES[name](process_group="world")(logits, data.labels[kind])
            results[name] = value.detach(), torch.autograd.grad(value, logits)[0]
    distributed._ALWAYS_COMPARED = compared
    return results


def accumulated_on_ranks(rank: int, ranks: int) -> dict[Any, Any]:
    """Micro-batches on every rank, on the second one fewer; and how often gradients were averaged for each loss."""
    results: dict[Any, Any] = {}
    parts = slices((2, 1, 2, 2))
    parts = parts[:3] if rank == 0 else parts[3:]
    for dtype in (torch.float32, torch.float64):
        network, data = DistributedDataParallel(make_network(dtype)), Data(dtype)
        averaged: list[int] = []
        network.register_comm_hook(averaged, _count_and_average)
        for name in LOSSES:
            batches = [data.part(kind_of(name), part) for part in parts]
            value = sj.accumulated_backward(network, LOSSES[name](process_group="world"), batches)
            results[dtype, name] = value_and_gradients(network, value)
        results[dtype] = len(averaged) / len(LOSSES)
    return results | {("buffers", broadcast): _frozen_norm(rank, parts, broadcast) for broadcast in (True, False)}


def _frozen_norm(rank: int, parts: list[slice], broadcast: bool) -> list[tuple[Tensor, Tensor]]:
    """With batch norm whose averages differ between ranks: in micro-batches, and all images of the rank at once."""
    data, loss = Data(torch.float64), sj.JaccardLoss(process_group="world")
    results = []
    for accumulated in (True, False):
        norm = nn.BatchNorm2d(CLASSES).double().eval()
        network = DistributedDataParallel(nn.Sequential(make_network(torch.float64), norm), broadcast_buffers=broadcast)
        norm.running_mean += rank * torch.arange(CLASSES)
        if accumulated:
            value = sj.accumulated_backward(network, loss, [data.part("hard", part) for part in parts])
        else:
            images, label, mask = data.part("hard", slice(parts[0].start, parts[-1].stop))
            value = loss(network(images), label, mask)
        results.append(value_and_gradients(network, value))
    return results


def _count_and_average(averaged, bucket):  # torch refuses annotations that are strings
    averaged.append(1)
    return allreduce_hook(None, bucket)
