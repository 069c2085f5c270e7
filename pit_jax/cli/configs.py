"""The experiments of configs/ by name, which the package brings along, and files of a user's own.

`NAME[:VARIANT]` is a file of configs/, `FILE.py[:VARIANT]` any other.
"""

import ast
import os
import re
import runpy
import traceback
from pathlib import Path

from ml_collections import ConfigDict

import pit_jax
from pit_jax.errors import suggestion
from pit_jax.option_dict import place


def folder() -> Path:
    """The experiments of the package: in an installed one inside it, in a checkout beside it."""
    package = Path(pit_jax.__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def names() -> dict[str, str]:
    """The experiments of the package, and the first line of their docstrings."""
    return {
        file.stem: (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]
        for file in sorted(folder().glob("*.py"))
    }


def find(config: str) -> str:
    """FILE.py[:VARIANT] of NAME[:VARIANT]; a file stays as it is.

    Raises:
      ValueError: there is no such experiment or file.
    """
    name, colon, variant = config.partition(":")
    if not re.search(rf"\.py$|/|{re.escape(os.sep)}", name):
        if name not in names():
            raise ValueError(
                f"there is no config {name!r}{suggestion(name, names())}; there are "
                f"{', '.join(names())}, and files are written with .py"
            )
        return f"{folder() / name}.py{colon}{variant}"
    path = Path(name)
    if not path.is_file():
        beside = path.parent.is_dir() and path.parent != Path()
        known = sorted(
            str(file) for file in (path.parent if beside else Path("configs")).glob("*.py")
        )
        there = f"there are {', '.join(known or names())}"
        raise ValueError(f"there is no config file {path}{suggestion(str(path), known)}; {there}")
    return config


def load(config: str) -> ConfigDict:
    """The experiment NAME[:VARIANT] or FILE.py[:VARIANT].

    Raises:
      ValueError: there is none of that name, or the file has a mistake; the message says where.
    """
    file, *variant = find(config).split(":", 1)
    try:
        get_config = runpy.run_path(file).get("get_config")
        found = get_config(*variant) if get_config else None
    except Exception as error:  # whatever a file may raise
        raise ValueError(_told(error, file)) from error
    if not isinstance(found, ConfigDict):
        raise ValueError(f"{place(file)} has no function get_config that returns a ConfigDict")
    return found.lock()


def split_place(mistake: str) -> tuple[str, str]:
    """A mistake of a config file in two: "FILE:LINE: ", or "" where there is none, and the rest."""
    match = re.match(r"\S+\.py:\d+: ", mistake)
    end = match.end() if match else 0
    return mistake[:end], mistake[end:]


def _told(error: Exception, file: str) -> str:
    """An exception of a config file in a line, with the place in the file."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == file
    ]
    if isinstance(error, SyntaxError) and error.filename == file:
        lines, text = [error.lineno], error.msg
    else:
        text = " ".join(str(error).split())
    if isinstance(error, ValueError) and Path(file).parent == folder():
        return text  # a variant that there is not, and no fault of the file
    if not text.startswith("config."):
        text = f"{type(error).__name__}: {text}"
    return ":".join([place(file), *map(str, lines[-1:])]) + f": {text}"
