"""What is left to do: the grid against what is kept of its runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import yaml

from softjaccard.errors import InputError, InputErrors
from softjaccard.evaluation.compare.grid import Grid, RunName
from softjaccard.evaluation.compare.records import Journal, Record, load_record
from softjaccard.files import write_text
from softjaccard.settings import FREE_SETTINGS, changed_settings, in_short

Resolve = Callable[[Sequence[str]], dict[str, Any]]
"""From the arguments of `softjaccard fit` to every setting; raises an InputError."""

Again = Literal["failed", "changed"]
Action = Literal["done", "failed", "train", "resume", "test"]

_BY_NAME = {"encoder_weights"}
"""Files that may be anywhere."""


@dataclass(frozen=True)
class Wanted:
    """What a run is to be trained with: the arguments of `softjaccard fit`, and every setting that they resolve to."""

    arguments: tuple[str, ...]
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Planned:
    """What is to be done for a run.

    Attributes:
        run: Its name.
        action: "done" and "failed" are left as they are.
        wanted: What it is trained with.
        fingerprint: Of its config and the runs it needs; of those it was run with, where it has been.
        replace: Whether its folder is removed first, because it holds a run with other settings.
    """

    run: RunName
    action: Action
    wanted: Wanted
    fingerprint: str
    replace: bool = False

    @property
    def pending(self) -> bool:
        """Whether something is to be done."""
        return self.action not in ("done", "failed")


def resolve_runs(grid: Grid, output: Path, resolve: Resolve) -> dict[RunName, Wanted]:
    """Read the settings of all runs, in the order of `Grid.runs`.

    Raises:
        InputErrors: With all that is wrong, each message once, and the rows it is about.
    """
    return _resolve_all({run: grid.fit_arguments(run, output / "runs") for run in grid.runs()}, output, resolve)


def _resolve_all(runs: Mapping[RunName, Sequence[str]], output: Path, resolve: Resolve) -> dict[RunName, Wanted]:
    wanted: dict[RunName, Wanted] = {}
    wrong: dict[str, dict[str, None]] = {}
    for run, typed in runs.items():
        arguments = tuple(typed)
        try:
            wanted[run] = Wanted(arguments, relative_to(output, resolve(arguments)))
        except InputError as error:
            wrong.setdefault(str(error), {})[run.row] = None
    if wrong:
        raise InputErrors([f"rows {', '.join(rows)}: {message}" for message, rows in wrong.items()])
    return wanted


def make_plan(
    grid: Grid, output: Path, wanted: Mapping[RunName, Wanted], resolve: Resolve, again: Collection[Again] = ()
) -> dict[RunName, Planned]:
    """Compare what is wanted with what is kept in a folder.

    Args:
        grid: The grid.
        output: The folder.
        wanted: Its runs, from `resolve_runs`.
        resolve: Reads older configs.
        again: Run again what has "failed", or what was "changed" in the grid since it was run.

    Returns:
        For every run what is to be done, in the order of `Grid.runs`.

    Raises:
        InputErrors: With all runs that were changed, unless they are run again.
    """
    planner = _Planner(grid, output, resolve, again)
    planner.add(wanted)
    # What a run refers to has to be there, and not only its result.
    plan = planner.plan
    for run in reversed(plan):
        for need in grid.needs(run) if plan[run].pending else ():
            if plan[need].action == "done" and not Journal.read(output / "runs" / need.path).trained:
                plan[need] = planner.from_folder(need, wanted[need], replaceable=False)
    if planner.changed and "changed" not in again:
        advice = "Choose another --output, or replace all such runs by new ones: --again changed."
        raise InputErrors([f"{run} {told}. {advice}" for run, told in planner.changed.items()])
    return plan


def check_weights(plan: Mapping[RunName, Planned]) -> None:
    """Look whether the weights that encoders start from are there, before the first of many runs fails without its own.

    Raises:
        InputError: If a file is missing, or an encoder has no published weights of that name.
    """
    from softjaccard.models.factory import weights_path

    models = [each.wanted.config["model"].get("init_args", {}) for each in plan.values() if each.action == "train"]
    for encoder, weights in {(model.get("encoder", ""), model.get("encoder_weights")) for model in models}:
        weights_path(encoder, weights)


def changed_runs(grid: Grid, output: Path, resolve: Resolve) -> dict[RunName, str]:
    """Say of runs whose results have other settings than the grid what differs.

    Where the data are need not be told.

    Raises:
        InputErrors: If the grid's settings are wrong.
    """
    records = {run: record for run in grid.runs() if (record := load_record(output, run))}
    arguments = {run: [*grid.fit_arguments(run, output / "runs"), *_root(each)] for run, each in records.items()}
    planner = _Planner(grid, output, resolve, ())
    planner.add(_resolve_all(arguments, output, resolve))
    return planner.changed


def _root(record: Record) -> list[str]:
    """Return the setting that says where the data of a run were."""
    root = record.config["data"].get("init_args", {}).get("root")
    return [] if root is None else [f"--data.root={root}"]


def relative_to(output: Path, value: Any) -> Any:
    """Write paths inside the output folder, however it is spelled, relative to it, so that it can be moved."""
    if isinstance(value, dict):
        return {key: relative_to(output, part) for key, part in value.items()}
    if isinstance(value, list):
        return [relative_to(output, part) for part in value]
    if not isinstance(value, str):
        return value
    path, folder = Path(value), output.resolve()
    return next((str(path.relative_to(parent)) for parent in path.parents if parent.resolve() == folder), value)


def fingerprint(config: Mapping[str, Any], needs: Mapping[str, str]) -> str:
    """Return a short text that differs between different configs, and between different runs that are needed.

    Args:
        config: Every setting.
        needs: Fingerprints of the runs that it refers to, by name.
    """
    counted = {**_what_counts(config), **({"needs": dict(needs)} if needs else {})}
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()[:16]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say which settings differ, of those that change what comes out.

    Example:
        >>> differences({"data": {"root": "a", "crop": [3, 4]}}, {"data": {"root": "b", "crop": [3, 5]}})
        ['data.crop: [3, 4], now [3, 5]']
    """
    return changed_settings(_what_counts(before), _what_counts(now))


class _Planner:
    """Plans run after run; those that are needed come first."""

    def __init__(self, grid: Grid, output: Path, resolve: Resolve, again: Collection[Again]) -> None:
        self._grid, self._output, self._resolve, self._again = grid, output, resolve, again
        self.plan: dict[RunName, Planned] = {}
        self.changed: dict[RunName, str] = {}

    def add(self, wanted: Mapping[RunName, Wanted]) -> None:
        """Plan runs."""
        for run, each in wanted.items():
            self._add(run, each)

    def _add(self, run: RunName, wanted: Wanted) -> None:
        record = load_record(self._output, run)
        if record is None:
            self.plan[run] = self.from_folder(run, wanted, replaceable=False)
            return
        stale, failed = self._stale(run, record.config, record.needs, wanted.config), record.failed is not None
        if not stale and (("failed" not in self._again) if failed else record.test == self._grid.test):
            before = fingerprint(record.config, record.needs)
            self.plan[run] = Planned(run, "failed" if failed else "done", wanted, before)
            return
        if stale and not failed:
            self._note(run, stale)
        self.plan[run] = self.from_folder(run, wanted, replaceable=failed)

    def from_folder(self, run: RunName, wanted: Wanted, *, replaceable: bool) -> Planned:
        """Plan a run without a result that counts; `replaceable` if nothing is lost with what is in its folder."""
        folder = self._output / "runs" / run.path
        saved, now = folder / "config.yaml", fingerprint(wanted.config, self._needs(run))
        if not saved.is_file():
            return Planned(run, "train", wanted, now)
        journal = Journal.read(folder)
        before = relative_to(self._output, yaml.safe_load(saved.read_text(encoding="utf-8")))
        if stale := self._stale(run, before, journal.needs, wanted.config):
            if not replaceable:
                self._note(run, stale)
            return Planned(run, "train", wanted, now, replace=True)
        return Planned(run, "test" if journal.trained else "resume", wanted, now)

    def _needs(self, run: RunName) -> dict[str, str]:
        return {str(need): self.plan[need].fingerprint for need in self._grid.needs(run) if need in self.plan}

    def _note(self, run: RunName, stale: Sequence[str]) -> None:
        self.changed[run] = f"was run with other settings than the grid has now ({in_short(stale)})"

    def _stale(
        self, run: RunName, before: Mapping[str, Any], needs: Mapping[str, str], now: Mapping[str, Any]
    ) -> list[str]:
        """Say what has changed since a run."""
        found = differences(before, now)
        if found:  # a setting that is new in this version has its default in older runs
            found = differences(self._read_again(before), now)
        return found + [f"another {need}" for need, value in self._needs(run).items() if needs.get(need) != value]

    def _read_again(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Read an older run's config as this version does; one that it cannot read is returned as it is."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / "config.yaml"
            write_text(path, yaml.safe_dump(dict(config), sort_keys=False))
            try:
                return self._resolve(["--config", str(path)])
            except InputError:
                return config


def _what_counts(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            key: Path(part).name if key in _BY_NAME and isinstance(part, str) else _what_counts(part)
            for key, part in value.items()
            if key not in FREE_SETTINGS
        }
    return [_what_counts(part) for part in value] if isinstance(value, list | tuple) else value
