"""The distillation terms: formulas, ignored pixels, gradients, precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import distillation_formulas as formulas
import oracle
import softjaccard as sj
from softjaccard.errors import InputError
from softjaccard.models.network import NetworkOutput
from softjaccard.training.distillation import (
    ChannelWiseDistillation,
    CorrelationDistillation,
    CrossImageRelationalDistillation,
    DistillationTerm,
    JMLDistillation,
    KLDistillation,
    StructuredDistillation,
)

IMAGE = (13, 17)
CLASSES = 5
MAPS = ("logits", "auxiliary", "features")


@dataclass(frozen=True)
class Kind:
    """A term: how to make it, its formula of arrays, and the maps it looks at."""

    make: Callable[..., DistillationTerm]
    formula: Callable[..., float]
    maps: tuple[str, ...]

    def expected(self, student: NetworkOutput, teacher: NetworkOutput, counted: Tensor, **options: Any) -> float:
        return self.formula(arrays(student), arrays(teacher), counted.numpy(), **options)

    @property
    def at_image_resolution(self) -> bool:
        return self.make in (KLDistillation, JMLDistillation)


def on(name: str, formula: Callable[..., float]) -> Callable[..., float]:
    """The formula of a single map."""

    def of_outputs(student: Any, teacher: Any, counted: Any, **options: Any) -> float:
        return formula(student[name], teacher[name], counted, **options)

    return of_outputs


def heads(student: Any, teacher: Any, counted: Any, **options: Any) -> float:
    return formulas.jml(*((each["logits"], each["auxiliary"]) for each in (student, teacher)), counted, **options)


def structured(student: Any, teacher: Any, counted: Any) -> float:
    pixel = formulas.skd_pixel(student["logits"], teacher["logits"], counted)
    return pixel + formulas.skd_pair(student["features"], teacher["features"], counted, student.get("lengths"))


KINDS = {
    "kl": Kind(KLDistillation, on("logits", formulas.kl), ("logits",)),
    "jml": Kind(JMLDistillation, heads, ("logits", "auxiliary")),
    "cwd": Kind(ChannelWiseDistillation, on("logits", formulas.cwd), ("logits",)),
    "dist": Kind(CorrelationDistillation, on("logits", formulas.dist), ("logits",)),
    "skd": Kind(StructuredDistillation, structured, ("logits", "features")),
    "cirkd": Kind(CrossImageRelationalDistillation, on("features", formulas.cirkd), ("features",)),
}
every_kind = pytest.mark.parametrize("kind", list(KINDS.values()), ids=KINDS)


def arrays(output: NetworkOutput) -> dict[str, Any]:
    return {name: None if value is None else oracle.array(value) for name, value in output._asdict().items()}


def make_output(size: tuple[int, int] = (5, 7), width: int = 6, dtype: torch.dtype = torch.float64) -> NetworkOutput:
    """Random maps of three images; the auxiliary head and the features have resolutions of their own."""
    logits = 2 * torch.randn(3, CLASSES, *size, dtype=dtype)
    auxiliary = torch.randn(3, CLASSES, size[0] - 1, size[1] - 2, dtype=dtype)
    features = torch.randn(3, width, size[0] + 1, size[1] - 1, dtype=dtype)
    return NetworkOutput(*(each.requires_grad_() for each in (logits, auxiliary, features)))


def make_counted(kind: str = "some") -> Tensor:
    counted = torch.ones(3, *IMAGE, dtype=torch.bool)
    if kind != "all":
        counted[0, 3:9, 5:] = False
        counted[2] = torch.rand(IMAGE) < 0.6
    if kind == "an image without":
        counted[1] = False
    return counted


def gradients(value: Tensor, output: NetworkOutput, maps: tuple[str, ...]) -> list[Tensor]:
    return list(torch.autograd.grad(value, [getattr(output, name) for name in maps]))


@pytest.mark.parametrize("counted", ["all", "some", "an image without"])
@pytest.mark.parametrize("size", [(5, 7), (3, 9), (10, 8)], ids=str)
@every_kind
def test_value_is_the_formulas(kind: Kind, size: tuple[int, int], counted: str) -> None:
    student, teacher, mask = make_output(), make_output(size, width=4), make_counted(counted)
    term = kind.make()
    value = term(student, teacher, mask)
    assert value.shape == ()
    expected = kind.expected(student, teacher, mask)
    oracle.close(value, expected, 1e-9)
    oracle.close(kind.make(weight=3 * term.weight)(student, teacher, mask), 3 * expected, 1e-9)


@every_kind
def test_gradient_is_the_formulas(kind: Kind) -> None:
    student, teacher, mask = make_output(), make_output((4, 9), width=4), make_counted()
    slopes = gradients(kind.make()(student, teacher, mask), student, kind.maps)
    for name, actual in zip(kind.maps, slopes, strict=True):
        fixed, direction = arrays(student), torch.randn_like(actual)
        fixed["lengths"] = fixed["features"]
        moved = formulas.slope(
            lambda values, name=name, fixed=fixed: kind.formula(fixed | {name: values}, arrays(teacher), mask.numpy()),
            fixed[name],
            oracle.array(direction),
        )
        oracle.close((actual * direction).sum(), moved, 1e-6, name)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("kl", {"temperature": 2.5}),
        ("cwd", {"temperature": 1.0}),
        ("cwd", {"temperature": 0.7}),
        ("cirkd", {"temperature": 0.4}),
        ("jml", {"temperature": 2.5}),
        ("jml", {"temperature": 0.6, "classes": "all"}),
        ("jml", {"class_threshold": 0.9}),
        ("jml", {"class_threshold": 0.9, "classes": "all"}),
    ],
    ids=str,
)
def test_options(name: str, options: dict[str, Any]) -> None:
    kind, student, teacher, mask = KINDS[name], make_output(), make_output(), make_counted()
    with torch.no_grad():
        teacher.logits[:, 2] -= 20.0  # the teacher knows nothing of this class,
        teacher.logits[:, 3] -= 3.0  # and is a little confident of this one in places
    actual, expected = kind.make(**options)(student, teacher, mask), kind.expected(student, teacher, mask, **options)
    oracle.close(actual, expected, 1e-9)
    assert abs(expected - kind.expected(student, teacher, mask)) > 1e-3 * abs(expected), "the options change nothing"


def test_parts_have_weights() -> None:
    student, teacher, mask = make_output(), make_output(width=9), make_counted()
    inputs = student, teacher, mask

    def alone(make: Callable[..., DistillationTerm], names: tuple[str, str]) -> list[Tensor]:
        return [make(**{names[part]: 1.0, names[1 - part]: 0.0})(*inputs) for part in (0, 1)]

    for make, names in (
        (CorrelationDistillation, ("inter_weight", "intra_weight")),
        (StructuredDistillation, ("pixel_weight", "pair_weight")),
        (JMLDistillation, ("region_weight", "divergence_weight")),
    ):
        first, second = alone(make, names)
        both = make(**dict(zip(names, (0.3, 1.7), strict=True)))(*inputs)
        oracle.close(both, 0.3 * first + 1.7 * second, 1e-12)
        assert first > 0
        assert second > 0


@every_kind
def test_zero_where_teacher_and_student_are_equal(kind: Kind) -> None:
    student, mask = make_output(), make_counted()
    term = StructuredDistillation(pixel_weight=0.0) if kind.make is StructuredDistillation else kind.make()
    value = term(student, student, mask)
    assert value.abs() < 1e-12
    assert all(slope.abs().max() < 1e-10 for slope in gradients(value, student, kind.maps))


def test_the_pixel_term_of_skd_is_the_teachers_entropy_where_they_are_equal() -> None:
    student, mask = make_output(), make_counted("all")
    value = StructuredDistillation(pixel_weight=1.0, pair_weight=0.0)(student, student, mask)
    entropies = torch.distributions.Categorical(logits=student.logits.movedim(1, -1)).entropy()
    oracle.close(value, 3 * entropies.mean(), 1e-9)
    assert gradients(value, student, ("logits",))[0].abs().max() < 1e-12


def unheard(output: NetworkOutput, counted: Tensor, kind: Kind) -> dict[str, Tensor]:
    """The cells of each map that must not matter.

    Where maps are interpolated to the image that is a cell whose pixels, and those around them, are ignored.
    """
    result = {}
    for name in kind.maps:
        values = getattr(output, name)
        cells = torch.from_numpy(formulas.cells_of(counted.numpy(), tuple(values.shape[-2:])))
        if kind.at_image_resolution:
            cells = torch.nn.functional.max_pool2d(
                torch.nn.functional.interpolate(counted[:, None].double(), values.shape[-2:], mode="area"),
                3,
                1,
                1,
            )[:, 0].bool()
        result[name] = ~cells
        assert (~cells).any(), name
    return result


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf"), 1e4], ids=str)
@every_kind
def test_ignored_pixels_change_nothing(kind: Kind, poison: float) -> None:
    student, teacher, mask = make_output(), make_output(width=4), make_counted("an image without")
    mask[0, :, :10] = False
    expected = kind.make()(student, teacher, mask)
    slopes = gradients(expected, student, kind.maps)
    silent = unheard(student, mask, kind)

    def poisoned(output: NetworkOutput) -> NetworkOutput:
        changed = {
            name: getattr(output, name).detach().masked_fill(cells.unsqueeze(1), poison).requires_grad_()
            for name, cells in silent.items()
        }
        return output._replace(**changed)

    student, teacher = poisoned(student), poisoned(teacher)
    actual = kind.make()(student, teacher, mask)
    assert actual == expected
    for name, slope, before in zip(kind.maps, gradients(actual, student, kind.maps), slopes, strict=True):
        assert torch.equal(slope, before), name
        assert (slope.masked_select(silent[name].unsqueeze(1)) == 0).all(), name
        assert (slope != 0).any(), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
@every_kind
def test_nothing_counted_is_zero(kind: Kind, dtype: torch.dtype) -> None:
    student, teacher = make_output(dtype=dtype), make_output((4, 6), dtype=dtype)
    with torch.no_grad():
        for name in MAPS:
            getattr(student, name)[1] = float("nan")
    value = kind.make()(student, teacher, torch.zeros(3, *IMAGE, dtype=torch.bool))
    assert value == 0
    assert all((slope == 0).all() for slope in gradients(value, student, kind.maps))


@every_kind
def test_nan_that_counts_is_seen(kind: Kind) -> None:
    student, teacher = make_output(), make_output()
    with torch.no_grad():
        for name in MAPS:
            getattr(student, name)[1, :, 2, 3] = float("nan")
    assert kind.make()(student, teacher, make_counted("all")).isnan()


@every_kind
def test_gradient_goes_to_the_student_only(kind: Kind) -> None:
    student, teacher = make_output(), make_output((4, 6))
    kind.make()(student, teacher, make_counted()).backward()
    for name in MAPS:
        assert getattr(teacher, name).grad is None
        assert (getattr(student, name).grad is not None) == (name in kind.maps)
    assert kind.make().needs_features == ("features" in kind.maps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@every_kind
def test_half_precision_is_summed_in_float32(kind: Kind, dtype: torch.dtype) -> None:
    student, teacher = make_output(dtype=dtype), make_output((4, 6), dtype=dtype)
    mask = make_counted()
    exact = [NetworkOutput(*(each.detach().double().requires_grad_() for each in one)) for one in (student, teacher)]
    expected, slopes = kind.make()(*exact, mask), None
    slopes = gradients(expected, exact[0], kind.maps)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value = kind.make()(student, teacher, mask)
        assert value.dtype == torch.float32
        oracle.close(value, expected, 2e-5)
        for actual, slope in zip(gradients(value, student, kind.maps), slopes, strict=True):
            oracle.close(actual, slope, max(3 * torch.finfo(dtype).eps, 1e-4))


@every_kind
def test_large_logits_stay_finite(kind: Kind) -> None:
    student, teacher = make_output(dtype=torch.float32), make_output(dtype=torch.float32)
    with torch.no_grad():
        student.logits.mul_(500)
        teacher.logits.mul_(500)
    value = kind.make()(student, teacher, make_counted())
    assert value.isfinite()
    assert all(slope.isfinite().all() for slope in gradients(value, student, kind.maps))


@every_kind
def test_another_number_of_classes_is_refused(kind: Kind) -> None:
    teacher = NetworkOutput(torch.randn(3, 7, 5, 7), None, torch.randn(3, 6, 5, 7))
    with pytest.raises(InputError, match=r"teacher has 7 classes.*student has 5"):
        kind.make()(make_output(), teacher, make_counted())


@every_kind
def test_a_teacher_of_logits_only_is_refused_where_features_are_compared(kind: Kind) -> None:
    student, teacher = make_output(), make_output()._replace(auxiliary=None, features=None)
    if kind.make().needs_features:
        with pytest.raises(InputError, match="only logits"):
            kind.make()(student, teacher, make_counted())
    else:
        assert kind.make()(student, teacher, make_counted()).isfinite()


@pytest.mark.parametrize(
    ("make", "options", "word"),
    [(kind.make, {"weight": -1.0}, "weight") for kind in KINDS.values()]
    + [
        (make, {"temperature": 0.0}, "temperature")
        for make in (KLDistillation, ChannelWiseDistillation, CrossImageRelationalDistillation, JMLDistillation)
    ]
    + [
        (CorrelationDistillation, {"intra_weight": -1.0}, "intra_weight"),
        (StructuredDistillation, {"pair_weight": -1.0}, "pair_weight"),
        (JMLDistillation, {"label_weight": -1.0}, "label_weight"),
        (JMLDistillation, {"classes": "confident"}, "classes"),
        (CrossImageRelationalDistillation, {"pooling": 0}, "pooling"),
        (CrossImageRelationalDistillation, {"pooling": 1.5}, "pooling"),
    ],
    ids=str,
)
def test_bad_options_are_named(make: Callable[..., DistillationTerm], options: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make(**options)


# --- the terms one by one -------------------------------------------------------------------------


def test_default_weights_of_the_hard_label() -> None:
    assert {name: kind.make().label_weight for name, kind in KINDS.items()} == dict.fromkeys(KINDS, 1.0) | {"jml": 0.5}


def hard_loss(output: NetworkOutput, label: Tensor) -> Tensor:
    """The authors' mix on the hard label: 0.25 (0.5 CE main + 0.5 CE auxiliary) + 0.75 JML, of both heads or one."""
    share = 0.125 if output.auxiliary is not None else 0.25
    main = sj.CompoundLoss(sj.JaccardLoss(upsample="bilinear"), 0.75, share)(output.logits, label)
    if output.auxiliary is None:
        return main
    return main + share * sj.CrossEntropyLoss(upsample="bilinear")(output.auxiliary, label)


@pytest.mark.parametrize("missing", ["none", "student's", "teacher's"])
def test_total_of_jml_distillation_has_the_papers_weights(missing: str) -> None:
    student, teacher = make_output(), make_output((4, 6))
    student = student._replace(auxiliary=None) if missing == "student's" else student
    teacher = teacher._replace(auxiliary=None) if missing == "teacher's" else teacher
    counted = make_counted()
    label = torch.randint(CLASSES, counted.shape).masked_fill(~counted, -100)
    term = JMLDistillation()
    total = term.label_weight * hard_loss(student, label) + term(student, teacher, counted)

    full = {name: None if m is None else formulas.resized(m, IMAGE) for name, m in arrays(student).items()}
    hard = oracle.statistics(torch.from_numpy(full["logits"]), label)
    entropies = [oracle.cross_entropy(hard)]
    if student.auxiliary is not None:
        entropies.append(oracle.cross_entropy(oracle.statistics(torch.from_numpy(full["auxiliary"]), label)))
    soft = formulas.sums_of(arrays(student)["logits"], arrays(teacher)["logits"], counted.numpy(), 1.0)
    divergences = [oracle.kl_divergence(soft)]
    if missing == "none":
        divergences.append(formulas.kl(arrays(student)["auxiliary"], arrays(teacher)["auxiliary"], counted.numpy()))
    expected = 0.375 * oracle.tversky(hard, classes="present") + 0.375 * oracle.tversky(soft, classes="present")
    expected += 0.0625 * sum(entropies) * 2 / len(entropies) + 0.0625 * sum(divergences) * 2 / len(divergences)
    oracle.close(total, expected, 1e-6)


def test_temperature_of_jml_distillation_divides_both_logits_and_multiplies_the_divergence_only() -> None:
    student, teacher, counted = make_output(), make_output(), make_counted()
    cooler = [NetworkOutput(*(each.detach() / 2.5 for each in one)) for one in (student, teacher)]

    def parts(temperature: float, *outputs: NetworkOutput) -> list[float]:
        weights = ((1.0, 0.0), (0.0, 1.0))
        return [JMLDistillation(1.0, 0.5, temperature, "all", 0.01, *w)(*outputs, counted).item() for w in weights]

    at_one, at_temperature = parts(1.0, *cooler), parts(2.5, student, teacher)
    assert at_temperature == pytest.approx([at_one[0], 2.5**2 * at_one[1]], rel=1e-10)


def test_jml_distillation_reads_the_pixels_of_a_head_once(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    statistics = sj.losses.base.region_statistics

    def recorded(logits: Tensor, *arguments: Any, **options: Any) -> sj.RegionStatistics:
        passes.append(logits)
        return statistics(logits, *arguments, **options)

    monkeypatch.setattr("softjaccard.losses.base.region_statistics", recorded)
    student = make_output()
    JMLDistillation()(student, make_output(), make_counted())
    assert [next(n for n in MAPS if getattr(student, n) is logits) for logits in passes] == ["logits", "auxiliary"]


def test_constant_rows_have_no_correlation_and_drop_out() -> None:
    counted = torch.ones(1, 2, 3, dtype=torch.bool)
    features = torch.zeros(1, 1, 2, 3)
    student = NetworkOutput(torch.randn(1, 11, 2, 3).requires_grad_(), None, features)
    teacher = NetworkOutput(torch.randn(1, 11, 2, 3), None, features)
    flat = teacher._replace(logits=teacher.logits.clone())
    flat.logits[..., 1, 2] = 0.3  # this cell's probabilities are equal
    inter = CorrelationDistillation(intra_weight=0.0)
    without = counted.clone()
    without[..., 1, 2] = False
    oracle.close(inter(student, flat, counted), inter(student, flat, without), 1e-6)
    # A single cell: nothing varies over cells.
    alone = torch.zeros_like(counted)
    alone[..., 0, 0] = True
    value = CorrelationDistillation(inter_weight=0.0)(student, teacher, alone)
    assert value == 0
    # A network that knows nothing yet has constant probabilities everywhere.
    blank = student._replace(logits=torch.zeros(1, 11, 2, 3, requires_grad=True))
    value = CorrelationDistillation()(blank, teacher, counted)
    assert value == 0
    assert (gradients(value, blank, ("logits",))[0] == 0).all()


@pytest.mark.parametrize("make", [StructuredDistillation, CrossImageRelationalDistillation])
def test_features_of_length_zero_have_finite_gradients(make: Callable[..., DistillationTerm]) -> None:
    student, teacher = make_output(dtype=torch.float32), make_output(dtype=torch.float32)
    with torch.no_grad():
        student.features[1] = 0
        student.features[0, :, 2, 2] = 0
        teacher.features[2] = 0
    (slope,) = gradients(make()(student, teacher, make_counted()), student, ("features",))
    assert slope.abs().max() < 1e3


def test_cirkd_in_blocks_of_rows_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, counted = make_output(), make_output(), make_counted()
    whole = CrossImageRelationalDistillation()(student, teacher, counted)
    monkeypatch.setattr("softjaccard.training.distillation.cirkd._ROWS", 4)
    blocks = CrossImageRelationalDistillation()(student, teacher, counted)
    oracle.close(blocks, whole, 1e-12)
    slopes = [gradients(value, student, ("features",))[0] for value in (blocks, whole)]
    oracle.close(*slopes, 1e-12)


def test_cirkd_keeps_no_similarities_for_backward() -> None:
    student, teacher = make_output((19, 21)), make_output((19, 21))
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.numel()) or tensor, lambda t: t):
        CrossImageRelationalDistillation()(student, teacher, make_counted("all"))
    assert 0 < max(saved) <= student.features.numel() < 400**2, "the similarities of two images are 400 x 400"


def test_cirkd_refuses_to_compare_nothing() -> None:
    student, teacher = make_output(), make_output()
    CrossImageRelationalDistillation(pooling=5)(student, teacher, make_counted())  # features have 6 x 6 cells
    with pytest.raises(InputError, match="pooling is 6, which leaves one cell of the features' 6 x 6"):
        CrossImageRelationalDistillation(pooling=6)(student, teacher, make_counted())


def averaged(features: np.ndarray, cells: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Means (B, D, h, w) over those of a square's cells that count, and whether these are at least half of it."""
    size = [-(-side // length) for side in cells.shape[1:]]
    pooled, counted = np.zeros((*features.shape[:2], *size)), np.zeros((len(cells), *size), dtype=bool)
    for n, i, j in np.ndindex(counted.shape):
        square = np.s_[length * i : length * (i + 1), length * j : length * (j + 1)]
        kept = cells[n][square]
        counted[n, i, j] = 2 * kept.sum() >= kept.size
        if kept.any():
            pooled[n, :, i, j] = features[n][(slice(None), *square)][:, kept].mean(1)
    return pooled, counted


@pytest.mark.parametrize(("pooling", "from_cells", "length"), [(None, 9, 4), (None, 10, 1), (1, 9, 1), (2, 256, 2)])
def test_cirkd_averages_maps_over_the_cells_that_count(
    monkeypatch: pytest.MonkeyPatch, pooling: int | None, from_cells: int, length: int
) -> None:
    monkeypatch.setattr("softjaccard.training.distillation.cirkd._POOLED_FROM", from_cells)
    student, teacher = (NetworkOutput(torch.randn(3, 2, 9, 11), None, torch.randn(3, 5, 9, 11)) for _ in range(2))
    counted = torch.rand(3, 9, 11) < 0.6
    (own, cells), (fixed, _) = (
        averaged(arrays(each)["features"], counted.numpy(), length) for each in (student, teacher)
    )
    assert 0 < cells.sum() < cells.size
    expected = formulas.cirkd_of_cells(own, fixed, cells)
    oracle.close(CrossImageRelationalDistillation(pooling=pooling)(student, teacher, counted), expected, 1e-5)
