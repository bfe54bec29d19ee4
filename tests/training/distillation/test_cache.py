"""The cache of a teacher's logits."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from softjaccard.errors import InputError
from softjaccard.training.distillation import TeacherCache

FINGERPRINT = {"teacher": "1f3a", "size": (48, 64), "version": 1}
#: Ids that are no names of files, or that a careless mapping would confuse.
KEYS = [
    "aachen/0001",
    "aachen_0001",
    "aachen%2F0001",
    "aachen\\0001",
    "Aachen/0001",
    "../0001",
    "/0001",
    "..",
    "",
    "fingerprint",
    "ä b:c*?",
    "x" * 300,
]


def test_every_key_has_its_own_logits(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "cache"
    cache = TeacherCache(folder, FINGERPRINT)
    logits = [torch.randn(4, 3 + n, 5) for n in range(len(KEYS))]
    for key, value in zip(KEYS, logits, strict=True):
        assert cache.get([key]) is None
        cache.put(key, value)
    assert cache.get([*KEYS, "missing"]) is None
    reopened = TeacherCache(folder, dict(reversed(FINGERPRINT.items())))
    for found, value in zip(reopened.get(KEYS) or [], logits, strict=True):
        assert found.dtype == torch.float16
        assert torch.equal(found, value.half())
    assert [entry.name for entry in folder.parent.iterdir()] == ["cache"]
    names = {path.name for path in folder.iterdir()}
    assert len(names) == len(KEYS) + 1
    assert json.loads((folder / "fingerprint.json").read_text()) == {**FINGERPRINT, "size": [48, 64]}


def test_logits_need_not_be_contiguous_or_without_gradient(tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path, FINGERPRINT)
    logits = torch.randn(2, 3, 5, 4, requires_grad=True).to(memory_format=torch.channels_last)
    cache.put("0", logits[1])
    cache.put("0", logits[0])  # the later one stays
    (found,) = cache.get(["0"]) or []
    assert torch.equal(found, logits[0].detach().half())


def test_a_folder_of_another_teacher_is_refused(tmp_path: Path) -> None:
    TeacherCache(tmp_path / "cache", FINGERPRINT)
    with pytest.raises(InputError, match=r"cache.*1f3a.*2b00"):
        TeacherCache(tmp_path / "cache", FINGERPRINT | {"teacher": "2b00"})
    with pytest.raises(InputError, match="not empty"):
        TeacherCache(tmp_path, FINGERPRINT)
    (tmp_path / "cache" / "fingerprint.json").write_text('{"teacher":')
    with pytest.raises(InputError, match=r"fingerprint\.json is damaged"):
        TeacherCache(tmp_path / "cache", FINGERPRINT)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path, FINGERPRINT)
    cache.put("aachen/0001", torch.randn(4, 3, 5))
    (path,) = tmp_path.glob("*.safetensors")
    whole = path.read_bytes()
    other = tmp_path / "other"
    save_file({"logits": torch.zeros(1)}, other, metadata={"key": "aachen/0002"})
    save_file({"weights": torch.zeros(1)}, tmp_path / "weights", metadata={"key": "aachen/0001"})
    for content in (whole[:-1], whole[:20], b"", other.read_bytes(), (tmp_path / "weights").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"{path.name}.*aachen/0001.*Delete it"):
            cache.get(["aachen/0001"])
    path.unlink()
    assert cache.get(["aachen/0001"]) is None


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "cache"
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        TeacherCache(folder, FINGERPRINT)
    monkeypatch.undo()
    cache = TeacherCache(folder, FINGERPRINT)  # what was left is in nobody's way
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        cache.put("0", torch.zeros(2, 3, 4))
    monkeypatch.undo()
    assert cache.get(["0"]) is None
    cache.put("0", torch.ones(2, 3, 4))
    assert torch.equal((cache.get(["0"]) or [])[0], torch.ones(2, 3, 4).half())


@pytest.mark.parametrize("value", [1e6, float("nan"), float("inf")])
def test_what_half_precision_cannot_hold_is_refused(tmp_path: Path, value: float) -> None:
    cache = TeacherCache(tmp_path, FINGERPRINT)
    with pytest.raises(InputError, match=r"image 7 .*half precision"):
        cache.put("7", torch.full((2, 3, 4), value))
    assert cache.get(["7"]) is None
