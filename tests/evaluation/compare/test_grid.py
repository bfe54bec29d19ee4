"""Grids: their order, what they turn into, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from softjaccard.cli import main
from softjaccard.errors import InputError, InputErrors
from softjaccard.evaluation.compare.grid import Grid, RunName, read_grid


def grid_of(tmp_path: Path, text: str, *further: str) -> Grid:
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    return read_grid(path, further)


FULL = """
title: All keys
recipe: scenes
baseline: plain
settings: {trainer.max_epochs: 3, model.loss: softjaccard.CrossEntropyLoss, data.crop: [32, 40]}
seeds: [4, 7]
test: {checkpoint: last, split: val}
scores: [mIoU_D, NLL]
rows:
  student:
    settings: {model.teacher: {row: teacher, seed: 1}, model.list: [{row: plain}], model.loss: other.Loss}
  plain:
  teacher: {recipe: other/file.yaml, seeds: [1], settings: {model.flag: true, model.rate: 1.0e-3, model.none: null}}
"""


def test_a_full_grid(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, FULL, "--data.root=a b")
    assert (grid.title, grid.baseline, grid.scores) == ("All keys", "plain", ("mIoU_D", "NLL"))
    assert grid.test == {"checkpoint": "last", "split": "val"}
    # By seed, but what is needed comes first.
    order = [("plain", 4), ("teacher", 1), ("student", 4), ("plain", 7), ("student", 7)]
    assert grid.runs() == [RunName("teacher", 1), *(RunName(*run) for run in order if run != ("teacher", 1))]
    assert grid.needs(RunName("student", 7)) == [RunName("teacher", 1), RunName("plain", 7)]
    assert grid.fit_arguments(RunName("student", 7), Path("runs")) == [
        "--recipe", "scenes", "--trainer.max_epochs=3", "--data.crop=[32, 40]",
        "--model.teacher=runs/teacher/1", "--model.list=[runs/plain/7]", "--model.loss=other.Loss",
        "--data.root=a b", "--seed=7",
    ]  # fmt: skip
    assert grid.fit_arguments(RunName("teacher", 1), Path("runs"))[:2] == ["--config", "other/file.yaml"]
    assert grid.fit_arguments(RunName("teacher", 1), Path("runs"))[5:8] == [
        "--model.flag=true", "--model.rate=0.001", "--model.none=null",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "seeds", "order"),
    [
        (["plain"], [], [("plain", 4), ("plain", 7)]),
        (["student"], [7], [("teacher", 1), ("plain", 7), ("student", 7)]),
        ([], [1], [("teacher", 1)]),
        (["teacher", "plain"], [4, 1], [("plain", 4), ("teacher", 1)]),
    ],
)
def test_a_part_of_a_grid(tmp_path: Path, rows: list[str], seeds: list[int], order: list[tuple[str, int]]) -> None:
    grid = grid_of(tmp_path, FULL).part(rows, seeds)
    assert grid.runs() == [RunName(*run) for run in order]
    assert [*grid.rows] == ["student", "plain", "teacher"], "the tables are of all"


@pytest.mark.parametrize(
    ("rows", "seeds", "words"),
    [
        (["plane"], [5], ["--rows: there is no row 'plane'. Did you mean plain?"]),
        ([], [5, 1, 6], ["--seeds: there is no seed 5, 6. The seeds of these rows are 1, 4, 7."]),
        (["teacher"], [4], ["--seeds: there is no seed 4. The seeds of these rows are 1."]),
    ],
)
def test_parts_that_are_not_there(tmp_path: Path, rows: list[str], seeds: list[int], words: list[str]) -> None:
    with pytest.raises(InputErrors) as error:
        grid_of(tmp_path, FULL).part(rows, seeds)
    assert [*error.value.messages] == words


def test_a_row_replaces_the_grids_setting_and_those_below_it(tmp_path: Path) -> None:
    text = """
recipe: scenes
settings:
  {model.loss.region: softjaccard.DiceLoss, model.loss.region.form: product, model.loss.region_weight: 0.5,
   model.encoder: tiny, data.crop: [8, 8]}
rows:
  dice:
  jaccard: {settings: {model.loss.region: softjaccard.JaccardLoss, model.loss.region.gamma: 2}}
  other: {settings: {model: other.Model, model.loss: other.Loss}}
"""
    grid = grid_of(tmp_path, text)
    settings = {name: grid.fit_arguments(RunName(name, 0), Path("runs"))[2:-1] for name in grid.rows}
    assert len(settings["dice"]) == 5
    assert settings["jaccard"] == [
        "--model.loss.region_weight=0.5", "--model.encoder=tiny", "--data.crop=[8, 8]",
        "--model.loss.region=softjaccard.JaccardLoss", "--model.loss.region.gamma=2",
    ]  # fmt: skip
    # Another model takes most of the same settings.
    assert settings["other"] == [
        "--model.encoder=tiny", "--data.crop=[8, 8]", "--model=other.Model", "--model.loss=other.Loss",
    ]  # fmt: skip


def test_defaults(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, "recipe: scenes\nrows: {b: , a: }\n")
    assert (grid.title, grid.baseline, grid.rows["a"].seeds) == ("grid", "b", (0,))
    assert grid.test == {"checkpoint": "best", "split": "test"}


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("[1]", ["expected a mapping with title"]),
        ("rows: [", ["grid.yaml, line 1 is no YAML: expected the node content"]),
        ("rows:\n  a: 'x\n\n", ["grid.yaml, line 4 is no YAML: found unexpected end of stream (while scanning a quoted "
         "scalar in line 2)."]),
        ("recipe: a\nrows:\n  a:\n  b:\n  a:", ["grid.yaml, line 5 is no YAML: 'a' is there twice."]),
        ("recipe: a\nrows: {1: , b: , '1': }", ["rows: '1' is there twice, as a text and as a number"]),
        ("recipe: a", ["rows: expected a mapping"]),
        ("rows: {a: }", ["rows.a: there is no recipe"]),
        ("recipe: a\nsettigns: {}\nrows: {a: }", ["settigns: unknown key. Did you mean settings"]),
        ("recipe: a\nrows: {a: {setings: {}}}", ["rows.a.setings: unknown key"]),
        ("recipe: a\nbaseline: jaccrd\nrows: {jaccard: }",
         ["baseline: there is no row 'jaccrd'. Did you mean jaccard?"]),
        ("recipe: a\nrows: {../a: }", ["rows: '../a' cannot be a name"]),
        ("recipe: a\nrows: {a|b: }", ["rows: 'a|b' cannot be a name"]),
        ("recipe: a\nrows: {a: 3}", ["rows.a: expected a mapping", "int"]),
        ("recipe: a\nsettings: {seed: 3}\nrows: {a: }", ["settings.seed: seeds are given by"]),
        ("recipe: a\nsettings: {output: 3}\nrows: {a: }", ["settings: 'output' is no setting"]),
        ("recipe: a\nsettings: [3]\nrows: {a: }", ["settings: expected a mapping"]),
        ("recipe: a\nseeds: [0, 0]\nrows: {a: }", ["seeds: expected a list of different whole numbers"]),
        ("recipe: a\nseeds: [-1]\nrows: {a: {seeds: [true]}}", ["seeds: expected", "\nrows.a.seeds: expected"]),
        ("recipe: a\ntest: {split: train}\nrows: {a: }", ["test.split: expected test or val, got 'train'"]),
        ("recipe: a\ntest: last\nrows: {a: }", ["test: expected checkpoint and split, got str"]),
        ("recipe: a\nscores: mIoU_D\nrows: {a: }", ["scores: expected a list"]),
        ("recipe: a\nrows: {a: {settings: {model.t: {row: b}}}}", ["rows.a: there is no row 'b'"]),
        ("recipe: a\nseeds: [0, 2]\nrows: {a: {settings: {model.t: {row: b}}}, b: {seeds: [0]}}",
         ["rows.a: seed 2 refers to b, seed 2, but the seeds of b are 0"]),
        ("recipe: a\nrows: {a: {settings: {model.t: {row: b}}}, b: {settings: {model.t: [{row: a}]}}}",
         ["rows need each other: a, seed 0 -> b, seed 0 -> a, seed 0"]),
    ],
)  # fmt: skip
def test_bad_grids(text: str, lines: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        grid_of(tmp_path, text)
    message = f"\n{error.value}".replace(f"\n{tmp_path / 'grid.yaml'}: ", "\n")
    assert all(line in message for line in lines), message
    assert len(message.strip().splitlines()) == max(1, sum(line.startswith("\n") for line in lines) + 1)


def test_every_error_has_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text("recipe: scenes\nbaseline: b\nseeds: 3\nrows: {a: {settings: {x: 1}}}\n")
    assert main(["compare", str(path), "--output", str(tmp_path / "output"), "--jobs=2"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    assert all(line.startswith(f"softjaccard compare: {path}: ") for line in errors)
    path.write_text("recipe: scenes\nrows: {a: , b: 3}\n")
    assert main(["compare", str(path), "--epochs", "3"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"softjaccard compare: {path}: rows.b: expected a mapping with recipe, settings, seeds, got int.",
        "softjaccard compare: command line: 'epochs' is no setting of softjaccard fit, such as trainer.max_epochs.",
    ]
    assert main(["compare", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml cannot be read" in capsys.readouterr().err


def test_what_names_with_spaces_and_a_stop_call_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text("recipe: scenes\nrows: {'a, b': }\n")
    command = ["compare", str(path), "--output", str(tmp_path / "output")]
    assert main([*command, "--rows", "a,", "b"]) == 2
    assert capsys.readouterr().err.count("a name that has some is put in quotation marks") == 2

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("softjaccard.evaluation.compare.compare", stop)
    assert main(command) == 130
    assert capsys.readouterr().err == "softjaccard compare: stopped; the same command goes on\n"
