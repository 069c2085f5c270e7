"""Settings every test runs under: CPU, eight simulated devices, full float32 precision, strict
shapes.
"""

import os
import tempfile
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import pytest

# One compilation cache for all workers of one run, so that a model is compiled once.
CACHE = (
    Path(tempfile.gettempdir())
    / f"pit_jax_test_cache_{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}"
)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Recorded reference numbers."""
    return Path(__file__).parent / "data"
