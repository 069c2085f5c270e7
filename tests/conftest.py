"""Settings every test runs under: CPU, eight simulated devices, full float32 precision, strict
shapes.
"""

import os
import runpy
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

# Tests compile far more than they compute, so the compiler skips its optimisations.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    ]
).strip()

import jax
import pytest
from ml_collections import ConfigDict

from pit_jax.models import zoo
from pit_jax.models.family import Family

# One cache of compiled programs and prepared data for a whole run: its workers and the programs
# they start inherit the name from the process that began it.
IS_FIRST = "PIT_JAX_CACHE_OF_TESTS" not in os.environ
CACHE = os.environ.setdefault("PIT_JAX_CACHE_OF_TESTS", tempfile.mkdtemp(prefix="pit_jax_tests_"))

SETTINGS = {
    "jax_platforms": "cpu",
    "jax_num_cpu_devices": 8,
    "jax_default_matmul_precision": "highest",
    "jax_numpy_rank_promotion": "raise",
    "jax_compilation_cache_dir": f"{CACHE}/compiled",
    "jax_persistent_cache_min_compile_time_secs": 0.3,
}
for name, value in SETTINGS.items():
    jax.config.update(name, value)
    # Programs that tests start run under the same settings, on as many devices as they ask for.
    if name != "jax_num_cpu_devices":
        os.environ[name.upper()] = str(value)
os.environ["PIT_JAX_CACHE"] = CACHE
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs jobs of several processes first: one of several workers gets them all, beside tests that
    take one core. At the end, all workers would start such jobs at once.
    """
    items.sort(key=lambda item: "test_processes" not in item.nodeid)


def pytest_sessionfinish() -> None:
    if IS_FIRST:
        shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Recorded reference numbers."""
    return Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def timm() -> ModuleType:
    """The reference implementation of models and optimizers."""
    from pit_jax.weights.verify import import_timm

    return import_timm()


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A run directory that does not exist yet."""
    return tmp_path / "run"


@pytest.fixture
def toy(data_dir: Path) -> Iterator[Family]:
    """A family without torch names, `fixtures/toy_family.py`, registered for the test."""
    family: Family = runpy.run_path(str(data_dir / "toy_family.py"))["FAMILY"]
    zoo.register(family)
    yield family
    zoo.FAMILIES.remove(family)


@pytest.fixture
def config() -> ConfigDict:
    """The configuration of the smallest real experiment, `tiny.py`, for a test to change."""
    return runpy.run_path(str(Path(__file__).with_name("tiny.py")))["get_config"]()
