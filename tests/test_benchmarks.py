"""The benchmark's command and its parts; no test looks at how long anything takes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from benchmarks.__main__ import run
from benchmarks.checks import CheckCase
from benchmarks.gpu_check import floor_ratio, measure_until, ordered_cases, part_of
from benchmarks.inputs import draw
from benchmarks.loader import LoaderCase
from benchmarks.losses import CONTENDERS, LossCase
from benchmarks.measure import median_seconds, peak_bytes
from benchmarks.metrics import METRICS, MetricCase
from benchmarks.report import TARGETS, report, targets_of
from benchmarks.selection import SHAPES, STRIDES, matching, select
from benchmarks.semisupervised import METHODS, TrainingCase
from benchmarks.worker import measure
from softjaccard import CrossEntropyLoss, boundary, region_statistics

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
IDLE = {"cpu": "a processor", "threads": 1, "load_before": 0.0, "load_after": 0.9}
TINY = (2, 5, 24, 36)
KEYS = {
    "loss",
    "shape",
    "stride",
    "label",
    "dtype",
    "seconds",
    "baseline_seconds",
    "time_ratio",
    "peak_bytes",
    "peak_ratio",
}


def command(*arguments: str, module: str = "benchmarks") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_command_writes_figures_machine_and_pictures(tmp_path: Path) -> None:
    done = command("--quick", "--cases", "chunked/*", "--output", str(tmp_path / "cpu.json"), "--plots", str(tmp_path))
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "cpu.json").read_text())
    (result,) = written["results"]
    assert result.keys() == KEYS
    assert result["time_ratio"] == pytest.approx(result["seconds"] / result["baseline_seconds"])
    assert {"cpu", "threads", "packages", "commit", "uncommitted_changes", "load_before", "load_after"} <= written[
        "machine"
    ].keys()
    assert torch.__version__.startswith(written["machine"]["packages"]["torch"])
    assert "| (1, 5, 32, 64) | 4 | hard | float32 | 0.25 CE + 0.75 JML, `chunked` |" in done.stdout
    for name in ("bench_time_cpu.png", "bench_memory_cpu.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_pattern_without_cases_is_named() -> None:
    done = command("--quick", "--cases", "nothing*")
    assert done.returncode == 2
    assert "--cases: nothing matches nothing*" in done.stderr


def test_process_that_dies_fails_its_cases_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "false")
    cases = [LossCase("chunked", TINY, 1, "hard", "float32"), MetricCase(METRICS[0], (32, 32))]
    results = list(run(cases, "cpu", 0.0))
    assert [result["failed"] for result in results] == ["the process ended with code 1: it said nothing"] * 2
    assert report(results, "cpu", IDLE).count("FAILED: the process ended") == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_loaders(workers: int) -> None:
    case = LoaderCase((32, 48), workers, cache=True)
    (result,) = run([case], "cpu", 0.0)
    assert result["size"] == [32, 48]
    assert result["seconds"] > 0
    assert (result["processor_seconds"] is None) == (workers == 1)
    assert all(result["step_seconds"][step] > 0 for step in ("read", "geometry", "photometric", "collate"))
    slow, fast = (report([result | {"seconds": seconds}], "cpu", IDLE) for seconds in (0.02, 0.004))
    assert f"| 32 x 48 | cached | {workers} | 50 |" in slow
    assert f"| 32 x 48 | cached | {workers} | 250 |" in fast
    assert ("NOT MET" in slow, ">= 100/s: met" in fast) == (workers == 1, workers == 1)


@pytest.mark.parametrize("method", METHODS)
def test_training_steps(method: str) -> None:
    result = measure(TrainingCase(method, 2, (32, 64)), CPU, 0.0)
    assert "failed" not in result
    assert result["seconds"] > 0
    assert (result["time_ratio"] == 1) == (method == "supervised-only")
    assert f"| {method} | 2 x 32 x 64 | " in report([result], "cpu", IDLE)
    del result["seconds"]
    assert "FAILED: out of luck" in report([result | {"failed": "out of luck"}], "cpu", IDLE)


def test_losses_of_others_are_skipped_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    soft = measure(LossCase("smp-dice", TINY, 1, "teacher", "float32"), CPU, 0.0)
    assert soft["skipped"] == "takes hard labels only"
    monkeypatch.setitem(sys.modules, "monai", None)
    missing = measure(LossCase("monai-dice", TINY, 1, "hard", "float32"), CPU, 0.0)
    assert missing["skipped"] == "monai is not installed"
    assert "monai is not installed |" in report([missing], "cpu", IDLE)


def test_an_error_is_a_failure() -> None:
    result = measure(LossCase("chunked", TINY, 1, "hard", "float128"), CPU, 0.0)
    assert "skipped" not in result
    assert result["failed"] == "KeyError: 'float128'"


@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("label", ["hard", "smoothed", "teacher"])
def test_contenders_get_the_same_label(label: str, stride: int) -> None:
    inputs = draw(TINY, stride, label, "float32", CPU)
    chunked, reference = (CONTENDERS[name].make(label != "hard")(inputs) for name in ("chunked", "reference"))
    torch.testing.assert_close(chunked, reference)
    own = F.cross_entropy(inputs.full_logits(), inputs.full_label())
    theirs = CrossEntropyLoss(upsample="bilinear")(inputs.logits, inputs.own_label(), size=inputs.size)
    torch.testing.assert_close(own, theirs)


@pytest.mark.parametrize("label", ["hard", "smoothed", "teacher"])
def test_monai_runs(label: str) -> None:
    pytest.importorskip("monai")
    for name in ("monai-dice", "monai-tversky"):
        assert "seconds" in measure(LossCase(name, TINY, 4, label, "float32"), CPU, 0.0)


def test_smp_runs() -> None:
    for name in ("smp-dice", "smp-jaccard"):
        assert "seconds" in measure(LossCase(name, TINY, 4, "hard", "bfloat16"), CPU, 0.0)


def test_labels_are_smooth_and_logits_agree_with_them() -> None:
    inputs = draw((1, 19, 512, 1024), 4, "teacher", "float32", CPU)
    assert 0.05 < boundary(inputs.index).float().mean() < 0.1
    assert len(inputs.index.unique()) == 12
    for logits in (inputs.logits, inputs.teacher):
        assert logits is not None
        assert logits.shape == (1, 19, 128, 256)
        assert 0.8 < (logits.argmax(1) == inputs.index[:, 2::4, 2::4]).float().mean() < 0.99
    assert not torch.equal(inputs.logits, inputs.teacher)
    draw.cache_clear()
    assert torch.equal(draw((1, 19, 512, 1024), 4, "teacher", "float32", CPU).logits, inputs.logits)


@pytest.mark.parametrize("metric", METRICS)
def test_metrics_run(metric: str) -> None:
    result = measure(MetricCase(metric, (64, 96)), CPU, 0.0)
    assert "failed" not in result
    assert result["time_ratio"].keys() == result["other_seconds"].keys()


@pytest.mark.skipif(sys.platform != "linux", reason="peaks of the CPU's memory are read from /proc")
@pytest.mark.parametrize("piece", [2**20, 2**26])
def test_peak_counts_what_an_earlier_step_freed(piece: int) -> None:
    size = 2**26

    def step() -> None:
        held = [torch.ones(piece, dtype=torch.uint8) for _ in range(size // piece)]
        del held

    torch.empty(2**24, dtype=torch.uint8)  # once freed, pieces of that size come from the heap, which keeps them
    step()
    peak = peak_bytes(step, CPU)
    assert peak is not None
    assert 0.95 * size < peak < 1.1 * size


def test_steps_take_turns() -> None:
    called: list[str] = []
    medians = median_seconds({name: lambda name=name: called.append(name) for name in "ab"}, CPU, budget=0.0)
    assert medians.keys() == {"a", "b"}
    assert called == ["a", "b"] * 3


def test_every_target_of_the_cpu_is_measured() -> None:
    measured = set(select("cpu", everything=False))
    cpu = [target for target in TARGETS if target.device == "cpu"]
    assert cpu
    for target in cpu:
        for shape in target.shapes:
            assert LossCase(target.loss, shape, target.stride, "hard", "float32") in measured


def test_targets_are_met_or_not() -> None:
    result = {"loss": "chunked", "shape": [2, 150, 512, 512], "stride": 4, "label": "hard", "dtype": "float32"}
    assert (
        targets_of({**result, "time_ratio": 1.0, "peak_ratio": 0.36}, "cpu") == "time <= 1: met, peak <= 0.35: NOT MET"
    )
    assert targets_of({**result, "time_ratio": 1.0, "peak_ratio": None}, "cpu") == "time <= 1: met"
    for change in ({"stride": 1}, {"label": "teacher"}, {"dtype": "bfloat16"}, {"loss": "reference"}):
        assert targets_of({**result, "time_ratio": 1.0, "peak_ratio": 0.1, **change}, "cpu") == ""
    assert targets_of({**result, "time_ratio": 1.0, "peak_ratio": 0.1}, "cuda") == ""


def test_everything_has_all_labels_and_a_gpu_all_backends() -> None:
    names = [case.name for case in matching(select("cuda", everything=True), ["triton/8x150x512x512/*"])]
    assert len(names) == len(set(names)) == 2 * 3 * 2
    assert not matching(select("cpu", everything=True), ["triton/*"])


@pytest.mark.slow
def test_gpu_check_goes_through_everything_without_a_gpu(tmp_path: Path) -> None:
    triton = pytest.importorskip("triton")
    if triton.__version__.startswith("3.6.") and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip("the interpreter of triton 3.6 does not run with NumPy 2.4")
    done = command(str(tmp_path), "--dry-run", module="benchmarks.gpu_check")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    written = json.loads((tmp_path / "gpu-dry-run.json").read_text())
    assert written["machine"]["copy_bandwidth"] > 0
    assert len(written["checks"]) > 20
    assert all(check["passed"] for check in written["checks"])
    assert {result["loss"] for result in written["results"]} == CONTENDERS.keys()
    for result in written["results"]:
        assert ("floor_ratio" in result) == (result["stride"] == 1 and "seconds" in result)
    assert "0 not begun" in done.stdout


@pytest.mark.parametrize(("error", "passed"), [(0.0, True), (1e-4, False), (float("nan"), False)])
@pytest.mark.parametrize("low", [None, (3, 4)])
def test_a_wrong_backend_does_not_pass_the_check(
    low: tuple[int, int] | None, error: float, passed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replaced(logits: torch.Tensor, label: Any, **options: Any) -> Any:
        mine = options["backend"] == "triton"
        changed = logits * (1 + error) if mine else logits
        return region_statistics(changed, label, **options | ({"backend": "chunked"} if mine else {}))

    monkeypatch.setattr("benchmarks.checks.region_statistics", replaced)
    found = measure(CheckCase(TINY, low=low, mask="weights"), CPU, 0.0)
    assert found["passed"] == passed
    assert bool(found["too_large"]) != passed


def test_gpu_check_measures_everything_and_the_targets_first() -> None:
    cases = ordered_cases(dry_run=False)
    assert set(cases) == set(select("cuda", everything=False))
    parts = [part_of(case) for case in cases]
    assert parts == sorted(parts, key=("targets", "others", "compiled").index)
    first = cases[: len(SHAPES) * 4]  # strides, triton and cross-entropy
    assert {case.name.split("/", 1)[1] for case in first} == {
        f"{'x'.join(map(str, shape))}/stride{stride}/hard/float32" for shape in SHAPES for stride in STRIDES
    }


def test_failures_are_of_one_case_each_and_nothing_begins_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "false")
    cases = ordered_cases(dry_run=False)[:3]
    results = list(measure_until(cases, "cpu", 0.0, math.inf))
    assert [result["loss"] for result in results] == [case.loss for case in cases]
    assert all("failed" in result for result in results)
    assert list(measure_until(cases, "cpu", 0.0, 0.0)) == []


def test_the_floor_is_two_reads_and_a_write() -> None:
    result = {"loss": "triton", "shape": [2, 10, 100, 100], "stride": 1, "dtype": "float32", "seconds": 0.3}
    assert floor_ratio({**result, "label": "hard"}, 8e6) == pytest.approx(1.0)
    assert floor_ratio({**result, "label": "teacher"}, 8e6) == pytest.approx(0.6)
    assert floor_ratio({**result, "label": "hard", "dtype": "bfloat16"}, 8e6) == pytest.approx(2.0)
    told = {**result, "shape": list(SHAPES[0]), "label": "hard", "time_ratio": 0.7, "floor_ratio": 1.7}
    assert targets_of(told, "cuda") == "floor <= 1.6: NOT MET"
