"""Photographs as RandAugment meets them."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

SIDE = 112


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
