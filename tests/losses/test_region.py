"""Tversky, Jaccard and Dice: all options against the oracle, and the properties the paper proves."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import oracle
import softjaccard as sj


def resolve(classes: Any, case: oracle.Case) -> Any:
    """What classes="auto" means for this case."""
    hard = isinstance(case.label, torch.Tensor) and not case.label.is_floating_point()
    if classes != "auto":
        return classes
    return "present" if hard and case.options["activation"] != "sigmoid" else "all"


def compare(case: oracle.Case, backend: str, gradient: str = "exact", tolerance: float = 1e-9, **options: Any) -> float:
    """Value and gradient of TverskyLoss against the oracle; the value."""
    loss = sj.TverskyLoss(
        **{"alpha": 1.0, "beta": 1.0} | options,
        gradient=gradient,
        backend=backend,
        **case.options,
    )
    wanted = options | {"classes": resolve(options.get("classes", "auto"), case)}
    wanted.pop("reduction", None)
    expected, slope = oracle.value_and_gradient(lambda stats: oracle.tversky(stats, **wanted), case.pixels(), gradient)
    actual = loss(case.logits, case.label, case.mask)
    assert actual.shape == ()
    assert actual.dtype == case.logits.dtype
    oracle.close(actual, expected, tolerance, "value")
    oracle.close(oracle.gradient_of(actual, case.logits), slope, tolerance, "gradient")
    return expected


def random_options(seed: int, classes: int) -> dict[str, Any]:
    """One random point of the whole grid of options."""
    pick = random.Random(seed)
    some = sorted(pick.sample(range(classes), k=max(1, classes // 2)))
    log = pick.choice([False, True])
    return {
        "alpha": pick.choice([0.0, 0.3, 1.0, 2.0]),
        "beta": pick.choice([0.2, 0.7, 1.0]),
        "form": pick.choice(oracle.FORMS),
        "per": pick.choice(
            ["dataset", "image", "class", {"image": 0.5, "class": 0.5}, {"dataset": 0.2, "image": 1.3, "class": 0.1}]
        ),
        "classes": pick.choice(["auto", "present", "predicted", "either", "all", some]),
        "class_threshold": pick.choice([0.01, 0.6]),
        "class_weight": pick.choice([None, [pick.randint(1, 12) / 4 for _ in range(classes)]]),
        "smooth": pick.choice([0.5 if log else 0.0, 1e-3, 1.0, 10.0]),  # the logarithm of a score of 0 is clamped
        "log": log,
        "gamma": pick.choice([1.0, 1.5, 2.0]),
    }


@pytest.mark.parametrize("seed", range(150))
def test_random_options_on_random_labels(seed: int, small_tiles: None) -> None:
    pick = random.Random(1000 + seed)
    activation, classes, kind, mask = pick.choice(oracle.MASKED_GRID)
    options = random_options(seed, classes)
    temperature = 1.0 if activation is None else pick.choice([0.7, 1.0, 2.0])
    case = oracle.make_case(kind, activation, classes, mask=mask, temperature=temperature, seed=seed)
    for backend in ("reference", "chunked"):
        compare(case, backend, pick.choice(["exact", "error_scaled"]), **options)


@pytest.mark.parametrize("kind", ["hard", "dense"])
@pytest.mark.parametrize("per", ["dataset", "image", "class"])
@pytest.mark.parametrize("classes", ["auto", "present", "predicted", "either", "all", [0, 3]], ids=str)
@pytest.mark.parametrize("form", oracle.FORMS)
def test_each_form_mean_and_choice_of_classes(form: str, classes: Any, per: str, kind: str) -> None:
    case = oracle.make_case(kind, mask="bool")
    weight = [1.0, 0.5, 2.0, 0.0, 4.0] if classes != [0, 3] else None
    compare(case, "auto", form=form, classes=classes, per=per, alpha=0.3, beta=0.8, class_weight=weight)


def test_the_choices_of_classes_differ() -> None:
    p = torch.tensor(
        [[[0.2, 0.3], [0.6, 0.7], [0.2, 0.0], [0.0, 0.0]]]
    )  # class 1 is predicted, classes 0 and 2 are present
    label = torch.tensor([[0, 2]])
    losses = sj.jaccard_loss(p, label, classes="all", activation=None, reduction="none", smooth=0.0)
    assert losses.tolist() == pytest.approx([1 - 0.2 / 1.3, 1, 1, 0])
    expected = {"present": [0, 2], "predicted": [1], "either": [0, 1, 2], "all": [0, 1, 2, 3], (0, 3): [0, 3]}
    for classes, active in expected.items():
        value = sj.jaccard_loss(p, label, classes=classes, activation=None, smooth=0.0)
        assert float(value) == pytest.approx(float(losses[active].mean()))


def test_the_means_differ() -> None:
    case = oracle.make_case("hard", size=(3, 4))
    values = {float(sj.jaccard_loss(case.logits, case.label, per=per)) for per in ("dataset", "image", "class")}
    assert len(values) == 3


@pytest.mark.parametrize("kind", ["hard", "dense", "smoothed", "teacher", "raters"])
def test_auto_goes_by_the_type_of_the_label(kind: str) -> None:
    case = oracle.make_case(kind)
    auto, present, everything = (
        sj.jaccard_loss(case.logits, case.label, classes=c, class_threshold=0.995) for c in ("auto", "present", "all")
    )
    assert auto == (present if kind == "hard" else everything)
    assert present != everything
    maps = oracle.make_case("maps", "sigmoid", 3, size=(2, 1))
    auto, everything = (
        sj.jaccard_loss(maps.logits, maps.label, classes=c, activation="sigmoid") for c in ("auto", "all")
    )
    assert auto == everything


def test_smoothing_by_nothing_is_still_soft() -> None:
    case = oracle.make_case("hard")
    soft = sj.jaccard_loss(case.logits, sj.SmoothedLabel(case.label, 0.0))
    assert soft == sj.jaccard_loss(case.logits, case.label, classes="all") != sj.jaccard_loss(case.logits, case.label)


# --- properties -----------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [sj.JaccardLoss, sj.DiceLoss])
@pytest.mark.parametrize("size", [(50,), (7, 9), (3, 4, 5)], ids=str)
@pytest.mark.parametrize("classes", [1, 2, 5, 19, 150])
def test_on_hard_labels_the_three_forms_are_one(classes: int, size: tuple[int, ...], loss: Any) -> None:
    activation = "sigmoid" if classes == 1 else "softmax"
    case = oracle.make_case("hard", activation, classes, size=size)
    assert (case.label == -100).any()
    for options in ({"smooth": 0.0}, {"smooth": 1.0, "per": "image"}):
        values, slopes = [], []
        for form in oracle.FORMS:
            value = loss(form=form, activation=activation, **options)(case.logits, case.label)
            values.append(float(value))
            slopes.append(oracle.array(oracle.gradient_of(value, case.logits)))
        assert values == pytest.approx([values[0]] * 3, abs=1e-6)
        assert values[0] > 0.1
        oracle.close(slopes[1], slopes[0], 1e-6)
        oracle.close(slopes[2], slopes[0], 1e-6)


def probabilities(classes: int, *size: int) -> torch.Tensor:
    """A soft label with corners, edges and an even middle."""
    soft = (3 * torch.randn(2, classes, *size, dtype=torch.float64)).softmax(1)
    soft[:, :, 0] = 1 / classes
    soft[:, :, 1] = torch.eye(classes)[0].reshape(classes, *[1] * (len(size) - 1))
    return soft


@pytest.mark.parametrize("smooth", [0.0, 1.0])
@pytest.mark.parametrize("loss", [sj.JaccardLoss, sj.DiceLoss])
@pytest.mark.parametrize("classes", [1, 2, 5])
def test_metric_forms_are_zero_at_the_label_and_only_there_and_the_product_form_is_not(
    loss: Any, classes: int, smooth: float
) -> None:
    label = probabilities(classes, 6, 4) if classes > 1 else torch.rand(2, 1, 6, 4, dtype=torch.float64)
    at_label = {f: float(loss(form=f, activation=None, smooth=smooth)(label, label)) for f in oracle.FORMS}
    assert at_label["metric"] == pytest.approx(0, abs=1e-6)
    assert at_label["metric2"] == pytest.approx(0, abs=1e-6)
    assert at_label["product"] > 0.05
    for step in (0.01, 0.1, 1.0):
        other = (1 - step) * label + step * torch.rand_like(label)
        one_pixel = label.clone()
        one_pixel[1, 0, 3, 2] += step if label[1, 0, 3, 2] < 0.5 else -step
        for form in ("metric", "metric2"):
            for prediction in (other, one_pixel.clamp(0, 1)):
                assert loss(form=form, activation=None, smooth=smooth)(prediction, label) > 1e-5


def test_the_product_form_prefers_a_corner_to_the_label() -> None:
    label = torch.full((1, 1, 3), 0.5)
    values = [
        float(sj.dice_loss(torch.full((1, 1, 3), x), label, form="product", activation=None, smooth=0.0))
        for x in (0.5, 0.8, 1.0)
    ]
    assert values[0] > values[1] > values[2]


TABLES = {
    (sj.JaccardLoss, "metric"): [1, 0.8, 0.6, 0.4, 0.2, 0, 0.167, 0.286, 0.375, 0.444, 0.5],
    (sj.DiceLoss, "metric"): [1, 0.667, 0.429, 0.25, 0.111, 0, 0.091, 0.167, 0.231, 0.286, 0.333],
    (sj.DiceLoss, "product"): [1, 0.833, 0.714, 0.625, 0.556, 0.5, 0.455, 0.417, 0.385, 0.357, 0.333],
}


@pytest.mark.parametrize(("loss", "form"), TABLES)
def test_single_pixel_with_label_one_half(loss: Any, form: str) -> None:
    module = loss(form=form, smooth=0.0, activation=None)
    label = torch.tensor([[[0.5]]])
    values = [float(module(torch.tensor([[[step / 10]]]), label)) for step in range(11)]
    assert values == pytest.approx(TABLES[loss, form], abs=5.1e-4)


entry = st.one_of(st.integers(0, 8).map(lambda n: n / 8), st.floats(0, 1, width=16))


@pytest.mark.parametrize("smooth", [0.0, 1.0])
@pytest.mark.parametrize("form", ["metric", "metric2"])
@given(data=st.data())
def test_jaccard_metric_losses_are_metrics(form: str, smooth: float, data: st.DataObject) -> None:
    classes, pixels = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    points = [
        torch.tensor(
            data.draw(st.lists(entry, min_size=classes * pixels, max_size=classes * pixels)), dtype=torch.float64
        ).reshape(1, classes, pixels)
        for _ in range(3)
    ]
    loss = sj.JaccardLoss(form=form, classes="all", smooth=smooth, activation=None)
    x, y, z = points
    assert float(loss(x, z)) <= float(loss(x, y)) + float(loss(y, z)) + 1e-9
    assert float(loss(x, y)) == pytest.approx(float(loss(y, x)), abs=1e-12)
    assert float(loss(x, x)) == pytest.approx(0, abs=1e-12)
    assert -1e-12 <= float(loss(x, y)) <= 1 + 1e-12


def test_dice_breaks_the_triangle_inequality() -> None:
    x, y, z = (torch.tensor([[point]]) for point in ([0.0, 1.0], [1.0, 1.0], [1.0, 0.0]))
    dice = sj.DiceLoss(classes="all", smooth=0.0, activation=None)
    jaccard = sj.JaccardLoss(classes="all", smooth=0.0, activation=None)
    assert dice(x, z) == 1
    assert float(dice(x, y) + dice(y, z)) == pytest.approx(2 / 3)
    assert jaccard(x, z) <= jaccard(x, y) + jaccard(y, z)


def test_jaccard_and_dice_are_cases_of_tversky() -> None:
    case = oracle.make_case("dense")
    for loss, functional, weight in ((sj.JaccardLoss, sj.jaccard_loss, 1.0), (sj.DiceLoss, sj.dice_loss, 0.5)):
        expected = sj.TverskyLoss(weight, weight, per="image")(case.logits, case.label)
        assert (
            loss(per="image")(case.logits, case.label) == expected == functional(case.logits, case.label, per="image")
        )
    jaccard, dice = (
        1 - float(f(case.logits, case.label, reduction="none")[2]) for f in (sj.jaccard_loss, sj.dice_loss)
    )
    assert dice != jaccard


def test_alpha_weighs_false_positives_and_beta_false_negatives() -> None:
    label = torch.tensor([[[1.0, 1.0, 0.0, 0.0]]])
    too_much, too_little = torch.tensor([[[1.0, 1.0, 1.0, 0.0]]]), torch.tensor([[[1.0, 0.0, 0.0, 0.0]]])
    for form in oracle.FORMS:
        loss = sj.TverskyLoss(alpha=0.2, beta=3.0, form=form, smooth=0.0, activation=None)
        assert float(loss(too_much, label)) == pytest.approx(1 - 2 / (2 + 0.2))
        assert float(loss(too_little, label)) == pytest.approx(1 - 1 / (1 + 3.0))
        assert float(
            sj.tversky_loss(too_much, label, alpha=3.0, beta=0.2, form=form, smooth=0.0, activation=None)
        ) == pytest.approx(0.6)


def test_gamma_is_a_power_after_the_logarithm_and_smooth_is_added_to_both() -> None:
    label, prediction = torch.tensor([[[1.0, 1.0, 0.0]]]), torch.tensor([[[1.0, 0.0, 0.0]]])

    def run(**o):
        return float(sj.jaccard_loss(prediction, label, activation=None, **o))

    score = torch.tensor((1 + 0.5) / (2 + 0.5))
    assert run(smooth=0.5) == pytest.approx(float(1 - score))
    assert run(smooth=0.5, gamma=2.0) == pytest.approx(float(1 - score) ** 2)
    assert run(smooth=0.5, log=True) == pytest.approx(float(-score.log()))
    assert run(smooth=0.5, log=True, gamma=2.0) == pytest.approx(float(score.log()) ** 2)
    assert run() == pytest.approx(1 - 2 / 3)  # smooth is 1 by default


# --- reduction, masks, statistics -----------------------------------------------------------------


@pytest.mark.parametrize("classes", ["auto", "present", "all", [1, 4]], ids=str)
@pytest.mark.parametrize("per", ["dataset", "image", "class"])
@pytest.mark.parametrize("kind", ["hard", "teacher"])
def test_reduction_none(kind: str, per: str, classes: Any) -> None:
    case = oracle.make_case(kind, mask="bool")
    options = {"per": per, "form": "metric2", "gamma": 1.5, "reduction": "none"}
    weighted = sj.JaccardLoss(classes=classes, class_weight=[1.0, 2, 3, 4, 5], **options)(
        case.logits, case.label, case.mask
    )
    expected = oracle.tversky(oracle.sums(case.pixels()), classes=resolve(classes, case), **options)
    assert weighted.shape == ((5,) if per == "dataset" else (3, 5))
    oracle.close(weighted, expected, 1e-10)


@pytest.mark.parametrize("classes", ["all", [0, 2]], ids=str)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("per", ["dataset", "image", "class", {"image": 0.5, "class": 0.5}], ids=str)
@pytest.mark.parametrize("form", oracle.FORMS)
@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_an_ignored_image_contributes_nothing(backend: str, form: str, per: Any, activation: str, classes: Any) -> None:
    case = oracle.make_case("teacher" if activation == "softmax" else "maps", activation, 3)
    mask = torch.ones(3, 7, 9, dtype=torch.bool)
    mask[1] = False
    loss = sj.CompoundLoss(sj.JaccardLoss(form=form, per=per, classes=classes, activation=activation, backend=backend))
    value = loss(case.logits, case.label, mask)
    gradient = oracle.gradient_of(value, case.logits)
    rest = [0, 2]
    label = sj.TeacherLabel(case.label.logits[rest]) if activation == "softmax" else case.label[rest]
    others = case.logits.detach()[rest].requires_grad_()
    expected = loss(others, label)
    oracle.close(value, expected, 1e-12)
    oracle.close(gradient[rest], oracle.gradient_of(expected, others), 1e-12)
    assert (gradient[1] == 0).all()


def test_weights_of_a_mapping_are_used_as_given() -> None:
    case = oracle.make_case("hard")
    image, group = (sj.jaccard_loss(case.logits, case.label, per=per) for per in ("image", "class"))
    both = sj.jaccard_loss(case.logits, case.label, per={"image": 2.0, "class": 0.5})
    assert float(both) == pytest.approx(float(2 * image + 0.5 * group))


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_from_statistics_is_the_loss(backend: str) -> None:
    case = oracle.make_case("raters", mask="weights")
    region = sj.JaccardLoss(form="metric2", per="image", classes="either", backend=backend)
    for loss in (
        region,
        sj.DiceLoss(backend=backend),
        sj.CrossEntropyLoss(backend=backend),
        sj.KLDivergenceLoss(),
        sj.CompoundLoss(region),
    ):
        expected = loss(case.logits, case.label, case.mask)
        assert loss.want <= set(oracle.FIELDS)
        statistics = case.statistics(want=loss.want, backend=backend)
        assert {n for n in oracle.FIELDS if getattr(statistics, n) is not None} == set(loss.want)
        oracle.close(loss.from_statistics(statistics), expected, 1e-12)
        oracle.close(loss.from_statistics(case.statistics(backend=backend)), expected, 1e-12)
        gradient = oracle.gradient_of(loss.from_statistics(statistics), case.logits)
        oracle.close(gradient, oracle.gradient_of(expected, case.logits), 1e-12)


def test_statistics_of_micro_batches_give_the_loss_of_the_batch() -> None:
    case = oracle.make_case("hard", batch=4)
    loss = sj.CompoundLoss(sj.JaccardLoss(form="metric2"))
    parts = [
        sj.region_statistics(case.logits[b : b + 2], case.label[b : b + 2], want=loss.want).total() for b in (0, 2)
    ]
    actual, expected = loss.from_statistics(parts[0] + parts[1]), loss(case.logits, case.label)
    oracle.close(actual, expected, 1e-12)
    oracle.close(oracle.gradient_of(actual, case.logits), oracle.gradient_of(expected, case.logits), 1e-12)


def test_only_the_needed_statistics_are_wanted() -> None:
    assert sj.JaccardLoss(classes="all").want == {"prediction", "label", "overlap", "pixels"}
    assert sj.JaccardLoss(classes="all", form="product").want == {"prediction", "label", "product", "pixels"}
    assert "product" in sj.JaccardLoss(form="metric2").want
    assert "overlap" in sj.JaccardLoss(form="metric2").want
    assert "prediction_peak" in sj.JaccardLoss(classes="either").want
    assert sj.CrossEntropyLoss().want == {"cross_entropy", "label"}
