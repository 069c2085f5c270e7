"""The benchmark of the input: what it measures on, that it measures, and without what."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from pit_jax.data import jpeg, sources

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
def files(benchmark: ModuleType) -> sources.Source:
    return benchmark.photographs()


def test_files_are_of_imagenets_mean_size(files: sources.Source):
    found = [files.examples[index]["image"] for index in range(64)]
    assert len(set(found)) == 64
    assert 100_000 < np.mean([len(data) for data in found]) < 120_000
    assert {jpeg.decode_pixels(data).shape for data in found} == {(375, 500, 3)}


def test_all_work_is_counted(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch):
    """Batches that are made ahead count among the images that the processor's time is of."""
    asked = []

    class Counting(benchmark.Files):
        def __getitem__(self, index):
            asked.append(index)
            return super().__getitem__(index)

    data = benchmark._file(jpeg_of(48), 90)
    small = sources.Source("small", Counting([data]), 1000)
    clock = benchmark.Clock
    seconds = iter([0.0, 2.0])
    monkeypatch.setattr(clock, "read", lambda self: (2.0, next(seconds) + 1.0))
    rate = benchmark.training(small, ahead=2)(2 * benchmark.BATCH)
    # One batch before the clock that counts, two with it, two ahead.
    assert len(asked) == 5 * benchmark.BATCH
    assert rate.per_core == pytest.approx(len(asked) / 2.0)
    assert rate.wall == pytest.approx(2 * benchmark.BATCH / 1.0)


def jpeg_of(side: int):
    from PIL import Image

    return Image.new("RGB", (side, side), (90, 10, 200))


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
