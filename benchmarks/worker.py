"""Measure cases in this process: one line of JSON for each. Run by ``python -m benchmarks``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.checks import CheckCase
from benchmarks.loader import LoaderCase
from benchmarks.losses import LossCase, Skipped
from benchmarks.metrics import MetricCase
from benchmarks.selection import Case
from benchmarks.semisupervised import TrainingCase
from softjaccard.errors import first_line


def measure(case: Case, device: torch.device, budget: float) -> dict[str, object]:
    """The case and its figures, or why there are none."""
    try:
        return {**asdict(case), **case.measure(device, budget)}
    except Skipped as reason:
        return {**asdict(case), "skipped": str(reason)}
    except torch.OutOfMemoryError:
        return {**asdict(case), "skipped": "out of memory"}
    except Exception as error:  # told in the table; the other cases go on
        return {**asdict(case), "failed": first_line(error)}


def _case(fields: dict[str, Any]) -> Case:
    """A case from JSON, which has lists for tuples."""
    plain: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    if "loss" in plain:
        return LossCase(**plain)
    if "workers" in plain:
        return LoaderCase(**plain)
    if "training" in plain:
        return TrainingCase(**plain)
    return MetricCase(**plain) if "metric" in plain else CheckCase(**plain)


if __name__ == "__main__":
    device, budget, cases = torch.device(sys.argv[1]), float(sys.argv[2]), json.loads(sys.argv[3])
    for fields in cases:
        print(json.dumps(measure(_case(fields), device, budget)), flush=True)
