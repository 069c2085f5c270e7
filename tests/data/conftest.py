"""Real photographs in awkward shapes; torchvision beside a CPU build of torch."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

# (width, height) of cuts from 640x427 photographs: whole, square, odd, wide, tall, tiny.
SHAPES = [(640, 427), (427, 427), (333, 427), (301, 257), (601, 40), (31, 400), (97, 1), (3, 5)]


def _define_missing_operators() -> None:
    """torchvision refuses to import where its compiled operators were built for another torch,
    as the CUDA wheel is beside a CPU torch; the transforms need none of them.
    """
    package = importlib.util.find_spec("torchvision")
    if package is None or package.origin is None:
        return
    try:
        torch.ops.load_library(Path(package.origin).with_name("_C.so"))
    except OSError:
        for schema in ("nms(Tensor dets, Tensor scores, float iou_threshold)", "qnms(Tensor dets)"):
            name = schema.partition("(")[0]
            if not hasattr(torch.ops.torchvision, name):
                LIBRARY.define(f"{schema} -> Tensor")


LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
_define_missing_operators()


@pytest.fixture(scope="session")
def photographs() -> list[Image.Image]:
    """Two photographs, each cut to every shape of SHAPES."""
    images = []
    for pixels in load_sample_images().images:
        whole = Image.fromarray(pixels)
        for width, height in SHAPES:
            images.append(whole.crop((20, 10, 20 + width, 10 + height)) if width < 640 else whole)
    return images


@pytest.fixture(scope="session")
def china() -> Image.Image:
    return Image.fromarray(np.asarray(load_sample_images().images[0]))


@pytest.fixture(scope="session")
def augmented_photographs(china) -> list[Image.Image]:
    """A photograph as RandAugment meets it, a low-contrast one, and one nearly of one colour."""
    photograph = china.resize((96, 80), Image.Resampling.BICUBIC)
    pale = photograph.point(lambda level: 90 + level // 4)
    flat = Image.new("RGB", (31, 17), (200, 10, 60))
    flat.putpixel((3, 4), (1, 2, 3))
    return [photograph, pale, flat]
