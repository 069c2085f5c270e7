"""Runs of the smallest real experiment, `tiny.py`."""

import runpy
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from pit_jax.training import loop

TINY = Path(__file__).with_name("tiny.py")


@pytest.fixture
def config() -> ConfigDict:
    return runpy.run_path(str(TINY))["get_config"]()


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of an uninterrupted run on eight devices; to be read, or copied first."""
    workdir = tmp_path_factory.mktemp("finished")
    loop.train(runpy.run_path(str(TINY))["get_config"](), workdir)
    return workdir
