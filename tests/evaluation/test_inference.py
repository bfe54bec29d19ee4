"""Windows, scales and mirroring against loops over pixels in NumPy."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from softjaccard.errors import InputError
from softjaccard.evaluation.inference import InferenceSettings, predict_logits
from softjaccard.models import create_model

Array = NDArray[np.float64]


class Positional:
    """Logits that depend on all that the network sees and on the place in it, so that a wrong place shows."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def predict(self, image: Tensor) -> Tensor:
        self.seen.append(tuple(image.shape))
        return torch.from_numpy(positional(image.numpy().astype(np.float64)))


def positional(image: Array) -> Array:
    rows, columns = np.arange(image.shape[2])[:, None], np.arange(image.shape[3])
    return np.stack(
        [image[:, 0] * (rows + 1), image[:, 1] + columns**2, image.sum((1, 2, 3))[:, None, None] - 3 * rows * columns],
        1,
    )


def slide_by_loops(image: Array, window: tuple[int, int], stride: tuple[int, int]) -> Array:
    """Each pixel's mean over the windows that hold it."""
    _, _, height, width = image.shape
    image = np.pad(
        image, ((0, 0), (0, 0), (0, max(0, window[0] - height)), (0, max(0, window[1] - width))), constant_values=0.5
    )
    corners = []
    for length, size, step in zip(image.shape[2:], window, stride, strict=True):
        starts = [0]
        while starts[-1] + size < length:
            starts.append(min(starts[-1] + step, length - size))
        corners.append(starts)
    inside = {
        (top, left): positional(image[:, :, top : top + window[0], left : left + window[1]])
        for top, left in product(*corners)
    }
    result = np.zeros((len(image), 3, height, width))
    for y, x in np.ndindex(height, width):
        values = [
            logits[:, :, y - top, x - left]
            for (top, left), logits in inside.items()
            if top <= y < top + window[0] and left <= x < left + window[1]
        ]
        result[:, :, y, x] = np.mean(values, 0)
    return result


def resize_by_formula(pixels: Array, size: tuple[int, int]) -> Array:
    """Linear interpolation whose triangle widens where the picture gets smaller."""
    for axis, length in zip((2, 3), size, strict=True):
        ratio = pixels.shape[axis] / length
        centres = (np.arange(length)[:, None] + 0.5) * ratio
        weights = np.maximum(0, 1 - np.abs(np.arange(pixels.shape[axis]) + 0.5 - centres) / max(ratio, 1))
        weights /= weights.sum(1, keepdims=True)
        pixels = np.moveaxis(np.tensordot(weights, pixels, (1, axis)), 0, axis)
    return pixels


@pytest.mark.parametrize("size", [(1, 1), (1, 20), (9, 2), (7, 5), (9, 6), (10, 7), (15, 6), (16, 23), (31, 13)])
@pytest.mark.parametrize(("overlap", "stride"), [(0.0, (9, 6)), (1 / 3, (6, 4)), (0.5, (4, 3)), (0.99, (1, 1))])
def test_windows(size: tuple[int, int], overlap: float, stride: tuple[int, int]) -> None:
    image = torch.rand(2, 3, *size, dtype=torch.float64)
    network = Positional()
    logits = predict_logits(network, image, InferenceSettings((9, 6), overlap))
    expected = slide_by_loops(image.numpy(), (9, 6), stride)
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-12, atol=1e-12)
    assert set(network.seen) == {(2, 3, 9, 6)}


def test_no_more_windows_than_needed() -> None:
    for length, count in ((9, 1), (10, 2), (15, 2), (16, 3), (21, 3), (22, 4)):
        network = Positional()
        predict_logits(network, torch.rand(1, 3, length, 6), InferenceSettings((9, 6)))
        assert len(network.seen) == count


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (30, 41)])
def test_a_network_that_sees_single_pixels_gives_the_same_in_windows(size: tuple[int, int]) -> None:
    network = nn.Conv2d(3, 4, 1).eval()
    image = torch.rand(2, 3, *size)
    expected = network(image).detach()
    for settings in (InferenceSettings(), InferenceSettings((8, 9)), InferenceSettings((8, 9), 0.7, flip=True)):
        torch.testing.assert_close(predict_logits(network, image, settings), expected)


def test_mirroring_a_symmetric_network_changes_nothing_and_an_asymmetric_one_is_averaged() -> None:
    convolution = nn.Conv2d(3, 4, 3, padding=1).eval()
    image = torch.rand(1, 3, 11, 14)
    with torch.no_grad():
        plain, mirrored = convolution(image), convolution(image.flip(-1)).flip(-1)
        averaged = predict_logits(convolution, image, InferenceSettings(flip=True))
        torch.testing.assert_close(averaged, (plain + mirrored) / 2)
        assert not torch.allclose(averaged, plain, atol=1e-3)
        convolution.weight.copy_((convolution.weight + convolution.weight.flip(-1)) / 2)
        torch.testing.assert_close(predict_logits(convolution, image, InferenceSettings(flip=True)), convolution(image))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (13, 10), (24, 17)])
def test_scales_and_mirroring_and_windows(size: tuple[int, int]) -> None:
    image = torch.rand(2, 3, *size, dtype=torch.float64)
    scales = (0.3, 1.0, 1.7)
    logits = predict_logits(Positional(), image, InferenceSettings((9, 6), scales=scales, flip=True))
    views = []
    for scale in scales:
        scaled = resize_by_formula(image.numpy(), (max(1, round(size[0] * scale)), max(1, round(size[1] * scale))))
        views.append(resize_by_formula(slide_by_loops(scaled, (9, 6), (6, 4)), size))
        mirrored = slide_by_loops(scaled[..., ::-1], (9, 6), (6, 4))[..., ::-1]
        views.append(resize_by_formula(mirrored, size))
    np.testing.assert_allclose(logits.numpy(), np.mean(views, 0), rtol=1e-9, atol=1e-9)


def test_logits_of_lower_resolution_are_interpolated_to_the_window() -> None:
    def coarse(image: Tensor) -> Tensor:
        return image[..., ::2, ::2]

    image = torch.rand(1, 3, 12, 10, dtype=torch.float64)
    logits = predict_logits(coarse, image)
    expected = resize_by_formula(image[..., ::2, ::2].numpy(), (12, 10))
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-12)


def test_a_network_of_ours_pads_windows_to_its_stride() -> None:
    network = create_model(encoder="tu-test_resnet", num_classes=5)
    image = torch.rand(1, 3, 33, 50)
    logits = predict_logits(network, image, InferenceSettings((33, 30), 1 / 3))
    assert not logits.requires_grad
    torch.testing.assert_close(logits[..., :20], network.predict(image[..., :30])[..., :20])
    torch.testing.assert_close(logits[..., 30:], network.predict(image[..., 20:])[..., 10:])
    torch.testing.assert_close(predict_logits(network, image), network.predict(image))


def test_half_precision_is_summed_in_single_and_the_networks_output_left_alone() -> None:
    output = torch.rand(1, 2, 4, 4)
    kept = output.clone()
    settings = InferenceSettings((4, 4), 0.75, scales=(1.0, 2.0), flip=True)
    logits = predict_logits(lambda image: output, torch.rand(1, 3, 4, 4), settings)
    assert logits.dtype == torch.float32
    assert torch.equal(output, kept)
    # 2 500 windows hold a pixel, more than half precision counts; a sum of them in it would be off, too.
    constant = torch.rand(1, 2, 50, 50).bfloat16()
    image = torch.rand(1, 3, 120, 120).bfloat16()
    logits = predict_logits(
        lambda image: constant[..., :1, :1].expand_as(constant), image, InferenceSettings((50, 50), 0.99)
    )
    torch.testing.assert_close(logits, constant[..., :1, :1].float().expand_as(logits))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"window": (0, 4)}, "window is"),
        ({"overlap": 1.0}, "overlap is 1.0"),
        ({"overlap": -0.1}, "overlap is -0.1"),
        ({"overlap": float("nan")}, "overlap is nan"),
        ({"scales": ()}, "scales are"),
        ({"scales": (1.0, 0.0)}, "scales are"),
        ({"scales": (float("inf"),)}, "scales are"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        InferenceSettings(**settings)


def test_what_does_not_fit_is_refused() -> None:
    for image in (torch.rand(3, 4, 4), torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.rand(1, 3, 0, 4)):
        with pytest.raises(InputError, match=r"image is torch\.\w+ \(.*expected floats"):
            predict_logits(nn.Identity().eval(), image)
    with pytest.raises(InputError, match=r"training mode.*eval"):
        predict_logits(nn.Conv2d(3, 2, 1), torch.rand(1, 3, 4, 4))
    with pytest.raises(InputError, match=r"network returned \(3, 4, 4\)"):
        predict_logits(lambda image: image[0], torch.rand(1, 3, 4, 4))
