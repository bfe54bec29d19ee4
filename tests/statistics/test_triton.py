"""The triton backend: what it takes, its kernels in the interpreter, and compiled for a GPU that needn't be there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

import oracle
import softjaccard as sj
from softjaccard.statistics import fused

triton = pytest.importorskip("triton")
HERE = Path(__file__).parent


def run_cases(*arguments: str) -> None:
    """The tests of triton_cases.py in a process with the interpreter; their report is shown if one fails."""
    if triton.__version__.startswith("3.6.") and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip("the interpreter of triton 3.6 does not run with NumPy 2.4: it makes numbers of arrays")
    command = [sys.executable, "-m", "pytest", str(HERE / "triton_cases.py"), "-q", "--no-header", "-W", "ignore"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"\n{done.stdout}\n{done.stderr}"
    assert " passed" in done.stdout


def test_kernels_in_the_interpreter() -> None:
    run_cases()


@pytest.mark.slow
def test_more_kernels_in_the_interpreter() -> None:
    run_cases("-m", "slow")


@pytest.mark.parametrize(
    ("kind", "activation", "options", "reason"),
    [
        ("hard", "sigmoid", {"classes": 1}, "activation is 'sigmoid'"),
        ("dense", None, {}, "activation is None"),
        ("raters", "softmax", {}, "the label is a RaterLabel"),
        ("hard", "softmax", {"dtype": torch.float64}, "a float64 tensor"),
        ("hard", "softmax", {"classes": 1025}, "1025 classes, more than 1024"),
    ],
)
def test_what_it_does_not_take_is_said(
    kind: str, activation: str | None, options: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "_INTERPRETED", True)
    case = oracle.make_case(kind, activation, **{"dtype": torch.float32} | options)
    with pytest.raises(ValueError, match=f"backend: 'triton' .* because .*{reason}.*; use 'auto' or 'chunked'"):
        case.statistics(backend="triton")


def test_the_cpu_is_no_device_for_it() -> None:
    case = oracle.make_case("hard", dtype=torch.float32)
    with pytest.raises(ValueError, match="because the logits are on cpu, not on a CUDA device"):
        case.statistics(backend="triton")
    assert case.statistics(backend="auto").overlap is not None


def test_too_large_for_its_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_INTERPRETED", True)
    label = torch.zeros(1, 1, 1, dtype=torch.int64).expand(1, 2**15, 2**15)
    with pytest.raises(ValueError, match="too many for 32-bit positions"):
        sj.region_statistics(torch.zeros(1, 2, 1, 1).expand(1, 2, 2**15, 2**15), label, backend="triton")
    with pytest.raises(ValueError, match="too many for 32-bit positions"):
        sj.region_statistics(torch.zeros(1, 2, 4, 4), label, upsample="bilinear", backend="triton")


def test_without_triton_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_INSTALLED", False)
    with pytest.raises(ValueError, match="because triton is not installed"):
        oracle.make_case("hard", dtype=torch.float32).statistics(backend="triton")


@pytest.mark.parametrize(
    ("kind", "activation", "expected"),
    [("hard", "softmax", "fused"), ("raters", "softmax", "chunked"), ("hard", "sigmoid", "chunked")],
)
def test_auto_takes_it_on_cuda_where_it_can(
    kind: str, activation: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    for name in ("fused", "chunked"):
        monkeypatch.setattr(f"softjaccard.statistics.region.{name}", lambda *_, name=name: called.append(name) or {})
    case = oracle.make_case(kind, activation, 1 if activation == "sigmoid" else 5, dtype=torch.float32)
    with FakeTensorMode(allow_non_fake_inputs=True):
        logits = torch.empty(case.logits.shape, device="cuda")
        label = case.label if isinstance(case.label, torch.Tensor) else case.label.votes
        label = torch.empty(label.shape, dtype=label.dtype, device="cuda")
        sj.region_statistics(logits, label if kind == "hard" else sj.RaterLabel(label), activation=activation)
    assert called == [expected]


def test_parts_hold_all_classes_and_waste_little() -> None:
    for classes in range(1, fused.MOST_CLASSES + 1):
        a, b = fused._parts(classes)
        assert all(rows & (rows - 1) == 0 for rows in (a, b))
        assert b < a
        assert classes <= a + b <= max(4 / 3 * classes, classes + 3), classes


def compile_all(cases: list[Any], monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any], Any]]:
    """Every launch of these cases compiled for an H100, by name."""
    import offline

    return [
        (f"{name} {kernel}", arguments, offline.compile_launch(kernel, arguments))
        for name, logits, label, options in cases
        for kernel, arguments in offline.launches(logits, label, monkeypatch, **options)
    ]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The module that compiles without a GPU, if triton came with what it needs for that."""
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    module = pytest.importorskip("offline")
    if not module.available():
        pytest.skip("triton came without NVIDIA's assembler")
    return module


def test_compiles_for_hopper(offline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name, logits, label, options = offline.cases(everything=False)[0]
    found = compile_all([(name, logits, label, options)], monkeypatch)
    assert [kernel.split()[-1] for kernel, _, _ in found] == ["sum_blocks", "gradient_blocks"]
    for _, _, compiled in found:
        assert offline.resources(compiled)["STACK"] == 0  # nothing spills
        assert "ld.global.v4.b32" in compiled.asm["ptx"]  # 16 bytes at a time


@pytest.mark.slow
def test_everything_compiles_for_hopper(offline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, arguments, compiled in compile_all(offline.cases(everything=True), monkeypatch):
        found = offline.resources(compiled)
        assert found["SHARED"] <= 48 * 1024, name
        assert found["STACK"] <= 2048, name  # more would mean that a tile is kept in memory
        assert found["REG"] * arguments["num_warps"] * 32 <= 65536, name
