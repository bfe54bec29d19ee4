"""Drawn scenes with several simulated annotators, whose true soft label is known at every pixel.

Every shape has a distance map d(x): about how many pixels x lies inside (positive) or outside (negative) its outline.
An annotator shifts the whole outline outwards by an offset of their own, normal with the class's bias and spread, so

    P(shape covers x) = P(d(x) + offset > 0) = Phi((d(x) + bias) / spread).

Offsets are independent between shapes and between annotators. Shapes hide those drawn before them, so a pixel belongs
to class c with the exact probability

    P(class c at x) = sum over shapes k of class c of  P_k(x) * product over the shapes j above k of (1 - P_j(x)),

and to the background where no shape covers it. The annotators' masks are samples of this same model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Kind:
    """What the shapes of one class look like, and how annotators outline them; lengths are in short sides."""

    name: str
    colour: tuple[float, float, float]
    radius: tuple[float, float]
    fade: float
    """Width over which the painted shape blends into what is below it."""
    bias: float
    """Mean offset of the annotators' outlines; positive is generous."""
    spread: float
    """Standard deviation of the annotators' outlines."""


# Bodies with crisp outlines, one class that annotators draw too large, and one that nobody can outline well.
_KINDS = (
    _Kind("disc", (0.70, 0.45, 0.35), (0.10, 0.19), fade=0.006, bias=0.0, spread=0.008),
    _Kind("leaf", (0.40, 0.60, 0.35), (0.14, 0.24), fade=0.006, bias=0.012, spread=0.018),
    _Kind("crate", (0.60, 0.50, 0.35), (0.10, 0.18), fade=0.006, bias=-0.005, spread=0.010),
    _Kind("cloud", (0.65, 0.65, 0.70), (0.16, 0.27), fade=0.045, bias=-0.020, spread=0.050),
)
_SHAPES_PER_SCENE = (4, 8)
_VOID_RADIUS = (0.03, 0.07)


class _Shape(NamedTuple):
    kind: int
    distance: Array  # (H, W), pixels, inside positive
    paint: Array  # (3, H, W)


class SyntheticScenes(Dataset[dict[str, Tensor]]):
    """Textured shapes outlined by annotators who disagree, with the true distribution of their labels.

    Each item is a function of `(seed, index)` alone and holds plain tensors:

    - `image`: float32 (3, H, W) in [0, 1]
    - `votes`: uint8 (R, H, W), the annotators' masks, `ignore_index` where nobody labelled
    - `label`: int64 (H, W), the most probable class, `ignore_index` where nobody labelled
    - `soft_label`: float32 (C, H, W), the true distribution over classes (known where nobody labelled, too)

    Args:
        length: Number of scenes.
        size: Height and width in pixels, or one number for both; the scene scales with the shorter side.
        raters: Number of annotators. The scene, and the masks of the first annotators, do not depend on it.
        seed: Scenes of different seeds have nothing in common.
        void: Whether each scene has a small disc that no annotator labelled.

    Raises:
        ValueError: If `length`, `size` or `raters` is too small, or `seed` is negative.

    Example:
        >>> scenes = SyntheticScenes(length=2, size=(48, 64), raters=3)
        >>> {name: tuple(tensor.shape) for name, tensor in scenes[0].items()}
        {'image': (3, 48, 64), 'votes': (3, 48, 64), 'label': (48, 64), 'soft_label': (5, 48, 64)}
        >>> scenes.classes
        ('background', 'disc', 'leaf', 'crate', 'cloud')
    """

    classes: tuple[str, ...] = ("background", *(kind.name for kind in _KINDS))
    num_classes: int = len(classes)
    ignore_index: int = 255

    def __init__(
        self, length: int = 512, size: int | tuple[int, int] = 96, *, raters: int = 5, seed: int = 0, void: bool = True
    ) -> None:
        """See the class."""
        height, width = (size, size) if isinstance(size, int) else size
        least = {"length": (length, 0), "size": (min(height, width), 8), "raters": (raters, 1), "seed": (seed, 0)}
        for name, (value, minimum) in least.items():
            if value < minimum:
                raise ValueError(f"{name}: expected at least {minimum}, got {value}")
        self.length, self.size, self.raters, self.seed, self.void = length, (height, width), raters, seed, void

    def __len__(self) -> int:
        """Return the number of scenes."""
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Draw one scene; indices count as in a list."""
        index = range(self.length)[index]
        scene, camera, raters = (
            np.random.default_rng(stream) for stream in np.random.SeedSequence([self.seed, index]).spawn(3)
        )
        shapes = _draw_shapes(scene, self.size)
        void = _draw_void(scene, self.size) if self.void else np.zeros(self.size, dtype=bool)
        soft_label = _true_distribution(shapes, self.size)
        label = soft_label.argmax(0)
        votes = _annotate(raters, shapes, self.size, self.raters)
        label[void], votes[:, void] = self.ignore_index, self.ignore_index
        return {
            "image": torch.from_numpy(_photograph(camera, shapes, self.size)),
            "votes": torch.from_numpy(votes),
            "label": torch.from_numpy(label),
            "soft_label": torch.from_numpy(soft_label.astype(np.float32)),
        }


def _true_distribution(shapes: list[_Shape], size: tuple[int, int]) -> Array:
    """Return P(class) at every pixel, (C, H, W), from the formulas at the top of this module."""
    distribution = np.zeros((len(_KINDS) + 1, *size))
    distribution[0] = 1.0
    for shape in shapes:
        kind = _KINDS[shape.kind]
        z = (shape.distance / min(size) + kind.bias) / kind.spread
        covered = torch.special.ndtr(torch.from_numpy(z)).numpy()
        distribution *= 1.0 - covered
        distribution[shape.kind + 1] += covered
    return distribution


def _annotate(rng: np.random.Generator, shapes: list[_Shape], size: tuple[int, int], raters: int) -> NDArray[np.uint8]:
    """Sample every annotator's mask, (R, H, W)."""
    votes = np.zeros((raters, *size), dtype=np.uint8)
    for vote, normals in zip(votes, rng.standard_normal((raters, len(shapes))), strict=True):
        for shape, normal in zip(shapes, normals, strict=True):
            kind = _KINDS[shape.kind]
            vote[shape.distance + (kind.bias + kind.spread * normal) * min(size) > 0] = shape.kind + 1
    return votes


def _draw_shapes(rng: np.random.Generator, size: tuple[int, int]) -> list[_Shape]:
    """Place a few shapes, the lowest first."""
    return [_draw_shape(rng, size) for _ in range(rng.integers(*_SHAPES_PER_SCENE))]


def _draw_shape(rng: np.random.Generator, size: tuple[int, int]) -> _Shape:
    """Return one shape of a random kind, place, size, direction and colour."""
    number = int(rng.integers(len(_KINDS)))
    kind, unit = _KINDS[number], min(size)
    radius = rng.uniform(*kind.radius) * unit
    u, v = _coordinates(rng, size)
    if kind.name == "disc":
        distance = radius - np.hypot(u, v)
        shade = 0.45 + 0.55 * np.clip(1 - ((u - 0.35 * radius) ** 2 + (v - 0.35 * radius) ** 2) / (2 * radius**2), 0, 1)
    elif kind.name == "leaf":
        distance = _inside_ellipse(u, v, radius, rng.uniform(0.45, 0.65) * radius)
        shade = 0.75 + 0.25 * np.sin(u * 2 * math.pi / (rng.uniform(0.05, 0.08) * unit))
    elif kind.name == "crate":
        distance = _inside_box(u, v, radius, rng.uniform(0.5, 1.0) * radius)
        period = rng.uniform(0.09, 0.14) * unit
        shade = 0.75 + 0.25 * np.sign(np.sin(u * 2 * math.pi / period) * np.sin(v * 2 * math.pi / period))
    else:
        distance = _inside_blob(rng, u, v, radius)
        shade = 0.7 + 0.6 * _value_noise(rng, size, cells=14)
    colour = np.clip(np.asarray(kind.colour) + rng.normal(0, 0.12, 3), 0.1, 1.0)
    return _Shape(number, distance, colour[:, None, None] * shade)


def _coordinates(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Array, Array]:
    """Return pixel coordinates around a random centre, turned by a random angle."""
    height, width = size
    row, column = rng.uniform(0.08, 0.92) * height, rng.uniform(0.08, 0.92) * width
    y, x = np.mgrid[:height, :width] + 0.5
    angle = rng.uniform(0, 2 * math.pi)
    cosine, sine = math.cos(angle), math.sin(angle)
    return cosine * (x - column) + sine * (y - row), cosine * (y - row) - sine * (x - column)


def _inside_ellipse(u: Array, v: Array, a: float, b: float) -> Array:
    """First-order distance to an ellipse's outline: the implicit function over the length of its gradient."""
    value = np.hypot(u / a, v / b)
    gradient = np.hypot(u / a**2, v / b**2)
    # At the centre both vanish; their ratio there tends to at most the shorter half axis.
    return (1 - value) * np.divide(value, gradient, out=np.full_like(u, min(a, b)), where=gradient > 0)


def _inside_box(u: Array, v: Array, a: float, b: float) -> Array:
    """Distance to the outline of a rectangle with half sides a and b."""
    beyond_u, beyond_v = np.abs(u) - a, np.abs(v) - b
    outside = np.hypot(np.maximum(beyond_u, 0), np.maximum(beyond_v, 0))
    return -(outside + np.minimum(np.maximum(beyond_u, beyond_v), 0))


def _inside_blob(rng: np.random.Generator, u: Array, v: Array, radius: float) -> Array:
    """Radial distance to a wavy circle."""
    direction = np.arctan2(v, u)
    wave = sum(
        rng.uniform(0.04, 0.14) * np.cos(harmonic * direction + rng.uniform(0, 2 * math.pi)) for harmonic in (2, 3, 5)
    )
    return radius * (1 + wave) - np.hypot(u, v)


def _draw_void(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the disc that nobody labels."""
    u, v = _coordinates(rng, size)
    return np.hypot(u, v) < rng.uniform(*_VOID_RADIUS) * min(size)


def _photograph(rng: np.random.Generator, shapes: list[_Shape], size: tuple[int, int]) -> NDArray[np.float32]:
    """Paint ground and shapes, add uneven light and noise."""
    ground = np.clip(rng.uniform(0.3, 0.7) + rng.normal(0, 0.08, 3), 0.1, 0.9)[:, None, None]
    image = ground * (0.7 + 0.4 * _value_noise(rng, size, cells=5) + 0.25 * _value_noise(rng, size, cells=24))
    for shape in shapes:
        opacity = 1 / (1 + np.exp(-np.clip(shape.distance / (0.5 * _KINDS[shape.kind].fade * min(size)), -50, 50)))
        image = image * (1 - opacity) + shape.paint * opacity
    light = 0.75 + 0.5 * _value_noise(rng, size, cells=2)
    return np.clip(image * light + rng.normal(0, 0.05, image.shape), 0, 1).astype(np.float32)


def _value_noise(rng: np.random.Generator, size: tuple[int, int], cells: int) -> Array:
    """Smooth noise in [0, 1], (H, W), with about `cells` bumps along each side."""
    grid = torch.from_numpy(rng.uniform(0, 1, (1, 1, cells + 1, cells + 1)))
    noise: Tensor = torch.nn.functional.interpolate(grid, size=size, mode="bilinear", align_corners=True)
    return cast(Array, noise[0, 0].numpy())
