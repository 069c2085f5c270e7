"""The reference of options in the documentation is what the code is."""

import dataclasses
import re
from pathlib import Path

import pytest

from pit_jax import options
from pit_jax.cli import reference
from pit_jax.options import option
from pit_jax.tasks.classification.config import ClassificationConfig

DOCUMENT = Path(__file__).parents[2] / "docs" / "training.md"


def test_the_document_says_what_the_code_does() -> None:
    text = DOCUMENT.read_text()
    assert reference.replace_reference(text) == text, (
        "docs/training.md is behind the options; run: "
        "python -m pit_jax.cli.reference docs/training.md"
    )


def test_every_option_has_its_row() -> None:
    lines = reference.markdown(ClassificationConfig)
    rows = re.findall(r"^### `(.+)`$|^\| `(\w+)` \|", lines, re.MULTILINE)
    section, found = "", set()
    for heading, name in rows:
        section = heading or section
        found.add(f"{section}.{name}" if name else heading)
    assert found == {"config", *options.paths(ClassificationConfig)}


def test_a_row_has_type_range_default_and_meaning() -> None:
    row = (
        "| `layer_decay` | `float \\| None in (0, 1]` | `None` | Factor on the learning rate from "
    )
    lines = reference.markdown(ClassificationConfig).splitlines()
    assert any(line.startswith(row) for line in lines)


def test_a_document_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="expected the lines"):
        reference.replace_reference("# Training\n")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """Parameters out."""

    decay: float | None = option(None, "Weight | decay.", within="(0, 1)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment."""

    batch_size: int = option(4, "Images per step.", at_least=1)
    dtype: str = option("bfloat16", "Type.", choices=("bfloat16", "float32"))
    fit: Fit = dataclasses.field(default_factory=Fit)


def test_the_reference_has_a_section_each_and_a_row_for_every_option() -> None:
    lines = reference.markdown(Experiment).splitlines()
    assert [line for line in lines if line.startswith("#")] == [
        "### `config`",
        "### `config.fit`",
    ]
    assert "| `decay` | `float \\| None in (0, 1)` | `None` | Weight \\| decay. |" in lines
    assert "| `batch_size` | `int at least 1` | `4` | Images per step. |" in lines
    assert "| `dtype` | `'bfloat16' \\| 'float32'` | `'bfloat16'` | Type. |" in lines
    helped = reference.help_text(Experiment)
    for path in options.paths(Experiment):
        assert f"--{path}=" in helped or f"{path}: " in helped
    assert "--config.batch_size=4  (int at least 1)\n        Images per step." in helped


def test_an_option_without_help_is_not_documented() -> None:
    nameless = dataclasses.make_dataclass("Nameless", [("speed", int, 3)])
    with pytest.raises(ValueError, match=r"config\.speed has no help text"):
        reference.markdown(nameless)
