"""The resize on the device against PIL."""

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from pit_jax.augment import resize
from pit_jax.data.images import crop_and_resize, random_crop_box
from pit_jax.data.jpeg import cut

CANVAS = (300, 340)


def differences(pictures, boxes, size, run, canvas_size=CANVAS) -> np.ndarray:
    """(images, H, W, 3) grey levels from PIL."""
    crops = [
        cut(picture, box, canvas_size, size) for picture, box in zip(pictures, boxes, strict=True)
    ]
    # Pixels around a crop belong to another image and must not show.
    canvases = np.random.default_rng(0).integers(0, 256, (len(crops), *canvas_size, 3), np.uint8)
    for canvas, crop in zip(canvases, crops, strict=True):
        canvas[: crop.extent[0], : crop.extent[1]] = crop.pixels
    extents = np.array([crop.extent for crop in crops], np.int32)
    rows_first = np.array([crop.rows_first for crop in crops])
    found = np.asarray(run(canvases, extents, rows_first, size))
    expected = [
        crop_and_resize(Image.fromarray(picture), box, size)
        for picture, box in zip(pictures, boxes, strict=True)
    ]
    assert found.dtype == np.uint8
    return np.abs(found.astype(np.int32) - np.stack(expected))


def compiled(product):
    """Returns `resize.resize` with one of the two products, on any platform."""

    def run(canvases, extents, rows_first, size):
        # A new function each time: jit would reuse the program of the other product.
        def resized(*arguments):
            return resize.resize(*arguments, size)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(resize, "_product", product)
            return jax.jit(resized)(canvases, extents, rows_first)

    return run


PRODUCTS = [resize.float32_product, resize.split_product]


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("size", [(96, 96), (48, 80)])
class TestAgainstPIL:
    def test_random_crops_of_photographs(self, whole_photographs, product, size):
        rng = np.random.default_rng(0)
        pictures = [whole_photographs[i % 2] for i in range(24)]
        boxes = [random_crop_box(330, 290, rng) for _ in pictures]
        found = differences(pictures, boxes, size, compiled(product))
        assert found.max() <= 1
        assert (found == 0).mean() >= 0.9999

    def test_extreme_crops_of_noise(self, product, size):
        """Black and white only, where the filter overshoots at every pixel and the order of the
        two passes shows: narrow, flat, tiny, enlarged, shrunk, twice the size, the size itself.
        """
        rng = np.random.default_rng(0)
        noise = rng.integers(0, 2, (300, 340, 3), dtype=np.uint8) * 255
        extents = [(1, 1), (2, 340), (300, 3), (17, 19), (300, 340), (192, 192), size, (299, 150)]
        extents += [tuple(rng.integers(1, 300, 2)) for _ in range(8)]
        boxes = [(0, 0, int(width), int(height)) for height, width in extents]
        found = differences([noise] * len(boxes), boxes, size, compiled(product))
        assert found.max() <= 1
        assert (found == 0).mean() >= 0.999


@pytest.mark.parametrize("product", PRODUCTS)
def test_the_recipes_size(product):
    """224 x 224 from canvases of 512 x 512: a large crop, one to enlarge, and a tall one, of which
    PIL resizes the height first.
    """
    picture = load_sample_images().images[0][:, 64:576]
    rng = np.random.default_rng(0)
    boxes = [
        random_crop_box(512, 427, rng, scale=(0.8, 1.0)),
        random_crop_box(512, 427, rng, scale=(0.08, 0.15)),
        random_crop_box(512, 427, rng, scale=(0.55, 0.6), ratio=(0.75, 0.76)),
    ]
    found = differences([picture] * 3, boxes, (224, 224), compiled(product), (512, 512))
    assert found.max() <= 1
    assert (found == 0).mean() >= 0.9999


class TestWhole:
    def test_what_pil_resized_stays(self, whole_photographs):
        """A crop too large for the canvas."""
        wide = np.concatenate([whole_photographs[0]] * 2, axis=1)
        found = differences(
            [wide], [(3, 5, 600, 280)], (96, 96), jax.jit(resize.resize, static_argnums=3)
        )
        assert found.max() == 0

    @pytest.mark.parametrize(("length", "wanted"), [(500, 224), (97, 224), (224, 224), (3, 40)])
    def test_weights(self, length, wanted):
        """PIL's own, from an image of one bright pixel at a time."""
        first, taps = resize.pillow_weights(length, wanted)
        bright = np.eye(length, dtype=np.uint8) * 255
        expected = Image.fromarray(bright).resize((wanted, length), Image.Resampling.BICUBIC)
        dense = np.zeros((length + taps.shape[1], wanted))
        for tap in range(taps.shape[1]):
            dense[first + tap, np.arange(wanted)] += taps[:, tap]
        levels = np.clip(np.floor(dense[:length] * 255 + 0.5), 0, 255)
        np.testing.assert_array_equal(levels, np.asarray(expected))
        np.testing.assert_allclose(taps.sum(1), 1, atol=1e-5)
