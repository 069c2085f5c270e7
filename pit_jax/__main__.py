"""Lists the programs of pit_jax: `python -m pit_jax`."""

import ast
import importlib.util
from pathlib import Path

from pit_jax.version import __version__

# How a program is started, and the module whose docstring describes it.
PROGRAMS = {
    "pit-train": "pit_jax.cli.train",
    "pit-evaluate": "pit_jax.cli.evaluate",
    "pit-convert": "pit_jax.cli.convert",
    "pit-prepare": "pit_jax.cli.prepare",
    "pit-show": "pit_jax.cli.show",
    "python -m pit_jax.compile_report": "pit_jax.compile_report.__main__",
}


def text() -> str:
    """The version, and a line for every program."""
    width = max(map(len, PROGRAMS))
    lines = [f"  {program:<{width}}  {_first_line(module)}" for program, module in PROGRAMS.items()]
    return "\n".join([f"pit_jax {__version__}", "", *lines, "", "Each has --help."])


def _first_line(module: str) -> str:
    """The first line of a module's docstring; the module is not imported."""
    spec = importlib.util.find_spec(module)
    source = Path(str(spec.origin if spec else "")).read_text()
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


if __name__ == "__main__":
    print(text())
