"""A few small images in CamVid's layout, drawn for the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COUNTS = {"train": 5, "val": 2, "test": 2}


def draw_camvid(root: Path, size: tuple[int, int] = (48, 64)) -> Path:
    """Write images of coloured blocks whose label follows from the colour; the last rows are unlabelled."""
    rng = np.random.default_rng(0)
    for split, count in COUNTS.items():
        ids = [f"{split}_{number}" for number in range(count)]
        for folder in ("images", "annotations"):
            (root / folder / split).mkdir(parents=True)
        for name in ids:
            label = rng.integers(0, 11, (size[0] // 16, size[1] // 16)).repeat(16, 0).repeat(16, 1).astype(np.uint8)
            image = np.stack([label * 20, 255 - label * 20, label * 10], -1).astype(np.uint8)
            label[-4:] = 11
            Image.fromarray(image).save(root / "images" / split / f"{name}.jpg", quality=95)
            Image.fromarray(label).save(root / "annotations" / split / f"{name}.png")
        (root / f"{split}.txt").write_text("\n".join(ids) + "\n")
    return root
