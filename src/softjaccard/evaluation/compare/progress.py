"""How far a grid is: bars in a terminal, lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from softjaccard.evaluation.compare.grid import RunName

_STARTED = {"train": "training", "resume": "going on", "test": "testing"}


class Progress:
    """Shows which runs are under way and how long the rest will take, at the pace so far."""

    def __init__(self, runs: int, done: int) -> None:
        """Begin.

        Args:
            runs: How many the grid has.
            done: How many of them had ended before.
        """
        self._runs, self._done, self._before = runs, done, done
        self._shares: Mapping[RunName, float] = {}
        self._began = time.monotonic()
        self._began_run: dict[RunName, float] = {}
        self._tasks: dict[RunName, TaskID] = {}
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
        terminal = sys.stdout.isatty()
        self._bars = Bars(*columns, console=Console()) if terminal else None
        self._all = self._bars.add_task("all runs", total=runs, completed=done, note="") if self._bars else None

    def __enter__(self) -> Progress:
        """Show it."""
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave it as it is."""
        if self._bars:
            self._bars.stop()

    def start(self, run: RunName, action: str) -> None:
        """Say that a run begins."""
        self._began_run[run] = time.monotonic()
        if self._bars:
            self._tasks[run] = self._bars.add_task(f"  {run}", total=1.0, note=_STARTED[action])
        else:
            self._write(f"{run}: {_STARTED[action]}")

    def update(self, shares: Mapping[RunName, float]) -> None:
        """Say how far the runs under way are, from 0 to 1."""
        self._shares = shares
        if self._bars is None or self._all is None:
            return
        for run, share in shares.items():
            self._bars.update(self._tasks[run], completed=share, note="testing" if share >= 1 else "training")
        note = f"{self._done}/{self._runs} runs{self._left()}"
        self._bars.update(self._all, completed=self._done + sum(shares.values()), note=note)

    def end(self, run: RunName, failed: str | None) -> None:
        """Say that a run has ended, or could not begin."""
        self._done += 1
        self._shares = {other: share for other, share in self._shares.items() if other != run}
        if self._bars and run in self._tasks:
            self._bars.remove_task(self._tasks.pop(run))
        took = f" after {_duration(time.monotonic() - self._began_run[run])}" if run in self._began_run else ""
        what = f"failed{took}: {failed}" if failed else f"done{took}"
        self._write(f"[{self._done}/{self._runs}] {run}: {what}{self._left()}")

    def _left(self) -> str:
        """Return the time left, once there is something to go by."""
        work = self._done - self._before + sum(self._shares.values())
        left = self._runs - self._before - work
        if not work or not left:
            return ""
        return f"; about {_duration((time.monotonic() - self._began) / work * left)} left"

    def _write(self, line: str) -> None:
        if self._bars:
            self._bars.console.print(line, markup=False, highlight=False)
        else:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
