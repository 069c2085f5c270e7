"""Every program of benchmarks/ starts without TensorFlow and whatever else it does not measure."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TENSORFLOW = ["tensorflow", "tensorflow_datasets", "tensorboard", "clu"]
DATA = ["grain", "array_record", "sklearn", "simplejpeg"]
CONFIGS = ["ml_collections"]
# Packages that cannot be imported, by program. The first three run on machines with nothing but
# jax, flax, optax, torch, timm and what these bring along.
ABSENT = {
    **dict.fromkeys(("kernels", "throughput", "trainer"), TENSORFLOW + DATA + CONFIGS),
    "input": TENSORFLOW + CONFIGS,
    "recipes_on_digits": TENSORFLOW + DATA,
    **dict.fromkeys(("tpu_blocks", "tpu_gates"), TENSORFLOW),
}
START = """
import runpy, sys
absent, sys.argv = sys.argv[1].split(), [sys.argv[2], "--help"]
sys.modules.update(dict.fromkeys(absent))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_no_program_is_left_out():
    files = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert files - set(ABSENT) == {"measuring"}  # a module that several programs import


@pytest.mark.parametrize("name", ABSENT)
def test_it_starts_without(name: str):
    done = subprocess.run(
        [sys.executable, "-c", START, " ".join(ABSENT[name]), f"benchmarks/{name}.py"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"usage: {name}.py" in done.stdout
