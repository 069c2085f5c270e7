"""The reference of all options in docs/training.md, made from the dataclasses of `config`.

python -m pit_jax.training.reference                    prints it
python -m pit_jax.training.reference docs/training.md   puts it between the markers of the file
"""

import ast
import dataclasses
import inspect
import sys
import typing
from pathlib import Path
from typing import Any

from pit_jax.tasks.classification import config as classification
from pit_jax.training import config

BEGIN = "<!-- made by `python -m pit_jax.training.reference docs/training.md`: begin -->"
END = "<!-- end -->"


def reference() -> str:
    """Markdown: a heading, a sentence and a table of options per section of the configuration.

    Raises:
      ValueError: an option without a docstring.
    """
    lines = _section(classification.ClassificationConfig, "config", _docstrings())
    return "\n".join(lines).strip() + "\n"


def replace_reference(text: str) -> str:
    """A document with what is between its two markers made anew.

    Raises:
      ValueError: a document without the markers.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"expected the lines {BEGIN!r} and {END!r} in the document")
    return f"{before}{BEGIN}\n\n{reference()}\n{END}{after}"


def _section(cls: type, path: str, docstrings: dict[tuple[str, str], str]) -> list[str]:
    """Lines of one dataclass, and of those that are its fields."""
    lines = [
        f"### `{path}`",
        "",
        inspect.getdoc(cls) or "",
        "",
        "| option | type | default | meaning |",
        "|---|---|---|---|",
    ]
    sections: list[str] = []
    hints = typing.get_type_hints(cls)
    values = cls()
    for field in dataclasses.fields(typing.cast(Any, cls)):
        hint, default = hints[field.name], getattr(values, field.name)
        if dataclasses.is_dataclass(hint):
            sections += _section(typing.cast(type, hint), f"{path}.{field.name}", docstrings)
            continue
        names = [(f"{of.__module__}.{of.__name__}", field.name) for of in cls.__mro__]
        text = next((docstrings[name] for name in names if name in docstrings), None)
        if text is None:
            raise ValueError(f"{path}.{field.name} has no docstring below it")
        row = (f"`{field.name}`", f"`{_type_name(hint)}`", f"`{default!r}`", text)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |")
    return [*lines, "", *sections]


def _type_name(hint: Any) -> str:
    """As the source has it: "float", "tuple[int, int]", "str | None"."""
    plain = isinstance(hint, type) and not typing.get_args(hint)
    return hint.__name__ if plain else str(hint).replace("typing.", "")


def _docstrings() -> dict[tuple[str, str], str]:
    """{(class, field): the string below the field}; Python itself keeps none of them."""
    found = {}
    nodes = [
        (module.__name__, node)
        for module in (config, classification)
        for node in ast.parse(inspect.getsource(module)).body
    ]
    for module, node in nodes:
        if not isinstance(node, ast.ClassDef):
            continue
        for field, below in zip(node.body, node.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
                and isinstance(below.value.value, str)
            ):
                found[f"{module}.{node.name}", field.target.id] = " ".join(
                    below.value.value.split()
                )
    return found


def main(arguments: list[str]) -> None:
    """Prints the reference, or puts it into the file that is named."""
    if not arguments:
        print(reference(), end="")
        return
    path = Path(arguments[0])
    path.write_text(replace_reference(path.read_text()))


if __name__ == "__main__":
    main(sys.argv[1:])
