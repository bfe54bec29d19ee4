"""Runs commands in processes that are forks of this one, which has imported everything: each starts at once.

The arguments are JSON: a list of [arguments of softjaccard, null], or [arguments, [starts, seconds]] for a comparison
whose process group is killed so many seconds after it has started so many processes. Prints each command's exit code.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

import softjaccard.evaluation.testing
import softjaccard.training.run  # noqa: F401
from softjaccard.cli import main
from softjaccard.evaluation.compare import processes

_FORK = multiprocessing.get_context("fork")


class Fork:
    """As `subprocess.Popen`, of one command."""

    def __init__(self, arguments: Sequence[str], log: Path, environment: Mapping[str, str], lock: int) -> None:
        self._process = _FORK.Process(target=run, args=(arguments, log))
        self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("fork", timeout or 0)
        return self._process.exitcode

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def run(arguments: Sequence[str], log: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.exit(main(arguments))


def run_group(arguments: Sequence[str], kill: tuple[int, float] | None) -> int:
    """Run a command in a process group of its own, and kill that when it is time."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os._exit(main(arguments))
    if kill is not None:
        while starts(Path(arguments[arguments.index("--output") + 1])) < kill[0]:
            time.sleep(0.02)
        time.sleep(kill[1])
        os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def starts(output: Path) -> int:
    """The number of processes that a comparison has started so far."""
    return sum(path.read_text().count('"command"') for path in output.glob("runs/*/*/journal.json"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    gc.freeze()  # no fork has to go through what was imported
    processes.start_process = Fork
    processes._POLL = 0.02
    for arguments, kill in json.loads(sys.argv[1]):
        print(f"exit {run_group(arguments, kill)}", flush=True)
