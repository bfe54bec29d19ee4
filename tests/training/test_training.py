"""The parts of a training: schedule, optimiser, checkpoints, logs, and the Lightning module."""

from __future__ import annotations

import csv
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch.nn.functional import interpolate
from torchvision import tv_tensors

import softjaccard
from drawn_camvid import draw_camvid
from softjaccard.data.camvid import CamVidData
from softjaccard.data.module import Batch
from softjaccard.errors import InputError
from softjaccard.metrics import CalibrationError, FineGrainedIoU
from softjaccard.models import NetworkOutput
from softjaccard.training import OptimiserSettings, SupervisedSegmentation
from softjaccard.training.checkpoints import CheckpointFiles, load_checkpoint
from softjaccard.training.optimisation import build_optimiser, build_schedule
from softjaccard.training.reporting import CSVFile


def module(num_classes: int = 11, *, architecture: str = "unet", **settings: Any) -> SupervisedSegmentation:
    loss = softjaccard.CompoundLoss(softjaccard.JaccardLoss())
    return SupervisedSegmentation(
        loss, num_classes=num_classes, architecture=architecture, encoder="tu-test_resnet", **settings
    )


def quiet(**settings: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **settings,
    )  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> CamVidData:
    root = draw_camvid(tmp_path / "camvid", (64, 64))
    return CamVidData(str(root), scale=1.0, crop=(32, 32), batch_size=2, evaluation_batch_size=1)


def test_learning_rate_rises_then_falls_to_zero_in_every_group() -> None:
    settings = OptimiserSettings(learning_rate=0.1, decoder_factor=3.0, warmup=0.1, power=0.9)
    optimiser = build_optimiser(module().network, settings)
    schedule = build_schedule(optimiser, settings, steps=100)
    rates = []
    for _ in range(100):
        rates.append({group["name"]: group["lr"] for group in optimiser.param_groups})
        optimiser.step()
        schedule.step()
    encoder = torch.tensor([rate["encoder_weights"] for rate in rates], dtype=torch.float64)
    decoder = torch.tensor([rate["decoder_weights"] for rate in rates], dtype=torch.float64)
    torch.testing.assert_close(decoder, 3 * encoder)
    torch.testing.assert_close(encoder[:10], torch.arange(1, 11, dtype=torch.float64) / 100)
    torch.testing.assert_close(encoder[10:], 0.1 * (1 - torch.arange(90, dtype=torch.float64) / 90) ** 0.9)
    assert optimiser.param_groups[0]["lr"] == 0


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_optimisers(name: Any, kind: type) -> None:
    optimiser = build_optimiser(module().network, OptimiserSettings(name=name, momentum=0.8))
    assert isinstance(optimiser, kind)
    assert optimiser.param_groups[0].get("momentum", 0.8) == 0.8


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": 0.0}, {"learning_rate": float("nan")}, {"decoder_factor": -1.0}, {"weight_decay": -0.1},
        {"momentum": 1.0}, {"power": -1.0}, {"warmup": 1.0},
    ],
)  # fmt: skip
def test_optimiser_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        OptimiserSettings(**wrong)


@pytest.mark.parametrize("architecture", ["unet", "deeplabv3plus", "fpn"])  # logits of stride 1 or 4
def test_evaluation_logs_the_scores_of_the_whole_set(data: CamVidData, architecture: str) -> None:
    model = module(architecture=architecture).eval()
    trainer = quiet()
    (logged,) = trainer.validate(model, data, verbose=False)
    iou, calibration = FineGrainedIoU(11), CalibrationError(11)
    losses = []
    for batch in data.val_dataloader():
        with torch.no_grad():
            logits = interpolate(model(batch["image"]), size=(64, 64), mode="bilinear")
        iou.update(logits, batch["label"])
        calibration.update(logits.softmax(1), batch["label"])
        losses.append(model.loss(logits, batch["label"]))
    scores = iou.compute()
    expected = {name: scores[name] for name in ("mIoU_D", "mIoU_I", "mIoU_C")}
    expected |= {"ECE": calibration.compute()["ECE"], "loss": torch.stack(losses).mean()}
    assert {name.removeprefix("val/") for name in logged} == set(expected)
    for name, value in expected.items():
        assert logged[f"val/{name}"] == pytest.approx(value.item(), abs=1e-5), name


def test_images_that_come_twice_in_evaluation_count_once(data: CamVidData) -> None:
    model = module().eval()
    data.setup("validate")
    batches = list(data.val_dataloader())
    for batch in [*batches, batches[0]]:
        model.validation_step(batch, 0)
    assert model.evaluation_iou.table()[1].tolist() == list(range(len(batches)))


def test_training_lowers_the_loss_and_shows_a_running_score(data: CamVidData) -> None:
    model = module(optimiser=OptimiserSettings(learning_rate=1e-2, decoder_factor=1.0))
    steps = []
    model.on_train_batch_end = lambda outputs, *_: steps.append(  # type: ignore[method-assign]
        (float(outputs["loss"]), float(model.trainer.callback_metrics["train/mIoU_D"]))
    )
    quiet(max_epochs=25, limit_val_batches=0, log_every_n_steps=1).fit(model, data)
    assert len(steps) == 50
    (first_loss, first_score), (last_loss, last_score) = (
        torch.tensor(part).mean(0) for part in (steps[:10], steps[-10:])
    )
    assert last_loss < 0.9 * first_loss
    assert last_score > 1.5 * first_score


def test_data_with_other_classes_are_refused(data: CamVidData) -> None:
    with pytest.raises(InputError, match=r"num_classes is 4.*val data have 11"):
        quiet().validate(module(num_classes=4), data, verbose=False)


@pytest.mark.parametrize("architecture", ["unet", "fpn"])  # logits of stride 1 or 4
def test_the_running_score_is_that_of_the_epochs_images_so_far(data: CamVidData, architecture: str) -> None:
    model, metric, seen = module(architecture=architecture), FineGrainedIoU(11), {}
    own_loss = softjaccard.CompoundLoss(softjaccard.JaccardLoss())
    plain_loss = model.training_loss

    def noted(output: NetworkOutput, batch: Batch) -> torch.Tensor:
        label = batch["label"]
        full = interpolate(output.logits.detach(), label.shape[-2:], mode="bilinear")
        metric.update(full, label)
        loss = plain_loss(output, batch)
        torch.testing.assert_close(loss, own_loss(full, label))
        return loss

    def compare(*_: Any) -> None:
        score = model.trainer.callback_metrics.get("train/mIoU_D")
        seen[model.global_step] = (score is not None, score is None or score == metric.compute()["mIoU_D"].float())

    model.training_loss, model.on_train_batch_end = noted, compare  # type: ignore[method-assign]
    model.on_train_epoch_end = metric.reset  # type: ignore[method-assign]
    data.batch_size, data.crop = 1, (64, 64)
    quiet(max_epochs=2, limit_val_batches=0, log_every_n_steps=3).fit(model, data)
    logged = {3, 5, 6, 9, 10}  # every third step, and the last ones of the epochs
    assert all(right for step, (_, right) in seen.items() if step in logged)
    assert [seen[step][0] for step in (1, 2, 3)] == [False, False, True]


def test_errors_of_the_loss_are_the_users(data: CamVidData) -> None:
    model = SupervisedSegmentation(
        softjaccard.CrossEntropyLoss(class_weight=[1.0, 2.0]),
        num_classes=11,
        architecture="unet",
        encoder="tu-test_resnet",
    )
    with pytest.raises(InputError, match=r"model\.loss: class_weight.*11"):
        quiet().validate(model, data, verbose=False)


def test_more_devices_than_images(data: CamVidData) -> None:
    data.setup("test")
    data.trainer = SimpleNamespace(global_rank=0, world_size=3)  # type: ignore[assignment]
    with pytest.raises(InputError, match="2 images, fewer than the 3 devices"):
        data.test_dataloader()


def test_an_output_that_is_not_finite_stops_the_training(data: CamVidData) -> None:
    model = module()
    next(model.network.parameters()).data.fill_(torch.nan)
    with pytest.raises(InputError, match=r"nan at step 1.*learning_rate"):
        quiet(max_epochs=1, num_sanity_val_steps=0, limit_val_batches=0).fit(model, data)


def test_an_infinite_loss_stops_the_training(data: CamVidData) -> None:
    model = SupervisedSegmentation(Infinite(), num_classes=11, architecture="unet", encoder="tu-test_resnet")
    with pytest.raises(InputError, match=r"inf at step 1.*learning_rate"):
        quiet(max_epochs=1, num_sanity_val_steps=0, limit_val_batches=0).fit(model, data)


class Infinite(torch.nn.Module):
    def forward(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return logits.sum() + torch.inf


def test_checkpoints_are_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "folder" / "last.ckpt"
    files = CheckpointFiles()
    files.save_checkpoint({"state_dict": {"weight": torch.ones(2)}, "epoch": 3, "global_step": 6}, path)
    assert files.load_checkpoint(path)["epoch"] == 3

    def cut_off(content: object, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", cut_off)
    with pytest.raises(KeyboardInterrupt):
        files.save_checkpoint({}, path)
    assert load_checkpoint(path)["epoch"] == 3


def test_checkpoints_with_more_than_plain_data_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "extra": torch.nn.Linear(1, 1)}, tmp_path / "a.ckpt")
    with pytest.raises(InputError, match=r"a\.ckpt holds torch\.nn\.modules\.linear\.Linear; expected.*plain data"):
        load_checkpoint(tmp_path / "a.ckpt")
    contents = (
        ("b.ckpt", {"epoch": 1}),
        ("d.ckpt", {"state_dict": {}}),
    )
    for name, content in contents:
        torch.save(content, tmp_path / name)
        with pytest.raises(InputError, match=name):
            load_checkpoint(tmp_path / name)
    (tmp_path / "c.ckpt").write_bytes(b"damaged")
    for name in ("c.ckpt", "missing.ckpt"):
        with pytest.raises(InputError, match=name):
            load_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"best": {"score": np.float64(0.5)}}, r"\['best'\]\['score'\] is of the class numpy\.float64"),
        ({"callbacks": [1, (2, torch.device("cpu"))]}, r"\['callbacks'\]\[1\]\[1\] is of the class torch\.device"),
        ({"hparams": {"loss": torch.nn.Linear(1, 1)}}, r"\['hparams'\]\['loss'\] is of the class torch"),
        ({"scores": {Path("a"): 1.0}}, r"\['scores'\].*\(the key\) is of the class pathlib"),
        ({"image": tv_tensors.Image(torch.zeros(3, 2, 2))}, r"\['image'\] is of the class torchvision"),
    ],
)  # fmt: skip
def test_checkpoints_with_more_than_plain_data_are_not_written(tmp_path: Path, content: Any, named: str) -> None:
    path = tmp_path / "last.ckpt"
    with pytest.raises(InputError, match=f"checkpoint{named}"):
        CheckpointFiles().save_checkpoint(content, path)
    assert not list(tmp_path.iterdir())


def test_plain_data_of_all_kinds_are_written_and_loaded(tmp_path: Path) -> None:
    parts = [None, True, 1, 0.5, "a", b"b", (1, [2]), {"c": {3: torch.nn.Parameter(torch.ones(2))}}, OrderedDict(d=4)]
    content = {"state_dict": {}, "epoch": 0, "global_step": 0, "parts": parts}
    CheckpointFiles().save_checkpoint(content, tmp_path / "last.ckpt")
    loaded = load_checkpoint(tmp_path / "last.ckpt")["parts"]
    assert loaded[:7] == parts[:7]
    assert loaded[8] == parts[8]
    assert torch.equal(loaded[7]["c"][3], torch.ones(2))


def test_csv_goes_on_where_a_run_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.csv"
    first = CSVFile(path)
    for step, loss in ((4, 0.9), (9, 0.8), (14, 0.7)):
        first.log_metrics({"train/loss": loss, "epoch": step // 10}, step)
    first.save()
    assert not path.exists()  # Lightning asks for it after each row
    first.write()
    resumed = CSVFile(path, 10)
    resumed.log_metrics({"val/mIoU_D": 0.4, "epoch": 0}, 9)
    resumed.log_metrics({"train/loss": 0.75, "epoch": 1}, 13)
    resumed.finalize("success")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["4", "9", "13"]
    assert [row["train/loss"] for row in rows] == ["0.9", "0.8", "0.75"]
    assert [row["val/mIoU_D"] for row in rows] == ["", "0.4", ""]
