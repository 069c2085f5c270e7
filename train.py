"""Trains an experiment: python train.py --config=configs/digits.py --workdir=DIR."""

from pit_jax.cli import train

if __name__ == "__main__":
    train.run()
