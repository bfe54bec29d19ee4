"""Runs `softjaccard` commands in processes that are forked from one that has imported everything, and kills them.

Reads one JSON object a line, {"arguments": [...], "log": path, "kill": [place, count] or null}, and answers each with
the status of the process: an exit code, or minus the number of a signal.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from softjaccard import files
from softjaccard.cli import main
from softjaccard.training import SupervisedSegmentation, run

PLACES = ("training step", "optimiser", "validation", "half a checkpoint", "before renaming", "after renaming")


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def terminate(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def stop(module: SupervisedSegmentation, *_: Any) -> None:
    module.trainer.should_stop = True


def die_in(place: str, count: float) -> None:
    """Kill, interrupt or stop the training when it comes to a place for the count-th time, or kill it after a time."""
    if place == "seconds":
        threading.Timer(count, die).start()
        return
    owner, name, before, after = {
        "training step": (SupervisedSegmentation, "training_step", die, None),
        "Ctrl-C": (SupervisedSegmentation, "training_step", interrupt, None),
        "SIGTERM": (SupervisedSegmentation, "training_step", terminate, None),
        "stop": (SupervisedSegmentation, "training_step", stop, None),
        "optimiser": (torch.optim.AdamW, "step", None, die),
        "validation": (SupervisedSegmentation, "validation_step", die, None),
        "half a checkpoint": (torch, "save", write_half_and_die, None),
        "before renaming": (files.os, "replace", die, None),
        "after renaming": (files.os, "replace", None, die),
    }[place]
    calls, function = 0, getattr(owner, name)

    def counting(*arguments: Any, **settings: Any) -> Any:
        nonlocal calls
        calls += 1
        if before is not None and calls == count:
            setattr(owner, name, function)
            before(*arguments)
        result = function(*arguments, **settings)
        if after is not None and calls == count:
            after()
        return result

    setattr(owner, name, counting)


def write_half_and_die(content: Any, path: Path) -> None:
    whole = io.BytesIO()
    torch.save(content, whole)
    path.write_bytes(whole.getvalue()[: whole.tell() // 2])
    die()


def fork(arguments: list[str], log: str, kill: list[Any] | None) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for stream in (1, 2):
                os.dup2(output, stream)
            if kill is not None:
                die_in(*kill)
            code = main(arguments)
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def serve(answer: Callable[[str], Any]) -> None:
    assert run.fit  # imported
    torch.set_num_threads(1)
    for line in sys.stdin:
        answer(f"{fork(**json.loads(line))}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve(sys.stdout.write)
