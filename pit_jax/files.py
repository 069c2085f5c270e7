"""Atomic replacement of files, and the user's cache directory."""

import os
import secrets
from pathlib import Path


def cache_dir() -> Path:
    """Returns the folder of data sets and compiled programs, by default in the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pit_jax"
    return Path(os.environ.get("PIT_JAX_CACHE", default))


def replace_file(path: Path, content: bytes) -> None:
    """Replaces a file atomically: a reader sees the old file or the whole new one."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with open(partial, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
