"""Checks of a run directory before the run: whether it is writable, which experiment it holds."""

import importlib.metadata
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from pit_jax.version import __version__
from pit_jax.weights.run_directory import CHECKPOINT_FOLDER, RESULT_FILE

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def writable(workdir: str | os.PathLike[str]) -> Path:
    """Creates the run directory if it does not exist; returns its absolute path.

    Raises:
      ValueError: the directory cannot be written.
    """
    if "://" in str(workdir):
        raise ValueError(f"--workdir={workdir} is an address; give a folder (mount a remote one)")
    directory = Path(workdir).expanduser()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return directory.absolute()
    except OSError as error:
        raise ValueError(
            f"cannot write to --workdir={directory}: {error.strerror or error}; choose a folder "
            "that can be written"
        ) from error


def holds_work(workdir: Path) -> bool:
    """Whether a run directory has a result or a complete checkpoint, readable or not."""
    names = (path.name for path in (workdir / CHECKPOINT_FOLDER).glob("*"))
    saved = any(name.isdecimal() or name.startswith("damaged-") for name in names)
    return saved or (workdir / RESULT_FILE).is_file()


# Options of earlier versions and their present names.
RENAMED = {"min_top1_at": "min_metric_at"}


def upgraded(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Translates a recorded configuration to this version: renamed options get their new names,
    later ones their defaults.
    """
    known = {RENAMED.get(name, name): value for name, value in config.items()}
    added = {name: _as_json(value) for name, value in defaults.items() if name not in known}
    return known | added


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def changes(before: dict[str, Any], now: dict[str, Any], path: str = "config") -> list[str]:
    """Lists the options that differ between two configurations, with both values."""
    found: list[str] = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += changes(old, new, f"{path}.{key}")
        elif old != new:
            found.append(f"{path}.{key} was {old!r}, now {new!r}")
    return found


def versions() -> dict[str, str]:
    """Installed versions of the packages that affect the numbers."""
    installed = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"pit_jax": __version__, **installed}
