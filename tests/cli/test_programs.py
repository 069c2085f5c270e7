"""The programs as a user starts them: exit status, one line for an error, results that agree."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pit_jax.cli import evaluate as cli

ROOT = Path(__file__).parents[2]
DIGITS = "--config=configs/digits.py:smoke"
SMALL = (
    "--config.data.train_split=train[:64]",
    "--config.data.eval_split=test[:50]",
    "--config.log_every=2 steps",
    "--config.batch_size=32",
    "--config.eval_batch_size=32",
    "--config.model.options.depths=(1,1,1)",
    "--config.model.options.widths=(8,16,32)",
)


def program(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


def test_train_again_and_evaluate(tmp_path: Path):
    workdir = f"--workdir={tmp_path}/run"
    first = program("train.py", DIGITS, workdir, *SMALL)
    assert first.returncode == 0, first.stderr
    done = first.stdout.strip().splitlines()[-1]
    assert re.fullmatch(r"done: step=4 test/top1=0\.\d{4} checkpoint=.*/checkpoints/4", done)
    for expected in (
        "changed on the command line: ",
        "parameters of pit_ti",
        "stage0/block0/mlp/fc1/kernel",
        "ETA",
        "evaluation of",
    ):
        assert expected in first.stderr

    second = program("train.py", DIGITS, workdir, *SMALL)
    assert second.returncode == 0, second.stderr
    assert second.stdout.strip() == done
    assert "is finished" in second.stderr

    result = json.loads((tmp_path / "run" / "result.json").read_text())
    for weights in (tmp_path / "run", tmp_path / "run" / "model.safetensors"):
        evaluated = program("evaluate.py", f"--weights={weights}", "--json")
        assert evaluated.returncode == 0, evaluated.stderr
        metrics = json.loads(evaluated.stdout.splitlines()[-1])
        assert metrics["test/count"] == 50
        assert metrics["test/top1"] == result["metrics"]["test/top1"]
        assert f"{metrics['test/top1']:.4%}" in evaluated.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config.batchsize=8"],
            "config.batchsize is not an option; did you mean 'config.batch_size'",
        ),
        (["--config.train.x=1"], "config.train.x is not an option; config has accumulate"),
        (["--config.seed=many"], "config.seed must be int, found 'many'"),
        (["--config=configs/digit.py"], "there is no config file configs/digit.py; did you"),
        (["--config=configs/digits.py:smok"], "has the variant 'smoke', not 'smok'"),
        (["--config.model.name=pit_x"], "unknown model 'pit_x'; did you mean 'pit_xs'?"),
        (["--workdir=/dev/null/run"], "cannot write to --workdir=/dev/null/run"),
        (["--workdri=x"], "there is no flag --workdri; did you mean 'workdir'?"),
        (["config.seed=3"], "unexpected argument 'config.seed=3'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments: list[str], message: str, tmp_path: Path):
    ended = program("train.py", DIGITS, f"--workdir={tmp_path}/run", *arguments)
    assert ended.returncode == 2
    assert ended.stdout == ""
    lines = [line for line in ended.stderr.splitlines() if not line.startswith("W0")]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_batch_the_devices_cannot_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "3")
    ended = program("train.py", DIGITS, f"--workdir={tmp_path}/run")
    assert ended.returncode == 2
    assert ended.stderr == (
        "error: config.batch_size=64 cannot be split over 3 devices; "
        "use a multiple, e.g. 63 or 66\n"
    )


@pytest.mark.parametrize(
    ("written", "size"),
    [
        (["--image_size=9,6"], (9, 6)),
        (["--image_size", "9", "6"], (9, 6)),
        (["--image_size=9"], (9, 9)),
        ([], None),
    ],
)
def test_an_image_size_is_written_as_for_pit_convert(
    written: list[str], size: tuple[int, int] | None
):
    assert cli._image_size(cli._parser().parse_args(["--weights=x", *written]).image_size) == size


def test_an_image_size_that_is_none_is_refused():
    with pytest.raises(ValueError, match="image_size: expected SIZE or HEIGHT,WIDTH, found 'big'"):
        cli._image_size(["big"])


def test_help_lists_the_flags_of_the_program():
    helped = program("train.py", "--help")
    for flag in ("--config=", "--workdir=", "--[no]allow_config_changes", "--coordinator="):
        assert f"\n  {flag}" in helped.stdout
    assert "  --config.optimizer.weight_decay=0.05 " in helped.stdout
    everything = program("train.py", "--helpfull")
    assert "--[no]allow_config_changes:" in everything.stdout


def test_evaluate_names_what_it_cannot_read(tmp_path: Path):
    ended = program("evaluate.py", f"--weights={tmp_path}/none.safetensors")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: there is no file or directory")
    assert len(ended.stderr.splitlines()) == 1
