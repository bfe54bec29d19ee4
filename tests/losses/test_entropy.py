"""Cross-entropy, KL divergence and the compound loss, against torch and against the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import oracle
import softjaccard as sj

BACKENDS = ("reference", "chunked")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, small_tiles: None) -> str:
    """Both backends, chunked in many tiles."""
    return request.param


def same(actual: Tensor, expected: Tensor, logits: Tensor, tolerance: float = 1e-10) -> None:
    """The value and the gradient with respect to the logits agree."""
    oracle.close(actual, expected, tolerance, "value")
    oracle.close(oracle.gradient_of(actual, logits), oracle.gradient_of(expected, logits), tolerance, "gradient")


@pytest.mark.parametrize("size", [(30,), (7, 9), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("ignore_index", [-100, 255, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_hard_labels_as_torch(size: tuple[int, ...], ignore_index: int, weighted: bool, backend: str) -> None:
    case = oracle.make_case("hard", size=size, ignore_index=ignore_index)
    weight = torch.tensor([0.5, 2.0, 1.0, 0.25, 3.0], dtype=torch.float64) if weighted else None
    expected = F.cross_entropy(case.logits, case.label, weight=weight, ignore_index=ignore_index)
    actual = sj.cross_entropy(case.logits, case.label, class_weight=weight, ignore_index=ignore_index, backend=backend)
    same(actual, expected, case.logits)
    module = sj.CrossEntropyLoss(class_weight=weight, ignore_index=ignore_index, backend=backend)
    assert module(case.logits, case.label) == actual


def test_smoothed_and_float_labels_as_torch(backend: str) -> None:
    case = oracle.make_case("hard")
    smoothed = sj.cross_entropy(case.logits, sj.SmoothedLabel(case.label, 0.3), backend=backend)
    same(smoothed, F.cross_entropy(case.logits, case.label, label_smoothing=0.3), case.logits)
    soft = torch.randn(3, 5, 7, 9, dtype=torch.float64).softmax(1)
    same(sj.cross_entropy(case.logits, soft, backend=backend), F.cross_entropy(case.logits, soft), case.logits)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_divides_the_logits(temperature: float, backend: str) -> None:
    case = oracle.make_case("hard")
    actual = sj.cross_entropy(case.logits, case.label, temperature=temperature, backend=backend)
    same(actual, F.cross_entropy(case.logits / temperature, case.label), case.logits)


@pytest.mark.parametrize("classes", [1, 3])
def test_sigmoid_as_torch(classes: int, backend: str) -> None:
    case = oracle.make_case("maps", "sigmoid", classes)
    counted = case.label != -100
    expected = F.binary_cross_entropy_with_logits(case.logits[counted], case.label[counted].double())
    same(sj.cross_entropy(case.logits, case.label, activation="sigmoid", backend=backend), expected, case.logits)
    soft = torch.rand(3, classes, 7, 9, dtype=torch.float64)
    expected = F.binary_cross_entropy_with_logits(case.logits, soft)
    same(sj.cross_entropy(case.logits, soft, activation="sigmoid", backend=backend), expected, case.logits)
    if classes == 1:
        index = case.label[:, 0]
        expected = F.binary_cross_entropy_with_logits(case.logits[:, 0][index >= 0], index[index >= 0].double())
        same(sj.cross_entropy(case.logits, index, activation="sigmoid", backend=backend), expected, case.logits)
    weight = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)[:classes]
    elementwise = F.binary_cross_entropy_with_logits(case.logits, soft, reduction="none").movedim(1, -1) * weight
    weighted = sj.cross_entropy(case.logits, soft, activation="sigmoid", class_weight=weight, backend=backend)
    same(weighted, elementwise.sum() / (weight.sum() * soft[:, 0].numel()), case.logits)


def test_mask_weighs_pixels(backend: str) -> None:
    case = oracle.make_case("dense", mask="weights")
    expected = (F.cross_entropy(case.logits, case.label, reduction="none") * case.mask).sum() / case.mask.double().sum()
    same(sj.cross_entropy(case.logits, case.label, case.mask, backend=backend), expected, case.logits)


def test_probabilities_without_activation(backend: str) -> None:
    p = torch.rand(2, 3, 10, dtype=torch.float64).softmax(1).requires_grad_()
    index = torch.randint(0, 3, (2, 10))
    same(sj.cross_entropy(p, index, activation=None, backend=backend), F.nll_loss(p.log(), index), p)
    zero = torch.tensor([[[0.0], [1.0]]], dtype=torch.float64)
    value = sj.cross_entropy(zero, torch.zeros(1, 1, dtype=torch.long), activation=None, backend=backend)
    assert float(value) == pytest.approx(27.631021)  # -log 1e-12


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("activation", "classes", "kind", "mask"), oracle.MASKED_GRID)
def test_every_label_as_the_oracle(
    activation: str | None, classes: int, kind: str, mask: str, weighted: bool, backend: str
) -> None:
    temperature = 1.0 if activation is None else 1.6
    case = oracle.make_case(kind, activation, classes, mask=mask, temperature=temperature)
    weight = [0.5, 2.0, 1.0, 0.0, 3.0][:classes] if weighted else None
    pixels = case.pixels()
    for loss, formula in (
        (sj.CrossEntropyLoss, lambda s: oracle.cross_entropy(s, activation=activation, class_weight=weight)),
        (
            sj.KLDivergenceLoss,
            lambda s: oracle.kl_divergence(s, activation=activation, class_weight=weight, temperature=temperature),
        ),
    ):
        actual = loss(class_weight=weight, backend=backend, **case.options)(case.logits, case.label, case.mask)
        value, slope = oracle.value_and_gradient(formula, pixels)
        oracle.close(actual, value, 1e-10, "value")
        oracle.close(oracle.gradient_of(actual, case.logits), slope, 1e-10, "gradient")


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_kl_as_torch(temperature: float, backend: str) -> None:
    case, teacher = oracle.make_case("teacher"), torch.randn(3, 5, 7, 9, dtype=torch.float64)
    student, target = ((t / temperature).log_softmax(1) for t in (case.logits, teacher))
    expected = temperature**2 * F.kl_div(student, target, reduction="sum", log_target=True) / (3 * 7 * 9)
    actual = sj.kl_divergence(case.logits, sj.TeacherLabel(teacher), temperature=temperature, backend=backend)
    same(actual, expected, case.logits)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_teacher_equal_to_student_is_a_stationary_zero(
    activation: str, temperature: float, dtype: torch.dtype, backend: str
) -> None:
    logits = (3 * torch.randn(2, 4, 9, 11, dtype=torch.float64)).to(dtype).requires_grad_()
    other = logits.detach() + 0.1 * torch.randn_like(logits)
    options = {"activation": activation, "temperature": temperature, "backend": backend}
    tiny = 1e-12 if dtype == torch.float64 else 2e-6
    losses = [sj.KLDivergenceLoss(**options)]
    losses += [sj.JaccardLoss(form=form, **options) for form in ("metric", "metric2")]
    losses += [sj.DiceLoss(**options), sj.TverskyLoss(0.7, 0.7, per="image", **options)]
    for loss in losses:
        value = loss(logits, sj.TeacherLabel(logits.detach()))
        away = oracle.gradient_of(loss(logits, sj.TeacherLabel(other)) * 1000, logits).abs().max()
        assert value.abs() <= tiny
        assert oracle.gradient_of(value * 1000, logits).abs().max() <= 10 * tiny * away


def test_dense_teacher_equal_to_the_student_is_a_stationary_zero(backend: str) -> None:
    p = torch.rand(2, 4, 9, dtype=torch.float64).softmax(1).requires_grad_()
    for form in ("metric", "metric2"):
        value = sj.jaccard_loss(p, p.detach().clone(), activation=None, form=form, backend=backend)
        assert abs(float(value)) < 1e-12
        assert oracle.gradient_of(value, p).abs().max() < 1e-12


# --- compound -------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["exact", "error_scaled"])
@pytest.mark.parametrize(("activation", "classes", "kind"), oracle.GRID)
def test_compound_is_the_weighted_sum(
    activation: str | None, classes: int, kind: str, gradient: str, backend: str
) -> None:
    case = oracle.make_case(kind, activation, classes, mask="weights")
    weight = [0.5, 2.0, 1.0, 0.25, 3.0][:classes]
    region = sj.DiceLoss(form="metric2", classes="all", gradient=gradient, backend=backend, **case.options)
    loss = sj.CompoundLoss(region, region_weight=0.6, cross_entropy_weight=1.7, class_weight=weight)

    def formula(stats: oracle.Sums) -> float:
        dice = oracle.tversky(stats, alpha=0.5, beta=0.5, form="metric2")
        return 0.6 * dice + 1.7 * oracle.cross_entropy(stats, activation=activation, class_weight=weight)

    value, slope = oracle.value_and_gradient(formula, case.pixels(), gradient)
    actual = loss(case.logits, case.label, case.mask)
    oracle.close(actual, value, 1e-10, "value")
    oracle.close(oracle.gradient_of(actual, case.logits), slope, 1e-10, "gradient")


def test_compound_defaults() -> None:
    case = oracle.make_case("hard")
    jaccard, entropy = sj.jaccard_loss(case.logits, case.label), F.cross_entropy(case.logits, case.label)
    assert float(sj.CompoundLoss(sj.JaccardLoss())(case.logits, case.label)) == pytest.approx(
        float(0.75 * jaccard + 0.25 * entropy)
    )
    assert float(sj.compound_loss(case.logits, case.label)) == pytest.approx(float(0.75 * jaccard + 0.25 * entropy))
    dice = sj.dice_loss(case.logits, case.label, per="image")
    actual = sj.compound_loss(
        case.logits, case.label, region_weight=1.0, cross_entropy_weight=0.5, region=sj.DiceLoss(per="image")
    )
    assert float(actual) == pytest.approx(float(dice + 0.5 * entropy))


def test_compound_reads_the_pixels_once(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    statistics = sj.losses.base.region_statistics

    def counted(*arguments: Any, **options: Any) -> sj.RegionStatistics:
        passes.append(options["want"])
        return statistics(*arguments, **options)

    monkeypatch.setattr("softjaccard.losses.base.region_statistics", counted)
    case = oracle.make_case("hard")
    loss = sj.CompoundLoss(sj.JaccardLoss(per={"image": 0.5, "class": 0.5}, backend="chunked"))
    loss(case.logits, case.label)
    assert passes == [loss.want]
