"""`gradient="error_scaled"` against a plain autograd hook, and derivatives of the reference backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import oracle
import softjaccard as sj


def hooked(logits: Tensor, label: Tensor, counted: Tensor, activation: str, form: str, entropy_weight: float) -> Tensor:
    """0.75 Jaccard (all classes, smooth 1) + entropy_weight CE, in plain torch with the factor |p - y| hooked to p."""
    p = logits.softmax(1) if activation == "softmax" else logits.sigmoid()
    p.register_hook(lambda slope: slope * (p - label).abs().detach())
    axes = [0, *range(2, p.ndim)]
    p_sum, y_sum = (p * counted).sum(axes), (label * counted).sum(axes)
    low, product = (torch.minimum(p, label) * counted).sum(axes), (p * label * counted).sum(axes)
    hit, shared = {"metric": (low, low), "metric2": (product, low), "product": (product, product)}[form]
    region = (1 - (hit + 1) / (hit + p_sum + y_sum - 2 * shared + 1)).mean()
    if activation == "softmax":
        entropy = -(label * logits.log_softmax(1) * counted).sum() / counted[:, 0].sum()
    else:
        entropy = (F.binary_cross_entropy_with_logits(logits, label, reduction="none") * counted).sum() / counted.sum()
    return 0.75 * region + entropy_weight * entropy


@pytest.mark.parametrize("entropy_weight", [0.0, 0.25])
@pytest.mark.parametrize("form", oracle.FORMS)
@pytest.mark.parametrize("kind", ["hard", "dense", "smoothed", "teacher", "raters"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_error_scaled_is_a_hook_on_the_predictions(
    backend: str, activation: str, kind: str, form: str, entropy_weight: float, small_tiles: None
) -> None:
    classes = 5 if activation == "softmax" else 1
    case = oracle.make_case(kind, activation, classes)
    label, counted = sj.dense(case.label, classes, activation=activation)
    counted = counted[:, None].expand_as(label).double()
    expected = hooked(case.logits, label.double(), counted, activation, form, entropy_weight)
    values, slopes = {}, {}
    for gradient in ("exact", "error_scaled"):
        region = sj.JaccardLoss(form=form, classes="all", activation=activation, gradient=gradient, backend=backend)
        value = sj.CompoundLoss(region, cross_entropy_weight=entropy_weight)(case.logits, case.label)
        values[gradient], slopes[gradient] = value, oracle.gradient_of(value, case.logits)
    assert values["exact"] == values["error_scaled"]
    oracle.close(values["exact"], expected, 1e-6)
    oracle.close(slopes["error_scaled"], oracle.gradient_of(expected, case.logits), 1e-6)
    assert not torch.allclose(slopes["exact"], slopes["error_scaled"], rtol=0.01)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_cross_entropy_keeps_its_own_gradient(backend: str) -> None:
    case = oracle.make_case("teacher")
    value, slope = {}, {}
    for gradient in ("exact", "error_scaled"):
        statistics = case.statistics(want={"cross_entropy"}, gradient=gradient, backend=backend)
        value[gradient] = statistics.cross_entropy.sum()
        slope[gradient] = oracle.gradient_of(value[gradient], case.logits)
    assert torch.equal(slope["exact"], slope["error_scaled"])


def smooth_losses() -> list[Any]:
    """Losses with second derivatives almost everywhere, every form."""
    return [
        sj.JaccardLoss(form="product", classes="all", backend="reference"),
        sj.TverskyLoss(0.3, 0.8, form="metric2", per="image", log=True, gamma=2.0, classes="all", backend="reference"),
        sj.CompoundLoss(sj.DiceLoss(classes="all", backend="reference"), class_weight=[1.0, 2.0, 3.0]),
        sj.KLDivergenceLoss(temperature=2.0, backend="reference"),
    ]


@pytest.mark.parametrize("loss", smooth_losses(), ids=lambda loss: type(loss).__name__)
def test_reference_losses_can_be_differentiated_twice_by_everything(loss: Any) -> None:
    logits, raw = (torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    mask = (torch.rand(2, 2, dtype=torch.float64) + 0.5).requires_grad_()

    def run(logits, raw, mask):
        return loss(logits, raw.softmax(1), mask)

    assert torch.autograd.gradcheck(run, (logits, raw, mask))
    assert torch.autograd.gradgradcheck(run, (logits, raw, mask))
