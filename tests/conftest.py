"""Settings every test runs under: CPU, eight simulated devices, full float32 precision, strict
shapes.
"""

import importlib.util
import os
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

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
