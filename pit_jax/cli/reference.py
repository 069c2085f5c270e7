"""Writes the reference of all options of image classification, or puts it into a document.

python -m pit_jax.cli.reference
python -m pit_jax.cli.reference docs/training.md
"""

import sys
from pathlib import Path

from pit_jax import options
from pit_jax.tasks.classification.config import ClassificationConfig

BEGIN = "<!-- made by `python -m pit_jax.cli.reference docs/training.md`: begin -->"
END = "<!-- end -->"


def replace_reference(text: str) -> str:
    """A document with what is between its two markers made anew.

    Raises:
      ValueError: a document without the markers.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"expected the lines {BEGIN!r} and {END!r} in the document")
    reference = options.reference(ClassificationConfig).strip()
    return f"{before}{BEGIN}\n\n{reference}\n\n{END}{after}"


def main(arguments: list[str]) -> None:
    """Prints the reference, or puts it into the file that is named."""
    if not arguments:
        print(options.reference(ClassificationConfig))
        return
    path = Path(arguments[0])
    path.write_text(replace_reference(path.read_text()))


if __name__ == "__main__":
    main(sys.argv[1:])
