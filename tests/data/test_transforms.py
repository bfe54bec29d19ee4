"""Augmentation, batches and order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from drawn_camvid import draw_camvid
from softjaccard.data.camvid import CamVidData
from softjaccard.data.module import EpochSampler, OrderedSampler
from softjaccard.data.transforms import (
    IGNORE_INDEX,
    PADDING_GREY,
    PhotometricSettings,
    TrainingTransform,
    collate_padded,
    mix_seed,
)


def numbered(height: int, width: int) -> dict[str, torch.Tensor]:
    """A sample of which each pixel has its own value, the same in image and label."""
    label = torch.arange(height * width).reshape(height, width)
    return {"image": label.float().expand(3, height, width), "label": label, "index": torch.tensor(7)}


@pytest.mark.parametrize("crop", [(4, 6), (9, 12), (12, 5), (20, 20)])
def test_image_and_label_stay_together_and_padding_is_ignored(crop: tuple[int, int]) -> None:
    transform = TrainingTransform(crop)
    seen = set()
    for seed in range(20):
        sample = transform(numbered(9, 12), (seed,))
        assert type(sample["image"]) is type(sample["label"]) is torch.Tensor
        assert sample["image"].shape == (3, *crop)
        assert sample["index"] == 7
        kept = sample["label"] != IGNORE_INDEX
        assert kept.sum() == min(crop[0], 9) * min(crop[1], 12)
        torch.testing.assert_close(sample["image"][0][kept], sample["label"][kept].float())
        assert (sample["image"][:, ~kept] == PADDING_GREY).all()
        seen.add(tuple(sample["label"].flatten().tolist()))
    assert len(seen) > 1


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_flip_mirrors_left_and_right(flip: float) -> None:
    sample = numbered(4, 6)
    result = TrainingTransform((4, 6), flip=flip)(sample, (0,))
    for name in ("image", "label"):
        torch.testing.assert_close(result[name], sample[name].flip(-1) if flip else sample[name])


def test_draws_depend_on_the_seed_alone() -> None:
    transform, sample = TrainingTransform((4, 6)), numbered(9, 12)
    first = transform(sample, (0, 3, 5))
    torch.manual_seed(123)
    state = torch.get_rng_state()
    again = transform(sample, (0, 3, 5))
    torch.testing.assert_close(first["label"], again["label"])
    torch.testing.assert_close(torch.get_rng_state(), state)
    others = [transform(sample, seed)["label"] for seed in ((0, 3, 6), (0, 4, 5), (1, 3, 5), (0, 5, 3))]
    assert not all(torch.equal(first["label"], other) for other in others)


def test_mixed_seeds_differ() -> None:
    triples = [(a, b, c) for a in range(4) for b in range(4) for c in range(4)]
    assert len({mix_seed(*triple) for triple in triples}) == len(triples)


def test_collate_pads_right_and_bottom() -> None:
    batch = collate_padded([numbered(4, 9), numbered(6, 5)], multiple=4)
    assert batch["image"].shape == (2, 3, 8, 12)
    assert batch["label"].shape == (2, 8, 12)
    torch.testing.assert_close(batch["label"][0, :4, :9], numbered(4, 9)["label"])
    torch.testing.assert_close(batch["image"][1, :, :6, :5], numbered(6, 5)["image"])
    assert (batch["label"][0, 4:] == IGNORE_INDEX).all()
    assert (batch["label"][1, :, 5:] == IGNORE_INDEX).all()
    assert (batch["image"][1, :, :, 5:] == PADDING_GREY).all()
    assert batch["index"].tolist() == [7, 7]


def test_collate_pads_votes_with_ignored_and_distributions_with_zeros() -> None:
    samples = [
        numbered(*size) | {"votes": torch.ones(3, *size, dtype=torch.long), "soft_label": torch.full((2, *size), 0.5)}
        for size in ((4, 9), (6, 5))
    ]
    batch = collate_padded(samples)
    assert batch["votes"].shape == (2, 3, 6, 9)
    assert batch["soft_label"].shape == (2, 2, 6, 9)
    padding = batch["label"] == IGNORE_INDEX
    assert padding.sum() == 2 * 54 - 36 - 30
    torch.testing.assert_close((batch["votes"] == IGNORE_INDEX).all(1), padding)
    torch.testing.assert_close((batch["votes"] == 1).all(1), ~padding)
    torch.testing.assert_close(batch["soft_label"].sum(1), (~padding).float())


def test_every_epoch_has_an_order_of_its_own() -> None:
    sampler, orders = EpochSampler(10, seed=3), []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        keys = list(sampler)
        assert {key[0] for key in keys} == {epoch}
        assert sorted(key[1] for key in keys) == list(range(10))
        orders.append([key[1] for key in keys])
    assert orders[0] == orders[2] != orders[1]


def test_an_order_goes_on_behind_the_images_a_device_has_had() -> None:
    whole, resumed = (EpochSampler(11, seed=3, rank=1, ranks=2) for _ in range(2))
    resumed.start_at(epoch=2, images=3)
    for epoch, had in ((2, 3), (2, 3), (3, 0)):
        whole.set_epoch(epoch)
        resumed.set_epoch(epoch)
        assert list(resumed) == list(whole)[had:]
        assert len(resumed) == 5
    resumed.start_at(epoch=1, images=4)
    assert next(iter(resumed))[0] == 1  # before the loop sets it, because workers fetch ahead


def test_devices_share_the_images() -> None:
    whole = [index for _, index in EpochSampler(11, seed=3)]
    shares = [[index for _, index in EpochSampler(11, seed=3, rank=rank, ranks=2)] for rank in (0, 1)]
    assert [index for pair in zip(*shares, strict=True) for index in pair] == whole[:10]
    ordered = [OrderedSampler(11, rank=rank, ranks=3) for rank in range(3)]
    assert [len(sampler) for sampler in ordered] == [len(list(sampler)) for sampler in ordered] == [4, 4, 3]
    assert sorted(index for sampler in ordered for index in sampler) == list(range(11))


def test_other_values_of_pixels_are_refused() -> None:
    sample = numbered(6, 8) | {"depth": torch.zeros(3, 6, 8)}
    with pytest.raises(ValueError, match=r"depth.*\(3, 6, 8\).*\(6, 8\)"):
        TrainingTransform((4, 4))(sample, (0,))
    with pytest.raises(ValueError, match="depth"):
        collate_padded([sample])
    with pytest.raises(ValueError, match=r"soft_label.*\(6, 8\).*\(2, 6, 7\)"):
        TrainingTransform((4, 4))(numbered(6, 8) | {"soft_label": torch.zeros(2, 6, 7)}, (0,))
    assert collate_padded([numbered(6, 8) | {"camera": torch.eye(3)}])["camera"].shape == (1, 3, 3)


def test_batches_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    root = draw_camvid(tmp_path)
    runs = []
    for workers in (0, 2):
        data = CamVidData(
            str(root),
            crop=(16, 16),
            scale_range=(0.5, 2.0),
            photometric=PhotometricSettings(0.4, 0.4, 0.4, 0.1, blur_probability=0.5),
            batch_size=2,
            pad_multiple=1,
            workers=workers,
            seed=5,
        )
        data.setup("fit")
        runs.append(list(data.train_dataloader()))
    for one, two in zip(*runs, strict=True):
        for name, value in one.items():
            torch.testing.assert_close(value, two[name])
