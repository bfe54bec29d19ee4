"""A run that the tests of what follows a training share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from softjaccard.cli import main

TINY = [
    "--data.size=40", "--data.crop=[32,32]", "--data.training=8", "--data.validation=2", "--data.test=5",
    "--data.batch_size=4", "--data.evaluation_batch_size=3", "--model.architecture=unet",
    "--model.encoder=tu-test_resnet", "--model.model_options={}", "--data.pad_multiple=32", "--trainer.max_epochs=2",
    "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
]  # fmt: skip


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on drawn scenes of 40 x 40 pixels with five classes; to be copied by those who change it."""
    output = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["fit", "--recipe", "scenes", "--output", str(output), *TINY]) == 0
    for path in (output / "checkpoints").iterdir():
        state = torch.load(path, weights_only=True)
        # After four steps all classes are nearly as probable as each other, whatever the image.
        state["state_dict"]["network.body.segmentation_head.0.weight"] *= 30
        torch.save(state, path)
    return output
