"""The picture of a batch."""

import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from absl import app
from absl.testing import flagsaver
from ml_collections import ConfigDict
from PIL import Image

from pit_jax.cli import console, show

CONFIG = Path(__file__).parents[1] / "tiny.py"


@pytest.fixture
def config() -> ConfigDict:
    config = runpy.run_path(str(CONFIG))["get_config"]()
    config.augment.mixup_alpha = 0.8
    config.augment.mix_group = 16
    return config


def test_the_second_of_two_rows_is_mixed(config: ConfigDict, tmp_path: Path):
    show.show(config, tmp_path / "grid.png")
    picture = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB")).astype(int)
    height = picture.shape[0] // 8
    differing = np.abs(picture[height : 2 * height] - picture[:height]).mean()
    assert differing > 1
    config.augment.mixup_alpha = 0.0
    show.show(config, tmp_path / "plain.png")
    plain = np.asarray(Image.open(tmp_path / "plain.png").convert("RGB")).astype(int)
    assert np.abs(plain - picture).max() > 50


def test_a_label_names_the_classes_above_the_smoothing():
    smoothed = np.full(10, 0.01)
    assert show.label(smoothed + 0.9 * np.eye(10)[3]) == "3 (0.91)"
    mixed = smoothed + 0.6 * np.eye(10)[3] + 0.3 * np.eye(10)[7]
    assert show.label(mixed) == "3 (0.61), 7 (0.31)"


def test_a_picture_that_cannot_be_written_is_named(config: ConfigDict, tmp_path: Path):
    with pytest.raises(ValueError, match=r"cannot write --out=.*No such file.*choose"):
        show.show(config, tmp_path / "nowhere" / "grid.png")


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`python -m pit_jax.cli.show` in this process, which keeps neither its flags nor its log."""

    def run_app(main: Callable, flags_parser: Callable = app.parse_flags_with_usage) -> None:
        main(flags_parser(sys.argv))

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["show", *arguments])
        show.run()

    monkeypatch.setattr(app, "run", run_app)
    monkeypatch.setattr(console, "set_up_logging", lambda: None)
    with flagsaver.flagsaver():
        yield run


def test_the_program_draws_and_names_the_picture(
    program: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Eight images of a batch of eight are a row before and a row after mixing."""
    out = tmp_path / "grid.png"
    program(f"--config={CONFIG}", "--config.batch_size=8", f"--out={out}")
    assert capsys.readouterr().out == f"{out}\n"
    assert Image.open(out).size == (1280, 380)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([f"--config={CONFIG}"], "--out"),
        (["--out=grid.png"], "--config"),
        (
            [f"--config={CONFIG}", "--out=grid.png", "--config.batchsize=8"],
            "did you mean 'config.batch_size' or",
        ),
        ([f"--config={CONFIG}", "--out=grid.png", "--config.model.name=pit_x"], "'pit_xs'?"),
        ([f"--config={CONFIG}", "--out=grid.png", "grid.pdf"], "unexpected argument 'grid.pdf'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    program: Callable[..., None],
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
):
    with pytest.raises(SystemExit) as caught:
        program(*arguments)
    output = capsys.readouterr()
    assert caught.value.code == 2
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith("error: ")
    assert message in line
