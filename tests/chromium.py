"""A headless browser for tests: Debian's chromium, installed where it is missing and can be."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--virtual-time-budget=4000",
)  # fmt: skip


def find_chromium() -> str:
    """Return the program, after installing it if need be; skip the test where it cannot be had."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    if not shutil.which("apt-get") or os.geteuid() != 0:
        pytest.skip("there is no chromium, and it can be installed by root with apt-get only")
    for command in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        try:
            subprocess.run(
                ["apt-get", *command], env=environment, capture_output=True, text=True, timeout=300, check=True
            )
        except subprocess.TimeoutExpired:
            pytest.skip(f"there is no chromium, and apt-get {command[0]} took more than 5 minutes")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"there is no chromium, and apt-get {command[0]} failed: {error.stderr.strip()[-300:]}")
    return shutil.which("chromium") or pytest.skip("apt-get installed no chromium")


def run_chromium(page: Path, folder: Path, *options: str) -> str:
    """Open a page, with a new profile in `folder`, and return what the browser prints."""
    command = [find_chromium(), *_FLAGS, f"--user-data-dir={folder / 'profile'}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
