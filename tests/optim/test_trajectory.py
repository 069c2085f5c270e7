"""Twelve optimizer steps of a small PiT follow those of the reference implementations."""

import functools
import json
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pit_jax.models import parameters, zoo
from pit_jax.optim.optimizers import make_optimizer
from pit_jax.weights.match import table_of

CONFIG = zoo.model_config("pit_ti", image_size=64)
TABLE = table_of(CONFIG)
# Compiling takes most of the time here; this saves a third and leaves the arithmetic unchanged.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

RUNS = {
    "adamw": ("adamw", {}),
    "adamp": ("adamp", {"delta": 0.1, "wd_ratio": 0.1, "nesterov": False}),
    "adamp_timm": ("adamp", {"delta": 0.1, "wd_ratio": 0.01, "nesterov": True}),
}


def reference_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Makes the weights of the recording, by its rule."""
    w = np.random.RandomState(zlib.crc32(f"0/{name}".encode())).standard_normal(shape)
    if name in ("pos_embed", "cls_token"):
        w = 0.5 * w
    elif len(shape) == 1:
        w = 1 + 0.1 * w if name.endswith(".weight") else 0.02 * w
    else:
        w = w / np.sqrt(np.prod(shape[1:]))
    return w.astype(np.float32)


@pytest.fixture(scope="module")
def params() -> parameters.Params:
    """Initial parameters of the recorded runs."""
    shapes = parameters.flatten(zoo.abstract(CONFIG)[1])
    flat = {}
    for row in TABLE.body + TABLE.head:
        shape = row.file_shape(shapes[row.path].shape, "official")
        weight = reference_weight(row.names["official"], shape)
        flat[row.path] = jnp.asarray(row.read(weight, "official"))
    return parameters.unflatten({path: flat[path] for path in shapes})


@pytest.fixture(scope="module")
def loss_and_gradient():
    """Returns loss and gradients of the recorded batch at given parameters."""
    graphdef, _ = zoo.abstract(CONFIG)
    images = np.random.RandomState(zlib.crc32(b"0/traj")).standard_normal((8, 3, 64, 64))
    images, labels = jnp.asarray(images.transpose(0, 2, 3, 1), jnp.float32), jnp.arange(8) * 100

    def loss_of(params):
        logits = parameters.merge(graphdef, params)(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def without_key_bias_noise(path, gradient):
        # Softmax does not see a bias of the keys: its gradient is zero, but float32 leaves rounding
        # noise there that Adam, dividing by its own size, would turn into whole steps.
        if jax.tree_util.keystr(path, simple=True, separator="/").endswith("qkv/bias"):
            width = gradient.shape[0] // 3
            return gradient.at[width : 2 * width].set(0.0)
        return gradient

    @jit
    def function(params):
        loss, gradients = jax.value_and_grad(loss_of)(params)
        return loss, jax.tree_util.tree_map_with_path(without_key_bias_noise, gradients)

    return function


def norms(params: parameters.Params, data_dir: Path) -> np.ndarray:
    """L2 norms in the order of the official state dict."""
    flat = parameters.flatten(params)
    by_name = TABLE.by_name("official")
    names = json.loads((data_dir / "keys_official.json").read_text())["pit_ti"]
    return np.array([np.linalg.norm(np.asarray(flat[by_name[name].path])) for name in names])


@pytest.mark.parametrize("run", RUNS)
def test_trajectory_equals_the_reference(run, params, loss_and_gradient, data_dir):
    name, options = RUNS[run]
    expected = np.load(data_dir / "traj_official.npz")
    optimizer = make_optimizer(name, 1e-3, weight_decay=0.05, eps=1e-8, **options)

    @jit
    def step(gradients, state, params):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state, losses = optimizer.init(params), []
    for _ in range(12):
        loss, gradients = loss_and_gradient(params)
        params, state = step(gradients, state, params)
        losses.append(float(loss))
    np.testing.assert_allclose(losses, expected[f"{run}/loss"], rtol=1e-4)
    np.testing.assert_allclose(norms(params, data_dir), expected[f"{run}/param_norms"], rtol=1e-5)
