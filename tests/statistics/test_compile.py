"""`region_statistics` under torch.compile, autocast and on the meta device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import oracle
import softjaccard as sj


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    """No recompilation limits left over from other tests."""
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize(
    ("activation", "classes", "kind", "mask"),
    [
        ("softmax", 5, "hard", "no mask"),
        ("softmax", 5, "dense", "weights"),
        ("softmax", 5, "smoothed_where", "bool"),
        ("softmax", 5, "teacher_own", "no mask"),
        ("softmax", 5, "raters_weighted", "no mask"),
        ("sigmoid", 1, "hard", "no mask"),
        ("sigmoid", 3, "maps", "channel weights"),
        (None, 3, "dense", "no mask"),
    ],
)
def test_compiled_without_graph_breaks(
    activation: str | None, classes: int, kind: str, mask: str, backend: str
) -> None:
    case = oracle.make_case(kind, activation, classes, mask=mask)

    def run(logits: torch.Tensor) -> Any:
        return case.statistics(logits, backend=backend)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")(case.logits)
    oracle.statistics_close(compiled, oracle.sums(case.pixels()), 1e-10)
    value, upstream = oracle.random_upstream(compiled)
    oracle.close(oracle.gradient_of(value, case.logits), oracle.pull_back(case.pixels(), upstream), 1e-10)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_compiled_with_interpolation(backend: str, small_tiles: None) -> None:
    loss = sj.CompoundLoss(sj.JaccardLoss(upsample="bilinear", backend=backend))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for size in ((12, 16), (11, 13)):
        logits, label = torch.randn(2, 5, 3, 4, requires_grad=True), torch.randint(5, (2, *size))
        value, expected = compiled(logits, label), loss(logits, label)
        oracle.close(value, expected, 1e-6)
        slope, plain = (torch.autograd.grad(each, logits)[0] for each in (value, expected))
        oracle.close(slope, plain, 1e-6)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.6},
        {"gradient": "error_scaled"},
        {"ignore_index": 1},
        {"upsample": "bilinear", "align_corners": True},
    ],
    ids="-".join,
)
def test_compiled_with_options(options: dict[str, Any], backend: str) -> None:
    case = oracle.make_case("hard", ignore_index=None)
    if "upsample" in options:
        case.logits = case.logits.detach()[:, :, :3, :4].clone().requires_grad_()

    def run(logits: torch.Tensor) -> Any:
        return case.statistics(logits, backend=backend, **options)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")(case.logits)
    expected = case.statistics(backend="reference", **options)
    oracle.statistics_close(compiled, oracle.fields_of(expected), 1e-10)
    value, upstream = oracle.random_upstream(compiled)
    slope = oracle.gradient_of(oracle.combination(expected, upstream), case.logits)
    oracle.close(oracle.gradient_of(value, case.logits), slope, 1e-10, "gradient")


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_compiled_an_invalid_id_makes_its_image_nan(backend: str) -> None:
    logits, label = torch.randn(2, 5, 4, 3), torch.randint(5, (2, 4, 3))
    label[1, 2, 1] = 5
    compiled = torch.compile(sj.region_statistics, fullgraph=True, backend="aot_eager")
    expected = oracle.statistics(logits[:1], label[:1])
    for want in (oracle.FIELDS, oracle.USUAL):
        found = compiled(logits, label, want=want, backend=backend)
        for name, values in found.fields().items():
            assert values.flatten(1).isnan().all(1).tolist() == [False, True] if values.ndim > 1 else values[1].isnan()
            oracle.close(values[0], expected[name][0] if values.ndim > 1 else 12.0, 1e-5, name)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_compiled_with_labels_as_arguments(backend: str) -> None:
    compiled = torch.compile(sj.region_statistics, fullgraph=True, backend="aot_eager")
    for kind in ("hard", "smoothed", "teacher"):
        case = oracle.make_case(kind, mask="bool")
        statistics = compiled(case.logits, case.label, mask=case.mask, backend=backend)
        oracle.statistics_close(statistics, oracle.sums(case.pixels()), 1e-10)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_compiled_for_images_of_changing_size(backend: str) -> None:
    compiled = torch.compile(sj.region_statistics, fullgraph=True, backend="aot_eager")
    for batch, size in ((2, (8, 9)), (3, (8, 9)), (1, (16, 7)), (4, (5, 31))):
        case = oracle.make_case("hard", batch=batch, size=size)
        statistics = compiled(case.logits, case.label, backend=backend)
        oracle.statistics_close(statistics, oracle.sums(case.pixels()), 1e-10)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(dtype: torch.dtype, backend: str) -> None:
    case = oracle.make_case("teacher", dtype=torch.float32, mask="weights")
    with torch.autocast("cpu", dtype=dtype):
        statistics = case.statistics(backend=backend)
        value, upstream = oracle.random_upstream(statistics)
    oracle.statistics_close(statistics, oracle.sums(case.pixels()), 1e-5)
    oracle.close(oracle.gradient_of(value, case.logits), oracle.pull_back(case.pixels(), upstream), 1e-5)
