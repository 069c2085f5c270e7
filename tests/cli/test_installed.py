"""Programs and configs of an installed package, from any directory."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as setup.py lays it out in a wheel."""
    site = tmp_path_factory.mktemp("site")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "pit_jax", site / "pit_jax", ignore=ignored)
    shutil.copytree(ROOT / "configs", site / "pit_jax" / "configs", ignore=ignored)
    return site


def run(site: Path, directory: Path, program: str, *arguments: str) -> subprocess.CompletedProcess:
    module = {"pit-train": "train", "pit-evaluate": "evaluate", "pit-convert": "convert"}[program]
    start = f"import sys; from pit_jax.cli.{module} import run; sys.exit(run())"
    return subprocess.run(
        [sys.executable, "-c", start, *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_configs_are_found_by_name(installed: Path, tmp_path: Path):
    listed = run(installed, tmp_path, "pit-train", "--list_configs")
    assert listed.returncode == 0, listed.stderr
    names = [line.split()[0] for line in listed.stdout.splitlines()]
    assert names == sorted(file.stem for file in (ROOT / "configs").glob("*.py"))
    assert 'deit              PiT\'s DeiT setting: the column "+DeiT" of Table 2.' in listed.stdout
    wrong = run(installed, tmp_path, "pit-train", "--config=deit:pit_x", "--workdir=run")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: configs/deit.py needs one of :pit_ti")
    asked = run(installed, tmp_path, "pit-train", "--config=digits:smoke", "--config.seed=-1")
    assert asked.stderr.startswith("error: --workdir must be given; --help says more\n")


def test_a_file_that_raises_is_told_with_its_line(installed: Path, tmp_path: Path):
    (tmp_path / "mine.py").write_text("def get_config():\n    return undefined\n")
    ended = run(installed, tmp_path, "pit-train", "--config=mine.py", "--workdir=run")
    assert ended.returncode == 2
    assert ended.stderr == "error: mine.py:2: NameError: name 'undefined' is not defined\n"


@pytest.mark.parametrize(
    ("program", "missing"),
    [
        ("pit-train", "error: --config and --workdir must be given; --help says more"),
        ("pit-evaluate", "error: the following arguments are required: --weights; --help"),
        ("pit-convert", "error: the following arguments are required: --input, --output; --help"),
    ],
)
def test_every_program_has_help_and_version_and_says_what_is_missing(
    program: str, missing: str, installed: Path, tmp_path: Path
):
    for flag in ("-h", "--help"):
        helped = run(installed, tmp_path, program, flag)
        assert helped.returncode == 0, helped.stderr
        assert helped.stdout.startswith(f"usage: {program} ")
        assert f"{program} --" in helped.stdout.partition("\n\n")[2]
    version = run(installed, tmp_path, program, "--version")
    assert version.returncode == 0
    assert version.stdout.startswith(f"{program} (pit_jax ")
    alone = run(installed, tmp_path, program)
    assert alone.returncode == 2
    assert missing in alone.stderr
    assert len(alone.stderr.splitlines()) == 1


def test_the_package_lists_its_programs(installed: Path, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "pit_jax"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith("pit_jax ")
    programs = [line.split("  ")[1] for line in lines[2:-2]]
    assert {"pit-train", "pit-evaluate", "pit-convert"} <= set(programs)
    for line in lines[2:-2]:
        assert line.rstrip().endswith(".")
