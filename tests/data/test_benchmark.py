"""The benchmark of the input: what it measures on, that it measures, and without what."""

import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from pit_jax.data import jpeg
from pit_jax.data.source import Source

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "input.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_of_the_input", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def files(benchmark: ModuleType) -> Source:
    return benchmark.photographs()


def test_files_are_of_imagenets_mean_size(files: Source):
    found = [files.examples[index]["image"] for index in range(64)]
    assert len(set(found)) == 64
    assert 100_000 < np.mean([len(data) for data in found]) < 120_000
    assert {jpeg.decode_pixels(data).shape for data in found} == {(375, 500, 3)}


def test_all_work_is_counted(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch):
    """Batches that are made ahead count among the images that the processor's time is of."""
    small, asked = counted(benchmark)
    clock = benchmark.Clock
    seconds = iter([0.0, 2.0])
    monkeypatch.setattr(clock, "read", lambda self: (2.0, next(seconds) + 1.0))
    rate = benchmark.training(small, ahead=2)(2 * benchmark.BATCH)
    # One batch before the clock that counts, two with it, two ahead.
    assert len(asked) == 5 * benchmark.BATCH
    assert rate.per_core == pytest.approx(len(asked) / 2.0)
    assert rate.wall == pytest.approx(2 * benchmark.BATCH / 1.0)


def test_canvases_are_made_of_as_many_images(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    """More than a batch of them, whose places in the batch are then used again."""
    small, asked = counted(benchmark)
    placed, put = [], benchmark.batching.put

    def recorded(place, crop):
        put(place, crop)
        placed.append(place)

    monkeypatch.setattr(benchmark.batching, "put", recorded)
    monkeypatch.setattr(benchmark.Clock, "read", lambda self: (2.0, 4.0))
    images = benchmark.BATCH + 8
    rate = benchmark.canvases(small, (256, 240))(images)
    assert asked == list(range(images))
    assert (rate.per_core, rate.wall) == (images / 2.0, images / 4.0)
    assert len(placed) == images
    assert len({place.ctypes.data for place in placed}) == benchmark.BATCH
    for place in placed:
        assert place.shape == (256, 240, 3)
        np.testing.assert_allclose(place[0, 0], COLOUR, atol=5)


def test_timms_pipeline_makes_whole_batches(
    benchmark: ModuleType, timm: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    small, asked = counted(benchmark)
    transform = timm.data.create_transform(16, is_training=True, use_prefetcher=True)
    monkeypatch.setattr(benchmark.Clock, "read", lambda self: (2.0, 4.0))
    rate = benchmark.data_loader(small, transform)(benchmark.BATCH + 8)
    # Anywhere in the epoch, not the first few in order.
    assert len(asked) == 2 * benchmark.BATCH
    assert max(asked) > len(small) / 2
    assert (rate.per_core, rate.wall) == (len(asked) / 2.0, len(asked) / 4.0)


def test_torch_reads_transformed_images_and_labels(benchmark: ModuleType):
    small, asked = counted(benchmark)
    examples = benchmark.Torch(small, np.asarray)
    assert len(examples) == len(small)
    pixels, label = examples[1234]
    assert asked == [1234]
    assert label == 234
    np.testing.assert_array_equal(pixels, jpeg.decode_pixels(small.examples[1234]["image"]))


def test_rates_are_of_the_machines_own_clocks(benchmark: ModuleType, timm: ModuleType):
    small, _ = counted(benchmark)
    transform = timm.data.create_transform(16, is_training=True, use_prefetcher=True)
    for variant in (benchmark.canvases(small, (224, 224)), benchmark.data_loader(small, transform)):
        start = time.perf_counter()
        rate = variant(2 * benchmark.BATCH)
        seconds = time.perf_counter() - start
        # No slower than with all that surrounds the measurement, and no faster than decoding.
        assert 2 * benchmark.BATCH / seconds <= rate.wall < 1e6
        assert 0 < rate.per_core < 1e6


COLOUR = (90, 10, 200)


def counted(benchmark: ModuleType) -> tuple[Source, list[int]]:
    """One tiny file as the whole of ImageNet, and the indices that it is asked for by."""
    asked: list[int] = []

    class Counting(benchmark.Files):
        def __getitem__(self, index):
            asked.append(index)
            return super().__getitem__(index)

    (data,) = benchmark._files([Image.new("RGB", (48, 48), COLOUR)], 90)
    return Source("small", Counting([data]), 1000), asked


def test_the_program_needs_neither_tensorflow_nor_tfds():
    command = (
        "import runpy, sys\n"
        "for name in ('tensorflow', 'tensorflow_datasets', 'clu', 'ml_collections'):\n"
        "    sys.modules[name] = None\n"
        f"sys.argv = [{str(PROGRAM)!r}, '--help']\n"
        f"runpy.run_path({str(PROGRAM)!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--only" in done.stdout
