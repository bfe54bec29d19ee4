"""A few small images with the masks of three annotators, in BU-BIL's layout, drawn for the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

ANNOTATORS = ("Ann", "Bob", "Cy")
CLASSES = ["ground", "cell", "rim"]
COUNTS = {"train": 7, "test": 3}


def draw_raters(root: Path) -> Path:
    """Write grey images of different sizes and masks of random blocks; the lists have Windows line ends."""
    rng = np.random.default_rng(0)
    for folder in ("images", *(f"masks/{annotator}" for annotator in ANNOTATORS)):
        (root / folder).mkdir(parents=True)
    for split, count in COUNTS.items():
        ids = [f"{split} {number}" for number in range(count)]
        (root / f"{split}.txt").write_bytes("\r\n".join([*ids, "", ""]).encode())
        for number, name in enumerate(ids):
            height, width = 20 + 3 * number, 31 - 2 * number
            grey = rng.integers(0, 256, (height, width)).astype(np.uint8)
            Image.fromarray(grey).save(root / "images" / f"{name}.png")
            for annotator in ANNOTATORS:
                blocks = rng.integers(0, 3, (height // 4 + 1, width // 4 + 1)).astype(np.uint8)
                mask = blocks.repeat(4, 0).repeat(4, 1)[:height, :width]
                Image.fromarray(mask).save(root / "masks" / annotator / f"{name}.png")
    return root
