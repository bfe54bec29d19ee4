"""Interpolation inside the statistics: every backend, label and ratio, forward and backward."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import oracle
import softjaccard as sj

#: (height, width) of the logits and of the target: whole and other ratios, one pixel, and one axis alone.
SIZES = (
    ((3, 4), (12, 16)),
    ((3, 4), (9, 12)),
    ((4, 3), (8, 24)),
    ((3, 5), (11, 13)),
    ((5, 4), (7, 12)),
    ((1, 1), (5, 6)),
    ((1, 3), (1, 9)),
    ((4, 7), (4, 7)),
    ((4, 7), (4, 9)),
)


def low_case(
    kind: str, source: tuple[int, int], target: tuple[int, int], teacher: tuple[int, int] | None = None, **options: Any
) -> oracle.Case:
    """A case whose logits have the resolution ``source``, and a teacher's another one."""
    case = oracle.make_case(kind, size=target, **options)
    channels, dtype = case.logits.shape[:2], case.logits.dtype
    case.logits = (2 * torch.randn(*channels, *source, dtype=dtype)).requires_grad_()
    if isinstance(case.label, sj.TeacherLabel):
        logits = 2 * torch.randn(*channels, *(teacher or source), dtype=dtype)
        case.label = dataclasses.replace(case.label, logits=logits)
        case.options["size"] = target
    return case


def compare(case: oracle.Case, tolerance: float, **options: Any) -> None:
    """Value and gradient of chunked and reference."""
    options |= {"upsample": "bilinear"}
    reference = case.statistics(backend="reference", **options)
    value, upstream = oracle.random_upstream(reference)
    expected = oracle.gradient_of(value, case.logits)
    chunked = case.statistics(backend="chunked", **options)
    oracle.statistics_close(chunked, oracle.fields_of(reference), tolerance)
    actual = oracle.gradient_of(oracle.combination(chunked, upstream), case.logits)
    assert actual.stride() == case.logits.stride()
    oracle.close(actual, expected, tolerance, "gradient")


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("source", "target"), SIZES, ids=str)
@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("gradient", ["exact", "error_scaled"])
def test_statistics_and_gradient_are_the_oracles(
    gradient: str,
    backend: str,
    source: tuple[int, int],
    target: tuple[int, int],
    align_corners: bool,
    small_tiles: None,
) -> None:
    case = low_case("smoothed_where", source, target, mask="weights", temperature=0.7)
    rows, columns = (oracle.axis_matrix(*sizes, align_corners) for sizes in zip(source, target, strict=True))
    full = torch.from_numpy(np.einsum("ih,jw,bchw->bcij", rows, columns, oracle.array(case.logits)))
    pixels = dataclasses.replace(case, logits=full).pixels()
    statistics = case.statistics(backend=backend, upsample="bilinear", align_corners=align_corners, gradient=gradient)
    oracle.statistics_close(statistics, oracle.sums(pixels), 1e-9)
    value, upstream = oracle.random_upstream(statistics)
    expected = np.einsum("ih,jw,bcij->bchw", rows, columns, oracle.pull_back(pixels, upstream, gradient))
    oracle.close(oracle.gradient_of(value, case.logits), expected, 1e-9, "gradient")


@pytest.mark.parametrize("kind", oracle.SOFTMAX_KINDS)
@pytest.mark.parametrize("mask", oracle.PIXEL_MASKS)
@pytest.mark.parametrize(("source", "target"), [SIZES[0], SIZES[3]], ids=str)
@pytest.mark.parametrize("align_corners", [False, True])
def test_every_label_and_mask(
    align_corners: bool, source: tuple[int, int], target: tuple[int, int], mask: str, kind: str, small_tiles: None
) -> None:
    compare(low_case(kind, source, target, mask=mask), 1e-9, align_corners=align_corners)


@pytest.mark.parametrize("kind", ["teacher", "teacher_own"])
@pytest.mark.parametrize("teacher", [(3, 4), (6, 8), (2, 4), (3, 3), (12, 16), (5, 16), (1, 1)], ids=str)
@pytest.mark.parametrize("source", [(3, 4), (12, 16), (5, 7)], ids=str)
def test_a_teacher_has_a_resolution_of_its_own(
    source: tuple[int, int], teacher: tuple[int, int], kind: str, small_tiles: None
) -> None:
    case = low_case(kind, source, (12, 16), teacher, mask="bool", temperature=1.7)
    compare(case, 1e-9)
    compare(dataclasses.replace(case, mask=None), 1e-9)
    del case.options["size"]  # the mask's is taken
    compare(case, 1e-9)


@pytest.mark.parametrize(
    ("activation", "classes", "kind", "mask"),
    [("sigmoid", 1, "hard", "bool"), ("sigmoid", 3, "maps", "channel weights"), ("sigmoid", 3, "teacher", "no mask"),
     (None, 4, "hard", "weights"), ("sigmoid", 1, "raters", "weights")],
)  # fmt: skip
def test_other_activations(activation: str | None, classes: int, kind: str, mask: str, small_tiles: None) -> None:
    case = oracle.make_case(kind, activation, classes, mask=mask, size=(12, 15))
    low = torch.randn(3, classes, 4, 5, dtype=torch.float64)
    case.logits = (low if activation else low.sigmoid()).requires_grad_()
    case.options["size"] = (12, 15)
    compare(case, 1e-9)


@pytest.mark.parametrize("target", [(36, 44), (29, 37), (9, 11)], ids=["stride 4", "no whole stride", "stride 1"])
@pytest.mark.parametrize("classes", [1, 2, 3, 17, 150, 151])
@pytest.mark.parametrize("kind", ["hard", "hard_usual", "teacher", "smoothed_where", "dense"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_float32_and_less_are_as_good_as_the_plain_way(
    dtype: torch.dtype, kind: str, classes: int, target: tuple[int, int]
) -> None:
    activation = "sigmoid" if classes == 1 else "softmax"
    case = low_case(kind, (9, 11), target, classes=classes, activation=activation, mask="bool")
    case.logits = case.logits.detach().to(dtype).requires_grad_()
    if kind == "teacher":
        case.label = sj.TeacherLabel(case.label.logits.to(dtype))
    exact = dataclasses.replace(case, logits=case.logits.detach().double().requires_grad_())
    if kind == "teacher":
        exact.label = sj.TeacherLabel(case.label.logits.double())
    truth = exact.statistics(backend="reference", upsample="bilinear")
    value, upstream = oracle.random_upstream(truth)
    slope = oracle.array(oracle.gradient_of(value, exact.logits))

    def errors(backend: str) -> dict[str, float]:
        found = case.statistics(backend=backend, upsample="bilinear")
        weights = {name: torch.as_tensor(array, dtype=torch.float32) for name, array in upstream.items()}
        gradient = oracle.array(oracle.gradient_of(oracle.combination(found, weights), case.logits))
        pairs = {name: (oracle.array(getattr(found, name)), array) for name, array in oracle.fields_of(truth).items()}
        pairs["gradient"] = (gradient, slope)
        return {name: float(abs(a - b).max() / max(abs(b).max(), 1e-30)) for name, (a, b) in pairs.items()}

    # Both are rounded once more in the end, the gradient to the logits' dtype; 4 float32 steps are luck of the draw.
    slack = {name: 4 * torch.finfo(torch.float32).eps for name in (*oracle.FIELDS, "gradient")}
    slack["gradient"] += torch.finfo(dtype).eps
    plain = errors("reference")
    for name, error in errors("chunked").items():
        assert error <= 1.5 * plain[name] + slack[name], f"{name}: {error:.1e}, plain {plain[name]:.1e}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("target", [(96, 128), (97, 131)], ids=str)
def test_a_gradient_of_many_bands_is_rounded_once(
    target: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("softjaccard.statistics.tiles.TILE_ELEMENTS", 64)  # a band for each row
    case = low_case("hard", (3, 4), target, dtype=torch.float32)
    case.logits = case.logits.detach().to(dtype).requires_grad_()
    exact = dataclasses.replace(case, logits=case.logits.detach().double().requires_grad_())
    slope, expected = (
        oracle.array(
            oracle.gradient_of(each.statistics(backend=backend, upsample="bilinear").overlap.sum(), each.logits)
        )
        for each, backend in ((case, "chunked"), (exact, "reference"))
    )
    allowed = torch.finfo(dtype).eps / 2 * abs(expected) + 1e-5 * abs(expected).max()
    assert (abs(slope - expected) <= allowed).all(), f"{(abs(slope - expected) / allowed).max():.1f} times one rounding"


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "transposed", "expanded"])
def test_layout_in_memory(layout: str, small_tiles: None) -> None:
    case = low_case("teacher", (4, 6), (16, 24), mask="bool")

    def laid_out(values: Tensor) -> Tensor:
        match layout:
            case "channels last":
                return values.contiguous(memory_format=torch.channels_last)
            case "transposed":
                return values.mT.contiguous().mT
            case "expanded":
                return values[:1].expand_as(values)
        return values

    moved = dataclasses.replace(case, label=sj.TeacherLabel(laid_out(case.label.logits)))
    moved.logits = laid_out(case.logits.detach()).requires_grad_()
    plain = dataclasses.replace(moved, logits=moved.logits.detach().contiguous().requires_grad_())
    results = []
    for each in (moved, plain):
        statistics = each.statistics(backend="chunked", upsample="bilinear")
        slope = oracle.gradient_of((statistics.overlap * torch.arange(5)).sum(), each.logits)
        results.append((statistics.overlap, slope))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("tile", [1, 300, 5000, 10**6])
def test_any_tile_size(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("softjaccard.statistics.tiles.TILE_ELEMENTS", tile)
    for source, target in (SIZES[0], SIZES[3]):
        compare(low_case("hard", source, target), 1e-9)


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch, small_tiles: None) -> None:
    case = low_case("teacher", (6, 7), (24, 28), dtype=torch.float32)
    found = []
    for threads in (1, 3):
        monkeypatch.setattr("torch.get_num_threads", lambda threads=threads: threads)
        statistics = case.statistics(backend="chunked", upsample="bilinear")
        found.append((statistics.overlap, oracle.gradient_of(statistics.overlap.sum(), case.logits)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_ignored_pixels_and_nan_under_them_change_nothing(backend: str) -> None:
    case = low_case("hard_usual", (3, 4), (12, 16))
    case.label[:, :7] = -100  # all rows that touch the first row of logits
    spoilt = case.logits.detach().clone()
    spoilt[:, :, 0] = float("nan")
    results = []
    for logits in (case.logits, spoilt.requires_grad_()):
        statistics = case.statistics(logits, backend=backend, upsample="bilinear")
        slope = oracle.gradient_of(statistics.overlap.sum() + statistics.cross_entropy.sum(), logits)
        results.append((statistics, slope))
    oracle.statistics_close(results[1][0], oracle.fields_of(results[0][0]), 0)
    assert not results[0][1][:, :, 0].any()
    assert torch.equal(results[0][1], results[1][1])


def test_without_a_difference_in_size_nothing_is_interpolated() -> None:
    case = oracle.make_case("hard", size=(6, 5))
    plain, asked = (case.statistics(backend="chunked", **o) for o in ({}, {"upsample": "bilinear"}))
    oracle.statistics_close(asked, oracle.fields_of(plain), 0)


@pytest.mark.parametrize("loss", [sj.CrossEntropyLoss, sj.KLDivergenceLoss, sj.JaccardLoss, sj.DiceLoss])
def test_losses_interpolate(loss: Any) -> None:
    case = low_case("smoothed", (3, 4), (12, 16))
    full = torch.nn.functional.interpolate(case.logits, (12, 16), mode="bilinear")
    expected = loss(backend="reference")(full, case.label)
    oracle.close(loss(upsample="bilinear")(case.logits, case.label), expected, 1e-10)
    teacher = sj.TeacherLabel(torch.randn(3, 5, 6, 8, dtype=torch.float64))
    actual = loss(upsample="bilinear")(case.logits, teacher, size=(12, 16))
    dense = sj.TeacherLabel(torch.nn.functional.interpolate(teacher.logits, (12, 16), mode="bilinear"))
    oracle.close(actual, loss(backend="reference")(full, dense), 1e-10)
    if loss is sj.JaccardLoss:
        compound = sj.CompoundLoss(loss(upsample="bilinear", align_corners=True))
        corners = torch.nn.functional.interpolate(case.logits, (12, 16), mode="bilinear", align_corners=True)
        oracle.close(compound(case.logits, case.label), sj.CompoundLoss(loss())(corners, case.label), 1e-10)


def test_functions_take_the_size(small_tiles: None) -> None:
    teacher = sj.TeacherLabel(torch.randn(2, 3, 4, 4))
    logits = torch.randn(2, 3, 4, 4)
    for function, module in (
        (sj.jaccard_loss, sj.JaccardLoss), (sj.dice_loss, sj.DiceLoss), (sj.cross_entropy, sj.CrossEntropyLoss),
        (sj.kl_divergence, sj.KLDivergenceLoss),
    ):  # fmt: skip
        expected = module(upsample="bilinear")(logits, teacher, size=(8, 8))
        assert torch.equal(function(logits, teacher, size=(8, 8), upsample="bilinear"), expected)
    region = sj.TverskyLoss(0.3, 0.7, upsample="bilinear")
    expected = sj.tversky_loss(logits, teacher, alpha=0.3, beta=0.7, upsample="bilinear", size=(8, 8))
    assert torch.equal(region(logits, teacher, size=(8, 8)), expected)
    assert torch.equal(
        sj.compound_loss(logits, teacher, region=region, size=(8, 8)),
        sj.CompoundLoss(region)(logits, teacher, size=(8, 8)),
    )


def test_in_inference_mode_with_threads(monkeypatch: pytest.MonkeyPatch, small_tiles: None) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    with torch.inference_mode():
        logits = torch.randn(2, 5, 4, 6)
        full = torch.nn.functional.interpolate(logits, (16, 24), mode="bilinear")
        assert torch.equal(sj.statistics.class_map(logits, (16, 24)), full.argmax(1))


@pytest.mark.parametrize("logits", [torch.zeros(1, 0, 4, 4), torch.zeros(1, 2, 0, 4), torch.zeros(1, 2, 4)])
def test_class_map_refuses_what_has_no_classes(logits: Tensor) -> None:
    with pytest.raises(ValueError, match="logits"):
        sj.statistics.class_map(logits, (8, 8))


LOW, INDEX = torch.zeros(2, 3, 4, 5), torch.zeros(2, 16, 20, dtype=torch.int64)
BAD: list[tuple[dict[str, Any], list[str]]] = [
    ({"logits": torch.zeros(2, 3, 4), "label": INDEX[..., 0]}, ["upsample", "two spatial dimensions", "2, 3, 4"]),
    ({"logits": torch.zeros(2, 3, 4, 5, 6)}, ["upsample", "two spatial dimensions"]),
    ({"logits": torch.zeros(2, 3, 4, 21)}, ["upsample", "logits", "16, 20", "4, 21"]),
    ({"label": sj.TeacherLabel(torch.zeros(2, 3, 17, 5)), "size": (16, 20)}, ["upsample", "label", "17", "16, 20"]),
    ({"label": sj.TeacherLabel(torch.zeros(2, 4, 4, 5)), "size": (16, 20)}, ["label", "teacher", "2, 4, 4, 5"]),
    ({"label": sj.TeacherLabel(LOW)}, ["size", "height, width"]),
    ({"size": (16, 21)}, ["size", "16, 20", "16, 21"]),
    ({"size": (16,)}, ["size", "height, width", "(16,)"]),
    ({"size": (16,), "label": sj.TeacherLabel(LOW)}, ["size", "height, width", "(16,)"]),
    ({"size": 16}, ["size", "height, width", "16"]),
    ({"size": (16.0, 20)}, ["size", "whole numbers", "16.0"]),
    ({"size": ()}, ["size", "height, width", "()"]),
    ({"label": INDEX[:, 0, 0]}, ["label", "(2,)", "2, 4, 5"]),
    ({"align_corners": "no"}, ["align_corners", "'no'"]),
    ({"size": (0, 20), "label": sj.TeacherLabel(LOW)}, ["size", "0, 20"]),
    ({"size": (16, 20), "upsample": None}, ["size", "upsample"]),
    ({"upsample": None}, ["label", "16, 20", "upsample='bilinear'"]),
    ({"upsample": "nearest"}, ["upsample", "nearest", "bilinear"]),
    ({"mask": torch.ones(2, 4, 5, dtype=torch.bool)}, ["mask", "2, 4, 5", "2, 16, 20"]),
    ({"label": INDEX[:1]}, ["label", "1, 16, 20", "2, 16, 20"]),
    ({"label": [[0]]}, ["label", "list"]),
]  # fmt: skip


@pytest.mark.parametrize("backend", ["auto", "reference", "chunked"])
@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_input(arguments: dict[str, Any], words: list[str], backend: str) -> None:
    arguments = {"logits": LOW, "label": INDEX, "upsample": "bilinear", "backend": backend} | arguments
    with pytest.raises((TypeError, ValueError)) as error:
        sj.region_statistics(**arguments)
    for word in words:
        assert word in str(error.value), f"{word!r} is missing in: {error.value}"


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("source", "target"), SIZES, ids=str)
def test_class_map_is_the_argmax_of_the_interpolation(
    source: tuple[int, int], target: tuple[int, int], align_corners: bool, small_tiles: None
) -> None:
    logits = torch.randn(3, 5, *source, dtype=torch.float64)
    full = torch.nn.functional.interpolate(logits, target, mode="bilinear", align_corners=align_corners)
    found = sj.statistics.class_map(logits, target, align_corners=align_corners)
    assert torch.equal(found, full.argmax(1))
    logits[0, 1, 0, 0] = float("nan")
    assert sj.statistics.class_map(logits, target)[0, 0, 0] == 1
    with pytest.raises(ValueError, match="at most the target's height and width"):
        sj.statistics.class_map(torch.zeros(1, 2, 4, 4), (4, 3))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("source", "target"), SIZES, ids=str)
def test_confidence_map_is_the_largest_probability_of_the_interpolation(
    source: tuple[int, int], target: tuple[int, int], align_corners: bool, small_tiles: None
) -> None:
    logits = torch.randn(3, 5, *source, dtype=torch.float64)
    full = torch.nn.functional.interpolate(logits, target, mode="bilinear", align_corners=align_corners)
    classes, confidence = sj.statistics.confidence_map(logits, target, align_corners=align_corners)
    assert torch.equal(classes, full.argmax(1))
    oracle.close(confidence, full.softmax(1).amax(1), 1e-12)
    assert sj.statistics.confidence_map(logits.bfloat16(), target)[1].dtype == torch.float32
    with pytest.raises(ValueError, match="at most the target's height and width"):
        sj.statistics.confidence_map(torch.zeros(1, 2, 4, 4), (4, 3))
