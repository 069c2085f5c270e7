"""Input as configured: where augmentation runs, and bad images in a run."""

import itertools
import logging
import threading
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from pit_jax import sharding
from pit_jax.augment.normalise import normalise
from pit_jax.data.images import IMAGENET_MEAN, IMAGENET_STD
from pit_jax.models import zoo
from pit_jax.tasks.classification.config import (
    AugmentConfig,
    ClassificationConfig,
    DataConfig,
    ModelConfig,
)
from pit_jax.tasks.classification.placement import placement
from pit_jax.tasks.classification.task import Classification
from pit_jax.tasks.experiments import prepare
from pit_jax.training.batches import TrainBatches
from pit_jax.training.errors import TrainingError
from pit_jax.training.setup import Experiment


@pytest.mark.parametrize(
    ("randaugment", "place", "host", "device"),
    [
        ("", "host", (False, 0.0), (False, 0.5)),
        ("rand-m9", "host", (True, 0.5), (False, 0.0)),
        ("rand-m9", "auto", (True, 0.5), (False, 0.0)),  # the tests run on a CPU
        ("rand-m9", "device", (False, 0.0), (True, 0.5)),
    ],
)
def test_flip_and_randaugment_run_once_and_together(
    randaugment: str, place: str, host: tuple[bool, float], device: tuple[bool, float]
):
    found = placement(
        ClassificationConfig(
            data=DataConfig(randaugment=randaugment, augment_on=place),
            augment=AugmentConfig(flip_probability=0.5),
        )
    )
    assert (found.host_policy is not None, found.host_flip) == host
    assert (found.device_policy is not None, found.device_flip) == device


@pytest.fixture
def folder(config: ConfigDict, tmp_path: Path) -> ConfigDict:
    """An experiment on 64 files, two of which are not images."""
    for index in range(64):
        path = tmp_path / "images" / f"class{index % 4}" / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if index in (4, 5):
            path.write_bytes(b"no image")
        else:
            Image.new("RGB", (9, 9), (index, 0, 0)).save(path)
    config.data.name = f"folder:{tmp_path / 'images'}"
    config.data.train_split = config.data.eval_split = "all"
    return config


def batches(config: ConfigDict, workdir: Path, **options: Any) -> TrainBatches:
    config.data.update(options)
    setup: Experiment = prepare(config, workdir)
    return TrainBatches(setup, 0)


def test_a_bad_image_stops_the_run_by_name(folder: ConfigDict, workdir: Path):
    rows = batches(folder, workdir)
    with pytest.raises(TrainingError, match=r"all, example \d+ \(.*0[45]\.png\): .*'skip'"):
        list(itertools.islice(rows, 2))


def test_skipped_images_are_counted_once(
    folder: ConfigDict, workdir: Path, caplog: pytest.LogCaptureFixture
):
    rows = batches(folder, workdir, bad_images="skip")
    with caplog.at_level(logging.WARNING, "pit_jax"):
        for _ in range(6):
            batch = next(rows)
            assert set(batch) == {"image", "label"}
    # Files are ordered by class, 16 in each: 04.png is second of the first, 05.png of the second.
    assert rows.bad_images == {1, 17}
    assert len([line for line in caplog.messages if "skipped" in line]) == 2


def test_more_than_the_limit_stop_the_run(folder: ConfigDict, workdir: Path):
    rows = batches(folder, workdir, bad_images="skip", max_bad_images=1)
    with pytest.raises(TrainingError, match=r"2 images of .* more than config\.data\.max_bad_imag"):
        list(itertools.islice(rows, 2))


def test_a_batch_is_handed_over_ahead_by_a_thread_and_counted_when_used(
    folder: ConfigDict, workdir: Path, monkeypatch: pytest.MonkeyPatch
):
    """With this seed each of the first two batches has a damaged file."""
    threads: list[int] = []
    ahead = threading.Event()
    hand_over = sharding.to_global

    def watched(*operands: Any) -> Any:
        threads.append(threading.get_ident())
        if len(threads) == 2:
            ahead.set()
        return hand_over(*operands)

    monkeypatch.setattr(sharding, "to_global", watched)
    folder.seed = 2
    rows = batches(folder, workdir, bad_images="skip")
    batch = next(rows)
    assert ahead.wait(timeout=60)
    assert threading.get_ident() not in threads
    assert batch["image"].sharding == sharding.batch_sharding(sharding.make_mesh())
    time.sleep(0.1)  # a premature count would have happened by now
    assert len(rows.bad_images) == 1
    next(rows)
    assert len(rows.bad_images) == 2


@pytest.mark.parametrize("place", ["host", "device"])
def test_randaugment_reaches_the_step_only_on_the_device(place: str):
    config = ClassificationConfig(
        model=ModelConfig(dtype="float32"),
        data=DataConfig(randaugment="rand-m9-p1-n1", augment_on=place),
        augment=AugmentConfig(flip_probability=1.0, label_smoothing=0.0),
    )
    levels = np.random.default_rng(0).integers(0, 256, (8, 9, 7, 3), np.uint8)
    batch = {"image": jnp.asarray(levels), "label": jnp.arange(8)}
    network = zoo.model_config("pit_ti", image_size=(9, 7), patch_size=2, num_classes=10)
    inputs = Classification(config, network).prepare(jax.random.key(0), batch)
    images, targets = inputs["images"], inputs["targets"]
    np.testing.assert_array_equal(targets.argmax(-1), np.arange(8))
    plain = normalise(batch["image"], IMAGENET_MEAN, IMAGENET_STD)
    unchanged = np.array_equal(images, plain)
    flipped = np.array_equal(images, plain[:, :, ::-1])
    assert (unchanged, flipped) == (place == "host", False)
