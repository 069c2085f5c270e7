"""One training step and one evaluation step, as pure functions to be jitted.

    uint8 batch -> normalise -> model -> loss -> gradient -> optimizer -> metrics

Randomness is a function of (seed, step): a resumed run draws the same numbers.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from pit_jax.data.images import IMAGENET_MEAN, IMAGENET_STD
from pit_jax.models import params as parameters
from pit_jax.training.state import TrainState

Metrics = dict[str, jax.Array]


def normalise(images: jax.Array) -> jax.Array:
    """uint8 (B, H, W, 3) to float32 with ImageNet's channel means and deviations."""
    mean = jnp.asarray(IMAGENET_MEAN, jnp.float32).reshape(1, 1, 1, 3)
    deviation = jnp.asarray(IMAGENET_STD, jnp.float32).reshape(1, 1, 1, 3)
    return (images.astype(jnp.float32) / 255.0 - mean) / deviation


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    seed: int,
    num_classes: int,
    label_smoothing: float,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]]:
    """The step: state and global batch in, next state and scalar metrics out.

    The metrics are those of the batch before the update: "loss", "top1" (fraction),
    "gradient_norm", "learning_rate". A distilled model without a teacher trains its class head
    only, as DeiT's code.
    """

    def loss_of(
        params: parameters.Params, images: jax.Array, labels: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        outputs = parameters.merge(graphdef, params)(images, train=True, key=key)
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        targets = optax.smooth_labels(jax.nn.one_hot(labels, num_classes), label_smoothing)
        return optax.softmax_cross_entropy(logits, targets).mean(), logits

    def train_step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        images, labels = normalise(batch["image"]), batch["label"]
        (loss, logits), gradient = jax.value_and_grad(loss_of, has_aux=True)(
            state.params, images, labels, key
        )
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": loss,
            "top1": (logits.argmax(-1) == labels).mean(),
            "gradient_norm": optax.tree.norm(gradient),
            "learning_rate": schedule(state.step),
        }
        return TrainState(state.step + 1, params, optimizer_state), metrics

    return train_step


def make_eval_step(
    graphdef: nnx.GraphDef,
) -> Callable[[parameters.Params, dict[str, jax.Array], Metrics], Metrics]:
    """Adds one batch to running sums: "count", "loss", "top1", "top5"; padding rows add nothing."""

    def eval_step(params: parameters.Params, batch: dict[str, jax.Array], sums: Metrics) -> Metrics:
        labels = batch["label"]
        valid = labels >= 0
        logits = parameters.merge(graphdef, params)(normalise(batch["image"]))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
        # The label's rank: how many classes score higher.
        own = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[:, None], axis=-1)
        rank = (logits > own).sum(-1)
        return {
            "count": sums["count"] + valid.sum(),
            "loss": sums["loss"] + jnp.where(valid, losses, 0.0).sum(),
            "top1": sums["top1"] + (valid & (rank < 1)).sum(),
            "top5": sums["top5"] + (valid & (rank < 5)).sum(),
        }

    return eval_step


def zero_sums() -> dict[str, Any]:
    """Where an evaluation starts."""
    return {
        "count": jnp.zeros((), jnp.int32),
        "loss": jnp.zeros((), jnp.float32),
        "top1": jnp.zeros((), jnp.int32),
        "top5": jnp.zeros((), jnp.int32),
    }
