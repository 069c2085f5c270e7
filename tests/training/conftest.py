"""Runs of the smallest real experiment, `tests/tiny.py`."""

import runpy
from pathlib import Path

import pytest

from pit_jax.tasks import experiments

TINY = Path(__file__).parents[1] / "tiny.py"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of an uninterrupted run on eight devices; to be read, or copied first."""
    workdir = tmp_path_factory.mktemp("finished")
    experiments.train(runpy.run_path(str(TINY))["get_config"](), workdir)
    return workdir
