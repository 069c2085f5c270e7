"""Batches that threads fill, in reused memory."""

from typing import Any

import grain
import numpy as np

from pit_jax.data.batching import Batches, Field


def rows(index: int) -> dict[str, Any]:
    """Row `index`: arrays whose sizes and values follow from the index."""
    height, width = 1 + index % 3, 1 + index % 2
    return {"image": np.full((height, width, 3), index, np.uint8), "label": np.int32(index)}


FIELDS = {"image": Field((3, 2, 3), np.uint8), "label": Field((), np.int32)}


def check(found: np.ndarray, first: int) -> None:
    """Checks that images are those of the rows from `first` on, each in its corner."""
    for index, image in enumerate(found, first):
        value = rows(index)["image"]
        np.testing.assert_array_equal(image[: value.shape[0], : value.shape[1]], value)


def test_rows_lie_in_corners() -> None:
    batches = Batches(grain.MapDataset.range(1, 240).map(rows), rows=8, fields=FIELDS, threads=3)
    for index in range(len(batches)):
        batch = batches[index]
        assert batch["image"].shape == (8, 3, 2, 3)
        check(batch["image"], 1 + 8 * index)
        np.testing.assert_array_equal(batch["label"], np.arange(1 + 8 * index, 9 + 8 * index))


def test_what_is_held_is_not_written_to() -> None:
    batches = Batches(grain.MapDataset.range(1, 240).map(rows), rows=8, fields=FIELDS, threads=2)
    held = [batches[index]["image"] for index in range(4)]
    views = [batches[index]["image"][3:5] for index in range(4, 8)]
    for index in range(8, 24):
        batches[index]
    for index, image in enumerate(held):
        check(image, 1 + 8 * index)
    for index, view in enumerate(views, 4):
        check(view, 4 + 8 * index)
