"""What a test found: written and read again exactly, whole or not at all, with clear errors."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from made_up_results import CLASSES, made_up, random_images, rated
from softjaccard.errors import InputError
from softjaccard.evaluation import results
from softjaccard.evaluation.results import PICTURE_SIZE, EvaluationResult, Picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "evaluation" / "test"
    made_up().save(path)
    return path


@pytest.mark.parametrize("result", [rated(), made_up(sums={}, overrides=("--seed=1",))])
def test_parts_may_be_more_or_none(result: EvaluationResult, tmp_path: Path) -> None:
    result.save(tmp_path / "test")
    assert_same(EvaluationResult.load(tmp_path / "test"), result)


def assert_same(first: EvaluationResult, second: EvaluationResult) -> None:
    for field in fields(first):
        a, b = getattr(first, field.name), getattr(second, field.name)
        if isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
        elif field.name == "sums":
            assert a.keys() == b.keys()
            assert all(torch.equal(a[name], b[name]) for name in a)
        else:
            assert a == b
            assert type(a) is type(b)


def test_what_is_read_is_what_was_written(folder: Path) -> None:
    assert_same(EvaluationResult.load(folder), made_up())
    assert [path.name for path in folder.parent.iterdir()] == ["test"]


def test_a_second_result_replaces_the_first_with_all_its_files(folder: Path) -> None:
    second = made_up(images=3, seed=5, worst={"IoU": (0,)}, pictures={0: made_up().pictures[0]})
    (folder.parent / "test.part").mkdir()  # left by a test that was killed
    second.save(folder)
    assert_same(EvaluationResult.load(folder), second)
    assert len(list((folder / "pictures").iterdir())) == 3
    assert [path.name for path in folder.parent.iterdir()] == ["test"]


def test_a_test_that_stops_while_it_writes_leaves_the_result_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: object) -> bytes:
        raise OSError("no space left")

    monkeypatch.setattr(results, "save", full)
    with pytest.raises(OSError, match="no space"):
        made_up(seed=5).save(folder)
    assert_same(EvaluationResult.load(folder), made_up())


def spoil_json(**changes: object) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        path = folder / "result.json"
        plain = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({name: value for name, value in plain.items() if value is not None}))

    return spoil


def cut(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:60])


def test_a_result_from_before_overrides_were_kept_is_read(folder: Path) -> None:
    spoil_json(overrides=None)(folder)
    assert_same(EvaluationResult.load(folder), made_up())


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "result.json").unlink(), ["result.json", "cannot be read", "softjaccard test"]),
        (cut("result.json"), ["result.json", "damaged", "softjaccard test"]),
        (lambda folder: (folder / "result.json").write_text("[]"), ["result.json", "not the result of a test"]),
        (spoil_json(format=99), ["result.json", "format 99", "format 2"]),
        (spoil_json(classes=None, seed=None), ["result.json", "lacks seed, classes"]),
        (spoil_json(images=["a"]), ["result.json", "counts", "(1, 4, 3)", "(6, 4, 3)"]),
        (spoil_json(colours=[[1, 2, 3]]), ["result.json", "colours"]),
        (spoil_json(colours=[[1, 2]] * 4), ["result.json", "fit"]),
        (spoil_json(worst={"IoU": ["../../secret"]}), ["result.json", "secret"]),
        (spoil_json(scores=3), ["result.json", "fit"]),
        (lambda folder: (folder / "tensors.safetensors").unlink(), ["tensors.safetensors", "cannot be read"]),
        (cut("tensors.safetensors"), ["tensors.safetensors", "damaged"]),
        (
            lambda folder: save_file({"counts": torch.zeros(1)}, folder / "tensors.safetensors"),
            ["tensors.safetensors", "lacks confusion, calibration, class_calibration"],
        ),
        (lambda folder: (folder / "pictures" / "1_label.png").unlink(), ["1_label.png", "cannot be read"]),
        (cut("pictures/0_prediction.png"), ["0_prediction.png", "damaged"]),
        (cut("pictures/0.jpg"), ["0.jpg", "damaged"]),
    ],
)
def test_a_missing_or_damaged_file_is_named(folder: Path, spoil: Callable[[Path], object], words: list[str]) -> None:
    spoil(folder)
    with pytest.raises(InputError) as caught:
        EvaluationResult.load(folder)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"counts": torch.zeros(6, 4, 3)}, "counts: expected int64"),
        ({"confusion": torch.zeros(3, 4, dtype=torch.int64)}, "confusion: expected int64"),
        ({"calibration": torch.zeros(3, 10)}, "calibration: expected"),
        ({"class_calibration": torch.zeros(3, 3, 10)}, "class_calibration: expected"),
        ({"sums": {"losses": torch.zeros(5, 2)}}, "sums: expected a row for each of 6 images, got 5 of losses"),
        ({"colours": ()}, "colours: expected"),
        ({"worst": {"beauty": (0, 1)}}, "worst: expected scores out of IoU, Acc, got beauty"),
        ({"worst": {"IoU": (5,)}}, "worst: expected"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        made_up(**changes)


@pytest.mark.parametrize("num_classes", [4, 255, 300])
def test_pictures_hold_the_pixels(num_classes: int) -> None:
    image, label, logits = random_images(1, 0)
    label[0, -1] = num_classes - 1
    picture = Picture.encode(image[0], label[0], logits.argmax(1)[0], num_classes)
    ids, predicted, pixels = (
        np.array(Image.open(io.BytesIO(data))) for data in (picture.label, picture.prediction, picture.image)
    )
    np.testing.assert_array_equal(ids, torch.where(label[0] < 0, num_classes, label[0]).numpy())
    np.testing.assert_array_equal(predicted, logits.argmax(1)[0].numpy())
    assert pixels.shape == (*label.shape[1:], 3)


def test_large_pictures_are_made_small() -> None:
    image, label = torch.rand(3, 500, 1000), torch.arange(len(CLASSES)).repeat_interleave(250).expand(500, 1000)
    picture = Picture.encode(image, label, label, len(CLASSES))
    for data in (picture.image, picture.label, picture.prediction):
        assert Image.open(io.BytesIO(data)).size == (PICTURE_SIZE, PICTURE_SIZE // 2)
    assert set(np.unique(np.array(Image.open(io.BytesIO(picture.label))))) == {0, 1, 2, 3}
