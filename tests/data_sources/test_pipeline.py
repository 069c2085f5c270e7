"""Order, state and shares of the input pipeline."""

import itertools
from typing import Any

import numpy as np
import pytest

from pit_jax.data import images, pipeline, sources

BATCH = 32


@pytest.fixture(scope="module")
def source() -> sources.Source:
    return sources.open_source("digits", "train[:100]")


def training(source: sources.Source, **options: Any):
    arguments = {
        "image_size": (12, 10),
        "batch_size": BATCH,
        "seed": 3,
        "crop_scale": (0.5, 1.0),
        "crop_ratio": (0.75, 4 / 3),
    }
    return pipeline.train_batches(source, **{**arguments, **options})


def take(batches: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    rows = list(itertools.islice(batches, count))
    return tuple(np.concatenate([row[name] for row in rows]) for name in ("image", "label"))


def test_every_example_once_an_epoch_in_a_new_order(source: sources.Source):
    # A crop of the whole image, so that examples can be told apart by their pixels.
    whole = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "image_size": (8, 8)}
    found, labels = take(training(source, **whole), 8)
    assert found.shape == (256, 8, 8, 3)
    assert (found.dtype, labels.dtype) == (np.uint8, np.int32)
    stored = [images.decode_rgb(source.examples[i]["image"]) for i in range(100)]
    expected = sorted(np.asarray(picture).tobytes() for picture in stored)
    epochs = [[image.tobytes() for image in found[start : start + 100]] for start in (0, 100)]
    assert sorted(epochs[0]) == expected
    assert sorted(epochs[1]) == expected
    assert epochs[0] != epochs[1]


def test_crops_differ_between_epochs_and_seeds(source: sources.Source):
    found, _ = take(training(source), 8)
    again, _ = take(training(source), 8)
    other, _ = take(training(source, seed=4), 8)
    np.testing.assert_array_equal(found, again)
    assert not np.array_equal(found, other)
    distinct = {image.tobytes() for image in found}
    assert len(distinct) > 250


@pytest.mark.parametrize("processes", [2, 4])
def test_the_global_batch_does_not_depend_on_the_processes(source: sources.Source, processes: int):
    whole = list(itertools.islice(training(source), 5))
    shares = [
        list(
            itertools.islice(
                training(source, reading=pipeline.Reading(process=p, processes=processes)), 5
            )
        )
        for p in range(processes)
    ]
    for index, batch in enumerate(whole):
        for name in ("image", "label"):
            joined = np.concatenate([share[index][name] for share in shares])
            np.testing.assert_array_equal(joined, batch[name])


@pytest.mark.parametrize("first", [1, 5])
def test_starting_at_a_later_batch_continues_bit_identically(source: sources.Source, first: int):
    uninterrupted, labels = take(training(source), 9)
    resumed, resumed_labels = take(training(source, first_batch=first), 9 - first)
    np.testing.assert_array_equal(resumed, uninterrupted[first * BATCH :])
    np.testing.assert_array_equal(resumed_labels, labels[first * BATCH :])


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("batch", [8, 100, 128])
def test_evaluation_counts_every_example_once(source: sources.Source, batch: int, processes: int):
    shares = [
        list(
            pipeline.eval_batches(
                source,
                image_size=(8, 8),
                batch_size=batch,
                protocol="resize",
                reading=pipeline.Reading(process=p, processes=processes),
            )
        )
        for p in range(processes)
    ]
    assert len({len(share) for share in shares}) == 1
    rows = [
        (image, label)
        for batches in zip(*shares, strict=True)
        for rows in batches
        for image, label in zip(rows["image"], rows["label"], strict=True)
    ]
    real = [(image, label) for image, label in rows if label != pipeline.PADDING_LABEL]
    assert [label for _, label in real] == [source.examples[i]["label"] for i in range(100)]
    for index, (image, _) in enumerate(real):
        stored = images.decode_rgb(source.examples[index]["image"])
        np.testing.assert_array_equal(image, np.asarray(stored))
