"""A family, a task and a data set in a package of their own, each a file and a line.

`toy/` is an addition that never touches pit_jax: the package and its entry points, as `pip install`
would leave them. The tests copy them to a temporary folder on the path.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

ROOT = Path(__file__).parents[1]
TOY = Path(__file__).parent / "toy"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the copied package, to be put on the path."""
    folder = tmp_path_factory.mktemp("installed") / "site"
    shutil.copytree(TOY, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def start(installed: Path, *arguments: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(installed: Path, *arguments: str) -> str:
    process = start(installed, *arguments)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output


def train(installed: Path, workdir: Path) -> list[str]:
    return ["train.py", f"--config={installed}/experiment.py", f"--workdir={workdir}"]


@pytest.fixture(scope="module")
def finished(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A whole run, and the last line that it printed."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    return workdir, run(installed, *train(installed, workdir)).strip().splitlines()[-1]


def test_it_trains_and_reports_its_own_metric(finished: tuple[Path, str]):
    workdir, done = finished
    assert re.fullmatch(r"done: step=16 test/median_error=0\.\d{4} checkpoint=.*/16", done)
    result = json.loads((workdir / "result.json").read_text())
    assert set(result["metrics"]) == {"test/median_error", "test/loss", "test/count"}
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert len(losses) == 16
    assert losses[-1] < losses[0]
    card = json.loads((workdir / "config.json").read_text())
    assert card["config"]["noise"] == {"scale": 0.01}


def test_killed_at_any_moment_it_resumes_bit_for_bit(
    finished: tuple[Path, str], installed: Path, tmp_path: Path
):
    workdir = tmp_path / "killed"
    process = start(installed, *train(installed, workdir))
    saved = workdir / "checkpoints" / "4"
    while not saved.is_dir() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    run(installed, *train(installed, workdir))
    expected = safetensors.numpy.load_file(finished[0] / "model.safetensors")
    found = safetensors.numpy.load_file(workdir / "model.safetensors")
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value)


def test_its_weights_are_evaluated(finished: tuple[Path, str], installed: Path):
    workdir, _ = finished
    output = run(installed, "evaluate.py", f"--weights={workdir}", "--json", "--examples=24")
    found = json.loads(output.splitlines()[-1])
    expected = json.loads((workdir / "result.json").read_text())["metrics"]
    assert found["test/median_error"] == pytest.approx(expected["test/median_error"], rel=1e-5)
    assert "test/median_error" in output.splitlines()[4]


def test_its_weights_load_by_themselves(finished: tuple[Path, str], installed: Path):
    script = f"import pit_jax; print(type(pit_jax.load_model('{finished[0]}')).__name__)"
    assert run(installed, "-c", script).strip() == "Toy"


def test_its_programs_are_compiled_and_reported(installed: Path, tmp_path: Path):
    config = f"--config={installed}/experiment.py"
    for program in ("train", "inference"):
        output = tmp_path / f"{program}.json"
        arguments = [config, f"--program={program}", f"--output={output}"]
        run(installed, "-m", "pit_jax.compile_report", *arguments)
        assert json.loads(output.read_text())["program"] == program


def test_its_data_set_trains_a_network_of_ours(installed: Path, tmp_path: Path):
    config = f"--config={installed}/classification.py"
    done = run(installed, "train.py", config, f"--workdir={tmp_path / 'run'}")
    assert "done: step=1 test/top1=" in done
    assert json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]["test/count"] == 32


def test_what_is_added_is_a_file_and_a_line_each(installed: Path):
    """The numbers of the table in docs/architecture.md."""
    files = {path.name for path in (installed / "toy_package").glob("*.py")}
    assert files == {"__init__.py", "network.py", "regression.py", "pictures.py"}
    points = (installed / "toy_package-1.0.dist-info" / "entry_points.txt").read_text()
    assert len([line for line in points.splitlines() if " = " in line]) == 3


def test_a_task_or_family_that_cannot_be_imported_is_named(installed: Path, tmp_path: Path):
    broken = tmp_path / "site"
    shutil.copytree(installed, broken)
    (broken / "toy_package" / "regression.py").write_text("import nothing_of_that_name\n")
    process = start(broken, *train(broken, tmp_path / "run"))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "the task 'regression' cannot be imported from toy_package.regression" in errors
