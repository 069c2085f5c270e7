"""The converter's command line: files written, messages, and files left alone."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.torch
import torch

from pit_jax.cli.convert import run
from pit_jax.models import zoo
from pit_jax.models.pit.config import PiTConfig
from pit_jax.weights.cards import card_config, make_card
from pit_jax.weights.load import fit, load_weights
from pit_jax.weights.match import match
from pit_jax.weights.read import WeightFile, read
from pit_jax.weights.write import write_torch, write_weights

SCRIPT = Path(__file__).parents[2] / "convert_torch_weights.py"

MemoryFile = Callable[..., WeightFile]


def tensors_of(file: WeightFile) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in file.tensors.items()}


def assert_equal(found: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def run_script(flags: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def pit_ti(memory_file: MemoryFile, tmp_path: Path) -> Path:
    """A checkpoint of pit_ti in the form its authors publish."""
    torch.save(tensors_of(memory_file(zoo.model_config("pit_ti"))), tmp_path / "pit_ti_730.pth")
    return tmp_path / "pit_ti_730.pth"


@pytest.fixture
def ours(tiny: PiTConfig, memory_file: MemoryFile, tmp_path: Path) -> Path:
    """A file of ours, of the small model, with its options in the card."""
    card = make_card("pit_ti", tiny, source="training")
    path = tmp_path / "tiny.safetensors"
    write_weights(path, fit(match(memory_file(tiny), tiny)), card)
    return path


def test_the_script_converts_and_prints_the_card(pit_ti: Path, tmp_path: Path) -> None:
    output = tmp_path / "pit_ti.safetensors"
    flags = ["--model=pit_ti", f"--input={pit_ti}", f"--output={output}"]
    done = run_script(flags)
    assert (done.returncode, done.stderr) == (0, "")
    card = read(output).card
    assert json.loads(done.stdout.partition("wrote")[0]) == card
    assert card["versions"].pop("torch") == torch.__version__
    assert card["versions"].pop("jax") == jax.__version__
    assert card["versions"].keys() == {"pit_jax"}
    del card["versions"]
    assert card == {
        "model": "pit_ti",
        "options": {},
        "image_size": [224, 224],
        "num_classes": 1000,
        "distilled": False,
        "source": str(pit_ti),
        "sha256": hashlib.sha256(pit_ti.read_bytes()).hexdigest(),
        "layout": "official",
        "command": f"pit-convert {' '.join(flags)}",
    }
    assert_equal(load_weights(output, "pit_ti"), load_weights(pit_ti, "pit_ti"))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("layout", ["official", "timm"])
def test_there_and_back_is_a_file_that_timm_loads(
    layout: str, suffix: str, pit_ti: Path, tmp_path: Path, timm: ModuleType
) -> None:
    ours, back = tmp_path / "ours.safetensors", tmp_path / f"back{suffix}"
    assert run([f"--input={pit_ti}", f"--output={ours}"]) == 0
    assert run([f"--input={ours}", f"--output={back}", "--to=torch", f"--layout={layout}"]) == 0
    # Strict both times; timm itself renames official entries, for its pretrained models.
    if layout == "timm":
        model = timm.create_model("pit_ti_224", checkpoint_path=str(back))
    else:
        overlay = {"file": str(back)}
        model = timm.create_model("pit_ti_224", pretrained=True, pretrained_cfg_overlay=overlay)
    loaded = model.state_dict()
    for name, value in torch.load(pit_ti, weights_only=True).items():
        renamed = name.replace("pools.0.", "transformers.1.pool.")
        assert torch.equal(loaded[renamed.replace("pools.1.", "transformers.2.pool.")], value)
    if suffix == ".safetensors":
        written = safetensors.torch.load_file(back)
    else:
        written = torch.load(back, weights_only=True)
    assert ("pools.0.fc.bias" in written) == (layout == "official")


def test_our_files_tell_their_options_and_keep_their_history(
    ours: Path, tiny: PiTConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "larger.safetensors"
    flags = [f"--input={ours}", f"--output={output}", "--image_size=72,48", "--num_classes=7"]
    assert run([*flags, "--head=new", "--verify"]) == 0
    card = read(output).card
    config = card_config(card)
    assert (config.image_size, config.num_classes, config.widths) == ((72, 48), 7, tiny.widths)
    assert card["layout"] == "pit_jax"
    assert card["parent"] == read(ours).card
    assert "torch" not in card["versions"]
    assert load_weights(output, config)["head"]["bias"].shape == (7,)
    printed = capsys.readouterr().out
    for name in ("stage0/map", "stage1/map", "logits"):
        assert f"{name} " in printed


def test_a_failed_verification_writes_nothing(
    tiny: PiTConfig, memory_file: MemoryFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = memory_file(tiny, "pit_jax")
    file.tensors["norm/bias"][0] = np.nan
    card = make_card("pit_ti", tiny, source="training")
    write_torch(tmp_path / "x.safetensors", file.tensors, card)
    flags = [f"--input={tmp_path / 'x.safetensors'}", f"--output={tmp_path / 'y.safetensors'}"]
    assert run([*flags, "--verify"]) == 1
    assert "the logits differ; nothing is written" in capsys.readouterr().err
    assert not (tmp_path / "y.safetensors").exists()
    assert run(flags) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model=pit_tii"], "unknown model 'pit_tii'; did you mean 'pit_ti'"),
        (["--input=absent.pth"], "there is no file or directory 'absent.pth'"),
        (["--output=x.pth"], "expected a file name that ends in .safetensors, found"),
        (["--output=absent/x.safetensors"], "is not a file in an existing directory"),
        (["--layout=timm"], "--layout applies to torch files only: add --to=torch"),
        (["--to=torch", "--layout=oficial"], "unknown layout 'oficial'; did you mean 'official'"),
        (["--to=torch"], "expected a file name that ends in .pth"),
        (["--image_size=big"], "expected SIZE or HEIGHT,WIDTH, found 'big'"),
        (["--image_size=4"], "image_size (4, 4) is smaller than patch_size 16"),
        (["--num_classes=7"], 'head="new" takes a fresh one; here --head=new'),
        (["--modle=pit_ti"], "unrecognized arguments: --modle=pit_ti; --help lists the flags"),
    ],
)
def test_mistakes_are_one_error_and_write_nothing(
    flags: list[str], message: str, ours: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ours.with_name("out.npz" if flags == ["--to=torch"] else "out.safetensors")
    assert run([f"--input={ours}", f"--output={output}", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pit-convert: error: ")
    assert message in error
    if flags != ["--num_classes=7"]:  # which lists what does not fit below
        assert error.count("\n") == 1
    assert list(ours.parent.iterdir()) == [ours]


def test_a_truncated_file_writes_nothing_and_shows_no_traceback(pit_ti: Path) -> None:
    pit_ti.write_bytes(pit_ti.read_bytes()[:-5000])
    output = pit_ti.with_name("out.safetensors")
    output.write_bytes(b"before")
    flags = [f"--input={pit_ti}", f"--output={output}"]
    done = run_script(flags)
    assert done.returncode == 2
    assert done.stderr.startswith(f"pit-convert: error: {pit_ti} cannot be read as a torch check")
    assert done.stderr.count("\n") == 1
    assert output.read_bytes() == b"before"
    assert sorted(path.name for path in output.parent.iterdir()) == [output.name, pit_ti.name]
