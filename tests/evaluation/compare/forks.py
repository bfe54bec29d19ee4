"""Runs commands in processes that are forks of this one, which has imported everything: each starts at once.

The arguments are JSON: a list of [arguments of softjaccard, seconds until the whole process group is killed or null].
A negative number of seconds is a share of the first command's duration. Prints the exit code of each command.
"""

from __future__ import annotations

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


def run_group(arguments: Sequence[str], seconds: float | None) -> int:
    """Run a command in a process group of its own, and kill that after so many seconds."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os._exit(main(arguments))
    if seconds is not None:
        time.sleep(seconds)
        os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    processes.start_process = Fork
    durations = []
    for arguments, seconds in json.loads(sys.argv[1]):
        began = time.monotonic()
        code = run_group(arguments, -seconds * durations[0] if seconds is not None and seconds < 0 else seconds)
        durations.append(time.monotonic() - began)
        print(f"exit {code} after {durations[-1]:.1f} s", flush=True)
