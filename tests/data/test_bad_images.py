"""Images that do not decode, in a job of several processes."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import grain
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "tiny.py"
EXAMPLES, BATCH, SEED = 64, 32, 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """64 images; of the first batch one of each of two processes is bad, of the second one."""
    order = grain.MapDataset.range(EXAMPLES).seed(SEED).shuffle().repeat()
    bad = {order[0], order[BATCH // 2], order[BATCH]}
    root = tmp_path / "images" / "class"
    root.mkdir(parents=True)
    for index in range(EXAMPLES):
        path = root / f"{index:02}.png"
        if index in bad:
            path.write_bytes(b"no image")
        else:
            Image.new("RGB", (9, 9), (index, 0, 0)).save(path)
    return root.parent


def run(workdir: Path, *options: str) -> list[tuple[int, str]]:
    """Returns exit status and messages of each of two processes."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "train.py", f"--config={TINY}", f"--workdir={workdir}", *options]
    command += [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    with contextlib.ExitStack() as stack:
        processes = [
            subprocess.Popen(
                [*command, f"--process_id={index}"],
                cwd=ROOT,
                env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for index in range(2)
        ]
        for process in processes:
            stack.callback(process.kill)
        said = [process.communicate(timeout=400)[1] for process in processes]
        return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def test_metric_and_limit_are_of_the_whole_job(folder: Path, tmp_path: Path):
    """No process alone meets more than two; all processes stop, with the reason."""
    ended = run(
        tmp_path / "run",
        f"--config.data.name=folder:{folder}",
        "--config.data.train_split=all",
        "--config.data.eval_split=all",
        "--config.data.bad_images=skip",
        "--config.data.max_bad_images=2",
        f"--config.seed={SEED}",
        "--config.log_every=1 step",
        "--config.tensorboard=False",
    )
    for status, text in ended:
        assert status not in (None, 0), text
        assert "3 images of" in text, text
        assert "more than config.data.max_bad_images=2" in text
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["train/bad_images"] for line in lines if "train/bad_images" in line] == [2]
