"""Settings shared by all tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))  # `import oracle` from every folder, whatever pytest's import mode

settings.register_profile("reproducible", deadline=None, derandomize=True, max_examples=100)
settings.load_profile("reproducible")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker of tests that take more than a few seconds."""
    config.addinivalue_line("markers", "slow: takes more than a few seconds (leave out with -m 'not slow')")


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test starts from the same random state."""
    torch.manual_seed(0)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small test images need many tiles of the chunked backend."""
    monkeypatch.setattr("softjaccard.statistics.chunked.TILE_ELEMENTS", 64)
