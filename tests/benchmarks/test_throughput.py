"""The benchmark against timm runs, at sizes where nothing can be read off its figures."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TINY_PIT = ("patch_size=8", "stride=8", "widths=(8,16)", "depths=(1,1)", "heads=(1,2)")
TINY_VIT = ("patch_size=8", "width=8", "depth=1", "heads=2")
SIZES = ("--image_size=32", "--batch_size=2", "--repeats=2", "--window=0", "--latency_calls=2")

# Nothing but jax, flax, optax, torch and timm, with what they bring along, is on the machine that
# is measured.
WITHOUT_THE_REST = """
import runpy, sys
REST = ("tensorflow", "tensorflow_datasets", "grain", "clu", "ml_collections", "tensorboard",
        "array_record", "sklearn", "matplotlib", "simplejpeg")
sys.modules.update(dict.fromkeys(REST))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_REST, script, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "benchmarks")},
        capture_output=True,
        text=True,
        check=False,
    )


def rows_of(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["rows"]


def test_rows_for_both_modes_and_both_sides(tmp_path: Path) -> None:
    done = run(
        "benchmarks/throughput.py",
        *("--models", "pit_ti", "--programs", "ours", "timm eager", "--threads=1", "--peak=1e12"),
        *(*SIZES, "--set", "num_classes=3", *TINY_PIT, "--json", str(tmp_path / "found.json")),
    )
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "found.json")
    assert [(row["mode"], row["program"]) for row in rows] == [
        ("inference", "ours"),
        ("inference", "timm eager"),
        ("training", "ours"),
        ("training", "timm eager"),
    ]
    for row in rows:
        assert row["error"] is None
        assert row["images_per_second"] > 0
        assert 0 < row["mfu"] < 1
        assert (row["latency_seconds"] is None) == (row["mode"] == "training")
        assert (row["peak_bytes"] is None) == (row["program"] != "ours")
    table = done.stdout.splitlines()[-6:]
    assert table[0].startswith("| model")
    assert "1.00x" in table[2]


def test_what_does_not_run_is_a_row_with_its_error(tmp_path: Path) -> None:
    # torch has no such mode of compilation, so that program fails, and only it.
    done = run(
        "benchmarks/throughput.py",
        *("--models", "vit_ti", "--modes", "inference", "--compile_mode=none-such"),
        *("--no-latency", *SIZES, "--set", "num_classes=3", *TINY_VIT),
        *("--json", str(tmp_path / "found.json")),
    )
    assert done.returncode == 0, done.stderr
    ours, eager, compiled = rows_of(tmp_path / "found.json")
    assert ours["images_per_second"] > 0
    assert eager["images_per_second"] > 0
    assert compiled["images_per_second"] is None
    assert "none-such" in compiled["error"]
    assert "none-such" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "resnet50"], "takes PiT and ViT without distillation, found resnet50"),
        (["--models", "pit_ti", "--set", "depths"], "needs FIELD=VALUE"),
        (["--models", "pit_ti", "--set", "depths=(1,"], "needs FIELD=VALUE with a literal"),
    ],
)
def test_what_it_cannot_measure_is_refused(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    throughput = importlib.import_module("throughput")
    monkeypatch.setattr(sys, "argv", ["throughput.py", *arguments])
    with pytest.raises(ValueError, match=message):
        throughput.main()
