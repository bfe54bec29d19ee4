"""`softjaccard fit`, `test` and `report` one after the other, as a user runs them, on drawn scenes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from softjaccard.cli import main
from softjaccard.data.scenes import ScenesData
from softjaccard.data.transforms import IGNORE_INDEX
from softjaccard.evaluation.results import EvaluationResult
from softjaccard.metrics import fine_grained_iou
from softjaccard.models import create_model


@pytest.fixture(scope="module")
def run(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has been tested."""
    output = shutil.copytree(trained, tmp_path_factory.mktemp("runs") / "tiny")
    assert main(["test", str(output)]) == 0
    return output


def test_the_result_is_that_of_the_network(run: Path) -> None:
    result = EvaluationResult.load(run / "evaluation" / "test")
    state = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    network = create_model("unet", "tu-test_resnet", num_classes=5)
    network.load_state_dict({k.removeprefix("network."): v for k, v in state["state_dict"].items() if "network." in k})
    data = ScenesData(size=40, training=8, validation=2, test=5, pad_multiple=32)
    data.setup("test")
    confusion, counts = np.zeros((5, 5), int), np.zeros((5, 5, 3), int)
    sums, class_sums = np.zeros((5, 3, 10)), np.zeros((5, 3, 10))
    for index in range(5):
        batch = data.evaluation_batch("test", [index])
        with torch.no_grad():
            logits = network.eval()(batch["image"])
        probabilities = interpolate(logits, size=(64, 64), mode="bilinear").softmax(1)[0].double().numpy()
        label, confidence, predicted = batch["label"][0].numpy(), probabilities.max(0), probabilities.argmax(0)
        for y, p, c, shares in zip(
            label.ravel(), predicted.ravel(), confidence.ravel(), probabilities.reshape(5, -1).T, strict=True
        ):
            if y == IGNORE_INDEX:
                continue
            for k, share in enumerate(shares):
                class_sums[k, :, min(int(share * 10), 9)] += (1, share, y == k)
            confusion[y, p] += 1
            counts[index, y, 0 if y == p else 2] += 1
            counts[index, p, 1] += y != p
            sums[index, :, min(int(c * 10), 9)] += (1, c, y == p)
    np.testing.assert_array_equal(result.confusion.numpy(), confusion)
    np.testing.assert_array_equal(result.counts.numpy(), counts)
    np.testing.assert_allclose(result.calibration.numpy(), sums, atol=1e-3)
    np.testing.assert_allclose(result.class_calibration.numpy(), class_sums, atol=1e-3)
    assert (confusion.sum(), len(confusion.nonzero()[0]) > 5) == (counts[..., [0, 2]].sum(), True)


def calibration_of(result: EvaluationResult) -> dict[str, torch.Tensor]:
    """ECE and SCE from the bins that are kept."""
    pixels, confidence, hits = result.calibration.sum(0)
    class_gaps = (result.class_calibration[:, 1] - result.class_calibration[:, 2]).abs().sum(1).mean()
    return {"ECE": (confidence - hits).abs().sum() / pixels.sum(), "SCE": class_gaps / pixels.sum()}


def test_the_result_says_what_test_json_says(run: Path) -> None:
    result = EvaluationResult.load(run / "evaluation" / "test")
    record = json.loads((run / "test.json").read_text())
    scores = record.pop("scores")
    assert [record.pop(name) for name in ("other_decodings", "absent", "temperature_fit")] == [{}, [], None]
    assert record.pop("overrides") == list(result.overrides) == []
    assert {name: getattr(result, name) for name in record} == record
    assert result.scores == scores
    for name, score in {**fine_grained_iou(result.counts), **calibration_of(result)}.items():
        if score.ndim == 0:
            assert result.scores[name] == pytest.approx(score.item(), abs=1e-6), name
    assert result.images == tuple(f"scene {number}" for number in range(10, 15))
    assert (result.split, result.classes[1], len(result.colours)) == ("test", "disc", 5)
    assert {name: sorted(rows) for name, rows in result.worst.items()} == {
        "IoU": [0, 1, 2, 3, 4],
        "Acc": [0, 1, 2, 3, 4],
    }


def test_pictures_are_the_images_without_padding(run: Path) -> None:
    import io

    from PIL import Image

    result = EvaluationResult.load(run / "evaluation" / "test")
    data = ScenesData(size=40, training=8, validation=2, test=5)
    for row, picture in result.pictures.items():
        scene = data.dataset("test")[row]
        label, prediction, image = (
            np.array(Image.open(io.BytesIO(part))).astype(int)
            for part in (picture.label, picture.prediction, picture.image)
        )
        np.testing.assert_array_equal(label, scene["label"].masked_fill(scene["label"] == 255, 5).numpy())
        kept = label < 5
        assert ((label == prediction) & kept).sum() == result.counts[row, :, 0].sum()
        assert np.abs(image - 255 * scene["image"].permute(1, 2, 0).numpy()).mean() < 12


def test_a_report_of_one_and_of_two_runs(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for runs in ([str(run)], [str(run), str(run)]):
        output = tmp_path / "new" / "report.html"
        assert main(["report", *runs, "--output", str(output)]) == 0
        assert capsys.readouterr().out == f"Written to {output}.\n"
        assert ("Differences" in output.read_text(encoding="utf-8")) == (len(runs) == 2)


def test_the_recipe_trains(tmp_path: Path) -> None:
    limits = ["--data.training=12", "--trainer.max_steps=1", "--trainer.limit_val_batches=1"]
    quick = ["--trainer.num_sanity_val_steps=0", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    assert main(["fit", "--recipe", "scenes", "--output", str(tmp_path / "run"), *limits, *quick]) == 0
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").is_file()


def test_a_run_that_was_not_tested(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    assert main(["report", str(tmp_path / "run")]) == 2
    assert f"run `softjaccard test {tmp_path / 'run'}` first" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "run"), "--nonsense"]) == 2
    assert "--nonsense" in capsys.readouterr().err
