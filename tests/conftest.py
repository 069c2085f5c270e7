"""Settings every test runs under: CPU, eight simulated devices, full float32 precision, strict
shapes.
"""

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import pytest

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


def pytest_sessionfinish() -> None:
    if IS_FIRST:
        shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Recorded reference numbers."""
    return Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def torchvision_operators() -> Any:
    """Lets torchvision be imported where its compiled operators were built for another torch, as
    those of its CUDA wheel are for a CPU torch: defined without code, which models never miss.
    """
    import torch

    package = importlib.util.find_spec("torchvision")
    library = torch.library.Library("torchvision", "FRAGMENT")
    try:
        torch.ops.load_library(Path(package.origin).with_name("_C.so"))
    except OSError:
        for schema in ("nms(Tensor dets, Tensor scores, float threshold)", "qnms(Tensor dets)"):
            if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
                library.define(f"{schema} -> Tensor")
    return library  # the definitions last as long as it is referred to


@pytest.fixture(scope="session")
def timm(torchvision_operators: Any) -> ModuleType:
    """The reference implementation of the models."""
    import timm

    return timm
