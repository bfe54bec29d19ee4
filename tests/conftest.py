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

# The tensors are small: more threads cost more than they give, most of all on a busy machine.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test starts from the same random state."""
    torch.manual_seed(0)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small test images need many tiles of the chunked backend."""
    monkeypatch.setattr("softjaccard.statistics.tiles.TILE_ELEMENTS", 64)
