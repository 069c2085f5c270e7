"""Initial values are functions of their keys alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pit_jax.models import parameters, zoo
from pit_jax.models.initializers import Initializer, constant, normal, uniform
from pit_jax.models.pit.model import PiT
from pit_jax.models.vit.model import ViT

TINY = {
    "pit_ti": {"widths": (8, 16), "depths": (1, 1), "heads": (1, 2), "image_size": 32},
    "deit_ti": {"width": 8, "heads": 2, "depth": 1, "image_size": 32},
}


@pytest.mark.parametrize(("name", "module"), [("pit_ti", PiT), ("deit_ti", ViT)])
def test_a_model_starts_from_the_same_numbers_under_jit(name: str, module: type) -> None:
    config = zoo.model_config(name, num_classes=3, **TINY[name])

    def build(key: jax.Array) -> parameters.Params:
        return parameters.split(module(config, rngs=nnx.Rngs(key)))[1]

    expected = parameters.flatten(parameters.split(zoo.build(config, seed=3))[1])
    found = parameters.flatten(jax.jit(build)(jax.random.key(3)))
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)


@pytest.mark.parametrize("initializer", [uniform(0.5), normal(0.02), constant(2.0)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_key_of_a_batch_draws_its_own(initializer: Initializer, dtype: str) -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    found = jax.jit(jax.vmap(lambda key: initializer(key, (4, 5), jnp.dtype(dtype))))(keys)
    assert found.dtype == dtype
    for value, key in zip(found, keys, strict=True):
        np.testing.assert_array_equal(value, initializer(key, (4, 5), jnp.dtype(dtype)))
