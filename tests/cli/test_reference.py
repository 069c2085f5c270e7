"""The reference of options in the documentation is what the code is."""

import re
from pathlib import Path

import pytest

from pit_jax import options
from pit_jax.cli import reference
from pit_jax.tasks.classification.config import ClassificationConfig

DOCUMENT = Path(__file__).parents[2] / "docs" / "training.md"


def test_the_document_says_what_the_code_does() -> None:
    text = DOCUMENT.read_text()
    assert reference.replace_reference(text) == text, (
        "docs/training.md is behind the options; run: "
        "python -m pit_jax.cli.reference docs/training.md"
    )


def test_every_option_has_its_row() -> None:
    lines = options.reference(ClassificationConfig)
    rows = re.findall(r"^### `(.+)`$|^\| `(\w+)` \|", lines, re.MULTILINE)
    section, found = "", set()
    for heading, option in rows:
        section = heading or section
        found.add(f"{section}.{option}" if option else heading)
    assert found == {"config", *options.paths(ClassificationConfig)}


def test_a_row_has_type_range_default_and_meaning() -> None:
    row = (
        "| `layer_decay` | `float \\| None in (0, 1]` | `None` | Factor on the learning rate from "
    )
    lines = options.reference(ClassificationConfig).splitlines()
    assert any(line.startswith(row) for line in lines)


def test_a_document_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="expected the lines"):
        reference.replace_reference("# Training\n")
