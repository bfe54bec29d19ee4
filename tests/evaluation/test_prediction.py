"""Predictions for files, by a network that reads the class off the colour."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from softjaccard.errors import InputError
from softjaccard.evaluation.colours import distinct_colours
from softjaccard.evaluation.inference import InferenceSettings
from softjaccard.evaluation.prediction import find_device, find_images, predict_images

STEP = 20


def by_colour(classes: int) -> object:
    """The nearer red is to a class's number times STEP, the larger its logit."""

    def network(image: Tensor) -> Tensor:
        return -(((image[:, :1] * 255 - STEP * torch.arange(classes).view(-1, 1, 1)) / 10) ** 2)

    return network


def draw(path: Path, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((ids * STEP).astype(np.uint8)).save(path)
    return ids


@pytest.fixture
def images(tmp_path: Path) -> dict[str, NDArray[np.int64]]:
    """Class ids of drawn images, by their names in the results."""
    rng = np.random.default_rng(0)
    sizes = {"b.png": (5, 8), "deep/er/a.tif": (7, 3), "deep/b.BMP": (1, 1)}
    drawn = {name: draw(tmp_path / "in" / name, rng.integers(0, 7, size)) for name, size in sizes.items()}
    (tmp_path / "in" / "notes.txt").write_text("no image")
    return {name.rpartition(".")[0]: ids for name, ids in drawn.items()}


def test_results_have_the_values_and_sizes_of_the_images(
    tmp_path: Path, images: dict[str, NDArray[np.int64]], capsys: pytest.CaptureFixture[str]
) -> None:
    colours = [(10 * k, 255 - k, 3 * k) for k in range(7)]
    names = list("abcdefg")
    output = tmp_path / "out"
    predict_images(
        by_colour(7), [tmp_path / "in"], output, classes=names, colours=colours, probabilities=True, record={"seed": 3}
    )
    assert "3 of 3 images" in capsys.readouterr().out
    for name, ids in images.items():
        mask = Image.open(output / "masks" / f"{name}.png")
        assert mask.mode == "L"
        assert np.array_equal(mask, ids)
        assert np.array_equal(Image.open(output / "colours" / f"{name}.png"), np.array(colours)[ids])
        probabilities = load_file(output / "probabilities" / f"{name}.safetensors")["probabilities"]
        assert probabilities.dtype == torch.float16
        distance = (ids[None] - np.arange(7)[:, None, None]) * STEP / 10
        expected = np.exp(-(distance**2)) / np.exp(-(distance**2)).sum(0)
        np.testing.assert_allclose(probabilities.float().numpy(), expected, atol=1e-3)
    record = json.loads((output / "predict.json").read_text())
    assert record["seed"] == 3
    assert record["settings"] == {
        "window": None,
        "overlap": 1 / 3,
        "scales": [1.0],
        "flip": False,
        "decoding": "argmax",
    }
    assert record["classes"][2] == {"id": 2, "name": "c", "colour": [20, 253, 6]}
    assert set(record["images"]) == set(images)
    files = [path for path in output.rglob("*") if path.is_file()]
    assert len(files) == 3 * 3 + 1
    assert len({path.stat().st_mode for path in files}) == 1


def test_settings_reach_the_network_and_classes_without_names_are_numbered(tmp_path: Path) -> None:
    seen = []

    def network(image: Tensor) -> Tensor:
        seen.append(tuple(image.shape))
        return image[:, :2]

    draw(tmp_path / "a.png", np.zeros((9, 9), np.int64))
    predict_images(network, [tmp_path / "a.png"], tmp_path / "out", settings=InferenceSettings((4, 5), scales=(2.0,)))
    assert set(seen) == {(1, 3, 4, 5)}
    assert len(seen) > 9
    assert np.asarray(Image.open(tmp_path / "out" / "masks" / "a.png")).shape == (9, 9)
    legend = json.loads((tmp_path / "out" / "predict.json").read_text())["classes"]
    assert legend == [{"id": 0, "name": "0", "colour": [0, 0, 0]}, {"id": 1, "name": "1", "colour": [255, 255, 255]}]
    assert not (tmp_path / "out" / "probabilities").exists()


@pytest.mark.parametrize(("classes", "mode"), [(256, "L"), (257, "I;16")])
def test_masks_of_many_classes_have_16_bits(tmp_path: Path, classes: int, mode: str) -> None:
    def last_class(image: Tensor) -> Tensor:
        logits = torch.zeros(1, classes, *image.shape[-2:])
        logits[:, -1] = image[:, 0]
        return logits

    pixels = np.array([[0, 1]])
    draw(tmp_path / "a.png", pixels)
    predict_images(last_class, [tmp_path / "a.png"], tmp_path / "out")
    mask = Image.open(tmp_path / "out" / "masks" / "a.png")
    assert mask.mode == mode
    assert np.array_equal(mask, pixels * (classes - 1))


def test_bad_files_are_named_when_the_others_are_done(
    tmp_path: Path, images: dict[str, NDArray[np.int64]], capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        (tmp_path / "in" / f"bad_{number}.jpg").write_bytes(b"nothing")
    with pytest.raises(InputError) as caught:
        predict_images(by_colour(7), [tmp_path / "in"], tmp_path / "out")
    message = str(caught.value)
    assert message.startswith("4 of 7 images failed")
    assert all(f"bad_{number}.jpg cannot be read" in message for number in range(3))
    assert "1 more" in message
    assert "3 of 7 images are predicted" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "predict.json").read_text())
    assert [Path(source).name for source in record["failures"]] == [f"bad_{number}.jpg" for number in range(4)]
    assert all((tmp_path / "out" / "masks" / f"{name}.png").exists() for name in images)
    assert set(record["images"]) == set(images)


def test_output_that_is_not_finite_or_too_large_fails_for_its_image(tmp_path: Path) -> None:
    def network(image: Tensor) -> Tensor:
        if image.shape[-1] > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1 / image[:, :2]

    draw(tmp_path / "in" / "black.png", np.zeros((2, 2), np.int64))
    draw(tmp_path / "in" / "grey.png", np.ones((2, 2), np.int64))
    draw(tmp_path / "in" / "large.png", np.ones((2, 9), np.int64))
    with pytest.raises(InputError, match=r"2 of 3.*black.png is not finite.*large.png does not fit.*--window"):
        predict_images(network, [tmp_path / "in"], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out" / "masks").iterdir()] == ["grey.png"]


def test_existing_results_are_kept_unless_told_otherwise(tmp_path: Path) -> None:
    ids = draw(tmp_path / "a.png", np.array([[1, 2]]))
    output, sources = tmp_path / "out", [tmp_path / "a.png"]
    predict_images(by_colour(4), sources, output, probabilities=True)
    (output / "predict.json").unlink()
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    draw(tmp_path / "a.png", ids + 1)
    with pytest.raises(InputError, match=r"masks/a.png is there already.*--overwrite"):
        predict_images(by_colour(4), sources, output)
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    predict_images(by_colour(4), sources, output, overwrite=True)
    assert np.array_equal(Image.open(output / "masks" / "a.png"), ids + 1)
    assert not (output / "probabilities" / "a.safetensors").exists()  # those of the old image
    draw(tmp_path / "b.png", ids)
    with pytest.raises(InputError, match=r"predict.json is there already"):
        predict_images(by_colour(4), [tmp_path / "b.png"], output)


def test_order_of_images(tmp_path: Path, images: dict[str, NDArray[np.int64]]) -> None:
    draw(tmp_path / "z.png", np.zeros((1, 1), np.int64))
    assert list(find_images([tmp_path / "z.png", tmp_path / "in"])) == ["z", "b", "deep/b", "deep/er/a"]
    assert list(find_images([tmp_path / "in" / "deep" / "b.BMP"])) == ["b"]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (["nowhere"], "no file or folder .*nowhere"),
        (["in/notes.txt"], r"notes.txt is no image file.*\.png"),
        (["empty"], r"no images in the folder .*empty.*\*\.jpg"),
        (["in", "in/b.png"], r"in/b.png and .*in/b.png would both give the result b.png"),
        (["same"], r"same/x.jpg and .*same/x.png would both give the result x.png"),
    ],
)
def test_inputs_that_are_refused(
    tmp_path: Path, images: dict[str, NDArray[np.int64]], inputs: list[str], words: str
) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("x.jpg", "x.png"):
        draw(tmp_path / "same" / name, np.zeros((1, 1), np.int64))
    with pytest.raises(InputError, match=words):
        predict_images(by_colour(7), [tmp_path / name for name in inputs], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_outputs_that_are_refused(tmp_path: Path, images: dict[str, NDArray[np.int64]]) -> None:
    with pytest.raises(InputError, match=r"lies in the input"):
        predict_images(by_colour(7), [tmp_path / "in"], tmp_path / "in" / "masks")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file is no folder"):
        predict_images(by_colour(7), [tmp_path / "in"], tmp_path / "file")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "colours").touch()
    with pytest.raises(InputError, match=r"half/colours/b.png cannot be written"):
        predict_images(by_colour(7), [tmp_path / "in"], tmp_path / "half")
    for options, words in (
        ({"colours": [(0, 0, 0)]}, "1 colours for the network's 7"),
        ({"classes": ["a"]}, "1 names"),
    ):
        with pytest.raises(InputError, match=words):
            predict_images(by_colour(7), [tmp_path / "in"], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_devices() -> None:
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("auto").type in ("cpu", "cuda", "mps", "xpu")
    for name in ("abacus", "cuda:99"):
        with pytest.raises(InputError, match=f"device '{name}' cannot be used here"):
            find_device(name)


def test_colours_are_distinct_and_do_not_depend_on_the_number_of_classes() -> None:
    colours = distinct_colours(1000).astype(int)
    assert len(np.unique(colours, axis=0)) == 1000
    few = colours[:20]
    apart = np.sqrt(((few[:, None] - few) ** 2).sum(-1))[~np.eye(20, dtype=bool)]
    assert apart.min() > 100
    for count in (0, 1, 7):
        assert np.array_equal(distinct_colours(count), colours[:count])
    with pytest.raises(InputError, match="4097 classes"):
        distinct_colours(4097)
