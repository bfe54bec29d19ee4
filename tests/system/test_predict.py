"""`softjaccard predict` as a user runs it, on a tiny network and drawn images."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from drawn_camvid import draw_camvid
from softjaccard.cli import main
from softjaccard.data.camvid import CamVid
from softjaccard.data.colours import distinct_colours
from softjaccard.data.images import read_image
from softjaccard.evaluation import decoding
from softjaccard.evaluation.decoding import decode
from softjaccard.evaluation.inference import InferenceSettings, predict_logits
from softjaccard.training.run import load_run_network

COLOURS = np.array(CamVid.colours)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of one epoch at half resolution, and with images; the data of the run are gone."""
    folder = tmp_path_factory.mktemp("predict")
    root = draw_camvid(folder / "camvid", (64, 96))
    settings = [
        f"--data.root={root}", "--data.crop=[32,32]", "--data.batch_size=2", "--model.encoder=tu-test_resnet",
        "--model.architecture=unet", "--data.pad_multiple=32",
        "--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.log_every_n_steps=1",
    ]  # fmt: skip
    assert main(["fit", "--recipe", "camvid", "--output", str(folder / "run"), *settings]) == 0
    for path in (folder / "run" / "checkpoints").iterdir():
        state = torch.load(path, weights_only=True)
        # After two steps all classes are nearly as probable as each other, whatever the image.
        state["state_dict"]["network.body.segmentation_head.0.weight"] *= 100
        torch.save(state, path)
    shutil.copytree(root / "images" / "test", folder / "images" / "test")
    shutil.rmtree(root)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (1, 51), dtype=np.uint8)).save(folder / "images/grey.png")
    return folder


def predict(work: Path, output: Path, *arguments: str) -> int:
    return main(["predict", str(work / "run"), str(work / "images"), "--output", str(output), *arguments])


def test_masks_are_the_networks_classes_at_the_images_size(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(work, tmp_path, "--probabilities") == 0
    printed = capsys.readouterr()
    assert f"3 of 3 images are predicted, in {tmp_path}" in printed.out
    assert not printed.err
    trained = load_run_network(work / "run")
    assert (trained.scale, trained.classes, trained.colours) == (0.5, CamVid.classes, CamVid.colours)
    for name, size in {"grey": (1, 51), "test/test_0": (64, 96), "test/test_1": (64, 96)}.items():
        source = next((work / "images").glob(f"{name}.*"))
        logits = predict_logits(trained.network, read_image(source)[None], InferenceSettings(scales=(0.5,)))[0]
        mask = np.asarray(Image.open(tmp_path / "masks" / f"{name}.png"))
        assert mask.shape == size
        assert mask.dtype == np.uint8
        assert np.array_equal(mask, logits.argmax(0))
        assert name == "grey" or len(np.unique(mask)) > 2
        assert np.array_equal(Image.open(tmp_path / "colours" / f"{name}.png"), COLOURS[mask])
        probabilities = load_file(tmp_path / "probabilities" / f"{name}.safetensors")["probabilities"]
        torch.testing.assert_close(probabilities, logits.softmax(0).half())
    record = json.loads((tmp_path / "predict.json").read_text())
    assert record["checkpoint"] == str(work / "run" / "checkpoints" / "best.ckpt")
    assert record["classes"][3] == {"id": 3, "name": "road", "colour": [128, 64, 128]}


def test_options(work: Path, tmp_path: Path) -> None:
    options = ["--window", "20", "30", "--overlap", "0.5", "--scales", "1", "1.5", "--flip", "--device", "cpu"]
    source = work / "images" / "test" / "test_0.jpg"
    checkpoint = work / "run" / "checkpoints" / "last.ckpt"
    arguments = [str(checkpoint), str(source), "--output", str(tmp_path), "--probabilities", *options]
    assert main(["predict", *arguments]) == 0
    settings = InferenceSettings((20, 30), 0.5, (0.5, 0.75), flip=True)
    record = json.loads((tmp_path / "predict.json").read_text())
    assert record["settings"]["scales"] == [0.5, 0.75]
    network = load_run_network(work / "run", "last").network
    expected = predict_logits(network, read_image(source)[None], settings).softmax(1)[0]
    probabilities = load_file(tmp_path / "probabilities" / "test_0.safetensors")["probabilities"]
    torch.testing.assert_close(probabilities.float(), expected, atol=1e-3, rtol=0)
    for change in ({"window": None}, {"overlap": 0.0}, {"scales": (0.5,)}, {"flip": False}):
        others = predict_logits(network, read_image(source)[None], replace(settings, **change)).softmax(1)[0]
        assert not torch.allclose(probabilities.float(), others, atol=0.02), change


@pytest.mark.skipif(find_spec("rankseg") is None, reason="needs the package rankseg")
def test_decoding(work: Path, tmp_path: Path) -> None:
    assert predict(work, tmp_path, "--decoding", "rankseg-iou") == 0
    image = read_image(work / "images" / "test" / "test_0.jpg")[None]
    logits = predict_logits(load_run_network(work / "run").network, image, InferenceSettings(scales=(0.5,)))
    mask = np.asarray(Image.open(tmp_path / "masks" / "test" / "test_0.png"))
    assert np.array_equal(mask, decode(logits, "rankseg-iou")[0])
    assert not np.array_equal(mask, decode(logits)[0])


def test_decoding_without_its_package(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decoding, "find_spec", lambda name: None)
    assert predict(work, tmp_path / "out", "--decoding", "rankseg-dice") == 2
    assert 'pip install "softjaccard[rankseg]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_that_did_not_keep_its_classes_gets_colours(work: Path, tmp_path: Path) -> None:
    state = torch.load(work / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    del state["softjaccard"]["classes"], state["softjaccard"]["colours"]
    torch.save(state, tmp_path / "old.ckpt")
    assert predict(work, tmp_path / "out", "--checkpoint", str(tmp_path / "old.ckpt")) == 0
    mask = np.asarray(Image.open(tmp_path / "out" / "masks" / "test" / "test_0.png"))
    colours = np.asarray(Image.open(tmp_path / "out" / "colours" / "test" / "test_0.png"))
    assert np.array_equal(colours, np.array(distinct_colours(11))[mask])


def test_one_bad_image_among_others(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(work / "images", tmp_path / "images")
    broken = tmp_path / "images" / "broken.webp"
    broken.write_bytes(b"nothing")
    run, images, output = str(work / "run"), str(tmp_path / "images"), tmp_path / "out"
    assert main(["predict", run, images, "--output", str(output)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"softjaccard predict: 1 of 4 images failed: {broken} cannot be read as an image")
    assert error.count("\n") == 1
    assert len(list((output / "masks").rglob("*.png"))) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["RUN", "IMAGES"], ["--output"]),
        (["RUN", "--output", "out"], ["INPUT"]),
        (["nowhere", "IMAGES", "--output", "out"], ["no run in nowhere"]),
        (["IMAGES/grey.png", "IMAGES", "--output", "out"], ["grey.png is damaged"]),
        (["PLAIN", "IMAGES", "--output", "out"], ["plain.ckpt has no config"]),
        (["OTHER", "IMAGES", "--output", "out"], ["other.ckpt cannot be built", "Nothing"]),
        (["UNFIT", "IMAGES", "--output", "out"], ["unfit.ckpt does not fit"]),
        (["RUN", "IMAGES", "--output", "out", "--checkpoint", "first"], ["no checkpoint first"]),
        (["PLAIN", "IMAGES", "--output", "out", "--checkpoint", "last"], ["--checkpoint", "plain.ckpt is a file"]),
        (["RUN", "nothing.png", "--output", "out"], ["no file or folder nothing.png"]),
        (["RUN", "IMAGES", "--output", "out", "--window", "0", "3"], ["window is (0, 3)"]),
        (["RUN", "IMAGES", "--output", "out", "--window", "3"], ["--window"]),
        (["RUN", "IMAGES", "--output", "out", "--overlap", "1"], ["overlap is 1.0"]),
        (["RUN", "IMAGES", "--output", "out", "--scales", "-1"], ["scales are"]),
        (["RUN", "IMAGES", "--output", "out", "--decoding", "best"], ["best", "rankseg-iou"]),
        (["RUN", "IMAGES", "--output", "out", "--device", "abacus"], ["abacus"]),
        (["RUN", "IMAGES", "--output", "out", "--flip", "more.png"], ["more.png", "before the options"]),
        (["RUN", "IMAGES", "--output", "IMAGES/out"], ["lies in the input"]),
    ],
)
def test_errors_are_one_line_and_write_nothing(
    work: Path,
    tmp_path: Path,
    arguments: list[str],
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    state = torch.load(work / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    kept = state["softjaccard"]
    torch.save({**state, "softjaccard": {}}, "plain.ckpt")
    model = kept["config"]["model"]
    torch.save({**state, "softjaccard": {"config": {"model": {**model, "class_path": "Nothing"}}}}, "other.ckpt")
    torch.save({**state, "state_dict": {}}, "unfit.ckpt")
    names = {"RUN": work / "run", "IMAGES": work / "images"}
    names |= {name: Path(f"{name.lower()}.ckpt") for name in ("PLAIN", "OTHER", "UNFIT")}
    for name, path in names.items():
        arguments = [argument.replace(name, str(path)) for argument in arguments]
    try:
        code: object = main(["predict", *arguments])
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("softjaccard predict")
    assert error.count("\n") == 1, error
    assert all(word in error for word in words), error
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_network_of_ours_is_refused(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(work / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    state["softjaccard"]["config"]["model"] = {"class_path": "lightning.pytorch.demos.boring_classes.BoringModel"}
    state["state_dict"] = {"layer.weight": torch.zeros(2, 32), "layer.bias": torch.zeros(2)}
    torch.save(state, tmp_path / "boring.ckpt")
    assert predict(work, tmp_path / "out", "--checkpoint", str(tmp_path / "boring.ckpt")) == 2
    assert "BoringModel, has no attribute network with a predict method" in capsys.readouterr().err
