"""The benchmark of kernels runs them all, or says why not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pit_jax.ops import attention, gelu, layer_norm, linear, pooling

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def test_every_lowering_has_a_row(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    done = subprocess.run(
        [
            *(sys.executable, "benchmarks/kernels.py", "--models", "pit_ti", "--image_size=32"),
            *("--batch_size=1", "--repeats=1", "--window=0", "--json", str(found)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    rows = json.loads(found.read_text())["rows"]
    at_first = [row for row in rows if row["place"] == "pit_ti, stage 1"]
    for module in (attention, gelu, layer_norm, linear, pooling):
        operation, lowerings = module.__name__.rsplit(".", 1)[1], module.LOWERINGS
        ran = {row["lowering"]: row for row in at_first if row["operation"] == operation}
        assert set(ran) == {"chosen", *lowerings} - {"grouped"}
        assert ran["chosen"]["error"] is None
        for row in ran.values():
            assert (row["error"] is None) == (row["backward_seconds"] is not None)
    # What is for another platform is reported, and nothing else fails.
    failed = {row["lowering"] for row in rows if row["error"]}
    assert failed == {"cudnn", "pallas"}
    assert {row["place"] for row in rows if row["operation"] == "pooling"} == {
        "pit_ti, stage 1",
        "pit_ti, stage 2",
    }
    assert done.stdout.splitlines()[-1].startswith("| linear")
