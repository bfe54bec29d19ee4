"""The command that looks at every file of a data set."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drawn_camvid import draw_camvid
from drawn_data import draw_ade20k, draw_cityscapes, draw_deepglobe, draw_voc
from drawn_raters import CLASSES, draw_raters
from softjaccard.cli import main
from softjaccard.data import check
from softjaccard.data.cityscapes import Cityscapes


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str], str]:
    """Return the exit code, what was printed, in lines, and what on stderr."""
    code = main(["data", *arguments])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err


def cells(lines: list[str], row: str) -> list[str]:
    (found,) = [line for line in lines if f" {row} " in line and "│" in line]
    return [cell.strip() for cell in found.strip("│").split("│")]


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, error = run(["list"], capsys)
    assert (code, error) == (0, "")
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert set(rows) == set(check.DATA_SETS)
    assert rows["voc"] == ["21", "10582", "1449", "val", "softjaccard.data.voc.VOCData"]
    assert rows["folder"] == ["softjaccard.data.folder.ImageFolderData"]


def test_histogram(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = draw_cityscapes(tmp_path)
    code, lines, error = run(["check", "cityscapes", "--root", str(tmp_path)], capsys)
    assert (code, error) == (0, "")
    shares = []
    for split in ("train", "val"):
        labels = np.concatenate([label.ravel() for _, label in truth[split].values()])
        shares.append([*(100 * (labels == each).mean() for each in range(19)), 100 * (labels == -100).mean()])
    for index, name in enumerate(Cityscapes.classes):
        assert cells(lines, name) == [str(index), name, "██", *(f"{share[index]:.3f}" for share in shares)]
    assert cells(lines, "ignored")[3:] == [f"{share[-1]:.3f}" for share in shares]
    assert cells(lines, "images")[3:] == ["4", "4"]
    output = "\n".join(lines)
    for split, official in (("train", 2975), ("val", 500)):
        assert f"Warning: The {split} split of Cityscapes in {tmp_path} has 4 images, officially {official}." in output
    assert lines[-1] == "Images and masks in order: 8"


def test_settings_of_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_voc(tmp_path / "voc", sbd=tmp_path / "sbd")
    arguments = ["check", "voc", "--root", str(tmp_path / "voc")]
    code, lines, _ = run([*arguments, "--data.sbd", str(tmp_path / "sbd"), "--split", "train"], capsys)
    assert (code, lines[-1]) == (0, "Images and masks in order: 5")
    code, lines, error = run(arguments, capsys)
    assert code == 2
    assert "1 problem (images checked: 2)" in error
    assert "SegmentationClassAug" in error
    draw_deepglobe(tmp_path / "land")
    code, lines, _ = run(["check", "deepglobe-land", "--root", str(tmp_path / "land"), "--data.fold=4"], capsys)
    assert (code, lines[-1]) == (0, "Images and masks in order: 13")


def test_votes_of_annotators(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_raters(tmp_path)
    for annotator, name in (("Bob", "train 1"), ("Cy", "train 1"), ("Cy", "test 0")):
        (tmp_path / "masks" / annotator / f"{name}.png").unlink()
    mask = Image.open(tmp_path / "masks" / "Ann" / "test 2.png")
    mask.paste(9, (0, 0, 31, 5))
    mask.save(tmp_path / "masks" / "Ann" / "test 2.png")
    arguments = ["check", "annotators", "--root", str(tmp_path), "--data.classes=[ground,cell,rim]"]
    arguments += ["--split", "train", "test", "--data.void=9"]
    code, lines, error = run([*arguments, "--data.missing=ignore"], capsys)
    assert (code, error) == (0, "")
    paths = [[*(tmp_path / "masks").glob(f"*/{split} *.png")] for split in ("train", "test")]
    votes = [np.concatenate([np.asarray(Image.open(path)).ravel() for path in each]) for each in paths]
    for index, name in enumerate(CLASSES):
        assert cells(lines, name)[3:] == [f"{100 * (each == index).mean():.3f}" for each in votes]
    assert cells(lines, "ignored")[3:] == ["-", f"{100 * (votes[1] == 9).mean():.3f}"]
    assert cells(lines, "images")[3:] == ["7", "3"]
    assert lines[-4:] == [
        "Warning: Bob has no mask of 1 of the 7 images of the train split: train 1.",
        "Warning: Cy has no mask of 1 of the 7 images of the train split: train 1.",
        "Warning: Cy has no mask of 1 of the 3 images of the test split: test 0.",
        "Images and masks in order: 10",
    ]
    (tmp_path / "images" / "test 1.png").write_text("no image")
    code, lines, error = run(arguments, capsys)
    assert code == 2
    assert "has 4 problems (images checked: 10)" in error  # of the spoilt image one, though it has three masks
    for missing in ("Bob/train 1.png", "Cy/train 1.png", "Cy/test 0.png"):
        assert f"{tmp_path / 'masks' / missing} is missing." in lines


def test_all_that_is_wrong_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = draw_camvid(tmp_path / "camvid")
    images, masks = root / "images" / "train", root / "annotations" / "train"
    (images / "train_0.jpg").write_bytes((images / "train_0.jpg").read_bytes()[:400])
    Image.new("L", (64, 48), 12).save(masks / "train_0.png")
    (images / "train_1.jpg").unlink()
    Image.new("L", (64, 40)).save(masks / "train_2.png")
    Image.new("L", (64, 48)).save(masks / "train_3.png", "JPEG")
    (masks / "train_4.png").unlink()
    (root / "val.txt").write_text("")
    code, lines, error = run(["check", "camvid", "--root", str(root)], capsys)
    output = "\n".join(lines)
    assert code == 2
    for words in (
        f"{images / 'train_0.jpg'} cannot be read as an image",
        f"{masks / 'train_0.png'} holds 12 (3072 pixels); expected 0 to 11.",
        f"{images / 'train_1.jpg'} is missing.",
        f"Image and mask of train_2 differ in size (width, height): {images / 'train_2.jpg'} has (64, 48)",
        f"{masks / 'train_3.png'} is a JPEG file",
        f"{masks / 'train_4.png'} is missing.",
        f"{root / 'val.txt'} is empty; expected one id a line.",
    ):
        assert words in output
    # The masks that can be read are counted: of train_1 and train_2, and those of test.
    assert cells(lines, "images")[3:] == ["5", "2"]
    assert cells(lines, "ignored")[3] == f"{100 * 4 * 64 / (48 * 64 + 40 * 64):.3f}"
    assert error.count("\n") == 1
    assert f"camvid in {root} has 7 problems (images checked: 7); the first: {images / 'train_0.jpg'}" in error


def test_a_long_list_of_problems_is_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "_MOST_LISTED", 3)
    draw_ade20k(tmp_path)
    shutil.rmtree(tmp_path / "annotations" / "training")
    (tmp_path / "annotations" / "training").mkdir()
    shutil.rmtree(tmp_path / "annotations" / "validation")
    code, lines, error = run(["check", "ade20k", "--root", str(tmp_path)], capsys)
    assert code == 2
    assert [line.rpartition("/")[2] for line in lines[-4:]] == [
        *(f"ADE_train_{number:08}.png is missing." for number in (1, 2, 3)), "... and 2 more.",
    ]  # fmt: skip
    assert "5 problems" in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check", "cityscape", "--root", "ROOT"], "There is no data set cityscape. Did you mean cityscapes?"),
        (
            ["check", "coco", "--root", "ROOT"],
            "There is ade20k, annotators, camvid, cityscapes, deepglobe-land, folder, voc.",
        ),
        (["check", "camvid", "--root", "ROOT/camvit"], "camvit. Did you mean camvid?"),
        (
            ["check", "camvid", "--root", "ROOT/camvid", "--data.rot=3"],
            "--data.rot is unknown. Did you mean --data.root",
        ),
        (["check", "camvid", "--root", "ROOT/camvid", "other"], "other is unknown"),
        (["check", "camvid", "--root", "ROOT/camvid", "--data.scale=x"], "data.scale"),
        (["check", "camvid", "--root", "ROOT/camvid", "--data.batch_size=0"], "batch_size is 0"),
        (["check", "deepglobe-land", "--root", "ROOT/camvid", "--data.fold=9"], "fold is 9, but must be 0 to 4"),
        (["check", "folder", "--root", "ROOT/camvid"], "1 problem (images checked: 0); the first: The file that names"),
        (["list", "all"], "unknown arguments: all"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    draw_camvid(tmp_path / "camvid")
    code, _, error = run([each.replace("ROOT", str(tmp_path)) for each in arguments], capsys)
    assert code == 2
    assert error.count("\n") == 1
    assert error.startswith("softjaccard data: ")
    assert words in error
