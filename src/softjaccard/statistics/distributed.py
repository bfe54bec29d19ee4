"""Sums over the ranks of a process group, so that every rank has the loss of the joined batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from hashlib import blake2b
from typing import Any, Literal, TypeAlias
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from softjaccard.statistics.region import PEAKS, RegionStatistics

#: A group of ranks; ``"world"``: all ranks, or this process alone where torch.distributed is not initialised; or None.
ProcessGroupLike: TypeAlias = dist.ProcessGroup | Literal["world"] | None

#: Types of devices on which ranks compare their layouts in every call; on others, where reading back makes the host
#: wait, in the first call with a layout.
_ALWAYS_COMPARED = ("cpu",)
#: For each group the layouts on which its ranks are known to agree.
_AGREED: WeakKeyDictionary[dist.ProcessGroup, set[str]] = WeakKeyDictionary()
#: The longest description of a layout that ranks show each other, in bytes.
_LAYOUT_BYTES = 512


def check_process_group(process_group: object) -> None:
    """Raise a TypeError if this is nothing that :func:`sum_over_ranks` takes."""
    if process_group is None or process_group == "world" or isinstance(process_group, dist.ProcessGroup):
        return
    hint = ""
    if process_group is dist.GroupMember.NON_GROUP_MEMBER:
        hint = ", which new_group gives to ranks that are not in the group; these must not compute the loss with it"
    raise TypeError(
        f"process_group: expected a torch.distributed.ProcessGroup, 'world' or None, got {process_group!r}{hint}"
    )


def sum_over_ranks(
    total: RegionStatistics, sums: Mapping[str, Tensor], process_group: ProcessGroupLike
) -> tuple[RegionStatistics, dict[str, Tensor]]:
    r"""The statistics of all ranks' images, and other sums added up; the same numbers, bit for bit, on every rank.

    **Gradient.** Let :math:`s_r(\theta)` be the sums of rank r, :math:`S = \sum_r s_r`, and let each of W ranks
    compute the same loss L(S). The gradient of the joined batch is :math:`\sum_r L'(S)\,\partial s_r/\partial\theta`.
    Averaging over ranks, as DistributedDataParallel does, makes :math:`\frac1W\sum_r g_r` of the gradients
    :math:`g_r` that the ranks compute; so each has to be :math:`g_r = W\,L'(S)\,\partial s_r/\partial\theta`.
    :math:`L'(S)` is known on every rank: backward multiplies it by W and communicates nothing. This holds if every rank
    weighs the loss alike; where gradients are added over ranks and not averaged, they come out W times too large.

    **Cost.** One all-gather of a few numbers for each class, on the device of the statistics; nothing is read back
    from it. A single rank changes nothing, bit for bit.

    **Ranks that disagree** in layout (number of classes, kind of label, dtype, names of the sums) would wait for each
    other, or add up what does not belong together. For statistics on the CPU every call therefore starts with another
    all-gather, of 512 bytes that name the layout. On other devices, where these have to be read back, only the first
    call with a layout does, and every call sends along a number made of the layout: ranks with different layouts that
    were agreed on before get NaN. Two cases are not noticed there and end as the backend ends them, NCCL with its
    timeout: one rank's layout is new and another's is not, or agreed ones have different amounts of numbers (as of
    C = 3 and C = 4).

    Args:
        total: of this rank's images, as from :meth:`RegionStatistics.total`.
        sums: further tensors to add up, by name; of the same shapes on every rank.
        process_group: its ranks must all make this call, equally often and in the same order. None, and ``"world"``
            where torch.distributed is not initialised, return the arguments.

    Raises:
        ValueError: the ranks disagree in layout (raised on every rank; see above for other devices than the CPU), or
            torch.distributed is not initialised.
    """
    group = _resolve(process_group)
    return (total, dict(sums)) if group is None else _sum_over_group(total, sums, group)


def _resolve(process_group: ProcessGroupLike) -> dist.ProcessGroup | None:
    if process_group is None:
        return None
    initialised = dist.is_available() and dist.is_initialized()
    if isinstance(process_group, str):
        return dist.group.WORLD if initialised else None
    if not initialised:
        raise ValueError(
            "process_group: this group needs torch.distributed, which is not initialised, or no longer; call "
            "init_process_group first, or pass 'world', which is this process alone until then"
        )
    return process_group


@torch._disable_dynamo  # type: ignore[attr-defined]  # torch.compiler.disable would import the compiler right here
def _sum_over_group(
    total: RegionStatistics, sums: Mapping[str, Tensor], group: dist.ProcessGroup
) -> tuple[RegionStatistics, dict[str, Tensor]]:
    values = {**total.fields(), **sums}
    packed = torch.cat([value.flatten() for value in values.values()])
    layout = _layout(total, values, packed)
    _expect_agreement(layout, group, packed.device)
    gathered = _Gather.apply(packed, _number_of(layout), group)
    parts = gathered.split([value.numel() for value in values.values()], 1)
    reduced = {
        name: (part.amax(0) if name in PEAKS else part.sum(0)).view_as(value)
        for (name, value), part in zip(values.items(), parts, strict=True)
    }
    fields = {name: value for name, value in reduced.items() if name not in sums}
    return replace(total, **fields), {name: reduced[name] for name in sums}


class _Gather(torch.autograd.Function):
    """The values (n,) of all ranks, (W, n); NaN if the ranks come with different numbers."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, number: float, group: dist.ProcessGroup) -> Tensor:
        ctx.rank, ctx.ranks = dist.get_rank(group), dist.get_world_size(group)
        sent = torch.cat([values.new_full((1,), number), values])
        gathered = values.new_empty(ctx.ranks, len(sent))
        dist.all_gather(list(gathered.unbind()), sent, group=group)
        numbers, gathered = gathered[:, 0], gathered[:, 1:]
        return gathered.masked_fill((numbers != number).any(), math.nan)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.ranks * gradient[ctx.rank], None, None


def _layout(total: RegionStatistics, values: Mapping[str, Tensor], packed: Tensor) -> str:
    """What ranks have to agree on, in words."""
    classes = max(value.shape[-1] for value in total.fields().values())
    label = "soft" if total.soft else "hard"
    sizes = ", ".join(f"{name} {value.numel()}" for name, value in values.items())
    return f"C = {classes}, {label} label, activation {total.activation}, {packed.dtype}, numbers of {sizes}"


def _number_of(layout: str) -> float:
    """A number of 24 bits, exact in float32, that other layouts hardly have."""
    return float(int.from_bytes(blake2b(layout.encode(), digest_size=3).digest(), "big"))


def _expect_agreement(layout: str, group: dist.ProcessGroup, device: torch.device) -> None:
    """Raise on every rank if one has another layout."""
    agreed = _AGREED.setdefault(group, set())
    if layout in agreed and device.type not in _ALWAYS_COMPARED:
        return
    text = bytearray(layout.encode()[:_LAYOUT_BYTES].ljust(_LAYOUT_BYTES))
    own = torch.frombuffer(text, dtype=torch.uint8).to(device)
    shown = own.new_empty(dist.get_world_size(group), _LAYOUT_BYTES)
    dist.all_gather(list(shown.unbind()), own, group=group)
    if bool((shown != own).any()):
        layouts = [bytes(row).decode().strip() for row in shown.tolist()]
        listed = "; ".join(f"rank {layouts.index(other)}: {other}" for other in dict.fromkeys(layouts))
        raise ValueError(
            "process_group: expected the same number of classes, kind of label, dtype and options of the loss on every "
            f"rank of the group, got on {listed}"
        )
    agreed.add(layout)
