"""Prepares a TFDS data set as ArrayRecord, or converts one that is prepared.

    pit-prepare imagenet2012 --manual_dir=DIR

`python -m pit_jax.cli.prepare` is the same program.
"""

from collections.abc import Sequence

from pit_jax.cli import console


def run(arguments: Sequence[str] | None = None) -> None:
    """Entry point: parses the command line, prepares, prints `ready: ...`."""
    parser = console.Parser("pit-prepare", __doc__)
    parser.add_argument("name", help="a TFDS set such as imagenet2012, or digits")
    parser.add_argument("--data_dir", help="where the set is written; default: TFDS's own")
    parser.add_argument("--manual_dir", help="folder of the archives that TFDS cannot download")
    options = console.or_fail(parser.parse_args, arguments)
    console.set_up_logging()
    from pit_jax.data.prepare import prepare

    folder = console.or_fail(prepare, options.name, options.data_dir, options.manual_dir)
    print(f"ready: {options.name} in {folder}", flush=True)


if __name__ == "__main__":
    run()
