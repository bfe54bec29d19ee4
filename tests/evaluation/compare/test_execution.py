"""What is started, when and on what: with processes that only pretend to train and test."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from made_up_results import made_up, rated
from softjaccard.errors import InputError
from softjaccard.evaluation.compare import Resources, compare, read_grid, remake_tables, show_plan
from softjaccard.evaluation.compare import processes as module
from softjaccard.evaluation.compare import tables as table_module
from softjaccard.evaluation.compare.grid import RunName
from softjaccard.evaluation.compare.records import load_record, load_tables
from softjaccard.evaluation.compare.tables import markdown, summarise
from softjaccard.evaluation.report import intervals as interval_module
from softjaccard.evaluation.report.intervals import drawn_scores
from softjaccard.evaluation.results import save_results
from softjaccard.metrics import paired_bootstrap

RESAMPLES = 50
GRID = """
title: Pretended
recipe: scenes
baseline: b
seeds: [0, 1]
settings: {model.skill: 2.0, data.root: here}
scores: [mIoU_D, mIoU_I, ECE, KL_votes, mSoftDice_D_votes, loss, NLL]
rows:
  student: {settings: {model.teacher: {row: teacher, seed: 0}, model.skill: 2.5}}
  b:
  teacher: {seeds: [0], settings: {model.skill: 3.0}}
"""


def resolve(arguments: Sequence[str]) -> dict[str, Any]:
    """Every setting, of which there are few; new in this version is `model.extra`."""
    settings = [argument.removeprefix("--").partition("=")[::2] for argument in arguments if "=" in argument]
    config: dict[str, Any] = {"seed": 0, "model": {"extra": 1}, "data": {}, "trainer": {}}
    if arguments[0] == "--config" and Path(arguments[1]).is_file():
        for part, values in yaml.safe_load(Path(arguments[1]).read_text()).items():
            config[part] = {**config[part], **values} if isinstance(values, dict) else values
    for key, value in settings:
        part, _, name = key.partition(".")
        if name:
            config[part][name] = yaml.safe_load(value)
        else:
            config[part] = yaml.safe_load(value)
    return config


@dataclass
class World:
    """Processes as they were started, and what is to happen to them."""

    stop_at: int = -1
    polls: int = 2
    started: list[list[str]] = field(default_factory=list)
    environments: list[Mapping[str, str]] = field(default_factory=list)
    running: int = 0
    most: int = 0
    terminated: int = 0

    def start(self, arguments: Sequence[str], log: Path, environment: Mapping[str, str], lock: int) -> Pretended:
        if len(self.started) == self.stop_at:
            raise KeyboardInterrupt
        self.started.append(list(arguments))
        self.environments.append(environment)
        self.running += 1
        self.most = max(self.most, self.running)
        return Pretended(self, list(arguments), log)

    def runs(self, command: str) -> list[str]:
        """What was started, in order."""
        at = {"fit": 2, "test": 1}[command]
        return ["/".join(Path(each[at]).parts[-2:]) for each in self.started if each[0] == command]


class Pretended:
    def __init__(self, world: World, arguments: list[str], log: Path) -> None:
        self.world, self.left, self.code = world, world.polls, 0
        if arguments[0] == "fit":
            self.fit(arguments, log)
        else:
            folder = Path(arguments[1])
            config = yaml.safe_load((folder / "config.yaml").read_text())
            result = rated(seed=config["seed"], skill=config["model"]["skill"], split=arguments[-1])
            save_results(folder, {"argmax": result})

    def fit(self, arguments: list[str], log: Path) -> None:
        folder = Path(arguments[2])
        assert (folder / "config.yaml").exists() == ("--resume" in arguments)
        config = resolve(arguments[3:])
        teacher = config["model"].get("teacher")
        assert teacher is None or (Path(teacher) / "config.yaml").is_file()
        loss = config["model"].get("loss")
        if loss == "breaks":
            log.write_text(f"Epoch 1/2: fine\nsoftjaccard fit: {folder}/x:\u0020no such file\nmore\n")
            self.code = 2
        elif loss == "is killed":
            self.code = -signal.SIGKILL
        elif loss == "raises":
            log.write_text("Traceback\n  there\nRuntimeError: out of memory\n\n")
            self.code = 1
        (folder / "config.yaml").write_text(yaml.safe_dump(config))

    def poll(self) -> int | None:
        self.left -= 1
        if self.left > 0:
            return None
        self.world.running -= 1
        return self.code

    def wait(self, timeout: float | None = None) -> int:
        return self.code

    def terminate(self) -> None:
        self.world.terminated += 1

    def kill(self) -> None:
        raise AssertionError("it stops when it is asked to")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(module, "start_process", made.start)
    monkeypatch.setattr(module, "_POLL", 0.0)
    monkeypatch.setattr(table_module, "RESAMPLES", RESAMPLES)
    monkeypatch.setattr(interval_module, "RESAMPLES", RESAMPLES)
    return made


def run(folder: Path, text: str = GRID, jobs: int = 1, devices: tuple[str, ...] = (), again: Any = ()) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / "grid.yaml"
    path.write_text(text)
    compare(read_grid(path), folder / "output", resolve, Resources(jobs, devices), again)
    return folder / "output"


def tables(output: Path) -> list[bytes]:
    return [(output / name).read_bytes() for name in ("table.md", "table.csv", "differences.png")]


@pytest.mark.parametrize("stop_at", [1, 2, 5])
def test_stopped_after_some_starts_and_run_again(stop_at: int, world: World, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    assert world.runs("fit") == ["teacher/0", "student/0", "b/0", "student/1", "b/1"]
    assert len(world.started) == 10
    world.started.clear()
    world.stop_at = stop_at
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped")
    world.stop_at = -1
    assert len(world.started) == stop_at
    stopped = run(tmp_path / "stopped")
    assert len(world.started) == 10
    assert tables(stopped) == tables(whole)
    run(tmp_path / "stopped")
    assert len(world.started) == 10


def test_stopped_while_runs_are_under_way(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path / "whole")
    world.started.clear()
    with monkeypatch.context() as patch:

        def stop(self: Pretended) -> int | None:
            if len(world.started) == 4 and world.running == 2:
                os.kill(os.getpid(), signal.SIGTERM)  # as Ctrl-C
            return poll(self)

        poll = Pretended.poll
        patch.setattr(Pretended, "poll", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped", jobs=2)
    assert world.terminated == 2
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    cut_off = [each for each in world.started[-2:] if each[0] == "fit"]
    stopped = run(tmp_path / "stopped", jobs=2)
    resumed = [each for each in world.started if "--resume" in each]
    assert [each[2] for each in resumed] == [each[2] for each in cut_off]
    assert len(world.started) == 12  # the two again
    assert tables(stopped) == tables(whole)


def test_jobs_and_devices(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = run(tmp_path / "alone")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"number {index}")
    monkeypatch.setattr(module, "cpu_cores", lambda: 9)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert world.most == 1
    shared = run(tmp_path / "shared", jobs=4, devices=("cuda:0", "cuda:1"))
    assert world.most == 3  # student/0 waits for its teacher
    assert world.runs("fit")[5] == "teacher/0"
    assert {each["OMP_NUM_THREADS"] for each in world.environments[10:]} == {"2"}
    used = [each["CUDA_VISIBLE_DEVICES"] for each in world.environments[10:]]
    assert set(used[:2]) == {"0", "1"}
    machine = load_record(shared, RunName("teacher", 0)).machine  # type: ignore[union-attr]
    assert (machine["gpu"], machine["threads"], machine["cores"]) == (f"number {used[0]}", 2, 9)
    assert tables(shared) == tables(alone)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3")
    assert Resources(1, ("cuda:1",)).environment("cuda:1")["CUDA_VISIBLE_DEVICES"] == "3"
    assert Resources(1, ("cpu",)).environment("cpu")["CUDA_VISIBLE_DEVICES"] == ""
    for jobs, devices, words in ((0, (), "--jobs is 0"), (1, ("gpu",), "got gpu"), (1, ("cuda:2",), "sees 2 GPUs")):
        with pytest.raises(InputError, match=words):
            Resources(jobs, devices)


@pytest.mark.parametrize(("threads", "kept"), [("3", 3), ("2,1", "2,1")])
def test_the_users_number_of_threads_is_kept(threads: str, kept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert Resources(2).environment(None)["OMP_NUM_THREADS"] == threads
    assert Resources(2).machine({}, None)["threads"] == kept


FAILING = (
    GRID
    + """\
  breaks: {seeds: [0], settings: {model.loss: breaks}}
  raises: {seeds: [1], settings: {model.loss: raises}}
  killed: {seeds: [1], settings: {model.loss: is killed}}
  pupil: {seeds: [0], settings: {model.teacher: {row: breaks}}}
"""
)


def test_failed_runs_are_told_and_not_tried_again(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        with pytest.raises(InputError, match="4 of 9 runs have failed"):
            run(tmp_path, FAILING)
    assert len(world.started) == 10 + 3
    lines = (tmp_path / "output" / "table.md").read_text().splitlines()
    assert lines[-4:] == [
        "- breaks, seed 0 failed: fit: runs/breaks/0/x: no such file",
        "- raises, seed 1 failed: fit: RuntimeError: out of memory",
        "- killed, seed 1 failed: fit was ended by SIGKILL (it may have run out of memory)",
        "- pupil, seed 0 failed: breaks, seed 0 has failed",
    ]
    assert "| breaks | 0 | - |" in "\n".join(lines)
    printed = capsys.readouterr().out
    assert "[4/9] breaks, seed 0: failed" in printed
    first = lines[4 : lines.index("", 4)]  # the table of scores
    assert [line.split() for line in printed.splitlines()[-len(first) : -1]] == [
        line.replace("|", " ").split() for line in first if "---" not in line
    ]
    # What the grid has other settings for by now is tried again, and what is told to be.
    mended = FAILING.replace("model.loss: breaks", "model.loss: works").replace("raises}", "works}")
    for again in ([], ["failed"]):
        with pytest.raises(InputError, match="1 of 9 runs"):
            run(tmp_path, mended, again=again)
    assert world.runs("fit")[8:] == ["breaks/0", "raises/1", "pupil/0", "killed/1"]


def test_parts_make_the_same_tables_as_the_whole(world: World, tmp_path: Path) -> None:
    whole = tables(run(tmp_path))
    (tmp_path / "output").rename(tmp_path / "whole")
    for part, started in (((["student"], [1]), ["teacher/0", "student/1"]), ((["b"], []), ["b/0", "b/1"])):
        world.started.clear()
        compare(read_grid(tmp_path / "grid.yaml").part(*part), tmp_path / "output", resolve, Resources())
        assert world.runs("fit") == started
    assert "student, seed 0 has no result yet" in (tmp_path / "output" / "table.md").read_text()
    assert tables(run(tmp_path)) == whole


def test_other_settings_are_refused_or_replace_what_is_there(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = run(tmp_path)
    before = tables(output)
    moved = GRID.replace("data.root: here", "data.root: there, model.channels_last: true, checkpoint_every: 7")
    assert tables(run(tmp_path, moved)) == before
    assert len(world.started) == 10
    other = GRID.replace("model.skill: 3.0", "model.skill: 2.0")
    with pytest.raises(InputError) as error:
        run(tmp_path, other)
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert "teacher, seed 0 was run with other settings than the grid has now (model.skill: 3.0, now 2.0)" in lines[0]
    assert "student, seed 1 was run with other settings than the grid has now (another teacher, seed 0)" in lines[2]
    assert len(world.started) == 10
    grid = read_grid(tmp_path / "grid.yaml")
    capsys.readouterr()
    show_plan(grid, output, resolve, ["changed"])
    plan = capsys.readouterr().out
    assert "teacher, seed 0: train and test, in place of one with other settings\n  softjaccard fit --output" in plan
    assert "b, seed 1: done" in plan
    assert "3 of 5 runs are to be done" in plan
    world.stop_at = 12  # after the teacher
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, other, again=["changed"])
    world.stop_at = -1
    run(tmp_path, other, again=["changed"])
    assert world.runs("fit")[5:] == ["teacher/0", "student/0", "student/1"]
    assert load_record(output, RunName("teacher", 0)).config["model"]["skill"] == 2.0  # type: ignore[union-attr]
    assert tables(output) != before
    run(tmp_path, other)
    assert len(world.started) == 16


CHAIN = """
recipe: scenes
scores: [mIoU_D]
rows:
  student: {settings: {model.teacher: {row: assistant}, model.skill: 2.0}}
  assistant: {settings: {model.teacher: {row: teacher}, model.skill: 2.5}}
  teacher: {settings: {model.skill: 3.0}}
"""


def test_what_needs_a_changed_run_is_run_again_through_all_others(world: World, tmp_path: Path) -> None:
    run(tmp_path, CHAIN)
    other = CHAIN.replace("3.0", "3.5")
    with pytest.raises(InputError) as error:
        run(tmp_path, other)
    words = ["model.skill: 3.0, now 3.5", "another teacher, seed 0", "another assistant, seed 0"]
    assert [f"({word})" in line for word, line in zip(words, str(error.value).splitlines(), strict=True)] == [True] * 3
    world.stop_at = len(world.started) + 2  # after the teacher
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, other, again=["changed"])
    world.stop_at = -1
    run(tmp_path, other, again=["changed"])
    assert world.runs("fit")[3:] == ["teacher/0", "assistant/0", "student/0"]
    run(tmp_path, other)
    assert len(world.started) == 12


@pytest.mark.parametrize("spelled", ["{here}/output", "link/output", "../{here.name}/output"])
def test_the_output_folder_may_be_spelled_differently(
    spelled: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid_file = tmp_path / "grid.yaml"
    grid_file.write_text(CHAIN)
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    grid = read_grid(grid_file)
    world.stop_at = 5  # the student is trained, but not tested
    with pytest.raises(KeyboardInterrupt):
        compare(grid, Path("output"), resolve, Resources())
    world.stop_at = -1
    for output in (Path(spelled.format(here=tmp_path)), Path("output")):
        compare(grid, output, resolve, Resources())
    assert len(world.started) == 6
    record: Any = load_record(Path("output"), RunName("student", 0))
    assert record.config["model"]["teacher"] == "runs/assistant/0"


def test_a_setting_that_this_version_has_new_changes_nothing(world: World, tmp_path: Path) -> None:
    output = run(tmp_path)
    for path in output.glob("results/*/*.json"):
        content = json.loads(path.read_text())
        del content["config"]["model"]["extra"]
        path.write_text(json.dumps(content))
    # As it would be in a folder of that version, where the teacher had another fingerprint.
    for seed in (0, 1):
        (output / "results" / "student" / f"{seed}.json").unlink()
        (output / "runs" / "student" / str(seed) / "config.yaml").unlink()
    run(tmp_path)
    assert world.runs("fit")[5:] == ["student/0", "student/1"]
    with pytest.raises(InputError, match=r"model\.extra: 1, now 2"):
        run(tmp_path, GRID.replace("data.root: here", "model.extra: 2"))


def test_what_a_run_refers_to_is_trained_again_where_only_its_result_is_left(world: World, tmp_path: Path) -> None:
    output = run(tmp_path)
    for path in sorted(output.glob("runs/*/*/*"), reverse=True):
        if path.is_file():
            path.unlink()
    run(tmp_path)
    assert len(world.started) == 10
    (output / "results" / "student" / "1.json").unlink()
    run(tmp_path)
    assert world.runs("fit")[5:] == ["teacher/0", "student/1"]


def test_another_split_is_tested_without_training(world: World, tmp_path: Path) -> None:
    run(tmp_path)
    output = run(tmp_path, GRID + "test: {split: val, checkpoint: last}\n")
    assert len(world.runs("fit")) == 5
    assert world.started[-1][2:] == ["--checkpoint", "last", "--split", "val"]
    assert "last checkpoints, 6 images of the val split" in (output / "table.md").read_text()


def test_a_folder_is_used_by_one_at_a_time(world: World, tmp_path: Path) -> None:
    runs = tmp_path / "output" / "runs"
    runs.mkdir(parents=True)
    with (runs / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="is in use by another softjaccard compare"):
            run(tmp_path)
    run(tmp_path)


def test_the_numbers(world: World, tmp_path: Path) -> None:
    output = run(tmp_path, GRID + "  late: {seeds: [0, 5], settings: {model.skill: 1.0}}\n")
    grid = read_grid(tmp_path / "grid.yaml")
    cells = summarise(grid, output, {}).cells
    counts, drawn, scores = {}, {}, {}
    for name in grid.runs():
        record: Any = load_record(output, name)
        tables_of = load_tables(output, record)
        counts[name], drawn[name] = tables_of.counts, drawn_scores(tables_of.sums)
        assert torch.equal(counts[name], made_up(seed=name.seed, skill=record.config["model"]["skill"]).counts)
        scores[name] = record.scores
    for score in grid.scores:
        for row in ("b", "student", "late"):
            values = [scores[RunName(row, seed)][score] for seed in grid.rows[row].seeds]
            cell = cells[row, score]
            assert cell.values == tuple(values)
            assert cell.mean == pytest.approx(np.mean(values))
            assert cell.deviation == pytest.approx(np.std(values, ddof=1))
        assert cells["teacher", score].deviation is None
        for row, seeds in (("student", [0, 1]), ("teacher", [0]), ("late", [0])):
            found = cells[row, score].difference
            assert found is not None
            pairs = [(RunName(row, seed), RunName("b", seed)) for seed in seeds]
            assert found.pairs == len(seeds)
            assert found.value == pytest.approx(np.mean([scores[own][score] - scores[b][score] for own, b in pairs]))
            if score == "loss":
                assert (found.low, found.separable) == (None, None)
                continue
            if score.startswith("mIoU"):
                own, b = (torch.stack([counts[each] for each in names]) for names in zip(*pairs, strict=True))
                direct = paired_bootstrap(own, b, score, resamples=RESAMPLES)
                assert direct.difference == pytest.approx(found.value)
                low, high = direct.low, direct.high
            else:
                differences = np.mean([drawn[own][score].numpy() - drawn[b][score].numpy() for own, b in pairs], 0)
                low, high = np.percentile(differences, (2.5, 97.5))
            assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9)
            assert found.separable == (low > 0 or high < 0)
        assert cells["b", score].difference is None
    cell = cells["late", "mIoU_I"]
    assert cell.difference is not None
    line = next(line for line in (output / "table.md").read_text().splitlines() if line.startswith("| late | 1 |"))
    assert f"{100 * cell.difference.value:+.1f} [{100 * cell.difference.low:+.1f}, " in line  # type: ignore[operator]
    row = next(line for line in (output / "table.csv").read_text().splitlines() if line.startswith("late,mIoU_I,"))
    assert row.split(",")[2:6] == ["2", f"{cell.mean:.6f}", f"{cell.deviation:.6f}", "1"]


def test_results_of_a_version_that_kept_fewer_sums(world: World, tmp_path: Path) -> None:
    output = run(tmp_path)
    grid = read_grid(tmp_path / "grid.yaml")
    before = summarise(grid, output, {}).cells
    path = output / "results" / "student" / "1.npz"
    with np.load(path) as new:
        old = {"counts": new["counts"], "calibration": new["calibration"].astype(np.float64)}
    np.savez_compressed(path, **old)
    cells = summarise(grid, output, {}).cells
    for score in grid.scores:
        found, was = cells["student", score].difference, before["student", score].difference
        lost = score in ("KL_votes", "mSoftDice_D_votes", "NLL")
        assert found == (replace(was, low=None, high=None) if lost else was)  # type: ignore[type-var]
        assert cells["teacher", score] == before["teacher", score]
    student = next(line for line in markdown(summarise(grid, output, {})).splitlines() if line.count("[") == 3)
    assert student.startswith("| student | 2 |")


def test_sums_of_other_images_are_refused(world: World, tmp_path: Path) -> None:
    path = run(tmp_path) / "results" / "b" / "0.npz"
    with np.load(path) as tables:
        fewer = {**tables, "losses": tables["losses"][1:]}
    np.savez_compressed(path, **fewer)
    with pytest.raises(InputError, match=r"0\.npz does not fit 0\.json"):
        run(tmp_path)


def test_tables_of_what_is_there(world: World, tmp_path: Path) -> None:
    output = run(tmp_path)
    (output / "results" / "b" / "1.json").unlink()
    path = output / "results" / "student" / "0.json"
    content = json.loads(path.read_text())
    content["images"][0] = "another"
    path.write_text(json.dumps(content))
    grid = read_grid(tmp_path / "grid.yaml")
    remake_tables(grid, output, resolve)
    text = (output / "table.md").read_text()
    assert "| b | 1 |" in text
    assert text.splitlines()[-2:] == [
        "- b, seed 1 has no result yet.",
        "- student is not compared: it was tested on other images or classes.",
    ]
    for seed in (0, 1):
        (output / "results" / "student" / f"{seed}.json").unlink()
    remake_tables(grid, output, resolve)
    lines = (output / "table.md").read_text().splitlines()
    assert lines[-2:] == ["- student, seeds 0, 1 have no results yet.", "- b, seed 1 has no result yet."]
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(GRID.replace("NLL", "mIoUD"))
    with pytest.raises(InputError, match=r"no run has mIoUD\. Did you mean mIoU_D"):
        remake_tables(read_grid(wrong), output, resolve)


def test_tables_alone_tell_of_results_with_other_settings(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = run(tmp_path)
    (output / "results" / "student" / "1.json").unlink()
    capsys.readouterr()
    (tmp_path / "grid.yaml").write_text(GRID.replace("model.skill: 3.0", "model.skill: 2.0"))
    remake_tables(read_grid(tmp_path / "grid.yaml"), output, resolve)
    assert "2 of the results have other settings than the grid has now" in capsys.readouterr().out
    assert (output / "table.md").read_text().splitlines()[-3:] == [
        "- student, seed 1 has no result yet.",
        "- teacher, seed 0 was run with other settings than the grid has now (model.skill: 3.0, now 2.0).",
        "- student, seed 0 was run with other settings than the grid has now (another teacher, seed 0).",
    ]
    lines = csv.DictReader((output / "table.csv").read_text().splitlines())
    assert {line["row"]: line["changed"] for line in lines} == {"student": "0", "b": "", "teacher": "0"}
    assert len(world.started) == 10


def test_tables_alone_need_no_data(world: World, tmp_path: Path) -> None:
    def with_data(arguments: Sequence[str]) -> dict[str, Any]:
        config = resolve(arguments)
        if "root" not in config["data"]:
            raise InputError("data: root is required")
        return {**config, "data": {"init_args": config["data"]}}

    path, output = tmp_path / "grid.yaml", tmp_path / "output"
    path.write_text(CHAIN)
    compare(read_grid(path, ["--data.root=there"]), output, with_data, Resources())
    before = tables(output)
    remake_tables(read_grid(path), output, with_data)
    assert tables(output) == before
    (output / "results" / "teacher" / "0.json").unlink()
    remake_tables(read_grid(path), output, with_data)
    assert (output / "table.md").read_text().splitlines()[-1] == "- teacher, seed 0 has no result yet."


def test_a_misspelt_score_is_told_after_the_first_result(world: World, tmp_path: Path) -> None:
    wrong = GRID.replace("NLL]", "NLL, mIoUD, NLL_votes_unscaled, IoU_D/never seen]")
    with pytest.raises(InputError) as error:
        run(tmp_path, wrong, jobs=2)
    assert str(error.value) == "scores: no run has mIoUD. Did you mean mIoU_D or mIoU_I or mIoU_C?"
    assert world.runs("fit") == ["teacher/0", "b/0"]
    assert world.terminated == 1
    run(tmp_path)
    assert len([each for each in world.started if each[2].endswith("teacher/0")]) == 1


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 0}', '{"format": 1, "row": "b"}'])
def test_damaged_results(content: str, world: World, tmp_path: Path) -> None:
    output = run(tmp_path)
    (output / "results" / "b" / "0.json").write_text(content)
    with pytest.raises(InputError, match=r"0\.json is"):
        run(tmp_path)


def test_damaged_tables(world: World, tmp_path: Path) -> None:
    output = run(tmp_path)
    (output / "results" / "b" / "0.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"0\.npz is missing or damaged"):
        run(tmp_path)
