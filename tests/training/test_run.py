"""When a run that is resumed is the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from softjaccard.errors import InputError
from softjaccard.training.run import _check_same_run


def config(**model: Any) -> dict[str, Any]:
    return {"seed": 0, "model": {"class_path": "m", "init_args": model}, "data": {"class_path": "d", "init_args": {}}}


@pytest.mark.parametrize("name", ["teacher", "teacher_cache", "encoder_weights"])
def test_paths_are_the_same_however_they_are_spelled(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    saved = config(**{name: "runs/a", "loss": "l"})
    for spelled in ("runs/a", "./runs/a/", str(tmp_path / "runs" / "a"), "link/runs/a", "~/runs/a", "runs/b/../a"):
        _check_same_run(config(**{name: spelled, "loss": "l"}), saved, tmp_path)
    for other in ("runs/b", "a", None):
        with pytest.raises(InputError, match="but others are given: model"):
            _check_same_run(config(**{name: other, "loss": "l"}), saved, tmp_path)
    _check_same_run(config(**{name: None}), config(**{name: None}), tmp_path)
    _check_same_run(config(channels_last=True), config(channels_last=False), tmp_path)
    with pytest.raises(InputError, match="but others are given: model"):
        _check_same_run(config(**{name: "runs/a", "loss": "./l"}), saved, tmp_path)
