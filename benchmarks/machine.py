"""What the figures depend on besides the code."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from softjaccard.machine import commit, cpu_name

ROOT = Path(__file__).parent.parent
_PACKAGES = ("torch", "triton", "numpy", "torchmetrics", "segmentation_models_pytorch", "monai")


def describe_machine(device: str) -> dict[str, object]:
    """The processor, or the GPU beside it, the versions, and the commit."""
    description: dict[str, object] = {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        **commit(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        description |= {
            "gpu": properties.name,
            "gpu_memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
        }
    return description


def load_average() -> float | None:
    """Processes that ran or waited for a core over the last minute: well above 0 before a run, figures are noisy."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


def result_name(machine: dict[str, object]) -> str:
    """The name of the results' file: one for the CPU and one for each kind of GPU."""
    return str(machine["gpu"]).lower().replace(" ", "-") if "gpu" in machine else "cpu"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
