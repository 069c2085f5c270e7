"""Synthetic images, `synthetic`: the whole path from file to step, without any data set."""

import io

import numpy as np
from PIL import Image

from pit_jax.data.source import Example, Source


class SyntheticImages:
    """Random JPEG images of 256 x 256 pixels with random labels, fixed by their index."""

    num_classes = 1000
    size = (256, 256)

    def __init__(self, examples: int = 1280):
        self._examples = examples

    def __len__(self) -> int:
        return self._examples

    def __getitem__(self, index: int) -> Example:
        rng = np.random.default_rng(index)
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize(self.size, Image.Resampling.BICUBIC).save(file, "JPEG")
        return {"image": file.getvalue(), "label": int(rng.integers(self.num_classes))}


def open_synthetic(name: str, split: str, data_dir: str | None = None) -> Source:
    """Opens the synthetic images, the same 1,280 for every split; `data_dir` has no effect."""
    del data_dir
    return Source(f"{name}/{split}", SyntheticImages(), SyntheticImages.num_classes)
