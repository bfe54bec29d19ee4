"""What figures depend on besides settings: the processor and the commit."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path


def cpu_name() -> str:
    """Return the processor's model."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def cpu_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def git(*arguments: str) -> str | None:
    """Return what git says about the repository that this package's source is part of; None where it is of none."""
    folder = Path(__file__).parent
    here = ["git", "-C", str(folder)]
    try:
        # Installed into an environment, the package may lie inside a repository that is not its own.
        subprocess.run([*here, "ls-files", "--error-unmatch", "__init__.py"], capture_output=True, check=True)
        run = subprocess.run([*here, *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()


def commit() -> dict[str, str | bool | None]:
    """Return the source's `commit`, and whether it has `uncommitted_changes`.

    Without a repository the commit is that of the environment's COMMIT, for a machine that holds the files alone, or
    None; and so are the changes.
    """
    changes = git("status", "--porcelain", "--", ":/src", ":/benchmarks")
    return {
        "commit": git("rev-parse", "HEAD") or os.environ.get("COMMIT"),
        "uncommitted_changes": None if changes is None else bool(changes),
    }
