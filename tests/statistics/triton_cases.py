"""The triton backend on the CPU, in triton's interpreter: run by test_triton.py in a process of its own.

The interpreter has to be chosen before triton is imported, and other tests need triton as it is. By hand:
``TRITON_INTERPRET=1 python -m pytest tests/statistics/triton_cases.py``.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import oracle
import softjaccard as sj
from softjaccard.statistics import fused

KINDS = ("hard", "hard_usual", "dense", "smoothed", "smoothed_where", "teacher", "teacher_own")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
#: An error of the triton backend may be this multiple of the reference's in the same precision, and some roundings:
#: both round alike, but not the same, and each error is the largest of few numbers.
FACTOR = 2
ROUNDINGS = 8


@pytest.fixture(autouse=True, scope="session")
def quick_interpreter() -> Iterator[None]:
    """Let the language be prepared once for a launch, and not at every call within it, which takes half of all time."""
    from triton.runtime import interpreter

    prepare, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    prepared: set[int] = set()

    def prepare_once(function: Any) -> Any:
        module = id(function.__globals__)
        if module in prepared:
            return None
        prepared.add(module)
        return prepare(function)

    def launch_afresh(self: Any, *args: Any, **kwargs: Any) -> None:
        prepared.clear()
        launch(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", prepare_once)
        patch.setattr(interpreter.GridExecutor, "__call__", launch_afresh)
        yield


@pytest.fixture
def two_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small images keep each program busy for several blocks."""
    monkeypatch.setattr(fused, "_programs", lambda device, warps, images: 2)


def result(case: oracle.Case, upstream: dict[str, Tensor], **options: Any) -> tuple[dict[str, Tensor], Tensor]:
    """All statistics, and the gradient of their combination."""
    statistics = case.statistics(**options)
    value = sum((statistics[name].double() * slope).sum() for name, slope in upstream.items())
    return statistics.fields(), oracle.gradient_of(value, case.logits)


def in_double(case: oracle.Case) -> oracle.Case:
    """The same values in float64."""

    def wide(tensor: Tensor) -> Tensor:
        return tensor.detach().double() if tensor.is_floating_point() else tensor

    label = wide(case.label) if isinstance(case.label, Tensor) else case.label.map(wide)
    mask = None if case.mask is None else wide(case.mask)
    return dataclasses.replace(case, logits=wide(case.logits).requires_grad_(), label=label, mask=mask)


def error(actual: Tensor, expected: Tensor) -> float:
    """The largest deviation relative to the largest value."""
    assert actual.shape == expected.shape
    assert torch.isfinite(actual).all()
    actual, expected = actual.detach(), expected.detach()
    return float((actual.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def compare(case: oracle.Case, **options: Any) -> None:
    """Value and gradient are as near to those in float64 as the reference's in the logits' precision."""
    wanted = [name for name in oracle.DIFFERENTIABLE if name in case.want]
    shape = case.logits.shape[:2]
    upstream = {name: torch.randn(shape, dtype=torch.float64) for name in wanted}
    truth, true_gradient = result(in_double(case), upstream, backend="reference", **options)
    plain, plain_gradient = result(case, upstream, backend="reference", **options)
    mine, gradient = result(case, upstream, backend="triton", **options)
    few = ROUNDINGS * torch.finfo(torch.float32).eps
    for name, value in truth.items():
        assert error(mine[name], value) <= FACTOR * error(plain[name], value) + few, name
    assert gradient.stride() == torch.empty_like(case.logits).stride()
    if gradient.dtype == torch.bfloat16:  # which the interpreter cuts off; a GPU rounds
        few += torch.finfo(torch.bfloat16).eps
    assert error(gradient, true_gradient) <= FACTOR * error(plain_gradient, true_gradient) + few


def exact_distribution(shape: torch.Size) -> Tensor:
    """Random shares of eight votes: numbers that no precision rounds."""
    votes = torch.randint(shape[1], (8, shape[0], *shape[2:]))
    return F.one_hot(votes, shape[1]).float().mean(0).movedim(-1, 1)


def make(kind: str, classes: int = 5, **options: Any) -> oracle.Case:
    case = oracle.make_case(kind, "softmax", classes, **{"dtype": torch.float32, "batch": 2} | options)
    case.options["temperature"] = options.get("temperature", 0.6)
    if kind == "dense":
        case.label = exact_distribution(case.logits.shape).to(case.logits.dtype)
    return case


def make_low(
    kind: str, low: tuple[int, int], full: tuple[int, int], classes: int = 5, teacher: Any = None, **options: Any
) -> oracle.Case:
    """A case whose logits have the resolution ``low``, and a teacher's that of ``teacher``."""
    case = make(kind, classes, size=full, **options)
    values = torch.randn(*case.logits.shape[:2], *low).to(case.logits.dtype)
    case.logits = (2 * values).requires_grad_()
    if isinstance(case.label, sj.TeacherLabel):
        values = 2 * torch.randn(*case.logits.shape[:2], *(teacher or low)).to(case.logits.dtype)
        case.label = dataclasses.replace(case.label, logits=values)
    case.options |= {"upsample": "bilinear", "size": full}
    return case


# --- logits at the label's resolution --------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["exact", "error_scaled"])
@pytest.mark.parametrize("mask", oracle.PIXEL_MASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_reference(kind: str, mask: str, gradient: str) -> None:
    compare(make(kind, mask=mask), gradient=gradient)


@pytest.mark.parametrize("dtype", FLOATS[1:], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(kind: str, dtype: torch.dtype) -> None:
    compare(make(kind, mask="bool", dtype=dtype))


@pytest.mark.parametrize("classes", [2, 3, 4, 16, 17, 19, 21, 150, 151])
@pytest.mark.parametrize("kind", ["hard_usual", "dense", "teacher"])
def test_any_number_of_classes(kind: str, classes: int, two_programs: None) -> None:
    compare(make(kind, classes, batch=1, size=(5, 13)))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("classes", [5, 8, 9, 33, 64, 100, 257, 1000, 1024])
@pytest.mark.parametrize("kind", ["hard", "teacher_own"])
def test_more_numbers_of_classes(kind: str, classes: int, dtype: torch.dtype) -> None:
    compare(make(kind, classes, batch=1, size=(5, 13), dtype=dtype))


@pytest.mark.parametrize("size", [(1,), (601,), (1, 40), (16, 16), (3, 5, 40)], ids=str)
@pytest.mark.parametrize("kind", ["hard", "smoothed_where", "teacher", "dense"])
def test_any_image_size(kind: str, size: tuple[int, ...], two_programs: None) -> None:
    # Several images: of a single pixel the gradient may be small by chance, and its relative error large.
    compare(make(kind, 3, size=size, mask="weights", batch=8 if size == (1,) else 2))


def layouts(tensor: Tensor) -> dict[str, Tensor]:
    """The same values, laid out differently in memory."""
    wide = torch.zeros(*tensor.shape[:-1], 2 * tensor.shape[-1], dtype=tensor.dtype)
    wide[..., ::2] = tensor
    return {
        "transposed": tensor.transpose(-1, -2).contiguous().transpose(-1, -2),
        "strided": wide[..., ::2],
        "cropped": wide[..., ::2].clone(memory_format=torch.preserve_format)[..., :-1],
        "images last": tensor.movedim(0, -1).contiguous().movedim(-1, 0),
        "channels last": tensor.movedim(1, -1).contiguous().movedim(-1, 1),
        "expanded": tensor[:1].expand_as(tensor),
    }


@pytest.mark.parametrize("layout", list(layouts(torch.zeros(1, 1, 1, 1))))
@pytest.mark.parametrize("kind", ["smoothed_where", "dense", "teacher"])
def test_any_layout_in_memory(kind: str, layout: str) -> None:
    case = make(kind, mask="weights", size=(6, 9))
    label = case.label if isinstance(case.label, Tensor) else None
    moved = layouts(label)[layout] if label is not None else case.label.map(lambda tensor: layouts(tensor)[layout])
    logits, mask = layouts(case.logits.detach())[layout], layouts(case.mask)[layout]
    compare(dataclasses.replace(case, logits=logits.detach().requires_grad_(), label=moved, mask=mask))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16])
def test_any_integer_dtype(dtype: torch.dtype) -> None:
    case = make("hard", ignore_index=100)
    compare(dataclasses.replace(case, label=case.label.to(dtype)))


def test_booleans_are_two_classes() -> None:
    case = make("hard", 2, ignore_index=None)
    compare(dataclasses.replace(case, label=case.label.bool()))


def test_class_156_in_uint8_is_not_ignored_and_255_can_be() -> None:
    label = torch.full((1, 4, 4), 156, dtype=torch.uint8)
    label[0, 0] = 255
    statistics = sj.region_statistics(torch.randn(1, 160, 4, 4), label, ignore_index=255, backend="triton")
    assert statistics.pixels.tolist() == [12]
    assert statistics.label[0, 156] == 12


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64], ids=str)
def test_label_and_mask_may_have_another_precision(dtype: torch.dtype) -> None:
    case = make("teacher", 20, mask="weights")
    teacher = case.label.logits.to(dtype)
    for label in (sj.TeacherLabel(teacher), exact_distribution(teacher.shape).to(dtype)):
        compare(dataclasses.replace(case, label=label, mask=case.mask.to(dtype)))


@pytest.mark.parametrize("name", oracle.FIELDS)
@pytest.mark.parametrize("kind", ["hard", "teacher"])
def test_each_field_alone(kind: str, name: str) -> None:
    case = make(kind, mask="bool")
    everything, alone = case.statistics(backend="triton"), case.statistics(backend="triton", want={name})
    assert list(alone.fields()) == [name]
    assert torch.equal(alone[name], everything[name])
    if name in oracle.DIFFERENTIABLE:
        mine, reference = (case.statistics(backend=backend, want={name}) for backend in ("triton", "reference"))
        slopes = [oracle.gradient_of(value[name].sum(), case.logits) for value in (mine, reference)]
        torch.testing.assert_close(*slopes, rtol=1e-5, atol=1e-5)


# --- interpolated logits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "mask", "gradient", "align_corners"),
    [
        ("hard", "no mask", "exact", False),
        ("hard_usual", "weights", "error_scaled", True),
        ("dense", "bool", "exact", True),
        ("smoothed_where", "weights", "exact", False),
        ("teacher", "no mask", "error_scaled", False),
        ("teacher_own", "bool", "exact", True),
    ],
)
def test_interpolated(kind: str, mask: str, gradient: str, align_corners: bool) -> None:
    case = make_low(kind, (2, 3), (5, 7), mask=mask)
    compare(case, gradient=gradient, align_corners=align_corners)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["exact", "error_scaled"])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("dtype", "mask"), list(zip(FLOATS, oracle.PIXEL_MASKS, strict=True)), ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_more_interpolated(kind: str, dtype: torch.dtype, mask: str, align_corners: bool, gradient: str) -> None:
    case = make_low(kind, (3, 4), (7, 11), mask=mask, dtype=dtype)
    compare(case, gradient=gradient, align_corners=align_corners)


@pytest.mark.parametrize(
    ("low", "full"),
    [((1, 1), (5, 4)), ((1, 5), (2, 6)), ((4, 3), (4, 8)), ((2, 2), (8, 6)), ((7, 7), (7, 7)), ((6, 1), (7, 1))],
    ids=str,
)
@pytest.mark.parametrize("align_corners", [False, True])
def test_any_ratio(low: tuple[int, int], full: tuple[int, int], align_corners: bool) -> None:
    compare(make_low("smoothed", low, full, 3, batch=1), align_corners=align_corners)


@pytest.mark.parametrize(("low", "full"), [((6, 17), (7, 20)), ((2, 16), (3, 33))], ids=str)
def test_more_cells_than_a_program_has(low: tuple[int, int], full: tuple[int, int], two_programs: None) -> None:
    compare(make_low("hard_usual", low, full, 11, batch=1))


@pytest.mark.parametrize("classes", [2, 17, 150])
def test_interpolated_with_any_number_of_classes(classes: int) -> None:
    compare(make_low("teacher", (2, 3), (4, 7), classes, batch=1))


@pytest.mark.parametrize("dtype", FLOATS[1:], ids=str)
def test_interpolated_in_half_precision(dtype: torch.dtype) -> None:
    compare(make_low("teacher_own", (2, 3), (4, 7), batch=1, dtype=dtype))


@pytest.mark.parametrize(
    ("low", "teacher"), [((2, 3), (4, 2)), ((2, 3), (5, 7)), ((5, 7), (2, 3)), ((5, 7), (1, 1))], ids=str
)
@pytest.mark.parametrize("align_corners", [False, True])
def test_a_teacher_may_have_another_resolution(
    low: tuple[int, int], teacher: tuple[int, int], align_corners: bool
) -> None:
    compare(make_low("teacher", low, (5, 7), teacher=teacher, batch=1), align_corners=align_corners)


@pytest.mark.parametrize("layout", ["transposed", "cropped", "channels last", "expanded"])
def test_interpolated_from_any_layout(layout: str) -> None:
    case = make_low("teacher", (2, 4), (5, 6))
    label = case.label.map(lambda tensor: layouts(tensor)[layout])
    logits = layouts(case.logits.detach())[layout].detach().requires_grad_()
    compare(dataclasses.replace(case, logits=logits, label=label))


# --- what doesn't count, what is invalid -----------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", ["hard", "smoothed_where", "teacher", "dense"])
def test_values_at_pixels_that_do_not_count_change_nothing(kind: str, bad: float) -> None:
    case = make(kind, mask="bool")
    outside = ~case.mask.unsqueeze(1)

    def spoil(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor if tensor.dtype == torch.bool else torch.where(outside[:, 0], 77, tensor)
        return torch.where(outside, bad, tensor.detach())

    label = spoil(case.label) if isinstance(case.label, Tensor) else case.label.map(spoil)
    spoilt = dataclasses.replace(case, logits=spoil(case.logits).requires_grad_(), label=label)
    upstream = {name: torch.randn(2, 5, dtype=torch.float64) for name in oracle.DIFFERENTIABLE}
    expected, gradient = result(case, upstream, backend="triton")
    found, spoilt_gradient = result(spoilt, upstream, backend="triton")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.equal(gradient, spoilt_gradient)
    assert (gradient[outside.expand_as(gradient)] == 0).all()


@pytest.mark.parametrize("kind", ["hard", "smoothed", "dense", "teacher"])
def test_an_image_with_invalid_values_becomes_nan_and_no_other(kind: str) -> None:
    case = make(kind, mask="weights")
    case.mask[0, 0, 0] = 1
    spoilt = {"mask": case.mask.clone()}
    spoilt["mask"][0, 0, 0] = -1
    if kind == "hard":
        spoilt["label"] = case.label.clone()
        spoilt["label"][0, 0, 0] = 5
    if kind == "smoothed":
        spoilt["label"] = dataclasses.replace(case.label, index=case.label.index.clone())
        spoilt["label"].index[0, 0, 0] = -1
    if kind == "dense":
        spoilt["label"] = case.label.clone()
        spoilt["label"][0, :2, 0, 0] += torch.tensor([-0.9, 0.9])
    expected = case.statistics(backend="triton").fields()
    for name, value in spoilt.items():
        found = dataclasses.replace(case, **{name: value}).statistics(backend="triton").fields()
        for field in expected:
            assert torch.isnan(found[field][0]).all(), (name, field)
            assert torch.equal(found[field][1], expected[field][1]), (name, field)


def test_a_class_without_label_may_have_the_logit_minus_infinity() -> None:
    case = make("hard", ignore_index=None)
    with torch.no_grad():
        case.logits[:, 4] = -float("inf")
    compare(case)


def test_nothing_counts() -> None:
    case = make("hard")
    nothing = dataclasses.replace(case, mask=torch.zeros(2, 7, 9, dtype=torch.bool))
    statistics = nothing.statistics(backend="triton")
    assert all((value == 0).all() for value in statistics.fields().values())
    assert (oracle.gradient_of(statistics.cross_entropy.sum(), case.logits) == 0).all()


# --- promises --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("low", [(6, 7), (3, 4)], ids=str)
def test_stationary_where_teacher_and_student_agree(low: tuple[int, int]) -> None:
    case = make_low("teacher", low, (6, 7))
    case.label = sj.TeacherLabel(case.logits.detach().clone())
    statistics = case.statistics(backend="triton")
    half = statistics.overlap - statistics.prediction / 2
    assert (oracle.gradient_of(half.sum(), case.logits) == 0).all()
    oracle.close(statistics.overlap, statistics.prediction, 1e-6)
    oracle.close(statistics.cross_entropy, statistics.label_entropy, 1e-6)


def test_the_same_every_time() -> None:
    case = make_low("smoothed", (3, 4), (8, 7))
    upstream = {name: torch.randn(2, 5, dtype=torch.float64) for name in oracle.DIFFERENTIABLE}
    (first, slope), (second, again) = (result(case, upstream, backend="triton") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(slope, again)


def test_no_second_derivative() -> None:
    case = make("hard")
    (slope,) = torch.autograd.grad(case.statistics(backend="triton").overlap.sum(), case.logits, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad((slope**2).sum(), case.logits)


def test_a_label_that_requires_grad_raises() -> None:
    case = make("teacher")
    case.label.logits.requires_grad_()
    with pytest.raises(ValueError, match=r"label: .* requires grad"):
        case.statistics(backend="triton")


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_in_one_graph(dynamic: bool) -> None:
    torch._dynamo.reset()
    case = make_low("hard", (2, 3), (4, 5))
    want = set(oracle.USUAL)

    def run(logits: Tensor) -> Any:
        return case.statistics(logits, backend="triton", want=want)

    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic, backend="aot_eager")(case.logits)
    plain = run(case.logits)
    assert all(torch.equal(compiled[name], plain[name]) for name in plain.fields())
    slopes = [oracle.gradient_of(value.overlap.sum(), case.logits) for value in (compiled, plain)]
    assert torch.equal(*slopes)


def test_a_loss_of_the_library() -> None:
    case = make_low("smoothed_where", (2, 3), (4, 5))
    values = {}
    for backend, gradient in itertools.product(("reference", "triton"), ("exact", "error_scaled")):
        region = sj.JaccardLoss(backend=backend, gradient=gradient)
        statistics = sj.region_statistics(
            case.logits,
            case.label,
            upsample="bilinear",
            gradient=gradient,
            backend=backend,
            want=sj.CompoundLoss(region).want,
        )
        value = sj.CompoundLoss(region).from_statistics(statistics)
        values[backend, gradient] = value, oracle.gradient_of(value, case.logits)
    for gradient in ("exact", "error_scaled"):
        for mine, expected in zip(values["triton", gradient], values["reference", gradient], strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-7)
