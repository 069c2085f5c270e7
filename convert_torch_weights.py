"""Converts weights between torch files and ours; `--help` lists the flags."""

import sys

from pit_jax.cli.convert import run

if __name__ == "__main__":
    sys.exit(run())
