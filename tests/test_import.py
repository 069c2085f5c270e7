"""Modules that importing the package must not load."""

import subprocess
import sys

import pytest

HEAVY = ("tensorflow", "tensorflow_datasets", "torch", "torchvision", "timm", "huggingface_hub")


@pytest.mark.parametrize("module", ["pit_jax", "pit_jax.cli.convert"])
def test_import_brings_neither_tensorflow_nor_torch_nor_tfds(module: str) -> None:
    program = f"import sys, {module}; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_the_front_door_has_what_it_promises() -> None:
    import pit_jax

    assert all(hasattr(pit_jax, name) for name in pit_jax.__all__)
    assert "pit_s" in pit_jax.list_models()
