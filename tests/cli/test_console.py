"""What all programs set up alike."""

import os
import subprocess
import sys
from pathlib import Path

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
