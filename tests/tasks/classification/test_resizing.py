"""Crops resized by the device instead of the host, through the pipeline and the training step."""

import io
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from sklearn.datasets import load_sample_images

from pit_jax.data.images import IMAGENET_MEAN, IMAGENET_STD
from pit_jax.tasks import experiments
from pit_jax.tasks.classification.placement import placement
from pit_jax.tasks.experiments import parse, prepare
from pit_jax.training import step
from pit_jax.training.batches import TrainBatches
from pit_jax.training.setup import Experiment

# (width, height) of the files: ImageNet's mean, portrait, square, wide, tall, small, and two too
# large for a canvas of 512.
SHAPES = [
    (500, 375),
    (375, 500),
    (333, 333),
    (601, 60),
    (41, 427),
    (24, 17),
    (640, 427),
    (427, 640),
]


def save(path: Path, picture: Image.Image, kind: str, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = io.BytesIO()
    picture.save(data, kind, **options)
    path.write_bytes(data.getvalue())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of photographs of every shape: JPEGs, also grey and CMYK, and a PNG."""
    root = tmp_path_factory.mktemp("photographs")
    for label, pixels in enumerate(load_sample_images().images):
        whole = Image.fromarray(pixels)
        for width, height in SHAPES:
            turned = whole if height <= 427 else whole.transpose(Image.Transpose.ROTATE_90)
            picture = turned.crop((0, 0, width, height))
            save(root / f"class{label}/{width}x{height}.jpg", picture, "JPEG", quality=92)
        save(root / f"class{label}/grey.jpg", whole.convert("L"), "JPEG")
        save(root / f"class{label}/cmyk.jpg", whole.convert("CMYK"), "JPEG")
        save(root / f"class{label}/png.jpg", whole, "PNG")
        save(root / f"class{label}/rough.jpg", whole, "JPEG", quality=20, subsampling=2)
    return root


@pytest.fixture
def config(config: ConfigDict, folder: Path) -> ConfigDict:
    """The tiny experiment on these photographs, without smoothing of labels."""
    config.batch_size = config.eval_batch_size = 8
    config.duration = "3 steps"
    config.log_every = "1 step"
    config.tensorboard = False
    config.ema_decay = None
    config.optimizer.warmup = "1 step"
    config.model.image_size = (48, 56)
    config.model.options.update(patch_size=8, stride=8)
    config.data.name = f"folder:{folder}"
    config.data.train_split = config.data.eval_split = "all"
    config.data.eval_protocol = "deit"
    config.augment.flip_probability = 0.5
    config.augment.label_smoothing = 0.0
    return config


def seen(config: ConfigDict, workdir: Path, batches: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Grey levels and targets of the images that the real step gives to the model."""
    setup: Experiment = prepare(config, workdir, allow_config_changes=True)
    augment = jax.jit(setup.task.prepare)
    found, targets = [], []
    rows = TrainBatches(setup, 0)
    for number in range(batches):
        batch = next(rows)
        inputs = augment(step.step_keys(setup.config.seed, number)[0], batch)
        found.append(np.asarray(inputs["images"]) * (255 * np.array(IMAGENET_STD)))
        targets.append(inputs["targets"])
    return np.concatenate(found) + 255 * np.array(IMAGENET_MEAN), np.concatenate(targets)


def test_device_and_host_differ_by_a_level_at_most(config: ConfigDict, tmp_path: Path):
    """Two epochs of photographs of all kinds are compared, with flips drawn on the device."""
    found, targets = {}, {}
    for place in ("host", "device"):
        config.data.resize_on = place
        found[place], targets[place] = seen(config, tmp_path)
    np.testing.assert_array_equal(targets["device"], targets["host"])
    differences = np.abs(found["device"] - found["host"])
    assert differences.max() <= 1.001
    assert (differences < 0.001).mean() >= 0.999
    assert found["host"].std() > 40


def test_a_small_canvas_leaves_large_crops_to_pil(config: ConfigDict, tmp_path: Path):
    config.data.resize_on = "host"
    expected, _ = seen(config, tmp_path, 3)
    config.data.resize_on = "device"
    config.data.canvas_size = (48, 56)
    found, _ = seen(config, tmp_path, 3)
    np.testing.assert_allclose(found, expected, atol=1.001)


def test_randaugment_on_the_device_comes_after(config: ConfigDict, tmp_path: Path):
    """The same operations on images that differ by a level give nearly the same pictures."""
    config.data.randaugment = "rand-m9-mstd0.5-inc1"
    config.data.augment_on = "device"
    config.data.resize_on = "host"
    expected, _ = seen(config, tmp_path, 3)
    config.data.resize_on = "device"
    found, _ = seen(config, tmp_path, 3)
    # At the threshold of an operation, one level can become any number of levels.
    assert (np.abs(found - expected) <= 2.001).mean() >= 0.999


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"randaugment": "rand-m9", "augment_on": "host"},
            r"set config\.data\.augment_on='device'",
        ),
        ({"randaugment": "rand-m9"}, r"found it on the host"),  # "auto" is the host on a CPU
        ({"canvas_size": (512, 55)}, r"at least the image size \(48, 56\), found \(512, 55\)"),
    ],
)
def test_what_cannot_be_combined_is_refused(
    config: ConfigDict, tmp_path: Path, options: dict[str, Any], message: str
):
    config.data.resize_on = "device"
    config.data.update(options)
    with pytest.raises(ValueError, match=message):
        prepare(config, tmp_path)


@pytest.mark.parametrize(
    ("backend", "options", "canvas"),
    [
        ("cpu", {}, None),
        ("tpu", {}, None),
        ("gpu", {}, (512, 512)),
        ("gpu", {"randaugment": "rand-m9"}, (512, 512)),
        ("gpu", {"randaugment": "rand-m9", "augment_on": "host"}, None),
        ("gpu", {"canvas_size": (40, 512)}, None),
        ("gpu", {"resize_on": "host"}, None),
        ("cpu", {"resize_on": "device", "canvas_size": (64, 64)}, (64, 64)),
    ],
)
def test_auto_is_the_device_on_gpus_where_it_can_be(
    config: ConfigDict,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    options: dict[str, Any],
    canvas: tuple[int, int] | None,
):
    config.data.update(options)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert placement(parse(config)).canvas == canvas


def test_a_run_resizes_on_the_device(config: ConfigDict, tmp_path: Path):
    """The compiled step takes canvases, and learns from them the same as from images."""
    losses = {}
    for place in ("host", "device"):
        config.data.resize_on = place
        result = experiments.train(config, tmp_path / place)
        assert result.step == 3
        losses[place] = result.metrics["test/loss"]
        lines = (tmp_path / place / "metrics.jsonl").read_text().splitlines()
        waits = [json.loads(line).get("train/data_wait_fraction", -1) for line in lines]
        assert len([wait for wait in waits if 0 <= wait <= 1]) == 3
    assert losses["device"] == pytest.approx(losses["host"], rel=1e-3)
