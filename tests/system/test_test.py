"""`softjaccard test` with its options, as a user runs it, on drawn scenes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from softjaccard.cli import main
from softjaccard.data.scenes import ScenesData
from softjaccard.evaluation.decoding import decode
from softjaccard.evaluation.inference import InferenceSettings, predict_logits
from softjaccard.evaluation.results import EvaluationResult
from softjaccard.evaluation.temperature import fit_temperature
from softjaccard.labels import RaterLabel
from softjaccard.metrics import CalibrationError, FineGrainedIoU, SoftScores
from softjaccard.training.run import load_run_network

OPTIONS = ["--window", "24", "32", "--overlap", "0.25", "--scales", "0.75", "1", "--flip"]
SETTINGS = InferenceSettings((24, 32), 0.25, (0.75, 1.0), flip=True)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


def score_run(run: Path, *options: str) -> dict[str, Any]:
    """What the JSON file of a test holds."""
    assert main(["test", str(run), *options]) == 0
    split = options[options.index("--split") + 1] if "--split" in options else "test"
    record: dict[str, Any] = json.loads((run / f"{split}.json").read_text())
    return record


def logits_of(run: Path, split: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Logits and labels of the batches of a split, without their padding from 40 to 64 pixels."""
    network = load_run_network(run).network
    data = ScenesData(size=40, training=8, validation=2, test=5, pad_multiple=32, evaluation_batch_size=3)
    data.setup("test" if split == "test" else "validate")
    loader = data.test_dataloader() if split == "test" else data.val_dataloader()
    return [
        (predict_logits(network, batch["image"][..., :40, :40], SETTINGS), batch["label"][..., :40, :40])
        for batch in loader
    ]


def test_all_options_together(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    decodings = ["argmax", "rankseg-iou"]
    record = score_run(run, *OPTIONS, "--decoding", *decodings, "--temperature", "fit")
    output = capsys.readouterr().out
    fitted = fit_temperature(logits_of(run, "val"))
    assert record["temperature_fit"]["value"] == pytest.approx(fitted.value, rel=1e-4)
    assert record["temperature_fit"]["at_bound"] == fitted.at_bound
    temperature = record["settings"]["temperature"]
    assert temperature == record["temperature_fit"]["value"] != 1
    assert record["settings"] == {
        "window": [24, 32], "overlap": 0.25, "scales": [0.75, 1.0], "flip": True, "decoding": "argmax",
        "temperature": temperature,
    }  # fmt: skip
    calibration = {name: CalibrationError(5, from_logits=True) for name in ("", "_unscaled")}
    iou = {decoding: FineGrainedIoU(5) for decoding in decodings}
    for logits, label in logits_of(run, "test"):
        calibration[""].update(logits / temperature, label)
        calibration["_unscaled"].update(logits, label)
        for decoding, metric in iou.items():
            metric.update(decode(logits / temperature, decoding), label)
    for suffix, metric in calibration.items():
        for name, score in metric.compute().items():
            assert record["scores"][f"{name}{suffix}"] == pytest.approx(score.item(), abs=1e-6), name
    by_decoding = {"argmax": record["scores"], **record["other_decodings"]}
    assert list(by_decoding) == decodings
    for decoding, metric in iou.items():
        for name, score in metric.compute().items():
            assert score.ndim or by_decoding[decoding][name] == pytest.approx(score.item(), abs=1e-9), name
    assert by_decoding["argmax"]["mIoU_I"] != by_decoding["rankseg-iou"]["mIoU_I"]
    lines = {line.split()[0]: line.split()[1:] for line in output.splitlines() if line}
    assert output.startswith(" " * 20)
    assert output.split()[:2] == decodings
    assert lines["mIoU_D"] == [f"{scores['mIoU_D']:.4f}" for scores in by_decoding.values()]
    assert lines["ECE"] == [f"{record['scores'][name]:.4f}" for name in ("ECE_unscaled", "ECE")]

    # The report has both, and a later test leaves nothing of this one.
    page = run / "report.html"
    assert main(["report", str(run), "--output", str(page)]) == 0
    html = page.read_text()
    assert html.count("run (rankseg-iou) less run") == 1
    assert "windows of 24 x 32, overlap 25 %; at scales 0.75, 1.0; also mirrored; rankseg-iou; temperature" in html
    assert "no curves" not in html
    score_run(run, "--decoding", "rankseg-dice")
    assert [path.name for path in (run / "evaluation").iterdir()] == ["test"]


def test_a_temperature_of_the_users_leaves_iou_as_it_is(run: Path) -> None:
    plain, scaled = score_run(run), score_run(run, "--temperature", "2.5")
    assert scaled["temperature_fit"] is None
    assert scaled["settings"]["temperature"] == 2.5
    assert scaled["scores"]["mIoU_C_worst5"] == plain["scores"]["mIoU_C_worst5"]
    assert scaled["scores"]["ECE_unscaled"] == pytest.approx(plain["scores"]["ECE"])
    assert scaled["scores"]["ECE"] != pytest.approx(plain["scores"]["ECE"], abs=1e-3)


def test_the_validation_images(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = score_run(run, "--split", "val")
    assert f"softjaccard report {run} --split val" in capsys.readouterr().out
    assert record["split"] == "val"
    assert not (run / "test.json").exists()
    result = EvaluationResult.load(run / "evaluation" / "val")
    assert result.images == ("scene 8", "scene 9")
    assert main(["report", str(run), "--output", str(run / "report.html")]) == 2
    assert f"no test result: run `softjaccard test {run}` first" in capsys.readouterr().err
    assert main(["report", str(run), "--split", "val", "--output", str(run / "report.html")]) == 0


def test_votes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = score_run(run, "--data.raters", "4", "--temperature", "3")
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line}
    network = load_run_network(run).network
    scenes = ScenesData(size=40, training=8, validation=2, test=5, raters=4).dataset("test")
    for temperature, suffix in ((3.0, ""), (1.0, "_unscaled")):
        soft, calibration = SoftScores(5, from_logits=True), CalibrationError(5, from_logits=True)
        for scene in scenes:
            votes = scene["votes"].long()[None]
            label = RaterLabel(torch.where(votes == 255, -100, votes))
            logits = predict_logits(network, scene["image"][None]) / temperature
            for metric in (soft, calibration):
                metric.update(logits, label)
        for name, score in (soft.compute() | calibration.compute()).items():
            if score.ndim == 0:
                assert record["scores"][f"{name}_votes{suffix}"] == pytest.approx(score.item(), abs=1e-4), name
    for name in ("mSoftIoU_D", "mSoftDice_I", "TV", "ECE", "Brier", "KL"):
        found = [f"{record['scores'][f'{name}_votes{suffix}']:.4f}" for suffix in ("_unscaled", "")]
        assert lines[f"{name}_votes"] == found
    majority = FineGrainedIoU(5, ignore_index=255)
    for scene in scenes:
        majority.update(predict_logits(network, scene["image"][None]), scene["label"][None])
    assert record["scores"]["mIoU_D"] == pytest.approx(majority.compute()["mIoU_D"].item())
    page = run / "report.html"
    assert main(["report", str(run), "--output", str(page)]) == 0
    assert "Against all annotators' votes" in page.read_text()
    assert not any("_votes" in name for name in score_run(run)["scores"])


def test_settings_that_are_not_the_runs_are_told(run: Path) -> None:
    page = run / "report.html"
    told = "with --data.test=3 --trainer.devices=1"
    for options, overrides in (
        (["--data.test", "3", "--flip", "--trainer.devices=1"], ["--data.test=3", "--trainer.devices=1"]),
        ([], []),
    ):
        assert score_run(run, *options)["overrides"] == overrides
        assert main(["report", str(run), "--output", str(page)]) == 0
        assert (told in page.read_text()) == bool(overrides)


def test_absent_classes_are_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (run / "checkpoints").iterdir():
        state = torch.load(path, weights_only=True)
        state["state_dict"]["network.body.segmentation_head.0.bias"] = torch.tensor([0.0, -1e4, -1e4, -1e4, -1e4])
        torch.save(state, path)
    scenes = ScenesData(size=40, training=8, validation=2, test=1).dataset("test")
    labels = scenes[0]["label"].unique().tolist()
    absent = [name for i, name in enumerate(scenes.classes) if i and i not in labels]
    assert absent
    assert score_run(run, "--data.test=1")["absent"] == absent
    line = f"Neither labelled nor predicted, and left out of the means: {', '.join(absent)}."
    assert line in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--window", "0", "3"], ["window is (0, 3)"]),
        (["--window", "3"], ["--window"]),
        (["--overlap", "1"], ["overlap is 1.0"]),
        (["--scales", "0"], ["scales are"]),
        (["--decoding", "best"], ["best", "rankseg-iou"]),
        (["--decoding", "argmax", "argmax"], ["named once"]),
        (["--temperature", "warm"], ["--temperature", "fit or a number", "warm"]),
        (["--temperature", "0"], ["temperature is 0.0", "above 0"]),
        (["--temperature", "nan"], ["temperature is nan"]),
        (["--temperature", "fit", "--split", "val"], ["temperature", "validation images"]),
        (["--split", "train"], ["--split", "train"]),
        (["--checkpoint", "first.ckpt"], ["no checkpoint first.ckpt"]),
        (["--flop"], ["--flop"]),
        (["--data=OTHER"], ["expected a module derived from SegmentationData", "BoringDataModule"]),
    ],
)
def test_bad_options_are_one_line(
    trained: Path, options: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = [option.replace("OTHER", "lightning.pytorch.demos.boring_classes.BoringDataModule") for option in options]
    try:
        code: object = main(["test", str(trained), *options])
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("softjaccard test")
    assert error.count("\n") == 1, error
    assert all(word in error for word in words), error
    assert not (trained / "test.json").exists()


@pytest.mark.slow
def test_two_devices_find_what_one_finds(run: Path, tmp_path: Path) -> None:
    options = ["--decoding", "argmax", "rankseg-iou", "--temperature", "fit", "--data.raters", "3"]
    score_run(run, *options)
    names = ("test", "test-rankseg-iou")
    alone = [EvaluationResult.load(run / "evaluation" / name) for name in names]
    script = tmp_path / "command.py"
    script.write_text("import sys\nfrom softjaccard.cli import main\nsys.exit(main())\n")
    command = [sys.executable, str(script), "test", str(run), *options, "--trainer.devices=2", "--trainer.strategy=ddp"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Written to") == 1
    for name, one in zip(names, alone, strict=True):
        both = EvaluationResult.load(run / "evaluation" / name)
        assert (both.images, both.worst) == (one.images, one.worst)
        assert torch.equal(both.counts, one.counts)
        assert torch.equal(both.confusion, one.confusion)
        torch.testing.assert_close(both.calibration, one.calibration, rtol=0, atol=1e-4)
        assert both.sums.keys() == one.sums.keys()
        for kept, rows in one.sums.items():
            torch.testing.assert_close(both.sums[kept], rows, rtol=1e-4, atol=1e-3, msg=kept)
        assert "overlap_votes" in one.sums
        assert both.settings["temperature"] == pytest.approx(one.settings["temperature"], rel=1e-5)
        for score, value in one.scores.items():
            # The loss is a mean over batches, which are others here.
            assert both.scores[score] == pytest.approx(value, abs=1e-2 if score == "loss" else 1e-5), score
    # Only these do not depend on the last digits of the temperature.
    both = EvaluationResult.load(run / "evaluation" / "test")
    assert {row: p.prediction for row, p in both.pictures.items()} == {
        row: p.prediction for row, p in alone[0].pictures.items()
    }
