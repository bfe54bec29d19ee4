"""Nothing counted, extreme logits, invalid values without checks: finite where it must be, NaN where it must be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import oracle
import softjaccard as sj

BACKENDS = ("reference", "chunked")


def region_losses(**options: Any) -> list[Any]:
    """A loss of every form, with the options that are delicate."""
    return [
        sj.JaccardLoss(**options),
        sj.DiceLoss(form="metric2", smooth=0.0, per="image", classes="all", **options),
        sj.JaccardLoss(form="product", smooth=0.0, classes="all", log=True, **options),
        sj.JaccardLoss(smooth=0.0, per={"image": 0.5, "class": 0.5}, classes="either", log=True, gamma=1.5, **options),
        sj.TverskyLoss(0.3, 0.7, smooth=0.0, gamma=2.5, classes="all", per="class", **options),
        sj.TverskyLoss(0.0, 0.0, smooth=0.0, form="metric2", classes="all", gamma=1.3, log=True, **options),
    ]


def all_losses(gradient: str = "exact", **options: Any) -> list[Any]:
    """The losses above, alone and in a compound, and the two entropies."""
    region = region_losses(gradient=gradient, **options)
    return [*region, sj.CompoundLoss(region[3]), sj.CrossEntropyLoss(**options), sj.KLDivergenceLoss(**options)]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Both backends."""
    return request.param


@pytest.mark.parametrize(("activation", "classes", "kind"), oracle.GRID)
def test_nothing_counted_is_zero_with_zero_gradients(
    activation: str | None, classes: int, kind: str, backend: str
) -> None:
    case = oracle.make_case(kind, activation, classes, dtype=torch.float32)
    mask = torch.zeros(3, 7, 9, dtype=torch.bool)
    logits = torch.full_like(case.logits, float("nan")).requires_grad_()
    for loss in all_losses(activation=activation, backend=backend):
        value = loss(logits, case.label, mask)
        assert value == 0
        assert (oracle.gradient_of(value, logits) == 0).all()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_label_of_ignored_pixels_alone_is_zero(reduction: str, backend: str) -> None:
    logits = torch.randn(2, 4, 5, 6, requires_grad=True)
    label = torch.full((2, 5, 6), 255, dtype=torch.uint8)
    value = sj.jaccard_loss(logits, label, ignore_index=255, reduction=reduction, classes="all", backend=backend)
    assert (value == 0).all()
    assert (oracle.gradient_of(value.sum(), logits) == 0).all()


@pytest.mark.parametrize("gradient", ["exact", "error_scaled"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("activation", "classes", "kind"),
    [("softmax", 5, kind) for kind in ("hard", "dense", "smoothed", "teacher", "raters")]
    + [("sigmoid", 1, "hard"), ("sigmoid", 3, "maps"), ("sigmoid", 3, "teacher")],
)
def test_extreme_logits_stay_finite(
    activation: str, classes: int, kind: str, dtype: torch.dtype, gradient: str, backend: str
) -> None:
    case = oracle.make_case(kind, activation, classes, dtype=dtype, size=(6, 7), batch=4)
    extremes = torch.tensor([-1e4, -1e4, 0.0, 1e4, 1e4, 20.0, -90.0], dtype=dtype)
    if kind == "teacher":
        case.label = sj.TeacherLabel(extremes[torch.randint(0, 7, case.logits.shape)])
    one_class = torch.full_like(case.logits, -1e4).index_fill(1, torch.tensor([0]), 1e4)
    mixed = extremes[torch.randint(0, 7, case.logits.shape)]
    mixed[1], mixed[2], mixed[3] = one_class[1], -1e4, 1e4
    for values, temperature in ((mixed, 1.0), (mixed, 0.1), (one_class, 1.0)):  # 1e4 / 0.1 is too much for float16
        for loss in all_losses(activation=activation, temperature=temperature, backend=backend, gradient=gradient):
            logits = values.detach().clone().requires_grad_()
            value = loss(logits, case.label)
            assert torch.isfinite(value), f"{loss}: {value}"
            assert torch.isfinite(oracle.gradient_of(value, logits)).all(), f"gradient of {loss}"


@pytest.mark.parametrize("kind", ["hard", "dense"])
def test_probabilities_of_zero_and_one_stay_finite(kind: str, backend: str) -> None:
    case = oracle.make_case(kind, None, 4, dtype=torch.float32)
    for values in (torch.rand_like(case.logits).round(), torch.zeros_like(case.logits), torch.ones_like(case.logits)):
        for loss in all_losses(activation=None, backend=backend):
            logits = values.clone().requires_grad_()
            value = loss(logits, case.label)
            assert torch.isfinite(value)
            assert torch.isfinite(oracle.gradient_of(value, logits)).all()


def test_rounding_never_makes_a_power_of_a_negative_loss(backend: str) -> None:
    logits = torch.randn(300, 6, 40, requires_grad=True)
    options = {"gamma": 1.5, "per": "image", "smooth": 0.0, "reduction": "none", "backend": backend}
    for form in ("metric", "metric2"):
        for log in (False, True):
            value = sj.jaccard_loss(logits, sj.TeacherLabel(logits.detach()), form=form, log=log, **options)
            assert torch.isfinite(value).all()
            assert (value >= 0).all()
            assert torch.isfinite(oracle.gradient_of(value.sum(), logits)).all()


def test_rounding_at_confident_hard_predictions_is_no_negative_loss(backend: str) -> None:
    label = torch.randint(0, 3, (200, 50))
    logits = (
        torch.nn.functional.one_hot(label, 3).movedim(-1, 1) * 16.0 + 0.3 * torch.randn(200, 3, 50)
    ).requires_grad_()
    value = sj.jaccard_loss(logits, label, gamma=1.5, per="image", smooth=0.0, reduction="none", backend=backend)
    assert torch.isfinite(value).all()
    assert (value >= 0).all()
    assert torch.isfinite(oracle.gradient_of(value.sum(), logits)).all()


def test_the_log_at_score_zero_is_large_and_finite(backend: str) -> None:
    logits = torch.tensor([[[-1e4, -1e4], [1e4, 1e4]]])
    label = torch.zeros(1, 2, dtype=torch.long)
    plain, log = (float(sj.jaccard_loss(logits, label, smooth=0.0, log=log, backend=backend)) for log in (False, True))
    assert plain == 1
    assert 5 < log < 1e3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "activation", "classes", "bad"),
    [
        ("id too large", "softmax", 3, torch.tensor([[0, 1, 3, 2]])),
        ("id 255", "softmax", 3, torch.tensor([[0, 1, 255, 2]], dtype=torch.uint8)),
        ("negative id", "softmax", 3, torch.tensor([[0, 1, -1, 2]])),
        ("not 0/1", "sigmoid", 1, torch.tensor([[0, 1, 2, 1]])),
        ("not 0/1", "sigmoid", 2, torch.tensor([[[0, 1, 2, 1], [0, 1, 0, 1]]])),
        ("above 1", "sigmoid", 1, torch.tensor([[[0, 1, 1.5, 1]]])),
        ("below 0", "sigmoid", 1, torch.tensor([[[0, 1, -0.5, 1]]])),
        ("below 0", "softmax", 2, torch.tensor([[[0, 1, -0.5, 1], [1, 0, 1.5, 0]]])),
        ("no distribution", "softmax", 2, torch.tensor([[[0, 1, 0.2, 1], [1, 0, 0.2, 0]]])),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_without_value_checks_an_invalid_label_makes_the_loss_nan(
    name: str, activation: str, classes: int, bad: torch.Tensor, backend: str
) -> None:
    torch._dynamo.reset()
    logits = torch.randn(1, classes, 4, requires_grad=True)
    with pytest.raises(ValueError, match="label"):
        sj.jaccard_loss(logits, bad, activation=activation, backend=backend)
    losses = [loss(activation=activation, backend=backend) for loss in (sj.JaccardLoss, sj.CrossEntropyLoss)]

    def run(mask: torch.Tensor) -> list[torch.Tensor]:
        return [loss(logits, bad, mask) for loss in losses]

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert all(torch.isnan(value) for value in compiled(torch.ones(1, 4, dtype=torch.bool))), name
    assert all(torch.isfinite(value) for value in compiled(torch.tensor([[True, True, False, True]]))), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_value_checks_invalid_votes_and_smoothed_ids_make_the_loss_nan(backend: str) -> None:
    torch._dynamo.reset()
    logits = torch.randn(1, 3, 4)
    for label in (
        sj.SmoothedLabel(torch.tensor([[0, 1, 3, 2]])),
        sj.RaterLabel(torch.tensor([[[0, 1, 3, 2], [0, 1, 1, 2]]])),
    ):

        def run(logits, label=label):
            return sj.jaccard_loss(logits, label, backend=backend)

        assert torch.isnan(torch.compile(run, fullgraph=True, backend="aot_eager")(logits))
