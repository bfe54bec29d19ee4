"""The chunked backend against the reference: every label, mask, dtype, layout and image size."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

import oracle
import softjaccard as sj

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


def compare(case: oracle.Case, tolerance: float, **options: Any) -> None:
    """Value and gradient of both backends."""
    reference = case.statistics(backend="reference", **options)
    value, upstream = oracle.random_upstream(reference)
    expected = oracle.gradient_of(value, case.logits)
    chunked = case.statistics(backend="chunked", **options)
    oracle.statistics_close(chunked, oracle.fields_of(reference), tolerance)
    value = oracle.combination(chunked, upstream)
    oracle.close(oracle.gradient_of(value, case.logits), expected, tolerance, "gradient")


@pytest.mark.parametrize("gradient", ["exact", "error_scaled"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("activation", "classes", "kind", "mask"), oracle.MASKED_GRID)
def test_chunked_is_reference(
    activation: str | None, classes: int, kind: str, mask: str, dtype: torch.dtype, gradient: str, small_tiles: None
) -> None:
    temperature = 1.0 if activation is None else 0.6
    case = oracle.make_case(kind, activation, classes, mask=mask, dtype=dtype, temperature=temperature, size=(11, 13))
    compare(case, TOLERANCE[dtype], gradient=gradient)


@pytest.mark.parametrize(
    ("activation", "classes", "kind"),
    [("softmax", 3, kind) for kind in ("hard", "hard_usual", "dense", "smoothed_where", "raters_weighted")]
    + [("sigmoid", 1, "raters_weighted"), ("sigmoid", 3, "maps"), (None, 3, "dense")],
)
@pytest.mark.parametrize("tile", [1, 7, 64, 1000])
@pytest.mark.parametrize("size", [(1,), (61,), (1, 40), (9, 7), (3, 5, 4)], ids=str)
def test_any_tile_and_image_size(
    size: tuple[int, ...], tile: int, activation: str | None, classes: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("softjaccard.statistics.tiles.TILE_ELEMENTS", tile)
    for batch in (1, 4):
        compare(oracle.make_case(kind, activation, classes, size=size, batch=batch, mask="weights"), 1e-9)


@pytest.mark.parametrize("kind", ["hard", "hard_usual", "teacher", "raters"])
def test_tiles_of_the_real_size(kind: str) -> None:
    elements = sj.statistics.tiles.TILE_ELEMENTS
    large = (300, elements // 900 + 7)  # with 4 classes a third more than a tile
    for size, batch, classes in ((large, 2, 4), ((3, 5), 150, 4)):
        compare(
            oracle.make_case(kind, "softmax", classes, size=size, batch=batch, mask="bool", dtype=torch.float32), 1e-5
        )


@pytest.mark.parametrize("kind", ["hard", "dense", "teacher", "raters", "smoothed_where"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_float32_on_the_rounded_input(
    dtype: torch.dtype, activation: str, kind: str, small_tiles: None
) -> None:
    case = oracle.make_case(
        kind, activation, 1 if activation == "sigmoid" else 5, mask="bool", dtype=dtype, size=(13, 17)
    )
    loss = sj.CompoundLoss(sj.JaccardLoss(classes="all", activation=activation, backend="chunked"))
    pixels = case.pixels()

    def expected(stats: oracle.Sums) -> Any:
        return 0.75 * oracle.tversky(stats) + 0.25 * oracle.cross_entropy(stats, activation=activation)

    count = case.logits[:, 0].numel()
    value, slope = oracle.value_and_gradient(expected, pixels)
    actual = loss(case.logits, case.label, case.mask)
    assert actual.dtype == torch.float32
    oracle.close(actual * count, value * count, 1e-5, "value")
    gradient = oracle.gradient_of(actual * count, case.logits)
    error = abs(oracle.array(gradient) - slope * count)
    allowed = (
        1e-5 * abs(slope * count).max()
        + torch.finfo(dtype).eps * abs(slope * count)
        + torch.finfo(dtype).smallest_normal
    )
    assert (error <= allowed).all(), f"gradient off by {(error / allowed).max():.2f} times what rounding allows"


@pytest.mark.parametrize("mask", ["no mask", "weights"])
@pytest.mark.parametrize("kind", ["hard", "hard_usual", "teacher", "smoothed_where", "dense"])
@pytest.mark.parametrize(
    ("activation", "classes"), [("sigmoid", 1), ("softmax", 2), ("softmax", 17), ("softmax", 150), ("softmax", 151)]
)
def test_any_number_of_classes(
    activation: str, classes: int, kind: str, mask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("softjaccard.statistics.tiles.TILE_ELEMENTS", 2000)
    compare(oracle.make_case(kind, activation, classes, mask=mask, batch=2, size=(13, 17), temperature=1.7), 1e-10)


@pytest.mark.parametrize("kind", ["hard_usual", "hard", "dense"])
@pytest.mark.parametrize("tile", [128, None], ids=["many tiles", "large tiles"])
def test_sums_of_many_pixels_are_as_exact_as_of_few(
    tile: int | None, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Equal pixels are the hard case: their sum is rounded in the same direction each time.
    if tile is not None:
        monkeypatch.setattr("softjaccard.statistics.tiles.TILE_ELEMENTS", tile)
    logits = torch.tensor([0.3, -1.1])[:, None].expand(1, 2, 2**17 + 5)
    index = torch.ones(1, 2**17 + 5, dtype=torch.int64)
    label = torch.tensor([0.4, 0.6])[:, None].expand_as(logits) if kind == "dense" else index
    want = oracle.USUAL if kind == "hard_usual" else oracle.FIELDS
    statistics = sj.region_statistics(logits, label, want=want, backend="chunked")
    truth = sj.region_statistics(logits.double(), label.double() if kind == "dense" else label, backend="reference")
    for name, value in oracle.fields_of(statistics).items():
        exact = oracle.array(getattr(truth, name))
        assert (abs(value - exact) <= 1e-6 * abs(exact)).all(), f"{name}: {abs(value / exact - 1).max():.1e}"


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("kind", ["smoothed_where", "dense"])
def test_where_a_soft_label_is_zero_the_logit_may_be_minus_infinity(kind: str, backend: str, small_tiles: None) -> None:
    case = oracle.make_case(kind, mask="weights")
    absent = torch.zeros_like(case.logits, dtype=torch.bool)
    absent[:, 4, :4] = True  # oracle.make_index draws no label 4
    if kind == "dense":
        case.label = case.label.masked_fill(absent, 0)
        case.label /= case.label.sum(1, keepdim=True)
    else:
        case.label.where[:, :4] = False
    case.logits = case.logits.detach().masked_fill(absent, -torch.inf).requires_grad_()
    statistics, pixels = case.statistics(backend=backend), case.pixels()
    oracle.statistics_close(statistics, oracle.sums(pixels), 1e-10)
    value, upstream = oracle.random_upstream(statistics)
    oracle.close(oracle.gradient_of(value, case.logits), oracle.pull_back(pixels, upstream), 1e-10, "gradient")


def layouts(tensor: Tensor) -> dict[str, Tensor]:
    """The same values, laid out differently in memory."""
    wide = torch.zeros(*tensor.shape[:-1], 2 * tensor.shape[-1], dtype=tensor.dtype)
    wide[..., ::2] = tensor
    result = {
        "transposed": tensor.transpose(-1, -2).contiguous().transpose(-1, -2),
        "strided": wide[..., ::2],
        "flipped in memory": tensor.movedim(0, -1).contiguous().movedim(-1, 0),
        "channels last": tensor.movedim(1, -1).contiguous().movedim(-1, 1),
    }
    return result | {"expanded": tensor[:1].expand_as(tensor)}


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("which", ["logits", "label", "mask"])
@pytest.mark.parametrize("kind", ["hard", "hard_usual", "dense", "teacher", "raters", "smoothed_where"])
def test_layout_in_memory_changes_nothing(kind: str, which: str, backend: str, small_tiles: None) -> None:
    case = oracle.make_case(kind, mask="weights", size=(9, 14))
    original = {"logits": case.logits.detach(), "mask": case.mask}.get(which)
    for name in layouts(torch.zeros(3, 5, 9, 14)):
        if which == "label" and not isinstance(case.label, Tensor):
            parts = {f.name: getattr(case.label, f.name) for f in dataclasses.fields(case.label)}
            parts = {n: layouts(v)[name] if isinstance(v, Tensor) and v.ndim > 2 else v for n, v in parts.items()}
            moved = dataclasses.replace(case, label=type(case.label)(**parts))
        else:
            value = layouts(case.label if which == "label" else original)[name]
            moved = dataclasses.replace(case, **{which: value})
        moved.logits = moved.logits.detach().requires_grad_()
        statistics = moved.statistics(backend=backend)
        pixels = moved.pixels()
        oracle.statistics_close(statistics, oracle.sums(pixels), 1e-10)
        value, upstream = oracle.random_upstream(statistics)
        oracle.close(oracle.gradient_of(value, moved.logits), oracle.pull_back(pixels, upstream), 1e-10, name)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_any_integer_dtype(dtype: torch.dtype, backend: str) -> None:
    for kind, activation, classes in (
        ("hard", "softmax", 5),
        ("hard_usual", "softmax", 5),
        ("maps", "sigmoid", 3),
        ("hard", "sigmoid", 1),
    ):
        case = oracle.make_case(kind, activation, classes, ignore_index=100)
        narrow = dataclasses.replace(case, label=case.label.to(dtype))
        oracle.statistics_close(narrow.statistics(backend=backend), oracle.sums(case.pixels()), 1e-10)
    for kind in ("smoothed", "raters"):
        case = oracle.make_case(kind, ignore_index=100)
        field = "index" if kind == "smoothed" else "votes"
        narrow = dataclasses.replace(
            case, label=dataclasses.replace(case.label, **{field: getattr(case.label, field).to(dtype)})
        )
        oracle.statistics_close(narrow.statistics(backend=backend), oracle.sums(case.pixels()), 1e-10)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_booleans_are_zeros_and_ones(backend: str) -> None:
    for kind, classes in (("hard", 1), ("maps", 3)):
        case = oracle.make_case(kind, "sigmoid", classes, ignore_index=None)
        boolean = dataclasses.replace(case, label=case.label.bool())
        oracle.statistics_close(boolean.statistics(backend=backend), oracle.sums(case.pixels()), 1e-10)


@pytest.mark.parametrize("want", [oracle.FIELDS, oracle.USUAL], ids=["every field", "usual"])
@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_class_156_in_uint8_is_not_ignored_and_255_can_be(backend: str, want: tuple[str, ...]) -> None:
    logits = torch.randn(1, 160, 4, 4, dtype=torch.float64)
    label = torch.full((1, 4, 4), 156)
    label[0, 0] = 3
    narrow = label.to(torch.uint8)
    statistics = sj.region_statistics(logits, narrow, backend=backend, want=want)
    assert statistics.pixels.tolist() == [16]
    assert statistics.label[0, 156] == 12
    oracle.statistics_close(statistics, oracle.statistics(logits, label), 1e-10)
    narrow[0, 1] = 255
    statistics = sj.region_statistics(logits, narrow, ignore_index=255, backend=backend, want=want)
    assert statistics.pixels.tolist() == [12]
    assert statistics.label[0, 156] == 8


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("logits_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("label_dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_label_and_mask_may_have_another_precision(
    label_dtype: torch.dtype, logits_dtype: torch.dtype, backend: str
) -> None:
    logits = torch.randn(2, 20, 5, 6, dtype=logits_dtype)
    teacher = torch.randn(2, 20, 5, 6).to(label_dtype)
    mask = torch.rand(2, 5, 6).to(label_dtype)
    for label in (teacher.softmax(1), sj.TeacherLabel(teacher)):
        statistics = sj.region_statistics(logits, label, mask=mask, backend=backend)
        oracle.statistics_close(
            statistics, oracle.statistics(logits, label, mask=mask), 1e-6 if logits_dtype == torch.float64 else 1e-5
        )


@pytest.mark.parametrize(("activation", "classes", "kind"), [e for e in oracle.GRID if e[2] not in ("dense", "maps")])
@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_a_label_and_its_dense_form_give_the_same(
    activation: str | None, classes: int, kind: str, backend: str
) -> None:
    case = oracle.make_case(kind, activation, classes)
    label, counted = sj.dense(case.label, classes, activation=activation)
    dense = oracle.Case(case.logits, label.double(), counted, case.options)
    mine, theirs = case.statistics(backend=backend), dense.statistics(backend=backend)
    fields = oracle.fields_of(theirs)
    oracle.statistics_close(mine, fields, 1e-6)
    oracle.close(mine.pixels.expand_as(theirs.pixels), theirs.pixels, 1e-12)
    value, upstream = oracle.random_upstream(mine)
    other = oracle.combination(theirs, upstream)
    oracle.close(oracle.gradient_of(value, case.logits), oracle.gradient_of(other, case.logits), 1e-6)


def test_gradients_accumulate_over_several_uses(small_tiles: None) -> None:
    case = oracle.make_case("hard")
    first = case.statistics(backend="chunked")
    once = oracle.gradient_of(first.overlap.sum(), case.logits)
    assert torch.equal(
        oracle.gradient_of(first.overlap.sum(), case.logits), once
    )  # a second backward through the same graph
    both = oracle.gradient_of(first.overlap.sum() + case.statistics(backend="chunked").overlap.sum(), case.logits)
    oracle.close(both, 2 * once, 1e-12)


def test_chunked_has_no_second_derivative_and_says_so() -> None:
    case = oracle.make_case("hard")
    (slope,) = torch.autograd.grad(case.statistics(backend="chunked").overlap.sum(), case.logits, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad((slope**2).sum(), case.logits)


def test_inputs_are_left_as_they_were(small_tiles: None) -> None:
    for kind in ("hard", "dense", "teacher", "raters_weighted"):
        case, fresh = (oracle.make_case(kind, mask="weights") for _ in range(2))
        case.statistics(backend="chunked").overlap.sum().backward()
        assert torch.equal(case.logits, fresh.logits)
        assert torch.equal(case.mask, fresh.mask)
        tensors = [
            list(label if isinstance(label, tuple) else (label,) if isinstance(label, Tensor) else vars(label).values())
            for label in (case.label, fresh.label)
        ]
        assert all(torch.equal(a, b) for a, b in zip(*tensors, strict=True) if isinstance(a, Tensor))


def test_works_without_gradients() -> None:
    case = oracle.make_case("hard")
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            statistics = case.statistics(case.logits.detach(), backend="chunked")
        assert not statistics.overlap.requires_grad
