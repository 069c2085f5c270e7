"""Evaluates weights: python evaluate.py --weights=DIR_OR_FILE."""

from pit_jax.cli import evaluate

if __name__ == "__main__":
    evaluate.run()
