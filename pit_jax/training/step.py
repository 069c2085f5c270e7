"""One training step and one evaluation step, as pure functions to be jitted.

    uint8 batch -> augment -> model -> loss -> gradient -> optimizer -> EMA -> metrics

Randomness is a function of (seed, step): a resumed run draws the same numbers.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from pit_jax.augment.batch import training_batch
from pit_jax.augment.normalise import normalise
from pit_jax.augment.resize import resize
from pit_jax.data.images import IMAGENET_MEAN, IMAGENET_STD
from pit_jax.losses import cross_entropy, distillation_loss
from pit_jax.models import parameters
from pit_jax.training.config import TrainConfig
from pit_jax.training.placement import placement
from pit_jax.training.state import TrainState

Metrics = dict[str, jax.Array]
Batch = dict[str, jax.Array]
TrainStep = Callable[[TrainState, parameters.Params, Batch], tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learner:
    """What a training step is made of.

    Attributes:
      graphdef: structure of the model.
      num_classes: of its head.
      optimizer: of its parameters, already with its learning rate.
      schedule: that learning rate by step, for the metrics.
      teacher: structure of the teacher; None without distillation.
    """

    graphdef: nnx.GraphDef
    num_classes: int
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    teacher: nnx.GraphDef | None = None


def make_train_step(learner: Learner, config: TrainConfig) -> TrainStep:
    """The step: state, the teacher's parameters ({} without one) and a global batch of uint8 images
    and labels in; the next state and scalar metrics out.

    The metrics are of the batch before the update: "loss", "top1" (fraction; of mixed images, how
    often the prediction is the class with the largest share), "gradient_norm", "learning_rate",
    "skipped" (updates left out so far).
    """

    def train_step(
        state: TrainState, teacher: parameters.Params, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        augment_key, model_key = step_keys(state.seed, state.step)
        images, targets = augment(config, augment_key, batch, learner.num_classes)
        (loss, (top1, statistics)), gradient = _gradient(
            learner, config, state, teacher, (images, targets, model_key)
        )
        norm = optax.tree.norm(gradient)
        after = _update(learner, config, state, gradient, statistics)
        if config.on_nonfinite == "skip":
            after = _keep_if(jnp.isfinite(loss) & jnp.isfinite(norm), after, state)
        metrics = {
            "loss": loss,
            "top1": top1,
            "gradient_norm": norm,
            "learning_rate": jnp.asarray(learner.schedule(state.step), jnp.float32),
            "skipped": after.skipped[1],
        }
        return after, metrics

    return train_step


def step_keys(seed: int | jax.Array, step: int | jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys of a step's augmentation and of its model."""
    augment_key, model_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
    return augment_key, model_key


def augment(
    config: TrainConfig, key: jax.Array, batch: Batch, num_classes: int
) -> tuple[jax.Array, jax.Array]:
    """Images (B, H, W, 3) and soft targets (B, K) of a global batch, as the model is given them.

    A batch of crops has their "extent" and "rows_first" with it, and is resized first.
    """
    place = placement(config)
    images = batch["image"]
    if "extent" in batch:
        images = resize(images, batch["extent"], batch["rows_first"], config.model.image_size)
    options = dataclasses.asdict(config.augment) | {"flip_probability": place.device_flip}
    return training_batch(
        key,
        images,
        batch["label"],
        num_classes=num_classes,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        dtype=jnp.dtype(config.model.dtype),
        policy=place.device_policy,
        **options,
    )


def loss_function(
    learner: Learner, config: TrainConfig, statistics: parameters.Params
) -> Callable[..., tuple[jax.Array, tuple[jax.Array, Any]]]:
    """The function that is differentiated: (params, images, targets, key, the teacher's logits or
    None) to (loss, (top1, batch statistics)), rematerialising as the configuration says.
    """

    def loss_of(
        params: parameters.Params,
        images: jax.Array,
        targets: jax.Array,
        key: jax.Array,
        teacher_logits: jax.Array | None,
    ) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        model = parameters.merge(learner.graphdef, parameters.join(params, statistics))
        capture = ("batch_statistics",) if statistics else ()
        outputs = model(images, train=True, key=key, capture=capture)
        outputs, of_batch = outputs if capture else (outputs, {})
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        top1 = (logits.argmax(-1) == targets.argmax(-1)).mean()
        return _loss(config, outputs, targets, teacher_logits), (top1, of_batch)

    if config.remat == "none":
        return loss_of
    return jax.checkpoint(loss_of, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)


def _gradient(
    learner: Learner,
    config: TrainConfig,
    state: TrainState,
    teacher: parameters.Params,
    inputs: tuple[jax.Array, jax.Array, jax.Array],
) -> Any:
    """((loss, (top1, statistics)), gradient) for (images, targets, key), part by part."""
    loss_of = loss_function(learner, config, state.statistics)

    def differentiate(images: jax.Array, targets: jax.Array, key: jax.Array) -> Any:
        # Outside of what is differentiated, or rematerialisation would keep or repeat it as well.
        logits = None
        if learner.teacher is not None:
            logits = parameters.merge(learner.teacher, teacher)(images)
        gradient_of = jax.value_and_grad(loss_of, has_aux=True)
        return gradient_of(state.params, images, targets, key, logits)

    if config.accumulate == 1:
        return differentiate(*inputs)

    def add(sums: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, differentiate(*part)), None

    parts = config.accumulate
    images, targets, key = inputs
    rows = (_interleave(images, parts), _interleave(targets, parts), jax.random.split(key, parts))
    shapes = jax.eval_shape(differentiate, *(row[0] for row in rows))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    sums, _ = jax.lax.scan(add, zeros, rows)
    return jax.tree.map(lambda leaf: leaf / parts, sums)


def _interleave(x: jax.Array, parts: int) -> jax.Array:
    """(B, ...) to (parts, B / parts, ...), every part taking rows from every device."""
    return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)


def _loss(
    config: TrainConfig, outputs: Any, targets: jax.Array, teacher_logits: jax.Array | None
) -> jax.Array:
    """Cross entropy; with a teacher, which has seen the same augmented images, distillation."""
    if teacher_logits is None:
        return cross_entropy(outputs, targets)
    options = config.distillation
    return distillation_loss(
        outputs,
        targets,
        teacher_logits,
        kind=options.kind,
        alpha=options.alpha,
        temperature=options.temperature,
    )


def _update(
    learner: Learner,
    config: TrainConfig,
    state: TrainState,
    gradient: parameters.Params,
    statistics: dict[str, jax.Array],
) -> TrainState:
    updates, optimizer = learner.optimizer.update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if config.ema_decay is not None:
        ema = optax.incremental_update(params, ema, 1.0 - config.ema_decay)
    return TrainState(
        step=state.step + 1,
        seed=state.seed,
        params=params,
        statistics=parameters.update_statistics(state.statistics, statistics),
        optimizer=optimizer,
        ema=ema,
        skipped=state.skipped * jnp.array([0, 1], jnp.int32),
    )


def _keep_if(finite: jax.Array, after: TrainState, before: TrainState) -> TrainState:
    """The updated state; where something was not finite, the old one and the skip counted."""
    skipped = dataclasses.replace(before, step=after.step, skipped=before.skipped + 1)
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, skipped)


def make_eval_step(
    graphdef: nnx.GraphDef,
) -> Callable[[parameters.Params, Batch, Metrics], Metrics]:
    """Adds one batch to running sums: "count", "loss", "top1", "top5"; padding rows add nothing."""

    def eval_step(params: parameters.Params, batch: Batch, sums: Metrics) -> Metrics:
        labels = batch["label"]
        valid = labels >= 0
        images = normalise(batch["image"], IMAGENET_MEAN, IMAGENET_STD)
        logits = parameters.merge(graphdef, params)(images)
        own_class = jnp.maximum(labels, 0)[:, None]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, own_class[:, 0])
        # The label's rank; ties, which bfloat16 makes, go to the lower class as in argmax, and
        # NaNs, which compare with nothing, to the bottom.
        own = jnp.take_along_axis(logits, own_class, axis=-1)
        earlier = jnp.arange(logits.shape[-1])[None] < own_class
        rank = (~(logits <= own) | ((logits == own) & earlier)).sum(-1)
        return {
            "count": sums["count"] + valid.sum(),
            "loss": sums["loss"] + jnp.where(valid, losses, 0.0).sum(),
            "top1": sums["top1"] + (valid & (rank < 1)).sum(),
            "top5": sums["top5"] + (valid & (rank < 5)).sum(),
        }

    return eval_step


def zero_sums() -> Metrics:
    """Where an evaluation starts."""
    return {
        "count": jnp.zeros((), jnp.int32),
        "loss": jnp.zeros((), jnp.float32),
        "top1": jnp.zeros((), jnp.int32),
        "top5": jnp.zeros((), jnp.int32),
    }
