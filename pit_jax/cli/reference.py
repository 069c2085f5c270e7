"""Describes options: in Markdown for the documentation, in plain text for `--help`.

python -m pit_jax.cli.reference
python -m pit_jax.cli.reference docs/training.md
"""

import inspect
import sys
import textwrap
from pathlib import Path
from typing import Any

from pit_jax import options
from pit_jax.tasks.classification.config import ClassificationConfig

BEGIN = "<!-- made by `python -m pit_jax.cli.reference docs/training.md`: begin -->"
END = "<!-- end -->"


def markdown(node: Any, path: str = "config") -> str:
    """Markdown: for each section a heading, its docstring and a table of its options.

    Args:
      node: a dataclass of options, or an instance with other defaults.
      path: how the text calls it.

    Raises:
      ValueError: an option without a help text.
    """
    declared = options.fields(node).values()
    lines = [f"### `{path}`", "", _docstring(node), ""]
    lines += ["| option | type | default | meaning |", "|---|---|---|---|"]
    for field in declared:
        if field.section:
            continue
        if not field.declaration.help:
            raise ValueError(f"{path}.{field.name} has no help text: declare it by option(...)")
        cells = (f"`{field.name}`", f"`{field.values_text()}`", f"`{field.default!r}`")
        row = (*cells, field.declaration.help)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |")
    sections = [
        markdown(field.section, f"{path}.{field.name}") for field in declared if field.section
    ]
    return "\n".join([*lines, "", *sections])


def _docstring(node: Any) -> str:
    return inspect.getdoc(node if isinstance(node, type) else type(node)) or ""


def help_text(node: Any, path: str = "config", width: int = 100) -> str:
    """Plain text for a terminal: the options of each section with type, default and meaning."""
    declared = options.fields(node).values()
    lines = [f"{path}: {' '.join(_docstring(node).split())}"]
    for field in declared:
        if not field.section:
            lines.append(f"  --{path}.{field.name}={field.default!r}  ({field.values_text()})")
            lines += textwrap.wrap(
                field.declaration.help, width, initial_indent=" " * 8, subsequent_indent=" " * 8
            )
    sections = [
        help_text(field.section, f"{path}.{field.name}") for field in declared if field.section
    ]
    return "\n".join([*lines, "", *sections])


def replace_reference(text: str) -> str:
    """A document with what is between its two markers made anew.

    Raises:
      ValueError: a document without the markers.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"expected the lines {BEGIN!r} and {END!r} in the document")
    reference = markdown(ClassificationConfig).strip()
    return f"{before}{BEGIN}\n\n{reference}\n\n{END}{after}"


def main(arguments: list[str]) -> None:
    """Prints the reference, or puts it into the file that is named."""
    if not arguments:
        print(markdown(ClassificationConfig))
        return
    path = Path(arguments[0])
    path.write_text(replace_reference(path.read_text()))


if __name__ == "__main__":
    main(sys.argv[1:])
