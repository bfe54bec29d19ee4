"""What is to be compared: rows of recipes and settings, each trained with several seeds."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import yaml

from softjaccard.errors import InputError, InputErrors, nearest_names
from softjaccard.settings import read_yaml

Checkpoint = Literal["best", "last"]
Split = Literal["test", "val"]

DEFAULT_SCORES = ("mIoU_D", "mIoU_I", "mIoU_C", "mIoU_C_worst5", "ECE", "SCE")
_KEYS = ("title", "recipe", "baseline", "settings", "seeds", "rows", "test", "scores")
_ROW_KEYS = ("recipe", "settings", "seeds")
_SETTING = re.compile(r"(data|model|trainer)([.]\w+)*|checkpoint_every")
_QUOTING = "Spaces separate names; a name that has some is put in quotation marks."
# Names are folders, too, and cells of a Markdown table.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+=,()-]{0,79}(?<![ .])")


class RunName(NamedTuple):
    """A run of the grid: its row's name and its seed."""

    row: str
    seed: int

    def __str__(self) -> str:
        """Write it for people."""
        return f"{self.row}, seed {self.seed}"

    @property
    def path(self) -> Path:
        """Where it is kept, inside a folder for all runs."""
        return Path(self.row) / str(self.seed)


@dataclass(frozen=True)
class Row:
    """A row of the grid: what it is trained with, and with which seeds."""

    name: str
    recipe: str
    settings: Mapping[str, Any]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Grid:
    """A grid of runs.

    Attributes:
        title: Of its tables.
        baseline: Name of the row that others are compared with.
        rows: By name, in the order of the table.
        checkpoint: Which one is tested.
        split: On which images.
        scores: Columns of the table, by their names in `SPLIT.json`.
        further: Settings of the command line, which come last.
        only_rows: Names of the rows that are run now, besides what they need; none means all.
        only_seeds: Likewise of the seeds.
    """

    title: str
    baseline: str
    rows: Mapping[str, Row]
    checkpoint: Checkpoint
    split: Split
    scores: tuple[str, ...]
    further: tuple[str, ...] = ()
    only_rows: tuple[str, ...] = ()
    only_seeds: tuple[int, ...] = ()

    @property
    def test(self) -> dict[str, str]:
        """How runs are tested."""
        return {"checkpoint": self.checkpoint, "split": self.split}

    def part(self, rows: Sequence[str] = (), seeds: Sequence[int] = ()) -> Grid:
        """Return the grid with a part of its runs, those of some rows and seeds; tables are of all of them still.

        Args:
            rows: Names; none for all.
            seeds: Likewise.

        Raises:
            InputErrors: If the grid has no such row, or the rows have no such seed.
        """
        unknown = [each for each in rows if each not in self.rows]
        quoting = f" {_QUOTING}" if any(" " in name for name in self.rows) else ""
        wrong = [f"--rows: there is no row '{each}'. {nearest_names(each, self.rows)}{quoting}" for each in unknown]
        known = sorted({seed for name in rows or self.rows for seed in self.rows[name].seeds}) if not wrong else seeds
        if others := [str(each) for each in seeds if each not in known]:
            has = ", ".join(map(str, known))
            wrong.append(f"--seeds: there is no seed {', '.join(others)}. The seeds of these rows are {has}.")
        if wrong:
            raise InputErrors(wrong)
        return replace(self, only_rows=tuple(rows), only_seeds=tuple(seeds))

    def runs(self) -> list[RunName]:
        """Return the runs in the order they are started: first seeds first, but before a run those that it needs."""
        most = max(len(row.seeds) for row in self.rows.values())
        wanted = [
            RunName(row.name, row.seeds[number])
            for number in range(most)
            for row in self.rows.values()
            if number < len(row.seeds)
            and (not self.only_rows or row.name in self.only_rows)
            and (not self.only_seeds or row.seeds[number] in self.only_seeds)
        ]
        ordered: dict[RunName, None] = {}
        for run in wanted:
            ordered |= dict.fromkeys(self._with_needs(run, ()))
        return list(ordered)

    def needs(self, run: RunName) -> list[RunName]:
        """Return the runs whose trained networks a run refers to."""
        return [need for value in self.rows[run.row].settings.values() for need in _references(value, run.seed)]

    def fit_arguments(self, run: RunName, runs: Path) -> list[str]:
        """Return what trains a run, as typed after `softjaccard fit`.

        Args:
            run: Which one.
            runs: The folder in which the runs that it refers to are.
        """
        row = self.rows[run.row]
        settings = [f"--{key}={_argument(_resolve(value, run.seed, runs))}" for key, value in row.settings.items()]
        return [*recipe_arguments(row.recipe), *settings, *self.further, f"--seed={run.seed}"]

    def _with_needs(self, run: RunName, waiting: tuple[RunName, ...]) -> Iterator[RunName]:
        """Yield a run after those that it needs.

        Raises:
            InputError: If runs need each other.
        """
        if run in waiting:
            raise InputError(f"rows need each other: {' -> '.join(map(str, (*waiting[waiting.index(run) :], run)))}.")
        for need in self.needs(run):
            yield from self._with_needs(need, (*waiting, run))
        yield run


def recipe_arguments(recipe: str) -> list[str]:
    """Return the arguments of `softjaccard fit` that choose a recipe or a config file."""
    return ["--config" if recipe.endswith((".yaml", ".yml")) else "--recipe", recipe]


def read_grid(path: Path, further: Sequence[str] = ()) -> Grid:
    """Read a grid.

    Args:
        path: A YAML file.
        further: Settings such as --data.root=PATH, for all rows.

    Raises:
        InputErrors: With all that is wrong.
    """
    errors: list[str] = []
    grid = _Reader(errors).grid(read_yaml(path, _Loader), path.stem, tuple(further))
    if grid is not None and not errors:
        errors += _wrong_references(grid)
    errors = [f"{path}: {error}" for error in errors] + _wrong_typed(further)
    if grid is None or errors:
        raise InputErrors(errors)
    try:
        grid.runs()
    except InputError as error:
        raise InputErrors([f"{path}: {error}"]) from error
    return grid


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Refuses a key that is there twice, which would lose a row."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: list[Any] = []
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in keys:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' is there twice", key_node.start_mark)
            keys.append(key)
        made: dict[Any, Any] = super().construct_mapping(node, deep)
        return made


class _Reader:
    """Makes a grid of what the file holds; collects what is wrong and goes on."""

    def __init__(self, errors: list[str]) -> None:
        self._errors = errors

    def grid(self, content: Any, name: str, further: tuple[str, ...]) -> Grid | None:
        """Return the grid, or None where there can be none."""
        if not isinstance(content, dict):
            self._errors.append(f"expected a mapping with {', '.join(_KEYS)}, got {_kind(content)}.")
            return None
        self._known("", content, _KEYS)
        settings = self._settings("settings", content.get("settings"))
        seeds = self._seeds("seeds", content.get("seeds", [0]))
        rows = content.get("rows")
        if not isinstance(rows, dict) or not rows:
            self._errors.append("rows: expected a mapping of at least one name to its settings.")
            return None
        names = [str(key) for key in rows]
        doubled = sorted({each for each in names if names.count(each) > 1})
        self._errors += [f"rows: '{each}' is there twice, as a text and as a number." for each in doubled]
        made = {str(key): self._row(key, row, content.get("recipe"), settings, seeds) for key, row in rows.items()}
        baseline = str(content.get("baseline", next(iter(made))))
        if baseline not in made:
            self._errors.append(f"baseline: there is no row '{baseline}'. {nearest_names(baseline, made)}")
        test = content.get("test", {})
        if not isinstance(test, dict):
            self._errors.append(f"test: expected checkpoint and split, got {_kind(test)}.")
            test = {}
        self._known("test.", test, ("checkpoint", "split"))
        return Grid(
            title=str(content.get("title", name)),
            baseline=baseline,
            rows=made,
            checkpoint=self._choice("test.checkpoint", test.get("checkpoint", "best"), get_args(Checkpoint)),
            split=self._choice("test.split", test.get("split", "test"), get_args(Split)),
            scores=self._scores(content.get("scores", [*DEFAULT_SCORES])),
            further=further,
        )

    def _row(self, key: Any, row: Any, recipe: Any, settings: dict[str, Any], seeds: tuple[int, ...]) -> Row:
        name = str(key)
        if not _NAME.fullmatch(name):
            self._errors.append(
                f"rows: '{name}' cannot be a name: up to 80 letters, digits, spaces and ._+=,()- are possible, and a "
                "letter or digit comes first."
            )
        row = {} if row is None else row
        if not isinstance(row, dict):
            self._errors.append(f"rows.{name}: expected a mapping with {', '.join(_ROW_KEYS)}, got {_kind(row)}.")
            row = {}
        self._known(f"rows.{name}.", row, _ROW_KEYS)
        recipe = row.get("recipe", recipe)
        if not isinstance(recipe, str):
            self._errors.append(f"rows.{name}: there is no recipe: give the row or the grid one, such as scenes.")
        own = self._settings(f"rows.{name}.settings", row.get("settings"))
        joined = {**{key: value for key, value in settings.items() if not _replaced(key, own)}, **own}
        return Row(
            name, str(recipe), joined, self._seeds(f"rows.{name}.seeds", row["seeds"]) if "seeds" in row else seeds
        )

    def _known(self, where: str, content: Mapping[Any, Any], keys: Sequence[str]) -> None:
        self._errors += [
            f"{where}{key}: unknown key. {nearest_names(str(key), keys)}" for key in content if key not in keys
        ]

    def _settings(self, where: str, settings: Any) -> dict[str, Any]:
        if settings is None:
            return {}
        if not isinstance(settings, dict):
            self._errors.append(f"{where}: expected a mapping such as trainer.max_epochs: 12, got {_kind(settings)}.")
            return {}
        for key in settings:
            self._errors += _wrong_setting(where, str(key))
        return {str(key): value for key, value in settings.items()}

    def _seeds(self, where: str, seeds: Any) -> tuple[int, ...]:
        valid = isinstance(seeds, list) and seeds and all(type(seed) is int and seed >= 0 for seed in seeds)
        if not valid or len(set(seeds)) < len(seeds):
            self._errors.append(f"{where}: expected a list of different whole numbers from 0, got {seeds!r}.")
            return (0,)
        return tuple(seeds)

    def _choice(self, where: str, value: Any, choices: Sequence[str]) -> Any:
        if value not in choices:
            self._errors.append(f"{where}: expected {' or '.join(choices)}, got {value!r}.")
        return value

    def _scores(self, scores: Any) -> tuple[str, ...]:
        valid = isinstance(scores, list) and scores and all(isinstance(score, str) for score in scores)
        if not valid or len(set(scores)) < len(scores):
            self._errors.append(f"scores: expected a list of different names such as mIoU_D, got {scores!r}.")
            return ()
        return tuple(scores)


def _wrong_setting(where: str, key: str) -> list[str]:
    """Say what is wrong with the name of a setting, if something is."""
    if key == "seed":
        return [f"{where}.seed: seeds are given by the grid's or the row's key seeds."]
    if _SETTING.fullmatch(key):
        return []
    return [f"{where}: '{key}' is no setting of softjaccard fit, such as trainer.max_epochs."]


def _wrong_typed(further: Sequence[str]) -> list[str]:
    """Say which is the first wrong name among the settings of the command line; what follows is perhaps its value."""
    names = [each.removeprefix("--").partition("=")[0] for each in further]
    return [told for name in names for told in _wrong_setting("command line", name)][:1]


def _wrong_references(grid: Grid) -> Iterator[str]:
    """Say which rows refer to runs that the grid does not have."""
    for row in grid.rows.values():
        for seed in row.seeds:
            for need in grid.needs(RunName(row.name, seed)):
                if need.row not in grid.rows:
                    near = nearest_names(need.row, grid.rows)
                    yield f"rows.{row.name}: there is no row '{need.row}' to refer to. {near}"
                elif need.seed not in grid.rows[need.row].seeds:
                    has = ", ".join(map(str, grid.rows[need.row].seeds))
                    yield f"rows.{row.name}: seed {seed} refers to {need}, but the seeds of {need.row} are {has}."


def _replaced(key: str, own: Collection[str]) -> bool:
    """Whether settings of a row give the grid's setting `key` anew, or an object that it is an option of.

    An object begins anew, without the options of the one before; except a run's model and data, of which another class
    takes most of the same options (see `softjaccard.training.recipes.merge`).
    """
    return key in own or any("." in each and key.startswith(f"{each}.") for each in own)


def _is_reference(value: Any) -> bool:
    """Whether a value stands for the trained run of another row: {row: NAME} or {row: NAME, seed: SEED}."""
    return isinstance(value, dict) and "row" in value and value.keys() <= {"row", "seed"}


def _references(value: Any, seed: int) -> Iterator[RunName]:
    if _is_reference(value):
        yield RunName(str(value["row"]), value.get("seed", seed))
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _references(part, seed)


def _resolve(value: Any, seed: int, runs: Path) -> Any:
    """Put the folders of runs in the place of references to them."""
    if _is_reference(value):
        (need,) = _references(value, seed)
        return str(runs / need.path)
    if isinstance(value, dict):
        return {key: _resolve(part, seed, runs) for key, part in value.items()}
    return [_resolve(part, seed, runs) for part in value] if isinstance(value, list) else value


def _argument(value: Any) -> str:
    """Write a value as it is typed."""
    if isinstance(value, str):
        return value
    written: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=float("inf"))
    return written.removesuffix("\n").removesuffix("\n...")


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__


def unknown_scores(wanted: Iterable[str], known: Collection[str]) -> list[str]:
    """Say which scores no test has found."""
    return [f"scores: no run has {name}. {nearest_names(name, known)}" for name in wanted if name not in known]
