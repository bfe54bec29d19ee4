"""Augmentation of images, hard labels, votes and distributions, against NumPy written from the definitions."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import softjaccard
from softjaccard.data.module import SegmentationData
from softjaccard.data.synthetic import SyntheticScenes
from softjaccard.data.transforms import IGNORE_INDEX, PADDING_GREY, PhotometricSettings, TrainingTransform
from softjaccard.errors import InputError

CLASSES = 4
Sample = dict[str, torch.Tensor]
Array = NDArray[np.float64]


def triangle(length: int, size: int) -> Array:
    """Weights (size, length) of bilinear interpolation, as wide as the pixels that are made where they are larger."""
    ratio = length / size
    centres = (np.arange(size) + 0.5) * ratio
    distances = np.abs(np.arange(length) + 0.5 - centres[:, None])
    weights = np.maximum(0, 1 - distances / max(1, ratio))
    return weights / weights.sum(1, keepdims=True)


def bilinear(maps: Array, size: tuple[int, int]) -> Array:
    rows, columns = triangle(maps.shape[-2], size[0]), triangle(maps.shape[-1], size[1])
    return rows @ maps @ columns.T


def nearest(ids: Array, size: tuple[int, int]) -> Array:
    rows, columns = (
        np.floor((np.arange(new) + 0.5) * old / new).astype(int) for old, new in zip(ids.shape[-2:], size, strict=True)
    )
    return ids[..., rows[:, None], columns]


def shares(votes: Array) -> tuple[Array, Array]:
    """The distribution of votes (C, H, W), and which pixels have any (H, W)."""
    counts = (votes[:, None] == np.arange(CLASSES)[:, None, None]).sum(0)
    total = counts.sum(0)
    return counts / np.maximum(total, 1), total > 0


def average(distribution: Array, valid: Array, size: tuple[int, int]) -> Array:
    """The distribution resized over valid pixels only, zero where fewer than half are."""
    weight = bilinear(valid.astype(float), size)
    return np.where(weight > 0.5 - 1e-9, bilinear(distribution * valid, size) / np.maximum(weight, 1e-9), 0)


def drawn(height: int, width: int, seed: int = 0, raters: int = 3, void: float = 0.3) -> Sample:
    """Random image, votes and label; each vote, the label and whole pixels may be void."""
    generator = torch.Generator().manual_seed(seed)

    def ids(*shape: int) -> torch.Tensor:
        ids = torch.randint(CLASSES, shape, generator=generator)
        return ids.masked_fill(torch.rand(shape, generator=generator) < void, IGNORE_INDEX)

    nobody = torch.rand(height, width, generator=generator) < void
    return {
        "image": 0.4 * torch.rand(3, height, width, generator=generator),
        "label": ids(height, width),
        "votes": ids(raters, height, width).masked_fill(nobody, IGNORE_INDEX),
        "index": torch.tensor(7),
    }


def with_soft_label(sample: Sample, seed: int = 0) -> Sample:
    """The same, with a random distribution in place of the votes, zero where nobody voted."""
    valid = (sample["votes"] != IGNORE_INDEX).any(0)
    noise = torch.rand(CLASSES, *valid.shape, generator=torch.Generator().manual_seed(seed)) + 1e-3
    return {name: value for name, value in sample.items() if name != "votes"} | {
        "soft_label": noise / noise.sum(0) * valid
    }


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("scale", [0.3, 0.5, 0.73, 1.0, 1.6, 2.0])
def test_a_whole_image_is_resized_as_defined(scale: float, flip: float) -> None:
    sample = drawn(11, 14)
    size = (round(11 * scale), round(14 * scale))
    # The upper bound makes it a range even at 1; the lower one is drawn all the same.
    transform = TrainingTransform(None, scale_range=(scale, scale + 1e-12), flip=flip, num_classes=CLASSES)
    result = transform(sample, (0,))
    votes = sample["votes"].numpy()
    expected = {
        "image": bilinear(sample["image"].double().numpy(), size),
        "label": nearest(sample["label"].numpy(), size),
        "votes": nearest(votes, size),
        "soft_label": average(*shares(votes), size),
    }
    assert set(result) == {*expected, "index", "annotator"}
    for name, value in expected.items():
        mirrored = value[..., ::-1] if flip else value
        np.testing.assert_allclose(result[name].numpy(), mirrored, atol=1e-5, rtol=0, err_msg=name)
    dense = with_soft_label(sample)
    soft_label = dense["soft_label"].double().numpy()
    expected_soft = average(soft_label, soft_label.sum(0) > 0, size)
    mirrored = expected_soft[..., ::-1] if flip else expected_soft
    np.testing.assert_allclose(transform(dense, (0,))["soft_label"].numpy(), mirrored, atol=1e-5, rtol=0)


def test_a_given_distribution_is_kept_beside_votes() -> None:
    sample = drawn(6, 7)
    both = sample | with_soft_label(sample)
    transform = TrainingTransform(None, scale_range=(1.5, 1.5), flip=0.0)
    torch.testing.assert_close(
        transform(both, (0,))["soft_label"], transform(with_soft_label(sample), (0,))["soft_label"]
    )


def coordinates(height: int, width: int) -> Sample:
    """An image of which every pixel says where it was, as the label does."""
    label = torch.arange(height * width).reshape(height, width)
    image = torch.stack([label // width / 100, label % width / 100, torch.rand(height, width)])
    return {"image": image, "label": label}


@pytest.mark.parametrize("crop", [(9, 14), (30, 25), (16, 70)])
@pytest.mark.parametrize("scales", [(0.4, 1.0), (1.0, 2.5)])
def test_image_and_label_stay_on_each_other(crop: tuple[int, int], scales: tuple[float, float]) -> None:
    sample = coordinates(29, 35)
    corners = set()
    for seed in range(30):
        result = TrainingTransform(crop, scale_range=scales)(sample, (seed,))
        kept = result["label"] != IGNORE_INDEX
        rows, columns = np.ix_(kept.any(1), kept.any(0))
        image, label = result["image"].numpy()[:, rows, columns], result["label"].numpy()[rows, columns]
        assert kept.sum() == label.size  # a rectangle
        place = np.stack([label // 35, label % 35])
        # Away from the edges a ramp is its own bilinear interpolation, so the nearest pixel is half a pixel away.
        inside = (slice(None), slice(2, -2), slice(2, -2))
        assert np.abs(100 * image[:2] - place)[inside].max() <= 0.5 + 1e-3
        if scales[0] >= 1:  # every pixel of the window is in the label, so it is known
            window = (
                sample["image"]
                .double()
                .numpy()[:, place[0].min() : place[0].max() + 1, place[1].min() : place[1].max() + 1]
            )
            expected = bilinear(window, label.shape)
            expected = expected if place[1, 0, 0] <= place[1, 0, -1] else expected[..., ::-1]
            np.testing.assert_allclose(image, expected, atol=1e-5, rtol=0)
        corners.add((place[0].min(), place[1].min(), place[1, 0, 0] <= place[1, 0, -1]))
    assert len(corners) > 3


def test_scales_fill_the_range_and_keep_the_aspect() -> None:
    transform = TrainingTransform(None, scale_range=(0.5, 2.0))
    sizes = np.array([transform(coordinates(40, 60), (seed,))["label"].shape for seed in range(200)])
    scales = sizes / (40, 60)
    assert np.abs(scales[:, 0] - scales[:, 1]).max() <= 0.5 / 40 + 0.5 / 60
    assert scales.min() < 0.6
    assert scales.max() > 1.9
    assert abs(scales.mean() - 1.25) < 0.1


settings_of_geometry = st.fixed_dictionaries(
    {
        "crop": st.none() | st.tuples(st.integers(1, 14), st.integers(1, 14)),
        "scale_range": st.tuples(st.floats(0.05, 1.5), st.floats(0.0, 2.0)).map(lambda pair: (pair[0], sum(pair))),
        "flip": st.sampled_from([0.0, 0.5, 1.0]),
    }
)


@settings(max_examples=300, deadline=None)
@given(
    settings_of_geometry,
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.2, 0.7, 1.0]),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_distributions_keep_their_mass(
    geometry: dict[str, Any], size: tuple[int, int], raters: int, void: float, dense: bool, seed: int
) -> None:
    sample = drawn(*size, seed=seed, raters=raters, void=void)
    sample = with_soft_label(sample, seed) if dense else sample
    result = TrainingTransform(num_classes=CLASSES, **geometry)(sample, (seed,))
    soft_label, shape = result["soft_label"], result["label"].shape
    assert result["image"].shape[1:] == soft_label.shape[1:] == shape
    assert geometry["crop"] in (None, tuple(shape))
    assert (soft_label >= 0).all()
    ignored = (soft_label == 0).all(0)
    torch.testing.assert_close(soft_label.sum(0), (~ignored).float(), atol=1e-5, rtol=0)
    padding = (result["image"] == PADDING_GREY).all(0)
    assert ignored[padding].all()
    assert (result["label"][padding] == IGNORE_INDEX).all()
    assert dense or (result["votes"][:, padding] == IGNORE_INDEX).all()
    if void == 0:
        assert not ignored[~padding].any()
        assert (result["label"][~padding] >= 0).all()


@settings(max_examples=100, deadline=None)
@given(settings_of_geometry, st.integers(0, 2**32))
def test_a_constant_map_stays_constant(geometry: dict[str, Any], seed: int) -> None:
    sample = drawn(9, 12, seed=seed)
    votes = torch.tensor([0, 2, 2])[:, None, None].expand(3, 9, 12)
    nobody = sample["label"] == IGNORE_INDEX
    of_votes = sample | {"votes": votes.masked_fill(nobody, IGNORE_INDEX)}
    distribution = torch.tensor([1 / 3, 0, 2 / 3, 0])[:, None, None]
    dense = with_soft_label(sample) | {"soft_label": distribution * ~nobody}
    for case in (of_votes, dense):
        result = TrainingTransform(num_classes=CLASSES, **geometry)(case, (seed,))
        # Votes that nothing has resampled are still votes.
        soft_label = (
            result["soft_label"]
            if "soft_label" in result
            else softjaccard.dense(softjaccard.RaterLabel(result["votes"][None]), CLASSES)[0][0]
        )
        assert ("soft_label" in result) == (case is dense or geometry["scale_range"] != (1.0, 1.0))
        valid = soft_label.sum(0) > 0
        difference = (soft_label - distribution).abs() * valid
        assert difference.max() < 1e-5


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_flip_and_crop_leave_votes_and_distributions_exact(flip: float) -> None:
    sample = drawn(8, 9) | {"label": torch.arange(72).reshape(8, 9)}
    sample |= with_soft_label(sample)
    for seed in range(5):
        result = TrainingTransform((5, 6), flip=flip)(sample, (seed,))
        rows, columns = result["label"] // 9, result["label"] % 9
        for name in ("image", "votes", "soft_label"):
            assert torch.equal(result[name], sample[name][..., rows, columns]), name
    assert "soft_label" not in TrainingTransform((5, 6))(drawn(8, 9), (0,))


def test_annotators_are_drawn_by_the_seed() -> None:
    sample, transform = drawn(4, 5), TrainingTransform(None, flip=0.0)
    annotators = [transform(sample, (0, 0, image))["annotator"] for image in range(60)]
    assert all(annotator.dtype == torch.int64 and annotator.ndim == 0 for annotator in annotators)
    assert set(map(int, annotators)) == {0, 1, 2}
    again = [transform(sample, (0, 0, image))["annotator"] for image in reversed(range(60))]
    assert annotators == again[::-1]
    assert "annotator" not in transform(with_soft_label(sample), (0,))


def test_every_draw_is_a_function_of_the_seed() -> None:
    photometric = PhotometricSettings(0.5, 0.5, 0.5, 0.2, 0.8, 0.2, 0.5)
    transform = TrainingTransform((9, 11), scale_range=(0.5, 2.0), photometric=photometric, num_classes=CLASSES)
    samples = [drawn(12, 13, seed=image) for image in range(8)]
    first = [transform(sample, (3, 1, image)) for image, sample in enumerate(samples)]
    torch.manual_seed(5)
    np.random.seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()
    again = [transform(samples[image], (3, 1, image)) for image in reversed(range(8))][::-1]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    for one, two in zip(first, again, strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)
    other = [transform(sample, (3, 2, image)) for image, sample in enumerate(samples)]
    assert not any(torch.equal(one["image"], two["image"]) for one, two in zip(first, other, strict=True))


def photograph() -> Sample:
    return {"image": torch.rand(3, 12, 15), "label": torch.zeros(12, 15, dtype=torch.long)}


def changed(photometric: PhotometricSettings, sample: Sample, seed: int = 0) -> torch.Tensor:
    return TrainingTransform(None, flip=0.0, photometric=photometric)(sample, (seed,))["image"]


def test_brightness_is_a_factor_from_its_range() -> None:
    sample, factors = photograph(), []
    sample["image"] /= 2
    for seed in range(50):
        ratio = changed(PhotometricSettings(brightness=0.4), sample, seed) / sample["image"]
        torch.testing.assert_close(ratio, ratio[:1, :1, :1].expand_as(ratio), atol=1e-4, rtol=0)
        factors.append(float(ratio[0, 0, 0]))
    assert 0.6 <= min(factors) < 0.7
    assert 1.3 < max(factors) <= 1.4


def test_contrast_saturation_and_hue_keep_what_they_should() -> None:
    sample = photograph()
    sample["image"] = 0.4 + 0.2 * sample["image"]
    grey = torch.tensor([0.2989, 0.587, 0.114])
    for seed in range(10):
        contrast = changed(PhotometricSettings(contrast=0.3), sample, seed)
        mean = torch.einsum("chw,c->hw", sample["image"], grey).mean()
        ratio = (contrast - mean) / (sample["image"] - mean)
        assert ratio.std() < 1e-2
        assert 0.7 <= ratio.median() <= 1.3
        saturation = changed(PhotometricSettings(saturation=0.9), sample, seed)
        torch.testing.assert_close(
            *(torch.einsum("chw,c->hw", x, grey) for x in (saturation, sample["image"])), atol=1e-3, rtol=0
        )
        hue = changed(PhotometricSettings(hue=0.3), sample, seed)
        for extreme in (torch.amin, torch.amax):  # turning the hue keeps value and saturation
            torch.testing.assert_close(extreme(hue, 0), extreme(sample["image"], 0), atol=1e-4, rtol=0)
        assert all((image - sample["image"]).abs().max() > 1e-3 for image in (contrast, saturation, hue))


def test_probabilities() -> None:
    sample = photograph()
    cases = {
        "jitter": PhotometricSettings(brightness=0.5, jitter_probability=0.3),
        "grey": PhotometricSettings(grey_probability=0.3),
        "blur": PhotometricSettings(blur_probability=0.3, blur_sigma=(1.0, 2.0)),
    }
    for name, photometric in cases.items():
        hits = sum(not torch.equal(changed(photometric, sample, seed), sample["image"]) for seed in range(200))
        assert 40 <= hits <= 80, name
    grey = changed(PhotometricSettings(grey_probability=1.0), sample)
    torch.testing.assert_close(
        grey[0], torch.einsum("chw,c->hw", sample["image"], torch.tensor([0.2989, 0.587, 0.114]))
    )
    assert torch.equal(grey[0], grey[1])


def test_blur_is_a_gaussian() -> None:
    sample = photograph()
    result = changed(PhotometricSettings(blur_probability=1.0, blur_sigma=(1.2, 1.2)), sample).numpy()
    offsets = np.arange(-4, 5)
    kernel = np.exp(-0.5 * (offsets / 1.2) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(sample["image"].numpy(), ((0, 0), (4, 4), (4, 4)), mode="reflect")
    expected = sum(
        a * b * padded[:, 4 + y : 16 + y, 4 + x : 19 + x]
        for y, a in zip(offsets, kernel, strict=True)
        for x, b in zip(offsets, kernel, strict=True)
    )
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2)])
def test_small_images_are_blurred_too(size: tuple[int, int]) -> None:
    sample = {"image": torch.full((3, *size), 0.3), "label": torch.zeros(size, dtype=torch.long)}
    blur = PhotometricSettings(blur_probability=1.0, blur_sigma=(5.0, 5.0))
    torch.testing.assert_close(changed(blur, sample), sample["image"])


def test_photometric_changes_stay_off_labels_and_padding() -> None:
    strong = PhotometricSettings(0.9, 0.9, 0.9, 0.5, blur_probability=1.0)
    sample = drawn(8, 9)
    for seed in range(10):
        plain, result = (TrainingTransform((12, 7), photometric=each)(sample, (seed,)) for each in (None, strong))
        assert all(torch.equal(plain[name], result[name]) for name in plain if name != "image")
        padding = (plain["image"] == PADDING_GREY).all(0)
        assert padding.sum() == 4 * 7
        assert (result["image"][:, padding] == PADDING_GREY).all()
        assert not torch.equal(plain["image"], result["image"])
        assert 0 <= result["image"].min() <= result["image"].max() <= 1


def test_nothing_random_is_the_identity() -> None:
    sample = drawn(7, 9)
    transform = TrainingTransform(None, flip=0.0)
    result = transform(sample, (4,))
    assert all(torch.equal(result[name], value) for name, value in sample.items())
    assert transform.deterministic
    assert TrainingTransform(None, flip=0.0, photometric=PhotometricSettings()).deterministic
    changes: list[dict[str, Any]] = [
        {"crop": (7, 9)}, {"scale_range": (1.0, 1.5)}, {"flip": 0.1}, {"photometric": PhotometricSettings(hue=0.1)},
    ]  # fmt: skip
    for change in changes:
        assert not TrainingTransform(**({"crop": None, "flip": 0.0} | change)).deterministic


def test_scaled_votes_need_the_classes() -> None:
    sample = drawn(5, 6)
    with pytest.raises(ValueError, match="num_classes"):
        TrainingTransform(None, scale_range=(1.0, 2.0))(sample, (0,))
    with pytest.raises(ValueError, match="3"):
        TrainingTransform(None, scale_range=(1.0, 2.0), num_classes=3)(sample, (0,))


class DrawnData(SegmentationData):
    """Scenes with the votes as they are in the data set, 8-bit with 255."""

    def dataset(self, split: str) -> SyntheticScenes:
        return SyntheticScenes(6, 40, seed=len(split))


def test_batches_of_votes_and_distributions() -> None:
    data = DrawnData(crop=(32, 48), scale_range=(0.5, 2.0), batch_size=3, evaluation_batch_size=2)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    shapes = {name: tuple(value.shape) for name, value in batch.items()}
    assert shapes == {
        "image": (3, 3, 32, 64), "label": (3, 32, 64), "votes": (3, 5, 32, 64), "soft_label": (3, 5, 32, 64),
        "annotator": (3,),
    }  # fmt: skip
    assert (batch["votes"][..., 48:] == IGNORE_INDEX).all()
    evaluated = next(iter(data.val_dataloader()))
    item = data.datasets["val"][0]["votes"]
    assert (item == 255).any()
    assert torch.equal(evaluated["votes"][0, :, :40, :40], item.long().masked_fill(item == 255, IGNORE_INDEX))
    assert "annotator" not in evaluated


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"scale_range": (0.0, 1.0)}, r"scale_range is \[0.0, 1.0\]"),
        ({"scale_range": (2.0, 1.0)}, "smaller one first"),
        ({"scale_range": (1.0, float("nan"))}, "scale_range"),
        ({"crop": (3, 0)}, "crop is 0"),
        ({"photometric": PhotometricSettings(blur_sigma=(0.0, 1.0))}, r"photometric.blur_sigma is \[0.0, 1.0\]"),
        *(
            ({"photometric": PhotometricSettings(**{field.name: -0.1})}, f"photometric.{field.name} is -0.1")
            for field in fields(PhotometricSettings)
            if field.name != "blur_sigma"
        ),
        ({"photometric": PhotometricSettings(hue=0.6)}, "from 0 to 0.5"),
        ({"photometric": PhotometricSettings(grey_probability=1.1)}, "from 0 to 1"),
    ],
)
def test_settings_out_of_range(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        DrawnData(**wrong)
