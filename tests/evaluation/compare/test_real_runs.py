"""The smoke grid of experiments/ with real trainings: killed at a random moment, it ends as if it had not been."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from softjaccard.cli import main
from softjaccard.evaluation.compare.grid import RunName, read_grid
from softjaccard.evaluation.compare.records import Journal, load_record, load_tables
from softjaccard.metrics import fine_grained_iou

ROOT = Path(__file__).parents[3]
SMOKE = ROOT / "experiments" / "smoke.yaml"
SMALLER = ["--data.training=4", "--data.validation=1", "--data.test=3", "--trainer.num_sanity_val_steps=0"]
FILES = ("table.md", "table.csv", "differences.png")


def run_commands(*commands: tuple[list[str], tuple[int, float] | None]) -> list[str]:
    """Run commands in forks of one process, see there; returns what it printed."""
    script = Path(__file__).with_name("forks.py")
    command = [sys.executable, str(script), json.dumps(commands)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    return [*result.stdout.splitlines(), *result.stderr.splitlines()]


@pytest.fixture(scope="module")
def moment() -> tuple[int, float]:
    """After how many of the 8 starts, and how many seconds later, the second command is killed.

    That is soon enough for it not to have ended: a training and a test are yet to come then.
    """
    chance = random.SystemRandom()
    return chance.randint(1, 6), chance.uniform(0, 1.2)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory, moment: tuple[int, float]) -> tuple[Path, list[str]]:
    """Folders with the same grid run in one go, two at a time, and one after the other, killed and run again; and
    a grid whose only row fails."""
    folder = tmp_path_factory.mktemp("compare")
    broken = folder / "broken.yaml"
    text = SMOKE.read_text().partition("rows:")[0].replace("baseline: cross-entropy", "").replace("[0, 1]", "[3]")
    broken.write_text(text + "rows: {endless: {settings: {model.optimiser.learning_rate: .inf}}}\n")
    compare = ["compare", str(SMOKE), *SMALLER, "--output"]
    printed = run_commands(
        ([*compare, str(folder / "whole"), "--jobs=2"], None),
        ([*compare, str(folder / "killed")], moment),
        ([*compare, str(folder / "killed")], None),
        (["compare", str(broken), *SMALLER, "--output", str(folder / "broken")], None),
    )
    return folder, printed


def test_killed_at_a_random_moment_and_run_again(outcome: tuple[Path, list[str]], moment: tuple[int, float]) -> None:
    folder, printed = outcome
    story = "\n".join([f"killed {moment[1]:.2f} s after start {moment[0]}", *printed])
    codes = [line.split()[1] for line in printed if line.startswith("exit")]
    assert codes[::2] == ["0", "0"], story
    assert codes[1] == "-9", story
    for name in FILES:
        assert (folder / "killed" / name).read_bytes() == (folder / "whole" / name).read_bytes(), story
    starts = {}
    for run in read_grid(SMOKE).runs():
        processes = Journal.read(folder / "killed" / "runs" / run.path).processes
        # What came to its end was not started again.
        assert [each["command"][1] for each in processes if each["exit"] == 0] == ["fit", "test"], story
        starts[run] = len(processes)
    assert sorted(starts.values()) in ([2, 2, 2, 2], [2, 2, 2, 3]), story


def test_what_is_kept(outcome: tuple[Path, list[str]]) -> None:
    output = outcome[0] / "whole"
    for run in read_grid(SMOKE).runs():
        record = load_record(output, run)
        assert record is not None
        found = json.loads((output / "runs" / run.path / "test.json").read_text())
        assert (record.run, record.failed, record.scores) == (run, None, found["scores"])
        assert record.config["data"]["init_args"]["size"] == 40
        assert record.config["seed"] == run.seed
        assert [each["command"][:2] for each in record.processes] == [["softjaccard", "fit"], ["softjaccard", "test"]]
        assert all(each["seconds"] > 0 for each in record.processes)
        assert record.machine.keys() >= {"cpu", "cores", "torch"}
        iou = fine_grained_iou(load_tables(output, record).counts)
        assert iou["mIoU_I"].item() == pytest.approx(record.scores["mIoU_I"], abs=1e-9)


def test_tables_are_made_again_from_the_results_alone(outcome: tuple[Path, list[str]], tmp_path: Path) -> None:
    shutil.copytree(outcome[0] / "whole" / "results", tmp_path / "results")
    assert max(path.stat().st_size for path in tmp_path.rglob("*.*")) < 20_000
    assert main(["compare", str(SMOKE), *SMALLER, "--output", str(tmp_path), "--tables-only"]) == 0
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (outcome[0] / "whole" / name).read_bytes()


def test_nothing_is_left_to_do(outcome: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", str(SMOKE), *SMALLER, "--output", str(outcome[0] / "whole")]
    # How the data are read does not count, how they are cut does.
    assert main([*command, "--dry-run", "--data.workers", "1"]) == 0
    assert "0 of 4 runs are to be done" in capsys.readouterr().out
    assert main([*command, "--dry-run", "--data.crop", "[24,32]"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4
    assert "cross-entropy, seed 0 was run with other settings" in errors[0]
    assert "data.crop: [32, 32], now [24, 32]" in errors[0]


def test_a_failing_row_is_in_the_table(outcome: tuple[Path, list[str]]) -> None:
    folder, printed = outcome
    assert any("1 of 1 runs have failed" in line for line in printed)
    record: Any = load_record(folder / "broken", RunName("endless", 3))
    assert record.failed == "fit: optimiser: learning_rate is inf, but must be above 0."
    table = (folder / "broken" / "table.md").read_text()
    assert "| endless | 0 | - |" in table
    assert "- endless, seed 3 failed: fit: optimiser: learning_rate is inf" in table
    assert "seed 3: fit: optimiser: learning_rate is inf" in (folder / "broken" / "table.csv").read_text()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("settings: {trainer.max_epoch: 3}\nrows: {a: , b: }", ["rows a, b: ", "max_epoch"]),
        ("rows: {a: {recipe: none}}", ["rows a: ", "no part 'none'"]),
        ("rows: {a: {settings: {model.optimiser.learning_rate: fast}}}", ["rows a: ", "learning_rate", "fast"]),
    ],
)
def test_settings_are_checked_before_anything_starts(
    text: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text(f"recipe: scenes\n{text}\n")
    assert main(["compare", str(grid), "--output", str(tmp_path / "output")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(word in error for word in words), error
    assert not (tmp_path / "output").exists()


def test_a_missing_file_of_weights_is_told_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid, output = tmp_path / "grid.yaml", tmp_path / "output"
    grid.write_text("recipe: scenes\nsettings: {model.encoder_weights: weights/none.pth}\nrows: {a: , b: }\n")
    assert main(["compare", str(grid), "--output", str(output)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "there is no file weights/none.pth" in error
    assert not (output / "runs" / "a").exists()
    assert not (output / "results").exists()
