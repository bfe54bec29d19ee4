"""Drawn scenes as a data module: splits that share nothing, and batches like those of any data set."""

from __future__ import annotations

import pytest
import torch

from softjaccard.data.scenes import ScenesData
from softjaccard.data.synthetic import SyntheticScenes
from softjaccard.data.transforms import IGNORE_INDEX
from softjaccard.errors import InputError

SMALL = {"size": 32, "training": 5, "validation": 2, "test": 3, "crop": (24, 24), "batch_size": 2}


def test_the_splits_are_stretches_of_the_scenes() -> None:
    data = ScenesData(**SMALL, scenes_seed=4)
    scenes = SyntheticScenes(10, 32, seed=4)
    start = 0
    for split, length in (("train", 5), ("val", 2), ("test", 3)):
        dataset = data.dataset(split)
        assert len(dataset) == length
        assert dataset.ids == tuple(f"scene {number}" for number in range(start, start + length))
        for index, sample in enumerate(dataset):
            assert sample.keys() == {"image", "label", "index"}
            assert torch.equal(sample["image"], scenes[start + index]["image"])
            assert torch.equal(sample["label"], scenes[start + index]["label"])
            assert sample["index"] == index
            assert dataset[index] is sample  # drawn once
        start += length
    assert start == len(scenes)


def test_scenes_with_votes() -> None:
    plain, rated = (ScenesData(**SMALL, scenes_seed=4, raters=raters).dataset("test") for raters in (None, 3))
    scenes = SyntheticScenes(10, 32, raters=3, seed=4)
    disputed = 0
    for index, sample in enumerate(rated):
        assert sample.keys() == {"image", "votes", "label", "index"}
        assert torch.equal(sample["image"], plain[index]["image"])
        votes = scenes[7 + index]["votes"]
        assert torch.equal(sample["votes"], votes)
        by_count = torch.where(votes[1] == votes[2], votes[1], votes[0])  # of three different ones the lowest below
        different = (votes[0] != votes[1]) & (votes[1] != votes[2]) & (votes[0] != votes[2])
        assert torch.equal(sample["label"], torch.where(different, votes.amin(0), by_count).long())
        disputed += int((sample["label"] != plain[index]["label"]).sum())
    assert disputed > 0
    data = ScenesData(**SMALL, evaluation_batch_size=2, pad_multiple=48, raters=3)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    assert batch["votes"].shape == (2, 3, 48, 48)
    assert (batch["votes"][:, :, 32:] == IGNORE_INDEX).all()
    assert set(batch["votes"].unique().tolist()) <= {IGNORE_INDEX, 0, 1, 2, 3, 4}


def test_batches() -> None:
    data = ScenesData(**SMALL, evaluation_batch_size=2, pad_multiple=48)
    data.setup("fit")
    data.setup("test")
    assert [batch["image"].shape for batch in data.train_dataloader()] == [(2, 3, 48, 48)] * 2  # padded
    batches = list(data.test_dataloader())
    assert [batch["index"].tolist() for batch in batches] == [[0, 1], [2]]
    assert (batches[0]["label"][:, 32:] == IGNORE_INDEX).all()
    assert set(batches[0]["label"].unique().tolist()) <= {IGNORE_INDEX, 0, 1, 2, 3, 4}
    some = data.evaluation_batch("test", [2, 0])
    assert some["index"].tolist() == [2, 0]
    assert torch.equal(some["image"][0], batches[1]["image"][0])
    assert torch.equal(some["label"][1], batches[0]["label"][0])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"test": 0}, "test must be at least 1"),
        ({"size": 4}, "size: expected at least 8"),
        ({"scenes_seed": -1}, "seed"),
        ({"raters": 0}, "raters: expected at least 1"),
    ],
)
def test_settings_out_of_range(settings: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        ScenesData(**{**SMALL, **settings})
