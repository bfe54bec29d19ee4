"""`softjaccard fit` and `softjaccard test` as a user runs them, on a tiny set and a tiny network."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from torch.nn import Dropout

from drawn_camvid import draw_camvid
from softjaccard.cli import main
from softjaccard.models import create_model
from softjaccard.training import SupervisedSegmentation

SMALL = [
    "--data.scale=1.0", "--data.crop=[32,32]", "--data.batch_size=2", "--data.pad_multiple=32",
    "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1",
]  # fmt: skip
TINY = ["--model.encoder=tu-test_resnet", *SMALL, "--trainer.max_epochs=2"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_camvid(tmp_path_factory.mktemp("data") / "camvid")


def fit(root: Path, output: Path, *settings: str) -> int:
    return main(["fit", "--recipe", "camvid", "--data.root", str(root), "--output", str(output), *settings])


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two epochs of two steps."""
    output = tmp_path_factory.mktemp("runs") / "plain"
    assert fit(root, output, *TINY) == 0
    return output


def test_a_run_leaves_its_files(run: Path, root: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["init_args"]["root"] == str(root)
    assert config["model"]["init_args"]["loss"]["init_args"]["region"]["class_path"] == "softjaccard.JaccardLoss"
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "1", "2", "3"]
    assert all(float(row["train/loss"]) > 0 and row["train/mIoU_D"] for row in rows)
    for name in ("mIoU_D", "mIoU_I", "mIoU_C", "ECE", "loss"):
        assert [bool(row[f"val/{name}"]) for row in rows] == [False, True, False, True]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


def test_checkpoints_hold_plain_data_and_rebuild_the_network(run: Path) -> None:
    for name in ("best", "last"):
        checkpoint = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
        settings = checkpoint["softjaccard"]["config"]["model"]["init_args"]
        network = create_model(settings["architecture"], settings["encoder"], settings["num_classes"])
        prefix = "network."
        network.load_state_dict(
            {key.removeprefix(prefix): value for key, value in checkpoint["state_dict"].items() if prefix in key}
        )
    assert (checkpoint["epoch"], checkpoint["global_step"]) == (1, 4)


def test_a_run_of_a_version_with_fewer_settings_is_resumed(run: Path, root: Path, tmp_path: Path) -> None:
    output = shutil.copytree(run, tmp_path / "run")
    config = yaml.safe_load((output / "config.yaml").read_text())
    del config["data"]["init_args"]["labelled_seed"], config["model"]["init_args"]["optimiser"]["power"]
    (output / "config.yaml").write_text(yaml.safe_dump(config))
    assert fit(root, output, *TINY, "--resume") == 0
    assert fit(root, output, *TINY, "--resume", "--data.labelled_seed=1") == 2


def test_a_run_is_not_overwritten(run: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert fit(root, run, *TINY) == 2
    error = capsys.readouterr().err
    assert "already holds a run" in error
    assert "--resume" in error
    assert fit(root, run, *TINY, "--resume", "--model.encoder=tu-test_efficientnet") == 2
    assert "model.encoder: tu-test_resnet, now tu-test_efficientnet. Repeat" in capsys.readouterr().err
    assert fit(root, run, *TINY, "--resume", "--data.crop=[64,64]") == 2
    assert "config.yaml, but others are given: data.crop: " in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_nothing_to_resume(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(root, tmp_path / "new", *TINY, "--resume") == 2
    assert "no run to resume" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(
    run: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropout = [module for module in create_model(encoder="tu-test_resnet").modules() if isinstance(module, Dropout)]
    assert dropout  # as the training of this run has

    def cut_off(self: SupervisedSegmentation) -> None:
        if self.current_epoch == 1:
            raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(SupervisedSegmentation, "on_train_epoch_start", cut_off)
        with pytest.raises(RuntimeError, match="power cut"):
            fit(root, tmp_path / "run", *TINY)
    moved = shutil.copytree(root, tmp_path / "moved")
    assert fit(moved, tmp_path / "run", *TINY, "--resume", "--data.cache=false") == 0
    ends = [torch.load(path / "checkpoints" / "last.ckpt", weights_only=True) for path in (run, tmp_path / "run")]
    assert ends[0]["state_dict"].keys() == ends[1]["state_dict"].keys()
    for name, value in ends[0]["state_dict"].items():
        torch.testing.assert_close(value, ends[1]["state_dict"][name], rtol=0, atol=0, msg=name)
    steps = [[row["step"] for row in csv.DictReader((path / "metrics.csv").open())] for path in (run, tmp_path / "run")]
    assert steps[0] == steps[1]


def test_test_writes_the_scores(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for checkpoint in ("best", "last"):
        assert main(["test", str(run), "--checkpoint", checkpoint]) == 0
        result = json.loads((run / "test.json").read_text())
        assert {"mIoU_D", "mIoU_I", "mIoU_C", "ECE", "loss", "IoU_D/sky"} <= result["scores"].keys()
        assert result["checkpoint"].endswith(f"{checkpoint}.ckpt")
        assert result["versions"]["torch"] == torch.__version__.partition("+")[0]
        assert f"{result['scores']['mIoU_D']:.4f}" in capsys.readouterr().out


def test_a_start_that_fails_makes_no_run_and_changes_none(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    wrong = ["--model.loss=softjaccard.CrossEntropyLoss", "--model.loss.class_weight=[1,2]"]
    assert fit(root, output, *TINY, *wrong, "--trainer.num_sanity_val_steps=0") == 2
    assert "model.loss: class_weight" in capsys.readouterr().err
    assert fit(root, output, *TINY, "--trainer.max_steps=2") == 0
    before = (output / "config.yaml").read_bytes()

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(SupervisedSegmentation, "training_step", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            fit(root, output, *TINY, "--resume", "--trainer.max_epochs=5")
    assert (output / "config.yaml").read_bytes() == before
    assert fit(root, output, *TINY, "--resume", "--trainer.max_epochs=3") == 0
    assert yaml.safe_load((output / "config.yaml").read_text())["trainer"]["max_epochs"] == 3


def test_a_run_without_validation(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "run"
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), weights)
    settings = ["--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false"]
    assert fit(root, output, *TINY, *settings, f"--model.encoder_weights={weights}") == 0
    weights.unlink()  # the checkpoint has them
    printed = capsys.readouterr()
    assert "--checkpoint last" in printed.out
    assert "Epoch" not in printed.out + printed.err
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["last.ckpt"]
    # A value apart from its setting, before the run.
    assert main(["test", "--data.root", str(root), str(output)]) == 0
    assert "last.ckpt is used" in capsys.readouterr().out


def test_logs_have_a_line_for_each_epoch(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(root, tmp_path / "run", *TINY) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[:2]] == ["Epoch 1/2", "Epoch 2/2"]
    assert all(word in lines[0] for word in ("loss", "mIoU", "val mIoU"))
    assert main(["test", str(tmp_path / "run")]) == 0
    assert "\r" not in capsys.readouterr().out


@pytest.mark.slow
def test_two_devices(root: Path, tmp_path: Path) -> None:
    settings = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_epochs=1"]
    arguments = ["fit", "--recipe", "camvid", f"--data.root={root}", "--output", "run", *TINY, *settings]
    script = tmp_path / "command.py"
    script.write_text("import sys\nfrom softjaccard.cli import main\nsys.exit(main())\n")
    command = [sys.executable, str(script), *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert [result.stdout.count(words) for words in ("Epoch 1/1", "Trained for 1 epochs")] == [1, 1]
    assert (tmp_path / "run" / "config.yaml").is_file()
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        assert [bool(row["val/mIoU_D"]) for row in csv.DictReader(file)] == [True]
    command = [*command, "--resume", "--checkpoint_every=1", "--trainer.max_epochs=3"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Going on from step 1.") == 1
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert (last["epoch"], last["global_step"]) == (2, 3)
    first, second = (generators["torch"] for generators in last["generators"])
    assert not torch.equal(first, second)


def test_the_recipe_trains_with_each_kind_of_loss(root: Path, tmp_path: Path) -> None:
    limits = ["--trainer.max_steps=1", "--trainer.limit_val_batches=1", "--trainer.num_sanity_val_steps=0"]
    for name, settings in {
        "recipe": [],
        "cross_entropy": ["--model.loss=softjaccard.CrossEntropyLoss"],
        "scaled": ["--model.loss.region.gradient=error_scaled", "--seed=3"],
    }.items():
        assert fit(root, tmp_path / name, *SMALL, *limits, *settings) == 0
    config = yaml.safe_load((tmp_path / "cross_entropy" / "config.yaml").read_text())
    assert config["model"]["init_args"]["loss"]["class_path"] == "softjaccard.CrossEntropyLoss"
    config = yaml.safe_load((tmp_path / "scaled" / "config.yaml").read_text())
    assert config["model"]["init_args"]["loss"]["init_args"]["region"]["init_args"]["gradient"] == "error_scaled"


def test_seed_reaches_weights_and_data(root: Path, run: Path, tmp_path: Path) -> None:
    losses = []
    for seed in (0, 1):
        output = tmp_path / str(seed)
        assert fit(root, output, *TINY, f"--seed={seed}", "--trainer.max_steps=1", "--trainer.limit_val_batches=0") == 0
        losses.append(next(csv.DictReader((output / "metrics.csv").open()))["train/loss"])
    assert losses[0] != losses[1]
    assert losses[0] == next(csv.DictReader((run / "metrics.csv").open()))["train/loss"]
