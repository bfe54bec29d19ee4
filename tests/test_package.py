"""The package as a whole: what importing it does, which part imports which, and the examples of the README."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import softjaccard

SOURCE = Path(softjaccard.__file__).parent
README = Path(__file__).parents[1] / "README.md"

#: A part may import from parts on lower floors, and from itself.
FLOORS = (
    {"labels"},
    {"statistics"},
    {"losses"},
    {"errors", "files", "machine"},
    {"settings"},
    {"data", "models", "metrics"},
    {"training", "evaluation", "recipes"},
    {"demo"},
    {"cli"},
)
FLOOR = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}
CORE = ("labels", "statistics", "losses")


def imported_modules(path: Path) -> set[str]:
    """The full names of the modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


def files_of(part: str) -> list[Path]:
    return [*(SOURCE / part).rglob("*.py")] or [SOURCE / f"{part}.py"]


@pytest.mark.parametrize("part", sorted(FLOOR.keys() - {"recipes"}))
def test_imports_point_downwards(part: str) -> None:
    for path in files_of(part):
        for name in imported_modules(path):
            if name.startswith("softjaccard."):
                other = name.split(".")[1]
                assert other == part or FLOOR[other] < FLOOR[part], f"{path.name} imports {name}"


def test_metrics_are_made_of_statistics_and_not_of_losses() -> None:
    names = {name for path in files_of("metrics") for name in imported_modules(path)}
    assert not {name for name in names if name.startswith("softjaccard.losses")}


@pytest.mark.parametrize("part", CORE)
def test_the_core_imports_nothing_but_torch(part: str) -> None:
    for path in files_of(part):
        foreign = {name.split(".")[0] for name in imported_modules(path)} - sys.stdlib_module_names
        kernels = {"triton"} if path.name == "triton_kernels.py" else set()  # loaded on first use
        assert foreign <= {"torch", "softjaccard", "typing_extensions"} | kernels, path.name


def test_import_loads_no_heavy_library_and_touches_no_device() -> None:
    code = (
        "import os, sys; before = dict(os.environ); import softjaccard, torch; "
        "heavy = {'torchmetrics', 'lightning', 'torchvision', 'timm', 'matplotlib', 'segmentation_models_pytorch'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules); "
        "assert not torch.cuda.is_initialized(); assert dict(os.environ) == before; "
        "softjaccard.metrics.FineGrainedIoU; assert 'torchmetrics' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_all_public_names_are_there() -> None:
    for name in softjaccard.__all__:
        assert getattr(softjaccard, name) is not None
    with pytest.raises(AttributeError, match="no_such_loss"):
        softjaccard.no_such_loss  # noqa: B018


def test_the_examples_of_the_readme_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    names = {
        "logits": torch.randn(2, 5, 16, 16, requires_grad=True),
        "low_resolution_logits": torch.randn(2, 5, 4, 4, requires_grad=True),
        "label": torch.randint(5, (2, 16, 16)),
        "images": torch.randn(2, 3, 16, 16),
        "network": torch.nn.Conv2d(3, 5, 1),
    }
    for block in blocks:
        exec(block, names)
