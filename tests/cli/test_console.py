"""Logging, errors and the end of a process, as all programs set them up."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from pit_jax.cli import console

SET_UP = """
import jax
from pit_jax.cli import console

console.set_up_compilation_cache()
print(jax.config.jax_compilation_cache_dir)
print(jax.config.jax_persistent_cache_min_compile_time_secs)
"""


def cache_settings(**environment: str) -> list[str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    }
    done = subprocess.run(
        [sys.executable, "-c", SET_UP],
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_all_programs_are_kept_unless_jax_is_told_otherwise(tmp_path: Path) -> None:
    assert cache_settings(PIT_JAX_CACHE=str(tmp_path)) == [str(tmp_path / "compiled"), "0.0"]
    told = cache_settings(
        JAX_COMPILATION_CACHE_DIR="/elsewhere", JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="3"
    )
    assert told == ["/elsewhere", "3.0"]


class EndedError(Exception):
    """In place of the end of the process."""


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (SystemExit(2), 2, ""),
        (KeyboardInterrupt(), 1, "KeyboardInterrupt\nerror: this process of several ends; "),
        (RuntimeError("a peer left"), 1, "RuntimeError: a peer left\nerror: this process of sev"),
    ],
)
def test_only_a_process_of_several_ends_without_waiting(
    error: BaseException,
    status: int,
    said: str,
    *,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    @console.of_several()
    def fail() -> None:
        raise error

    def end(status: int) -> None:
        raise EndedError(status)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(console, "LAST_WORDS", 0)
    with pytest.raises(type(error)):
        fail()
    assert not capsys.readouterr().err
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    with pytest.raises(EndedError, match=str(status)):
        fail()
    assert said in capsys.readouterr().err
