"""Processes that train and test runs, several at a time, on their devices and share of the processor."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import torch

from softjaccard.errors import InputError, InputErrors
from softjaccard.evaluation.compare.grid import Grid, RunName, unknown_scores
from softjaccard.evaluation.compare.plan import Planned
from softjaccard.evaluation.compare.progress import Progress
from softjaccard.evaluation.compare.records import Journal, Record, save_record
from softjaccard.evaluation.results import EvaluationResult, load_results
from softjaccard.machine import commit, cpu_cores, cpu_name

_POLL = 0.2  # seconds
_PATIENCE = 20.0
"""Seconds that processes get to stop by themselves."""
_EPOCH = re.compile(rb"Epoch (\d+)/(\d+):")
_OF_SOME_RUNS = re.compile(r"^loss$|_votes")
"""Scores that depend on a run's model or data, besides those of a class, which are there if the class was found."""
_TAIL = 20_000
"""Bytes at the end of a log in which the reason of a failure is looked for."""


class Process(Protocol):
    """What is used of `subprocess.Popen`."""

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None while it runs."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end."""
        ...

    def terminate(self) -> None:
        """Ask it to stop."""
        ...

    def kill(self) -> None:
        """Stop it."""
        ...


def start_process(arguments: Sequence[str], log: Path, environment: Mapping[str, str], lock: int) -> Process:
    """Start the command `softjaccard` with arguments.

    Args:
        arguments: As typed behind it.
        log: A file to which its output is added.
        environment: All its variables.
        lock: A file descriptor that it keeps open, so that the folder stays locked as long as it lives.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "softjaccard", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**environment},
            pass_fds=(lock,),
        )


@dataclass(frozen=True)
class Resources:
    """What runs share.

    Attributes:
        jobs: How many run at a time.
        devices: cpu or cuda:N, shared out among them; none leaves the choice to each run's trainer settings.
    """

    jobs: int = 1
    devices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            InputError: If one cannot be used.
        """
        if self.jobs < 1:
            raise InputError(f"--jobs is {self.jobs}, but must be at least 1.")
        for device in self.devices:
            if not re.fullmatch(r"cpu|cuda:\d+", device):
                raise InputError(f"--devices: expected cpu or cuda:0, cuda:1, ..., got {device}.")
            if device != "cpu" and int(device[5:]) >= torch.cuda.device_count():
                raise InputError(f"--devices: there is no {device}; torch sees {torch.cuda.device_count()} GPUs.")

    def environment(self, device: str | None) -> dict[str, str]:
        """Return the variables of a process on a device."""
        variables = dict(os.environ)
        if self.jobs > 1:
            variables.setdefault("OMP_NUM_THREADS", str(max(1, cpu_cores() // self.jobs)))
        if device:
            visible = [name for name in variables.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
            number = device.removeprefix("cuda:")
            variables["CUDA_VISIBLE_DEVICES"] = "" if device == "cpu" else visible[int(number)] if visible else number
        return variables

    def machine(self, config: Mapping[str, Any], device: str | None) -> dict[str, Any]:
        """Describe where a run runs."""
        threads = self.environment(device).get("OMP_NUM_THREADS")
        machine: dict[str, Any] = {
            "cpu": cpu_name(),
            "cores": cpu_cores(),
            "threads": int(threads) if threads and threads.isdecimal() else threads,
            "torch": torch.__version__,
        }
        accelerator = config.get("trainer", {}).get("accelerator")
        if device != "cpu" and accelerator != "cpu" and torch.cuda.is_available():
            machine["gpu"] = torch.cuda.get_device_name(int(device[5:]) if device else 0)
        return machine


@dataclass
class _Running:
    """A run under way: its process and what comes after it."""

    planned: Planned
    device: str | None
    folder: Path
    journal: Journal
    waiting: list[list[str]]
    process: Process | None = None
    began: float = 0.0
    log_start: int = 0

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"


@dataclass
class Executor:
    """Trains and tests the runs of a plan and keeps their results."""

    grid: Grid
    output: Path
    plan: Mapping[RunName, Planned]
    resources: Resources
    progress: Progress
    lock: int
    _running: list[_Running] = field(default_factory=list)
    _ended: dict[RunName, bool] = field(default_factory=dict)
    """Whether a run that has ended has failed."""

    def execute(self) -> None:
        """Go through the plan; on Ctrl-C processes are stopped, and can be resumed.

        A run that fails is recorded, and the others go on.

        Raises:
            InputErrors: If a result shows that no run can have a score of the grid.
        """
        waiting = [planned for planned in self.plan.values() if planned.pending]
        self._ended = {run: each.action == "failed" for run, each in self.plan.items() if not each.pending}
        try:
            while waiting or self._running:
                self._start_ready(waiting)
                time.sleep(_POLL)
                for running in list(self._running):
                    self._look_at(running)
                self.progress.update({each.planned.run: self._share(each) for each in self._running})
        finally:
            self._stop()

    def _start_ready(self, waiting: list[Planned]) -> None:
        for planned in list(waiting):
            needs = self.grid.needs(planned.run)
            if broken := [need for need in needs if self._ended.get(need)]:
                waiting.remove(planned)
                self._record(planned, Journal(self._needs(planned.run)), None, f"{broken[0]} has failed")
            elif len(self._running) < self.resources.jobs and all(need in self._ended for need in needs):
                waiting.remove(planned)
                self._start(planned)

    def _needs(self, run: RunName) -> dict[str, str]:
        return {str(need): self.plan[need].fingerprint for need in self.grid.needs(run)}

    def _start(self, planned: Planned) -> None:
        folder = self.output / "runs" / planned.run.path
        if planned.replace:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        fit = ["fit", "--output", str(folder), *planned.wanted.arguments]
        test = ["test", str(folder), "--checkpoint", self.grid.checkpoint, "--split", self.grid.split]
        commands = {"train": [fit, test], "resume": [[*fit, "--resume"], test], "test": [test]}[planned.action]
        journal = Journal.read(folder)
        journal.needs = self._needs(planned.run)
        running = _Running(planned, self._free_device(), folder, journal, commands)
        self._running.append(running)
        self.progress.start(planned.run, planned.action)
        self._start_next(running)

    def _free_device(self) -> str | None:
        """Return the device with the fewest runs."""
        taken = Counter(each.device for each in self._running)
        return min(self.resources.devices, key=lambda device: taken[device], default=None)

    def _start_next(self, running: _Running) -> None:
        arguments = running.waiting.pop(0)
        running.journal.processes.append(
            {
                "command": ["softjaccard", *arguments],
                "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "seconds": None,  # stays so where this process is killed, too
                "exit": None,
                **commit(),
            }
        )
        running.journal.write(running.folder)
        running.log.touch()
        running.log_start = running.log.stat().st_size
        running.began = time.monotonic()
        environment = self.resources.environment(running.device)
        running.process = start_process(arguments, running.log, environment, self.lock)

    def _look_at(self, running: _Running) -> None:
        """Go on with a run whose process has ended."""
        code = running.process.poll() if running.process else None
        if code is None:
            return
        self._note_end(running, code)
        if code == 0 and running.waiting:
            self._start_next(running)
            return
        self._running.remove(running)
        reason = self._reason(running, code) if code else None
        self._record(running.planned, running.journal, running, reason)

    def _note_end(self, running: _Running, code: int | None) -> None:
        last = running.journal.processes[-1]
        last["exit"], last["seconds"] = code, round(time.monotonic() - running.began, 1)
        running.journal.write(running.folder)
        running.process = None

    def _record(self, planned: Planned, journal: Journal, running: _Running | None, reason: str | None) -> None:
        """Keep the result of a run that has ended; `running` is None for one that could not start."""
        run, result = planned.run, None
        if reason is None and running is not None:
            try:
                result = load_results(running.folder, self.grid.split)[0]
            except InputError as error:
                reason = str(error)
        about: dict[str, Any] = {}
        if result is not None:
            about = {"versions": result.versions, "scores": result.scores}
            about |= {"classes": result.classes, "images": result.images}
        record = Record(
            row=run.row,
            seed=run.seed,
            config=planned.wanted.config,
            test=self.grid.test,
            needs=journal.needs,
            processes=tuple(journal.processes),
            machine=self.resources.machine(planned.wanted.config, running.device if running else None),
            failed=reason and reason.replace(f"{self.output}/", ""),  # the same wherever the folder is
            **about,
        )
        save_record(self.output, record, result)
        self._ended[run] = reason is not None
        self.progress.end(run, reason)
        if result is not None:
            self._check_scores(result)

    def _check_scores(self, result: EvaluationResult) -> None:
        """Find a misspelt score before all runs are done."""
        wanted = [
            score
            for score in self.grid.scores
            if not _OF_SOME_RUNS.search(score) and score.partition("/")[2] not in result.classes
        ]
        if wrong := unknown_scores(wanted, result.scores.keys()):
            raise InputErrors(wrong)

    def _reason(self, running: _Running, code: int) -> str:
        """Return why a process has failed, in one line."""
        command = running.journal.processes[-1]["command"][1]
        if code < 0:
            hint = " (it may have run out of memory)" if -code == signal.SIGKILL else ""
            return f"{command} was ended by {signal.Signals(-code).name}{hint}"
        lines = [line.strip() for line in _text_since(running.log, running.log_start).splitlines() if line.strip()]
        told = [line for line in lines if line.startswith(f"softjaccard {command}: ")]
        last = (told or lines or [f"it said nothing and ended with code {code}"])[-1]
        return f"{command}: {last.removeprefix(f'softjaccard {command}: ')}"

    def _share(self, running: _Running) -> float:
        """Return how much of a run's training is done, from 0 to 1, as its log tells."""
        if not running.waiting:
            return 1.0
        epochs = _EPOCH.findall(_bytes_since(running.log, running.log_start))
        return int(epochs[-1][0]) / int(epochs[-1][1]) if epochs else 0.0

    def _stop(self) -> None:
        """Stop what still runs, so that it can be resumed."""
        for running in self._running:
            if running.process:
                running.process.terminate()
        until = time.monotonic() + _PATIENCE
        for running in self._running:
            if running.process is None:
                continue
            try:
                running.process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                running.process.kill()
                running.process.wait()
            self._note_end(running, None)


def _bytes_since(log: Path, start: int) -> bytes:
    """Return the end of what a log has got since it had a size."""
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start, size - _TAIL))
        return file.read()


def _text_since(log: Path, start: int) -> str:
    return _bytes_since(log, start).decode("utf-8", "replace")
