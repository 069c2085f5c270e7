"""The program that prepares data sets."""

from pathlib import Path

import pytest

from pit_jax.cli import console, prepare


def test_the_program_prepares_or_says_in_a_line_why_not(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(console, "set_up_logging", lambda: None)
    prepare.run(["digits", f"--data_dir={tmp_path}"])
    assert capsys.readouterr().out == f"ready: digits in {tmp_path}/digits/1.0.0\n"
    with pytest.raises(SystemExit) as caught:
        prepare.run(["digitz"])
    assert caught.value.code == 2
    assert "did you mean 'digits'" in capsys.readouterr().err
