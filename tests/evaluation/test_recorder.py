"""What a test keeps, and of what; colours for every class. More of it: tests/system/test_report.py."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from softjaccard.data.camvid import CamVid
from softjaccard.data.module import Batch
from softjaccard.data.scenes import ScenesData
from softjaccard.evaluation.recorder import EvaluationRecorder, class_colours
from softjaccard.evaluation.results import EvaluationResult

ABOUT = {"scores": {"own": 0.5}, "checkpoint": "", "epoch": 0, "step": 0, "seed": 0, "versions": {}}


class Foreign(LightningModule):
    """A user's own module."""

    def __init__(self, *, returns_logits: bool) -> None:
        super().__init__()
        self.layer, self.returns_logits = nn.Conv2d(3, 5, 1), returns_logits

    def test_step(self, batch: Batch, batch_index: int) -> Tensor | None:
        return self.predict_step(batch, batch_index) if self.returns_logits else None

    def predict_step(self, batch: Batch, batch_index: int) -> Tensor:
        return self.layer(batch["image"])


@pytest.mark.parametrize("returns_logits", [False, True])
def test_modules_of_other_kinds(returns_logits: bool, tmp_path: Path) -> None:
    recorder = EvaluationRecorder()
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[recorder],
    )  # fmt: skip
    data = ScenesData(size=24, training=1, validation=1, test=10, evaluation_batch_size=4)
    trainer.test(Foreign(returns_logits=returns_logits), data, verbose=False)
    assert recorder.save(tmp_path / "test", ABOUT) == returns_logits == (tmp_path / "test").exists()
    if returns_logits:
        result = EvaluationResult.load(tmp_path / "test")
        assert result.scores["own"] == 0.5
        assert {name: len(rows) for name, rows in result.worst.items()} == {"IoU": 8, "Acc": 8}
        hits, labelled = result.counts[..., 0].sum(1), (result.counts[..., 0] + result.counts[..., 2]).sum(1)
        accuracy = (hits / labelled).tolist()
        assert list(result.worst["Acc"]) == sorted(range(10), key=lambda row: accuracy[row])[:8]


@pytest.mark.parametrize("count", [2, 8, 9, 150])
def test_every_class_has_a_colour(count: int) -> None:
    colours = class_colours(SimpleNamespace(num_classes=count))
    assert len(colours) == len(set(colours)) == count
    assert all(0 <= channel <= 255 for colour in colours for channel in colour)
    neighbours = torch.tensor(colours, dtype=torch.float64).diff(dim=0).norm(dim=1)
    assert neighbours.min() > 40


def test_a_data_set_keeps_its_colours() -> None:
    assert class_colours(CamVid) == CamVid.colours
