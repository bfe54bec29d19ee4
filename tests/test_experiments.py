"""The tables of the experiments are those of their stored results."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from experiments import readme
from softjaccard.cli import main

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
STORED = [each for each in readme.EXPERIMENTS if (each.path / "results").is_dir()]


def test_every_folder_of_results_is_in_the_list() -> None:
    folders = {path.parent for path in EXPERIMENTS.glob("*/results")}
    assert folders == {each.path for each in STORED}


def test_the_readme_is_what_the_script_makes() -> None:
    assert (EXPERIMENTS / "README.md").read_text(encoding="utf-8") == readme.readme()


@pytest.mark.slow
@pytest.mark.parametrize("grid", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_all_settings_of_a_grid_are_known(grid: Path, tmp_path: Path) -> None:
    assert main(["compare", str(grid), "--output", str(tmp_path), "--dry-run", *readme.data_arguments(grid)]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("experiment", STORED, ids=lambda each: each.folder)
def test_the_tables_are_made_again(
    experiment: readme.Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(EXPERIMENTS / f"{experiment.grid}.yaml", tmp_path)
    shutil.copytree(experiment.path / "results", tmp_path / experiment.folder / "results")
    monkeypatch.setattr(readme, "HERE", tmp_path)
    readme.make_tables(experiment)
    for name in ("table.md", "table.csv"):
        made, stored = (folder / experiment.folder / name for folder in (tmp_path, EXPERIMENTS))
        assert made.read_bytes() == stored.read_bytes()
