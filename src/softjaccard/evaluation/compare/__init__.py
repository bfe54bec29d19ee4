"""The command `softjaccard compare`: a grid of runs is trained and tested, and tables are made of what came out."""

from __future__ import annotations

import fcntl
import shlex
import signal
import sys
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from softjaccard.errors import InputError
from softjaccard.evaluation.compare.grid import Grid, RunName, read_grid
from softjaccard.evaluation.compare.plan import Again, Resolve, changed_runs, check_weights, make_plan, resolve_runs
from softjaccard.evaluation.compare.processes import Executor, Resources
from softjaccard.evaluation.compare.progress import Progress
from softjaccard.evaluation.compare.tables import check_results, print_scores, write_tables

__all__ = ["Again", "Resolve", "Resources", "compare", "read_grid", "remake_tables", "show_plan"]

_TOLD = {
    "done": "done",
    "failed": "has failed (--again failed tries again)",
    "train": "train and test",
    "resume": "go on training, then test",
    "test": "test",
}


def compare(grid: Grid, output: Path, resolve: Resolve, resources: Resources, again: Collection[Again] = ()) -> None:
    """Run what a grid lacks, and write its tables.

    A folder gets `runs/ROW/SEED` (see `softjaccard.training.run`), the results that are described in `records`, and
    the tables that are described in `tables`.

    Args:
        grid: What to run.
        output: The folder, made if need be.
        resolve: Reads the settings of a run.
        resources: What runs share.
        again: Run again what has "failed", or what was "changed" in the grid since it was run.

    Raises:
        InputError: If settings are wrong, the folder is in use, a score is unknown, which the first result shows, or
            runs have failed, after all others have ended.
    """
    wanted = resolve_runs(grid, output, resolve)
    with _locked(output) as lock, _stopped_by_term():
        plan = make_plan(grid, output, wanted, resolve, again)
        check_weights(plan)
        done = sum(not planned.pending for planned in plan.values())
        with Progress(len(plan), done) as progress:
            Executor(grid, output, plan, resources, progress, lock).execute()
        _write_tables(grid, output, {})


def remake_tables(grid: Grid, output: Path, resolve: Resolve) -> None:
    """Write the tables from the results that are there, and in them which are of other settings than the grid's.

    Raises:
        InputError: If settings are wrong, results are damaged, or runs have failed.
    """
    _write_tables(grid, output, changed_runs(grid, output, resolve))


def show_plan(grid: Grid, output: Path, resolve: Resolve, again: Collection[Again] = ()) -> None:
    """Print what `compare` would do, with each run's command.

    Raises:
        InputError: As there.
    """
    plan = make_plan(grid, output, resolve_runs(grid, output, resolve), resolve, again)
    for run, planned in plan.items():
        sys.stdout.write(
            f"{run}: {_TOLD[planned.action]}{', in place of one with other settings' if planned.replace else ''}\n"
        )
        if planned.pending:
            folder = str(output / "runs" / run.path)
            sys.stdout.write(f"  {shlex.join(['softjaccard', 'fit', '--output', folder, *planned.wanted.arguments])}\n")
    pending = sum(planned.pending for planned in plan.values())
    sys.stdout.write(f"{pending} of {len(plan)} runs are to be done.\n")


def _write_tables(grid: Grid, output: Path, changed: Mapping[RunName, str]) -> None:
    summary = write_tables(grid, output, changed)
    print_scores(summary)
    picture = " and differences.png" if (output / "differences.png").is_file() else ""
    sys.stdout.write(f"Written to {output}: table.md, table.csv{picture}.\n")
    if summary.changed:
        told = "have other settings than the grid has now; the table says which."
        sys.stdout.write(f"{len(summary.changed)} of the results {told}\n")
    check_results(summary)


@contextmanager
def _locked(output: Path) -> Iterator[int]:
    """Keep others out of the folder, also as long as a process that was started here outlives this one.

    Raises:
        InputError: If it is in use.
    """
    runs = output / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    with (runs / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{output} is in use by another softjaccard compare, or by a run that one has left behind."
            ) from error
        yield file.fileno()


@contextmanager
def _stopped_by_term() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
