"""`softjaccard fit` on two processes, in other precisions, and with the settings that make it faster."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from softjaccard.cli import main

SCENES = [
    "fit", "--recipe=scenes", "--data.size=40", "--data.crop=[32,32]", "--data.training=13", "--data.validation=2",
    "--data.test=2", "--data.batch_size=4", "--data.pad_multiple=32", "--model.architecture=unet",
    "--model.encoder=tu-test_resnet", "--trainer.max_epochs=1", "--trainer.limit_val_batches=0",
    "--trainer.log_every_n_steps=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
]  # fmt: skip

DOUBLE_SGD = [
    "--model.optimiser.name=sgd", "--model.optimiser.learning_rate=0.1", "--trainer.precision=64-true",
]  # fmt: skip
#: Norms that see one image at a time, for running averages of batch norm depend on the share of the batch.
EXACT = [
    *DOUBLE_SGD,
    "--model.model_options="
    + json.dumps({"norm_layer": "groupnorm1", "decoder_use_norm": {"type": "instancenorm", "affine": True}}),
]
#: Batch norm over both devices; torch has it for GPUs only.
SYNCHRONISED = [*DOUBLE_SGD, "--trainer.accelerator=gpu", "--trainer.sync_batchnorm=true"]


def last_checkpoint(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


#: Twelve images without labels.
UNLABELLED = ["--recipe=scenes+fixmatch", "--data.training=17", "--data.labelled=0.3", "--model.method.threshold=0.25"]


@pytest.mark.parametrize(
    "settings",
    [
        EXACT,
        pytest.param([*EXACT, *UNLABELLED], marks=pytest.mark.slow),
        pytest.param(
            SYNCHRONISED,
            marks=pytest.mark.skipif(torch.cuda.device_count() < 2, reason="synchronised batch norm needs two GPUs"),
        ),
    ],
)
def test_two_processes_train_to_the_weights_of_one_with_the_joined_batch(settings: list[str], tmp_path: Path) -> None:
    script = tmp_path / "command.py"
    script.write_text("import sys\nfrom softjaccard.cli import main\nsys.exit(main())\n")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    two = ["--data.batch_size=2", "--trainer.devices=2", "--trainer.strategy=ddp", f"--output={tmp_path / 'two'}"]
    result = subprocess.run([*torchrun, *SCENES, *settings, *two], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert main([*SCENES, *settings, "--trainer.devices=1", f"--output={tmp_path / 'one'}"]) == 0
    # The mean of the losses of parts is another loss, so that these weights show what the difference would be.
    parts = ["--data.batch_size=2", "--trainer.accumulate_grad_batches=2", f"--output={tmp_path / 'parts'}"]
    assert main([*SCENES, *settings, "--trainer.devices=1", *parts]) == 0
    checkpoints = {name: last_checkpoint(tmp_path / name) for name in ("one", "two", "parts")}
    assert {checkpoint["global_step"] for checkpoint in checkpoints.values()} == {3}
    expected = checkpoints["one"]["state_dict"]
    assert all(value.dtype == torch.float64 for value in expected.values() if value.is_floating_point())
    differences = {
        name: max((value - expected[key]).abs().max() for key, value in checkpoints[name]["state_dict"].items())
        for name in ("two", "parts")
    }
    assert differences["two"] < 1e-8
    assert differences["parts"] > 1e-4


@pytest.mark.parametrize(
    ("setting", "steps"),
    [
        (["--trainer.precision=bf16-mixed"], 3),
        (["--trainer.accumulate_grad_batches=2"], 2),
        (["--model.channels_last=true"], 3),
    ],
)
def test_settings_of_scale_train_to_finite_weights(setting: list[str], steps: int, tmp_path: Path) -> None:
    assert main([*SCENES, *setting, f"--output={tmp_path / 'run'}"]) == 0
    checkpoint = last_checkpoint(tmp_path / "run")
    assert checkpoint["global_step"] == steps
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
    assert checkpoint["state_dict"]["network.body.segmentation_head.0.weight"].dtype == torch.float32
    assert main(["test", str(tmp_path / "run"), "--checkpoint=last"]) == 0


def test_accumulated_batches_have_the_mean_of_their_gradients(tmp_path: Path) -> None:
    """So that a loss that is a mean over images is the same."""
    images = [*SCENES, *EXACT, "--data.training=4", "--model.loss=softjaccard.JaccardLoss", "--model.loss.per=image"]
    assert main([*images, f"--output={tmp_path / 'one'}"]) == 0
    accumulated = ["--data.batch_size=2", "--trainer.accumulate_grad_batches=2"]
    assert main([*images, *accumulated, f"--output={tmp_path / 'two'}"]) == 0
    one, two = (last_checkpoint(tmp_path / name)["state_dict"] for name in ("one", "two"))
    assert max((value - two[key]).abs().max() for key, value in one.items()) < 1e-8
