"""The step's arithmetic against plain formulas."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pit_jax.data.images import IMAGENET_MEAN, IMAGENET_STD
from pit_jax.models import params as parameters
from pit_jax.models import zoo
from pit_jax.training.state import TrainState
from pit_jax.training.step import make_eval_step, make_train_step, normalise, zero_sums

OPTIONS = {
    "image_size": 8,
    "patch_size": 2,
    "stride": 2,
    "widths": (8, 16),
    "depths": (1, 1),
    "heads": (1, 2),
    "num_classes": 7,
}


def network(name: str = "pit_ti") -> tuple[Any, parameters.Params]:
    return parameters.split(zoo.build(zoo.model_config(name, **OPTIONS)))


def batch(size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (size, 8, 8, 3), dtype=np.uint8),
        "label": rng.integers(0, 7, size).astype(np.int32),
    }


def test_images_are_normalised_with_imagenets_statistics():
    image = batch(1)["image"]
    expected = (image / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    np.testing.assert_allclose(normalise(jnp.asarray(image)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["pit_ti", "pit_ti_distilled"])
def test_a_step_is_the_gradient_of_the_smoothed_cross_entropy(name: str):
    graphdef, params = network(name)
    optimizer = optax.sgd(0.1)
    step = make_train_step(
        graphdef, optimizer, lambda step: 0.1, seed=0, num_classes=7, label_smoothing=0.1
    )
    state = TrainState(jnp.asarray(5, jnp.int32), params, optimizer.init(params))
    data = batch(6)
    after, metrics = jax.jit(step)(state, data)

    def loss(params: parameters.Params) -> jax.Array:
        logits = parameters.merge(graphdef, params)(normalise(data["image"]), train=True)
        logits = logits[0] if isinstance(logits, tuple) else logits
        log_p = jax.nn.log_softmax(logits)
        own = jnp.take_along_axis(log_p, data["label"][:, None], axis=1)[:, 0]
        return -(0.9 * own + 0.1 * log_p.mean(1)).mean()

    expected, gradient = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"], optax.tree.norm(gradient), rtol=1e-5)
    assert after.step == 6
    for found, old, slope in zip(
        *(jax.tree.leaves(tree) for tree in (after.params, params, gradient)), strict=True
    ):
        np.testing.assert_allclose(found, old - 0.1 * slope, rtol=1e-4, atol=1e-6)


def test_evaluation_counts_ranks_and_leaves_padding_out():
    graphdef, params = network()
    data = batch(12)
    data["label"][[3, 11]] = -1
    sums = jax.jit(make_eval_step(graphdef))(params, data, zero_sums())
    sums = jax.jit(make_eval_step(graphdef))(params, data, sums)
    logits = np.asarray(jax.jit(parameters.merge(graphdef, params))(normalise(data["image"])))
    valid = data["label"] >= 0
    order = np.argsort(-logits[valid], axis=1)
    hits = order == data["label"][valid][:, None]
    assert sums["count"] == 2 * 10
    assert sums["top1"] == 2 * hits[:, 0].sum()
    assert sums["top5"] == 2 * hits[:, :5].sum()
    shifted = logits[valid] - logits[valid].max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    expected = -2 * log_p[np.arange(10), data["label"][valid]].sum()
    np.testing.assert_allclose(sums["loss"], expected, rtol=1e-5)
