"""Training images of which only a part has labels: which part, and the views of the others."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from drawn_data import draw, save, write_list
from drawn_raters import CLASSES, draw_raters
from softjaccard.data import unlabelled
from softjaccard.data.folder import ImageFolderData
from softjaccard.data.images import pictures_in
from softjaccard.data.pairs import PairedData, PairedImages
from softjaccard.data.raters import RatersData
from softjaccard.data.scenes import ScenesData
from softjaccard.data.transforms import PADDING_GREY, PhotometricSettings, TrainingTransform
from softjaccard.data.unlabelled import (
    BOX_AREA,
    BOX_ASPECT,
    Draw,
    Partition,
    PartitionSampler,
    UnlabelledViews,
    draw_box,
    partition,
)
from softjaccard.errors import InputError

IDS = [f"image {number}" for number in range(40)]


def scenes(**settings: Any) -> ScenesData:
    options = {"size": 40, "training": 24, "validation": 2, "test": 2, "batch_size": 3, "crop": (30, 26), "seed": 5}
    data = ScenesData(**(options | {"labelled": 0.25} | settings))
    data.setup("fit")
    return data


@pytest.mark.parametrize(("share", "count"), [(1 / 16, 2), (1 / 8, 5), (1 / 4, 10)])
def test_a_share_is_drawn_by_the_seed_and_the_ids_alone(share: float, count: int) -> None:
    first = partition(IDS, share)
    assert len(first.labelled) == count
    assert sorted(first.labelled + first.unlabelled) == list(range(40))
    assert first.labelled != partition(IDS, share, seed=1).labelled
    names = {IDS[::-1][index] for index in partition(IDS[::-1], share).labelled}
    assert names == {IDS[index] for index in first.labelled}


def test_lists_say_which_images(tmp_path: Path) -> None:
    (tmp_path / "labelled.txt").write_text("image 7\nimage 3\n")
    (tmp_path / "others.txt").write_text("image 5\nimage 0\n\n")
    files = str(tmp_path / "labelled.txt"), str(tmp_path / "others.txt")
    assert partition(IDS, *files) == Partition((3, 7), (0, 5))
    assert partition(IDS, files[0]).unlabelled == tuple(index for index in range(40) if index not in (3, 7))


def listed(tmp_path: Path, *lines: str) -> list[str]:
    """The ids that the lines of a list choose, of the images a/0.png to a/2.png, b/0.png and b/1 2.png."""
    files = {each: Path("/data/images") / f"{each}.png" for each in ("a/0", "a/1", "a/2", "b/0", "b/1 2")}
    write_list(tmp_path / "list.txt", lines)
    return [[*files][index] for index in partition([*files], str(tmp_path / "list.txt"), files=files).labelled]


@pytest.mark.parametrize(
    ("line", "image"),
    [
        ("a/0", "a/0"),
        ("a/0 1.0", "a/0"),
        ("images/a/1.png masks/a/2.png", "a/1"),
        ("a\\0.png masks\\a\\0.png", "a/0"),
        ("./b/0.png", "b/0"),
        ("2.png", "a/2"),
        ("b/1 2.png", "b/1 2"),
        ("b/1 2", "b/1 2"),
    ],
)
def test_lists_may_name_image_files_as_published_ones_do(line: str, image: str, tmp_path: Path) -> None:
    assert listed(tmp_path, line) == [image]
    with pytest.raises(InputError, match=f"{image} more than once"):
        listed(tmp_path, line, image)


@pytest.mark.parametrize("line", ["0.png", "c/1.png", "other/images/a/1.png", "1", "a/1.jpg"])
def test_image_files_that_are_not_one_image_of_the_split(line: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"1 of the 2 ids.*the first is {line}"):
        listed(tmp_path, "a/2", line)


def test_a_data_set_of_files_takes_such_lists(tmp_path: Path) -> None:
    root = draw_folder(tmp_path / "data")
    lists = tmp_path / "labelled.txt", tmp_path / "others.txt"
    write_list(lists[0], ["images/c.png masks/c.png", "a/0"])
    write_list(lists[1], ["0.jpg", "b"])
    data = folder_data(root, labelled=str(lists[0]), unlabelled=str(lists[1]))
    data.setup("fit")
    assert data.labelled_ids() == ["a/0", "c"]
    assert data.partition is not None
    assert [data.datasets["train"].ids[index] for index in data.partition.unlabelled] == ["a/b/0", "b"]


@pytest.mark.parametrize(
    ("labelled", "others", "words"),
    [
        ("image 7\nimage 77\nimage 78", None, r"data.labelled: 2 of the 3 ids.*the first is image 77\. Did you mean"),
        ("image 7", "image 9\nimage x", "data.unlabelled: 1 of the 2 ids.*image x"),
        ("image 7\nimage 8", "image 9\nimage 8", "data.unlabelled: 1 of the ids.*among the labelled ones.*image 8"),
        ("image 7\nimage 7", None, "image 7 more than once"),
        ("\n", None, "labelled.txt is empty; expected one id a line"),
        (None, None, "data.labelled is .*labelled.txt, but there is no such file.*or a share such as 0.125"),
        ("\n".join(IDS), None, "none is left without a label"),
    ],
)
def test_lists_that_cannot_be_used(labelled: str | None, others: str | None, words: str, tmp_path: Path) -> None:
    paths = [tmp_path / "labelled.txt", tmp_path / "others.txt"]
    for path, content in zip(paths, (labelled, others), strict=True):
        if content is not None:
            path.write_text(content)
    with pytest.raises(InputError, match=words):
        partition(IDS, str(paths[0]), None if others is None else str(paths[1]))


def test_a_share_beside_a_list_is_drawn_from_the_other_images(tmp_path: Path) -> None:
    others = tmp_path / "others.txt"
    others.write_text("\n".join(IDS[:30]))
    labelled, unlabelled = partition(IDS, 0.2, str(others), seed=5)
    assert unlabelled == tuple(range(30))
    assert len(labelled) == 8
    assert min(labelled) >= 30
    with pytest.raises(InputError, match=r"data.labelled is 0.5, but must be a share"):
        partition(IDS, 0.5, str(others))


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    for name in ("a.png", ".b.png", ".thumbnails/c.png", "d/e.PNG", "d/f.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert pictures_in(tmp_path) == [tmp_path / "a.png", tmp_path / "d" / "e.PNG"]


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 0.01, 0.99, float("nan")])
def test_shares_that_leave_nothing(share: float) -> None:
    with pytest.raises(InputError, match=f"data.labelled is {share}, but must be a share.*40 training images"):
        partition(IDS, share)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"crop": None}, "data.crop is null"),
        ({"labelled_seed": -1}, "labelled_seed is -1"),
        ({"labelled": 0.1}, "data.labelled: 2 training images have labels, fewer than the 3 of a batch"),
        ({"labelled": 0.9}, "unlabelled part of the training split has 2 images.*batch_size 3"),
    ],
)
def test_settings_that_cannot_be_used(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        scenes(**settings).train_dataloader()


def test_devices_need_more_labelled_images() -> None:
    data = scenes()
    data.trainer = SimpleNamespace(global_rank=1, world_size=3)  # type: ignore[assignment]
    with pytest.raises(InputError, match="6 training images have labels, fewer than the 9"):
        data.train_dataloader()


def test_an_epoch_is_one_pass_over_the_unlabelled_images() -> None:
    images = Partition(tuple(range(0, 40, 6)), tuple(index for index in range(40) if index % 6))
    sampler, epochs = PartitionSampler(images, seed=3), []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        draws = list(sampler)
        assert {draw.epoch for draw in draws} == {epoch}
        assert sorted(draw.unlabelled for draw in draws) == sorted(draw.partner for draw in draws)
        assert sorted(draw.unlabelled for draw in draws) == list(images.unlabelled)
        for repetition in range(4):  # seven labelled images, 33 others
            passed = [draw.labelled for draw in draws if draw.repetition == repetition]
            assert passed == [draw.labelled for draw in draws[7 * repetition : 7 * repetition + 7]]
            assert sorted(passed) == list(images.labelled)
        epochs.append(draws)
    assert epochs[0] == epochs[2]
    for what in ("labelled", "unlabelled", "partner"):
        assert [getattr(draw, what) for draw in epochs[0]] != [getattr(draw, what) for draw in epochs[1]]
    first = epochs[0]
    assert [draw.labelled for draw in first[:7]] != [draw.labelled for draw in first[7:14]]
    assert sum(draw.unlabelled == draw.partner for draw in first) < 6


def test_labelled_images_come_in_an_order_of_their_own() -> None:
    """So that a run without unlabelled images sees the same ones."""
    orders = [
        [draw.labelled for draw in PartitionSampler(Partition((0, 1, 2, 3), others), seed=3)]
        for others in (tuple(range(4, 12)), tuple(range(20, 28)))
    ]
    assert orders[0] == orders[1]


def test_devices_share_and_resume() -> None:
    images = Partition((0, 1, 2), tuple(range(3, 14)))
    whole = list(PartitionSampler(images, seed=3))
    shares = [PartitionSampler(images, seed=3, rank=rank, ranks=2) for rank in (0, 1)]
    assert [draw for pair in zip(*shares, strict=True) for draw in pair] == whole[:10]
    shares[1].start_at(epoch=0, images=2)
    assert list(shares[1]) == whole[1:10:2][2:]


def test_boxes_are_drawn_as_often_and_as_large_as_said() -> None:
    height, width = 120, 200
    boxes = [draw_box((height, width), np.random.default_rng(seed)) for seed in range(2000)]
    pasted = [box for box in boxes if box.any()]
    assert 0.45 < len(pasted) / 2000 < 0.55
    rows, columns = (np.array([int(box.any(axis).sum()) for box in pasted]) for axis in (1, 0))
    areas = np.array([int(box.sum()) for box in pasted])
    assert (areas == rows * columns).all()
    shares, aspects = areas / (height * width), rows / columns
    assert BOX_AREA[0] * 0.95 < shares.min() < 0.03
    assert 0.3 < shares.max() < BOX_AREA[1] * 1.05
    assert abs(shares.mean() - np.mean(BOX_AREA)) < 0.012, "boxes that don't fit are not redrawn smaller"
    assert BOX_ASPECT[0] * 0.9 < aspects.min() < 0.5
    assert 2 < aspects.max() < BOX_ASPECT[1] * 1.1
    assert torch.stack(pasted).any(0)[2:-2, 2:-2].all()
    assert torch.equal(boxes[3], draw_box((height, width), np.random.default_rng(3)))


def test_a_box_fits_a_long_thin_crop() -> None:
    assert all(draw_box((8, 2048), np.random.default_rng(seed)).sum() < 8 * 2048 for seed in range(20))


def views_of(images: list[torch.Tensor], **settings: Any) -> UnlabelledViews:
    transform = TrainingTransform((12, 10), scale_range=settings.pop("scale_range", (0.5, 1.5)))
    return UnlabelledViews([{"image": image} for image in images], transform, seed=4)  # type: ignore[arg-type]


def test_views_are_of_one_crop_with_the_partner_inside_the_box(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without changes of colours strong views are pasted weak ones; where both are padding, so are they."""
    monkeypatch.setattr(unlabelled, "STRONG", PhotometricSettings())
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, 9, 14, generator=generator) for _ in range(2)]
    with_box = without_box = padded = 0
    for epoch in range(20):
        views = views_of(images)(Draw(epoch, 0, 0, unlabelled=0, partner=1))
        weak, partner = views["weak_image"], views["partner_image"]
        for image, box in zip(views["strong_image"], views["box"], strict=True):
            assert torch.equal(image, torch.where(box, partner, weak))
            with_box, without_box = with_box + bool(box.any()), without_box + (not box.any())
        for name in ("weak", "partner"):
            void = ~views[f"{name}_valid"]
            assert (views[f"{name}_image"][:, void] == PADDING_GREY).all()
            assert not (views[f"{name}_image"][:, ~void] == PADDING_GREY).any()
            padded += bool(void.any())
        assert not torch.equal(weak, partner)
    assert min(with_box, without_box, padded) > 5


def test_strong_views_have_other_colours_but_the_same_padding() -> None:
    images = [torch.rand(3, 9, 14, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    changed = 0
    for epoch in range(20):
        views = views_of(images)(Draw(epoch, 0, 0, 0, 1))
        first, second = views["strong_image"]
        for image, box in zip((first, second), views["box"], strict=True):
            void = torch.where(box, ~views["partner_valid"], ~views["weak_valid"])
            assert (image[:, void] == PADDING_GREY).all()
            changed += not torch.equal(image[:, ~box & ~void], views["weak_image"][:, ~box & ~void])
        assert not torch.equal(first, second)
    assert changed > 30


def test_everything_is_drawn_by_seed_epoch_image_and_stream() -> None:
    images = [torch.rand(3, 30, 30, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    make = views_of(images, scale_range=(1.0, 1.0))
    first, again, other = (make(Draw(*numbers)) for numbers in ((0, 0, 0, 1, 2), (0, 2, 5, 1, 2), (1, 0, 0, 1, 2)))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["weak_image"], other["weak_image"])
    same = make(Draw(0, 0, 0, 1, 1))
    assert not torch.equal(same["weak_image"], same["partner_image"])
    assert torch.equal(same["weak_image"], first["weak_image"])


def test_batches_hold_what_they_should() -> None:
    data = scenes(pad_multiple=16)
    (batch, *_), again = list(data.train_dataloader()), next(iter(data.train_dataloader()))
    shapes = {
        "image": (3, 3, 32, 32), "label": (3, 32, 32), "index": (3,), "weak_image": (3, 3, 32, 32),
        "weak_valid": (3, 32, 32), "partner_image": (3, 3, 32, 32), "partner_valid": (3, 32, 32),
        "strong_image": (3, 2, 3, 32, 32), "box": (3, 2, 32, 32),
    }  # fmt: skip
    assert {name: tuple(value.shape) for name, value in batch.items()} == shapes
    assert all(torch.equal(value, again[name]) for name, value in batch.items())
    for name in ("weak_valid", "partner_valid", "box"):
        assert batch[name].dtype == torch.bool
        assert not batch[name][..., 30:, :].any()
        assert not batch[name][..., 26:].any()
    assert (batch["strong_image"][..., 26:] == PADDING_GREY).all()
    assert len(data.train_dataloader()) == 6  # 18 unlabelled images
    assert data.partition is not None
    assert set(batch["index"].tolist()) <= set(data.partition.labelled)


def test_labels_of_unlabelled_images_are_not_looked_at() -> None:
    batches = []
    for spoilt in (False, True):
        data = scenes()
        if spoilt:
            for index in data.partition.unlabelled:  # type: ignore[union-attr]
                data.datasets["train"][index]["label"].fill_(99)
        batches.append(list(data.train_dataloader()))
    for first, second in zip(*batches, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert second["label"].max() < 5


def test_a_model_gets_as_many_strong_views_as_it_takes() -> None:
    whole, part = scenes(), scenes()
    model = SimpleNamespace(strong_views=1)
    part.trainer = SimpleNamespace(global_rank=0, world_size=1, lightning_module=model)  # type: ignore[assignment]
    for first, second in zip(whole.train_dataloader(), part.train_dataloader(), strict=True):
        first |= {name: first[name][:, :1] for name in ("strong_image", "box")}
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_model_that_takes_none_gets_the_same_labelled_images() -> None:
    whole, part = scenes(), scenes()
    part.trainer = SimpleNamespace(global_rank=0, world_size=1, lightning_module=object())  # type: ignore[assignment]
    for first, second in zip(whole.train_dataloader(), part.train_dataloader(), strict=True):
        assert second.keys() == {"image", "label", "index"}
        assert all(torch.equal(first[name], second[name]) for name in second)


def test_images_without_ids_are_refused() -> None:
    data = ScenesData(size=40, training=8, labelled=0.5, crop=(32, 32))
    data.datasets["train"] = data.dataset("train")
    del data.datasets["train"].ids  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"images of ScenesData have no ids"):
        data.setup("fit")


def draw_folder(root: Path) -> Path:
    """Write images of different sizes, those of sub-folders in a few formats."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(("a/0.png", "a/b/0.jpg", "a/b/1.bmp", "a/c.png", "b.png", "c.png", "d.png", "e.png")):
        image = draw(root / "images" / name, rng, (30 + 7 * number, 64 - 5 * number))
        save(rng.integers(0, 3, image.shape[:2], np.uint8), (root / "masks" / name).with_suffix(".png"))
    (root / "classes.yaml").write_text("classes: [ground, crop, weed]")
    write_list(root / "train.txt", ["a/0", "a/b/0", "a/b/1", "a/c", "b", "c", "d"])
    write_list(root / "val.txt", ["e"])
    return root


def folder_data(root: Path, **settings: Any) -> PairedData:
    return ImageFolderData(str(root), batch_size=2, crop=(20, 20), scale_range=(0.5, 1.5), **settings)


def raters_data(root: Path, **settings: Any) -> PairedData:
    options: dict[str, Any] = {"validation_share": 0.3, "batch_size": 2, "crop": (12, 12)}
    return RatersData(str(root), CLASSES, **options, **settings)


def two_epochs(data: Any) -> list[dict[str, torch.Tensor]]:
    data.setup("fit")
    loader = data.train_dataloader()
    batches = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        batches += loader
    return batches


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize(("draw_files", "open_data"), [(draw_folder, folder_data), (draw_raters, raters_data)])
def test_a_folder_gives_what_its_images_give_in_the_split(
    draw_files: Any, open_data: Any, cache: bool, tmp_path: Path
) -> None:
    """To the last bit where they have the same places there; the split's own are not looked at then."""
    root, more, listed = draw_files(tmp_path / "data"), tmp_path / "more", tmp_path / "labelled.txt"
    settings = {"labelled": str(listed), "scale": 0.6, "cache": cache}
    split: PairedImages = open_data(root).open("train")
    write_list(listed, split.ids[-2:])
    expected = two_epochs(open_data(root, **settings))
    others = {pair.image for pair in split.pairs if pair.id not in split.ids[-2:]}
    for path in others:
        copy = more / path.relative_to(root / "images")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    (more / "notes.txt").write_text("no image")
    (more / ".hidden.png").write_text("no image")
    data = open_data(root, **settings, unlabelled=str(more))
    data.setup("fit")
    for path in others:
        path.unlink()
    batches = two_epochs(data)
    assert len(batches) == len(expected) == 2 * (len(others) // 2)
    for first, second in zip(expected, batches, strict=True):
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert data.labelled_ids() == list(split.ids[-2:])


def test_images_of_a_folder_are_kept_as_the_data_sets_own_are(tmp_path: Path) -> None:
    root = draw_folder(tmp_path / "data")
    shutil.copytree(root / "images" / "a", tmp_path / "more")
    data = folder_data(root, unlabelled=str(tmp_path / "more"), cache=True)
    first = two_epochs(data)
    shutil.rmtree(tmp_path)
    for batch, again in zip(first, two_epochs(data), strict=True):
        assert all(torch.equal(batch[name], again[name]) for name in batch)


def test_all_training_images_keep_their_labels_beside_a_folder(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = [draw(tmp_path / "more" / f"{number}.png", rng, (50, 40)) for number in range(7)]
    data = scenes(labelled=None, unlabelled=str(tmp_path / "more"))
    assert data.partition == Partition(tuple(range(24)), tuple(range(7)))
    assert data.labelled_ids() is None
    images = data.open_unlabelled(tmp_path / "more")
    assert len(images) == 7
    assert all(
        np.array_equal(images[index]["image"].numpy(), np.moveaxis(each, 2, 0).astype(np.float32) / 255)
        for index, each in enumerate(pixels)
    )
    batches = two_epochs(data)
    assert len(batches) == 4
    indices = [batch["index"].tolist() for batch in batches]
    assert len({*indices[0], *indices[1]}) == 6
    assert {*indices[0], *indices[1]} != {*indices[2], *indices[3]}
    assert batches[0]["weak_image"].shape == (3, 3, 32, 32)


@pytest.mark.parametrize("labelled", [None, 0.5])
def test_only_chosen_images_need_ids(labelled: float | None, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(3):
        draw(tmp_path / f"{number}.png", rng)
    data = ScenesData(size=40, training=8, labelled=labelled, unlabelled=str(tmp_path))
    data.datasets["train"] = data.dataset("train")
    del data.datasets["train"].ids  # type: ignore[attr-defined]
    if labelled is None:
        data.setup("fit")
        assert data.partition == Partition(tuple(range(8)), (0, 1, 2))
    else:
        with pytest.raises(InputError, match=r"images of ScenesData have no ids"):
            data.setup("fit")


def no_images(path: Path) -> None:
    path.mkdir()
    (path / "a.txt").write_text("no image")


def two_images(path: Path) -> None:
    for name in "ab":
        draw(path / f"{name}.png", np.random.default_rng(0))


def damaged(path: Path) -> None:
    two_images(path)
    (path / "b.png").write_bytes((path / "b.png").read_bytes()[:200])


@pytest.mark.parametrize(
    ("make", "labelled", "words"),
    [
        (lambda path: None, None, "data.unlabelled: there is no folder or file .*more; expected a folder of images"),
        (lambda path: None, 0.5, "data.unlabelled: there is no folder or file .*more; expected a folder of images"),
        (no_images, None, r"data.unlabelled: there are no images in the folder .*more; looked for \*.png, \*.jpg"),
        (two_images, None, "folder of data.unlabelled, .*more, has 2 images.* batch_size 3. Set data.batch_size to"),
        (damaged, None, "data.unlabelled: .* take it out of the folder: .*b.png cannot be read as an image"),
        (lambda path: path.write_text("scene 1"), None, "data.unlabelled is .*more, a list .* data.labelled is null"),
    ],
    ids=["nothing", "nothing, with a share", "no images", "few images", "damaged image", "list alone"],
)
def test_folders_that_cannot_be_used(make: Any, labelled: float | None, words: str, tmp_path: Path) -> None:
    make(tmp_path / "more")
    with pytest.raises(InputError, match=words):
        scenes(labelled=labelled, unlabelled=str(tmp_path / "more")).train_dataloader()


def test_a_folder_with_images_that_are_tested_is_refused(tmp_path: Path) -> None:
    root = draw_folder(tmp_path / "root")
    with pytest.raises(InputError, match=r"data.unlabelled: \d+ of the images in .* are val images.*Take them out"):
        folder_data(root, unlabelled=str(root / "images")).setup("fit")


def test_a_model_without_a_method_says_what_a_folder_is_for(tmp_path: Path) -> None:
    two_images(tmp_path)
    data = scenes(labelled=None, unlabelled=str(tmp_path), batch_size=2)
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, lightning_module=object())  # type: ignore[assignment]
    with pytest.warns(UserWarning, match=r"does not train on the images in data\.unlabelled"):
        data.train_dataloader()


def test_an_image_that_is_damaged_later_is_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(4):
        draw(tmp_path / f"{number}.png", rng)
    data = scenes(labelled=None, unlabelled=str(tmp_path))
    (tmp_path / "3.png").write_text("no image")
    with pytest.raises(InputError, match=r"data.unlabelled: .*3.png cannot be read as an image"):
        two_epochs(data)
