"""The input pipeline: order, resumption, shares of processes."""

import copy
import dataclasses
import io
import itertools
import os
import threading
import time
from typing import Any

import grain
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from pit_jax.augment import policy
from pit_jax.data import images, loading, pipeline, randaugment_host, sources
from pit_jax.data.source import Example, Source
from pit_jax.tasks.classification import input

BATCH = 32
POLICY = policy.parse("rand-m9-mstd0.5-inc1")
# Five batches of 32 are more than an epoch of 100 views, and neither is a multiple of three.
REPEATED = {"repeats": 3, "policy": POLICY, "flip_probability": 0.5}
CANVASES = {"repeats": 3, "canvas": (16, 13)}
VIEWS = {field.name for field in dataclasses.fields(input.Views)}


@pytest.fixture(scope="module")
def source() -> Source:
    return sources.open_source("digits", "train[:100]")


def training(source: Source, **options: Any):
    drawn = {"size": (12, 10), "scale": (0.5, 1.0)}
    drawn |= {key: options.pop(key) for key in list(options) if key in VIEWS}
    arguments = {"batch_size": BATCH, "seed": 3} | options
    return input.train_batches(source, input.Views(**drawn), **arguments)


def take(batches: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    rows = list(itertools.islice(batches, count))
    return tuple(np.concatenate([row[name] for row in rows]) for name in ("image", "label"))


def seen(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A batch whose canvases are blackened around the crops; that memory is uninitialised."""
    if "extent" not in batch:
        return batch
    images = np.zeros_like(batch["image"])
    for index, (height, width) in enumerate(batch["extent"]):
        images[index, :height, :width] = batch["image"][index, :height, :width]
    return batch | {"image": images}


def test_every_example_once_an_epoch_in_a_new_order(source: Source):
    # Crops of the whole image, so that pixels identify examples.
    whole = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "size": (8, 8)}
    found, labels = take(training(source, **whole), 8)
    assert found.shape == (256, 8, 8, 3)
    assert (found.dtype, labels.dtype) == (np.uint8, np.int32)
    stored = [images.decode_rgb(source.examples[i]["image"]) for i in range(100)]
    expected = sorted(np.asarray(picture).tobytes() for picture in stored)
    epochs = [[image.tobytes() for image in found[start : start + 100]] for start in (0, 100)]
    assert sorted(epochs[0]) == expected
    assert sorted(epochs[1]) == expected
    assert epochs[0] != epochs[1]


def test_crops_differ_between_epochs_and_seeds(source: Source):
    found, _ = take(training(source), 8)
    again, _ = take(training(source), 8)
    other, _ = take(training(source, seed=4), 8)
    np.testing.assert_array_equal(found, again)
    assert not np.array_equal(found, other)
    distinct = {image.tobytes() for image in found}
    assert len(distinct) > 250


@pytest.mark.parametrize("drawn", [{}, REPEATED, CANVASES])
@pytest.mark.parametrize("processes", [2, 4])
def test_the_global_batch_does_not_depend_on_the_processes(
    source: Source, processes: int, drawn: dict[str, Any]
):
    def taken(process: int, of: int) -> list[dict[str, np.ndarray]]:
        reading = pipeline.Reading(process=process, processes=of)
        batches = training(source, reading=reading, **drawn)
        return [seen(batch) for batch in itertools.islice(batches, 5)]

    whole = taken(0, of=1)
    shares = [taken(process, of=processes) for process in range(processes)]
    for index, batch in enumerate(whole):
        for name in batch:
            joined = np.concatenate([share[index][name] for share in shares])
            np.testing.assert_array_equal(joined, batch[name])


@pytest.mark.parametrize("drawn", [{}, REPEATED, CANVASES])
@pytest.mark.parametrize("first", [1, 5])
def test_starting_at_a_later_batch_continues_bit_identically(
    source: Source, first: int, drawn: dict[str, Any]
):
    uninterrupted = map(seen, itertools.islice(training(source, **drawn), first, 9))
    resumed = map(seen, training(source, first_batch=first, **drawn))
    for batch, expected in zip(resumed, uninterrupted, strict=False):
        assert batch.keys() == expected.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], expected[name])


def test_a_crop_for_the_device_is_what_the_host_would_resize(source: Source):
    """The crop is in the corner of its canvas; PIL resizes it to the image that the host makes."""
    resized, labels = take(training(source), 3)
    whole = list(itertools.islice(training(source, canvas=(12, 16)), 3))
    crops, extents, again = (
        np.concatenate([batch[name] for batch in whole]) for name in ("image", "extent", "label")
    )
    np.testing.assert_array_equal(again, labels)
    assert crops.shape == (96, 12, 16, 3)
    assert len(np.unique(extents)) > 2
    for crop, (height, width), image in zip(crops, extents, resized, strict=True):
        np.testing.assert_array_equal(images.resize(crop[:height, :width], (12, 10)), image)


@pytest.mark.parametrize("threads", [1, 3, 16])
def test_batches_do_not_depend_on_the_threads(source: Source, threads: int):
    expected, labels = take(training(source, batch_size=50, **REPEATED), 4)
    reading = pipeline.Reading(threads=threads, prefetch=3)
    found, again = take(training(source, batch_size=50, reading=reading, **REPEATED), 4)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(again, labels)


class Recorder:
    """Examples that record their index and thread whenever one is read."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.asked: list[int] = []
        self.threads: set[str] = set()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        self.asked.append(index)
        self.threads.add(threading.current_thread().name)
        time.sleep(0.001)  # otherwise one thread could finish before the others start
        return self.source.examples[index]


@pytest.mark.parametrize("prefetch", [1, 3])
def test_batches_are_made_while_one_is_used(source: Source, prefetch: int):
    """Exactly `prefetch` batches are complete before they are asked for."""
    examples = Recorder(source)
    reading = pipeline.Reading(threads=2, prefetch=prefetch)
    batches = iter(training(Source("recorded", examples, 10), reading=reading))
    next(batches)
    expected = (1 + prefetch) * BATCH
    assert len(asked_for(examples, expected)) == expected
    assert threading.current_thread().name not in examples.threads


def asked_for(examples: Recorder, expected: int) -> list[int]:
    """Indices read so far, a while after `expected` of them have been."""
    end = time.monotonic() + 60
    while len(examples.asked) < expected and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.2)
    return list(examples.asked)


@pytest.mark.parametrize(("repeats", "expected"), [(1, 3 * BATCH), (3, BATCH)])
def test_a_late_start_asks_for_its_own_batches_only(source: Source, repeats: int, expected: int):
    """A million batches are exactly 320,000 epochs, so that these three begin one, in which no
    example comes twice.
    """
    examples = Recorder(source)
    recorded = Source("recorded", examples, 10)
    reading = pipeline.Reading(threads=2, prefetch=2)
    late = training(recorded, first_batch=1_000_000, repeats=repeats, reading=reading)
    batches = iter(late)
    first = next(batches)
    asked = asked_for(examples, expected)
    assert len(asked) == len(set(asked)) == expected
    stored = [source.examples[index]["label"] for index in asked for _ in range(repeats)]
    # Threads read in any order.
    shown = np.concatenate([first["label"], next(batches)["label"], next(batches)["label"]])
    assert sorted(shown) == sorted(stored)


def test_as_many_threads_as_cores(source: Source):
    for threads, expected in ((3, 3), (0, min(len(os.sched_getaffinity(0)), 64))):
        examples = Recorder(source)
        recorded = Source("recorded", examples, 10)
        next(iter(training(recorded, reading=pipeline.Reading(threads=threads, prefetch=1))))
        assert len(examples.threads) == expected


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("batch", [8, 100, 128])
def test_evaluation_counts_every_example_once(source: Source, batch: int, processes: int):
    shares = [
        list(
            input.eval_batches(
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
    real = [(image, label) for image, label in rows if label != input.PADDING_LABEL]
    assert [label for _, label in real] == [source.examples[i]["label"] for i in range(100)]
    for index, (image, _) in enumerate(real):
        stored = images.decode_rgb(source.examples[index]["image"])
        np.testing.assert_array_equal(image, np.asarray(stored))


@pytest.fixture(scope="module")
def photographs() -> Source:
    """Writes JPEG files of a wide, a tall and a grey photograph."""
    first, second = (Image.fromarray(pixels) for pixels in load_sample_images().images)
    examples = []
    for label, picture in enumerate([first, second.crop((150, 0, 451, 427)), first.convert("L")]):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=90)
        examples.append({"image": file.getvalue(), "label": label})
    return Source("photographs", examples, 3)


@pytest.mark.parametrize("size", [(96, 96), (64, 96)])
@pytest.mark.parametrize("protocol", ["deit", "timm"])
def test_evaluation_cuts_as_the_protocol_says(
    photographs: Source, protocol: str, size: tuple[int, int]
):
    batches = input.eval_batches(photographs, image_size=size, batch_size=2, protocol=protocol)
    found, labels = take(batches, 2)
    assert list(labels) == [0, 1, 2, input.PADDING_LABEL]
    for image, example in zip(found[:3], photographs.examples, strict=True):
        picture = Image.open(io.BytesIO(example["image"])).convert("RGB")
        np.testing.assert_array_equal(image, images.evaluation_crop(picture, size, protocol))
    assert not found[3].any()


WHOLE = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "size": (8, 8)}


def test_an_epoch_of_repeats_shows_a_third_of_the_images(source: Source):
    """An epoch of 100 views: 33 images three times in a row, one once; the next epoch others."""
    repeated, _ = take(training(source, repeats=3, batch_size=100, **WHOLE), 2)
    plain, _ = take(training(source, batch_size=100, **WHOLE), 2)
    positions = np.arange(100) // 3
    np.testing.assert_array_equal(repeated[:100], plain[positions])
    np.testing.assert_array_equal(repeated[100:], plain[100 + positions])
    assert len({image.tobytes() for image in repeated[:100]}) == 34


def test_views_of_an_image_differ(source: Source):
    found, labels = take(training(source, **REPEATED), 3)
    for start in range(0, 96, 3):
        assert len({image.tobytes() for image in found[start : start + 3]}) > 1
        assert len(set(labels[start : start + 3])) == 1


def test_an_image_is_decoded_once_for_its_views(source: Source):
    class Counting:
        def __init__(self) -> None:
            self.asked: list[int] = []

        def __len__(self) -> int:
            return 100

        def __getitem__(self, index: int) -> Example:
            self.asked.append(index)
            return source.examples[index]

    examples = Counting()
    counted = Source("counted", examples, 10)
    reading = pipeline.Reading(threads=4, prefetch=1)
    take(training(counted, repeats=4, reading=reading), 3)
    # 25 images of an epoch of 100 views; what is prefetched may start the next one.
    assert len(examples.asked[:25]) == len(set(examples.asked[:25]))
    assert len(examples.asked) <= 4 * BATCH // 4 + 1


def test_flip_comes_before_randaugment_in_timms_order(source: Source):
    plain, _ = take(training(source, **WHOLE), 1)
    flipped, _ = take(training(source, flip_probability=1.0, **WHOLE), 1)
    np.testing.assert_array_equal(flipped, plain[:, :, ::-1])
    shear = dataclasses.replace(POLICY, probability=1.0)
    both, _ = take(training(source, flip_probability=1.0, policy=shear, **WHOLE), 1)
    after = [
        np.asarray(randaugment_host.rand_augment(Image.fromarray(image), shear, rng))
        for image, rng in zip(flipped, generators(source), strict=True)
    ]
    np.testing.assert_array_equal(both, after)


def generators(source: Source) -> list[np.random.Generator]:
    """Generators of the first batch's rows, after crop and flip have drawn from them."""

    def draw(_: int, rng: np.random.Generator) -> np.random.Generator:
        images.random_crop_box(8, 8, rng, scale=(1.0, 1.0), ratio=(1.0, 1.0))
        rng.random()
        return copy.deepcopy(rng)

    order = grain.MapDataset.range(len(source)).seed(3).shuffle().repeat().random_map(draw)
    return [order[row] for row in range(BATCH)]


@pytest.fixture
def damaged(source: Source) -> Source:
    """A source whose examples 3, 4 and 99 are cut short; two of them are consecutive."""
    examples: list[Any] = [source.examples[index] for index in range(100)]
    for index in (3, 4, 99):
        examples[index] = {**examples[index], "image": examples[index]["image"][:40]}
    return Source("digits/damaged", examples, 10)


def test_a_bad_image_is_named(damaged: Source):
    message = r"digits/damaged, example \d+: expected the bytes of an image, found 40 bytes that"
    with pytest.raises(loading.BadImageError, match=message):
        take(training(damaged), 4)
    evaluation = input.eval_batches(damaged, image_size=(8, 8), batch_size=4, protocol="resize")
    with pytest.raises(loading.BadImageError, match="digits/damaged, example 3: expected"):
        list(evaluation)


@pytest.mark.parametrize("repeats", [1, 2])
def test_a_skipped_image_is_replaced_by_the_next(source: Source, damaged: Source, repeats: int):
    options = {"batch_size": 100, "repeats": repeats, **WHOLE}
    intact = next(iter(training(source, **options)))
    skipping = next(iter(training(damaged, bad_images="skip", **options)))
    assert set(intact["replaced"]) == {-1}
    stands_for = {3: 5, 4: 5, 99: 0}
    bad = skipping["replaced"] >= 0
    np.testing.assert_array_equal(skipping["image"][~bad], intact["image"][~bad])
    if repeats == 1:
        assert sorted(skipping["replaced"][bad]) == [3, 4, 99]
    for image, label, index in zip(
        skipping["image"][bad], skipping["label"][bad], skipping["replaced"][bad], strict=True
    ):
        instead = source.examples[stands_for[int(index)]]
        np.testing.assert_array_equal(image, np.asarray(images.decode_rgb(instead["image"])))
        assert label == instead["label"]


def test_too_many_in_a_row_are_refused(damaged: Source):
    with pytest.raises(loading.BadImageError, match="example 4"):
        take(training(damaged, bad_images="skip", max_bad_images=1), 4)
