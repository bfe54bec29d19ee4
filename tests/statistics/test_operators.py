"""What a backend with a hand-written gradient keeps between forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import oracle
import softjaccard as sj

KINDS = ("hard", "dense", "smoothed_where", "teacher", "raters_weighted")


def parts(case: oracle.Case) -> dict[str, Tensor]:
    """The tensors a case consists of, by name."""
    label = {"index": case.label} if isinstance(case.label, Tensor) else case.label.tensors()
    return {"logits": case.logits, "mask": case.mask, **{f"label.{name}": tensor for name, tensor in label.items()}}


def make_case(kind: str, upsample: str | None) -> oracle.Case:
    case = oracle.make_case(kind, mask="weights", size=(8, 12), dtype=torch.float32)
    if upsample:
        case.logits = torch.randn(3, 5, 2, 3, requires_grad=True)
        case.options["size"] = (8, 12)
    return case


@pytest.mark.parametrize("upsample", [None, "bilinear"])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_but_the_arguments_is_saved(kind: str, upsample: str | None) -> None:
    case = make_case(kind, upsample)
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    loss = sj.CompoundLoss(sj.JaccardLoss(upsample=upsample, backend="chunked"))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(case.logits, case.label, case.mask, size=case.options.get("size"))
    places = {tensor.data_ptr(): name for name, tensor in parts(case).items()}
    assert {places.get(tensor.data_ptr()) for tensor in saved} >= set(parts(case))
    images, classes = case.logits.shape[:2]
    others = [tensor for tensor in saved if tensor.data_ptr() not in places]
    assert max(tensor.numel() for tensor in others) <= images * classes


@pytest.mark.parametrize("upsample", [None, "bilinear"])
@pytest.mark.parametrize("kind", KINDS)
def test_arguments_changed_before_backward_are_noticed(kind: str, upsample: str | None) -> None:
    for name in parts(make_case(kind, upsample)):
        case = make_case(kind, upsample)
        statistics = case.statistics(backend="chunked", upsample=upsample)
        with torch.no_grad():
            parts(case)[name].zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            statistics.overlap.sum().backward()
