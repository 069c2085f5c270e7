"""The reference in the documentation agrees with the code."""

import dataclasses
import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from pit_jax.training import config, reference

DOCUMENT = Path(__file__).parents[2] / "docs" / "training.md"


def test_the_document_says_what_the_code_does():
    text = DOCUMENT.read_text()
    assert reference.replace_reference(text) == text, (
        "docs/training.md is behind pit_jax/training/config.py; run: "
        "python -m pit_jax.training.reference docs/training.md"
    )


def test_every_option_has_its_row():
    rows = re.findall(r"^### `(.+)`$|^\| `(\w+)` \|", reference.reference(), re.MULTILINE)
    section, found = "", set()
    for heading, option in rows:
        section = heading or section
        if option:
            found.add(f"{section}.{option}")
    assert found == set(paths(config.default_config(), "config"))


def paths(node: ConfigDict, prefix: str) -> list[str]:
    """Paths of all options; a free-form dictionary is one option."""
    found = []
    for key in node:
        path = f"{prefix}.{key}"
        inner = isinstance(node[key], ConfigDict) and not path.endswith(
            ("options", "min_metric_at")
        )
        found += paths(node[key], path) if inner else [path]
    return found


def test_a_row_has_type_default_and_meaning():
    assert (
        "| `clip_norm` | `float \\| None` | `None` | Largest global gradient norm. |"
    ) in reference.reference().splitlines()


def test_an_option_without_docstring_is_refused(monkeypatch: pytest.MonkeyPatch):
    nameless = dataclasses.make_dataclass("TrainConfig", [("speed", int, 3)])
    monkeypatch.setattr(config, "TrainConfig", nameless)
    with pytest.raises(ValueError, match=r"config\.speed has no docstring"):
        reference.reference()


def test_a_document_without_markers_is_refused():
    with pytest.raises(ValueError, match="expected the lines"):
        reference.replace_reference("# Training\n")
