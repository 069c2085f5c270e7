"""Photographs for the tests of RandAugment."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

SIDE = 88


@pytest.fixture(scope="session")
def photographs() -> np.ndarray:
    """uint8 (4, SIDE, SIDE, 3): two photographs, a pale one, and one of all but one colour."""
    first, second = (
        np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        for pixels in load_sample_images().images
    )
    flat = np.full_like(first, (200, 10, 60))
    flat[3, 4] = (1, 2, 3)
    return np.stack([first, second, 90 + first // 4, flat])


@pytest.fixture(scope="session")
def whole_photographs() -> list[np.ndarray]:
    """uint8 (290, 330, 3), cut out of two photographs at their full resolution."""
    return [np.ascontiguousarray(pixels[60:350, 100:430]) for pixels in load_sample_images().images]
