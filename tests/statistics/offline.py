"""Compiles the triton backend's kernels for a GPU that needn't be there, as its host code would launch them.

Run by hand it prints what the kernels need: ``python tests/statistics/offline.py [all]``.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

import softjaccard as sj
from softjaccard.statistics import fused, triton_kernels

HOPPER = GPUTarget("cuda", 90, 32)
KERNELS = ("sum_blocks", "sum_cells", "gradient_blocks", "gradient_cells")
#: What 0.25 CE + 0.75 JML wants of a hard label.
USUAL = ("prediction", "label", "overlap", "cross_entropy", "label_peak", "pixels")


def _tool() -> Path:
    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def available() -> bool:
    """Whether triton came with NVIDIA's assembler and its companions."""
    return _tool().exists() and (_tool().parent / "ptxas").exists()


class _Recorder:
    """In a kernel's place: keeps the arguments of its launch."""

    def __init__(self, launches: list[tuple[str, dict[str, Any]]], name: str) -> None:
        self.launches, self.name = launches, name

    def __getitem__(self, grid: object) -> Any:
        return lambda **arguments: self.launches.append((self.name, {"grid": grid, **arguments}))


def launches(logits: Tensor, label: Any, monkeypatch: Any, **options: Any) -> list[tuple[str, dict[str, Any]]]:
    """The launches, forward and backward, of statistics of these (meta) tensors."""
    found: list[tuple[str, dict[str, Any]]] = []
    codes = {name: value for name, value in vars(triton_kernels).items() if name.isupper()}
    recorders = {name: _Recorder(found, name) for name in KERNELS}
    with monkeypatch.context() as patch:
        patch.setattr(fused, "_kernels", lambda: SimpleNamespace(**codes, **recorders))
        patch.setattr(fused, "_INTERPRETED", True)  # takes tensors that are on no device
        patch.setattr(fused, "_INTERPRETED_PROCESSORS", 132)

        def forward_and_backward(*arguments: Any) -> dict[str, Tensor]:
            fused._gradient(fused._sums(*arguments), *arguments)
            return {}

        patch.setattr(fused, "_backend", forward_and_backward)
        sj.region_statistics(logits, label, backend="triton", **options)
    return found


class _Driver:
    """All that triton asks of a device in order to compile for it."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return HOPPER


def compile_launch(name: str, arguments: dict[str, Any]) -> Any:
    """The compiled kernel, by the way that a launch takes up to the launch itself."""
    before = vars(driver).copy()  # its own reset fails where there is no GPU
    driver.set_active(_Driver())
    try:
        return getattr(triton_kernels, name).warmup(**arguments)
    finally:
        vars(driver).update(before)


def resources(compiled: Any) -> dict[str, int]:
    """Registers and bytes of stack (spills) for each thread, and bytes of shared memory, from the machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        text = subprocess.run([_tool(), "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", text)}


def cases(everything: bool) -> list[tuple[str, Tensor, Any, dict[str, Any]]]:
    """Named logits, labels and options; all on the meta device."""

    def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def label(kind: str, b: int, c: int, h: int, w: int, stride: int, dtype: torch.dtype) -> Any:
        index = meta(b, h, w, dtype=torch.int64)
        return {
            "hard": lambda: index,
            "smoothed": lambda: sj.SmoothedLabel(index, 0.5, meta(b, h, w, dtype=torch.bool)),
            "teacher": lambda: sj.TeacherLabel(meta(b, c, h // stride, w // stride, dtype=dtype)),
            "teacher_low": lambda: sj.TeacherLabel(meta(b, c, h // 8, w // 8, dtype=dtype)),
            "dense": lambda: meta(b, c, h, w, dtype=dtype),
        }[kind]()

    shapes = [(8, 19, 512, 1024), (8, 150, 512, 512)]
    shapes += [
        (8, 21, 512, 512),
        (4, 2, 512, 512),
        (2, 1024, 256, 256),
        (2, 257, 61, 67),
        (2, 3, 61, 67),
        (2, 150, 61, 67),
    ] * everything
    kinds = ["hard", "teacher"] + ["smoothed", "teacher_low", "dense"] * everything
    result = []
    for b, c, h, w in shapes:
        for stride in (1, 4):
            for dtype in (torch.float32, torch.bfloat16):
                for kind in kinds:
                    for channels_last in (False, True)[: 1 + everything * (kind == "hard")]:
                        logits = meta(b, c, h // stride, w // stride, dtype=dtype)
                        if channels_last:
                            logits = logits.to(memory_format=torch.channels_last)
                        options = {"want": USUAL} | ({"upsample": "bilinear", "size": (h, w)} if stride > 1 else {})
                        name = f"{(b, c, h, w)}/{stride} {str(dtype)[6:]} {kind}" + " channels last" * channels_last
                        if kind == "teacher_low" and stride == 1:
                            options |= {"upsample": "bilinear", "size": (h, w)}
                        result.append((name, logits, label(kind, b, c, h, w, stride, dtype), options))
    for kind in ("hard", "smoothed", "dense", "teacher_low") * everything:
        for mask in (torch.bool, torch.float32):
            logits, found = meta(2, 17, 50, 60, dtype=torch.float16), label(kind, 2, 17, 200, 230, 4, torch.float16)
            options = {"mask": meta(2, 200, 230, dtype=mask), "gradient": "error_scaled"}
            options |= {"upsample": "bilinear", "align_corners": True, "size": (200, 230)}
            result.append((f"everything wanted, {mask} mask, {kind}", logits, found, options))
    return result


if __name__ == "__main__":
    for name, logits, label, options in cases(sys.argv[1:] == ["all"]):
        for kernel, arguments in launches(logits, label, pytest.MonkeyPatch(), **options):
            compiled = compile_launch(kernel, arguments)
            ptx = compiled.asm["ptx"]
            counts = {what: len(re.findall(what, ptx)) for what in ("bar.sync", "shfl.sync", "ld.global", "v4.b32")}
            tile = [arguments.get(name) for name in ("A", "B", "BLOCK", "LANES", "num_warps")]
            print(f"{name:45} {kernel:15} {arguments['grid']} {tile} {resources(compiled)} {counts}", flush=True)
