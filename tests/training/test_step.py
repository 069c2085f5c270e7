"""The training step agrees with plain formulas."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from pit_jax import sharding
from pit_jax.data.images import IMAGENET_MEAN, IMAGENET_STD
from pit_jax.models import parameters, zoo
from pit_jax.ops import lowerings
from pit_jax.optim.optimizers import make_optimizer
from pit_jax.tasks.classification.config import (
    AugmentConfig,
    ClassificationConfig,
    DistillationConfig,
    ModelConfig,
)
from pit_jax.tasks.classification.task import Classification
from pit_jax.tasks.experiments import prepare
from pit_jax.training.start import compile_step, jitted_step
from pit_jax.training.state import TrainState, create_state, initial_state
from pit_jax.training.step import TrainStep, loss_function, make_train_step

OPTIONS = {
    "image_size": 8,
    "patch_size": 2,
    "stride": 2,
    "widths": (8, 16),
    "depths": (1, 1),
    "heads": (1, 2),
    "num_classes": 7,
}


SETTINGS = ClassificationConfig(
    model=ModelConfig(dtype="float32"), augment=AugmentConfig(flip_probability=0.0)
)
OPTIMIZER = optax.sgd(0.1)


def network(name: str = "pit_ti", **options: Any) -> tuple[Any, parameters.Params]:
    return parameters.split(zoo.build(zoo.model_config(name, **{**OPTIONS, **options})))


def step_of(task: Classification) -> TrainStep:
    return make_train_step(task, OPTIMIZER, lambda step: 0.1)


def batch(size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (size, 8, 8, 3), dtype=np.uint8),
        "label": rng.integers(0, 7, size).astype(np.int32),
    }


def normalised(images: np.ndarray) -> np.ndarray:
    scaled = (images / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    return scaled.astype(np.float32)


def advance(
    name: str = "pit_ti",
    data: dict[str, np.ndarray] | None = None,
    teacher: tuple[Any, parameters.Params] = (None, {}),  # configuration, values
    steps: int = 1,
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> tuple[TrainState, TrainState, dict[str, jax.Array]]:
    """States before and after some steps on one batch, and the last metrics."""
    model = zoo.model_config(name, **{**OPTIONS, **(options or {})})
    _, values = parameters.split(zoo.build(model))
    config = dataclasses.replace(SETTINGS, **settings)
    step = jax.jit(step_of(Classification(config, model, teacher=teacher[0])))
    first = state = initial_state(values, OPTIMIZER, config.seed, ema=config.ema_decay is not None)
    for _ in range(steps):
        state, metrics = step(state, teacher[1], data or batch(8))
    return first, state, metrics


def assert_close(found: Any, expected: Any, rtol: float = 1e-4, atol: float = 1e-6) -> None:
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(left, right, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", ["pit_ti", "pit_ti_distilled"])
def test_a_step_is_the_gradient_of_the_smoothed_cross_entropy(name: str):
    data = batch(6)
    before, after, metrics = advance(name, data)
    graphdef, _ = network(name)

    def loss(params: parameters.Params) -> jax.Array:
        logits = parameters.merge(graphdef, params)(normalised(data["image"]), train=True)
        logits = logits[0] if isinstance(logits, tuple) else logits
        log_p = jax.nn.log_softmax(logits)
        own = jnp.take_along_axis(log_p, data["label"][:, None], axis=1)[:, 0]
        return -(0.9 * own + 0.1 * log_p.mean(1)).mean()

    expected, gradient = jax.jit(jax.value_and_grad(loss))(before.params)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"], optax.tree.norm(gradient), rtol=1e-5)
    assert after.step == 1
    moved = jax.tree.map(lambda old, slope: old - 0.1 * slope, before.params, gradient)
    assert_close(after.params, moved)


def test_accumulation_equals_the_large_batch():
    _, whole, metrics = advance()
    _, parts, part_metrics = advance(accumulate=4)
    assert_close(parts.params, whole.params)
    assert_close(part_metrics, metrics, rtol=1e-5)


def test_rematerialisation_changes_nothing_but_memory():
    _, plain, _ = advance()
    _, again, _ = advance(remat="dots")
    assert_close(again.params, plain.params, rtol=1e-5)


def test_rematerialisation_saves_memory():
    """Counts the bytes per image that the backward pass keeps, parameters aside.

    The lowerings are those of a TPU: on a CPU the compiler would undo the saving.
    """
    model = zoo.model_config("pit_ti")
    graphdef, values = zoo.abstract(model, dtype=jnp.bfloat16)

    def kept(remat: str, count: int) -> int:
        task = Classification(dataclasses.replace(SETTINGS, remat=remat), model)
        loss = loss_function(task, graphdef, {})
        images = jnp.zeros((count, 224, 224, 3), jnp.bfloat16)
        inputs = {"images": images, "targets": jnp.zeros((count, 1000))}
        with lowerings.compiling_for("tpu"):
            residuals = jax.eval_shape(
                lambda values: jax.vjp(lambda p: loss(p, inputs, jax.random.key(0))[0], values)[1],
                values,
            )
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(residuals))

    of_an_image = {remat: kept(remat, 3) - kept(remat, 2) for remat in ("none", "dots")}
    assert of_an_image["dots"] < 0.6 * of_an_image["none"]


def test_the_moving_average_follows_the_parameters():
    before, after, _ = advance(ema_decay=0.75)
    expected = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, before.params, after.params)
    assert_close(after.ema, expected, rtol=1e-5)


def test_runs_of_all_seeds_share_a_program():
    """Repeating a run with other seeds compiles nothing."""
    model = zoo.model_config("pit_ti", **OPTIONS)
    _, values = network()
    programs = set()
    for seed in (1, 2):
        step = jax.jit(step_of(Classification(dataclasses.replace(SETTINGS, seed=seed), model)))
        state = initial_state(values, OPTIMIZER, seed, ema=False)
        programs.add(step.lower(state, {}, batch(8)).as_text())
    assert len(programs) == 1


def test_randomness_is_a_function_of_seed_and_step():
    options = {"drop_path_rate": 0.5}
    states = [
        advance(options=options, steps=steps, seed=seed)[1]
        for seed, steps in ((1, 2), (1, 2), (2, 2))
    ]
    assert_close(states[0], states[1], rtol=0, atol=0)
    assert not np.allclose(states[0].params["head"]["kernel"], states[2].params["head"]["kernel"])


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_distillation_adds_the_teachers_term(kind: str):
    data = batch(8)
    taught_by = zoo.model_config("pit_ti", **{**OPTIONS, "widths": (16, 32)})
    teacher = parameters.split(zoo.build(taught_by))
    settings = DistillationConfig(kind=kind, alpha=0.4, temperature=2.0)
    before, _, metrics = advance(
        "pit_ti_distilled", data, (taught_by, teacher[1]), distillation=settings
    )
    images = normalised(data["image"])
    student = parameters.merge(network("pit_ti_distilled")[0], before.params)
    own, distilled = jax.jit(lambda x: student(x, train=True))(images)
    taught = jax.jit(parameters.merge(*teacher))(images)
    targets = optax.smooth_labels(jax.nn.one_hot(data["label"], 7), 0.1)
    if kind == "hard":
        term = optax.softmax_cross_entropy_with_integer_labels(distilled, taught.argmax(-1)).mean()
    else:
        wanted, found = jax.nn.log_softmax(taught / 2), jax.nn.log_softmax(distilled / 2)
        term = 4 * (jnp.exp(wanted) * (wanted - found)).mean()
    expected = 0.6 * optax.softmax_cross_entropy(own, targets).mean() + 0.4 * term
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def test_in_bfloat16_all_that_is_kept_stays_float32(config: ConfigDict, workdir: Path):
    """Parameters, their average and moments are float32, with values finer than bfloat16's."""
    config.model.dtype = "bfloat16"
    setup = prepare(config, workdir)
    values, optimizer = setup.task.initial_values(), setup.optimizer
    state = create_state(values, optimizer, setup.mesh, ema=True, seed=0)
    data = sharding.to_global(setup.mesh, batch(32))
    lowered = jitted_step(setup, state).lower(state, {}, data)
    assert "bf16" in lowered.as_text()
    train_step = lowered.compile()
    for _ in range(2):
        state, metrics = train_step(state, {}, data)
    assert np.isfinite(metrics["loss"])
    for part in (state.params, state.ema, state.optimizer):
        kept = [leaf for leaf in jax.tree.leaves(part) if leaf.ndim]
        assert {leaf.dtype for leaf in kept} == {jnp.dtype("float32")}
        kernels = [leaf for leaf in kept if leaf.ndim > 1]
        assert kernels
        for leaf in kernels:
            assert np.any(leaf != leaf.astype(jnp.bfloat16).astype(jnp.float32))


def test_batch_statistics_move_in_training():
    options = {"image_size": 32, "depths": (1, 1, 1, 1)}
    model = zoo.model_config("resnet50", num_classes=7, **options)
    _, values = parameters.split(zoo.build(model))
    state = initial_state(values, OPTIMIZER, 0, ema=False)
    rng = np.random.default_rng(0)
    data = {
        "image": rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8),
        "label": np.arange(4, dtype=np.int32),
    }
    after, metrics = jax.jit(step_of(Classification(SETTINGS, model)))(state, {}, data)
    assert np.isfinite(metrics["loss"])
    for old, new in zip(
        jax.tree.leaves(state.statistics), jax.tree.leaves(after.statistics), strict=True
    ):
        assert not np.allclose(old, new)


def test_an_update_that_is_not_finite_is_skipped_and_counted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "pit_jax.tasks.classification.augmentation.IMAGENET_MEAN", (float("nan"),) * 3
    )
    before, after, metrics = advance(steps=2, on_nonfinite="skip", ema_decay=0.9)
    assert not np.isfinite(metrics["loss"])
    assert_close(after.params, before.params, rtol=0, atol=0)
    assert_close(after.ema, before.ema, rtol=0, atol=0)
    assert after.step == 2
    assert after.skipped.tolist() == [2, 2]
    assert metrics["skipped"] == 2


@pytest.mark.parametrize("name", ["adamw", "sgd", "adamp"])
def test_parameters_and_moments_that_do_not_move_stay_bit_for_bit(name: str):
    """Only the first block moves, as in a supernet whose step trains one path."""

    class Partial(Classification):
        def moves(self, key: jax.Array, params: parameters.Params) -> parameters.Params:
            drawn = jax.random.bernoulli(key, 1.0)  # from the step's key, as a path is
            return parameters.unflatten(
                {
                    path: jnp.full((1,) * leaf.ndim, path.startswith("stage0")) & drawn
                    for path, leaf in parameters.flatten(params).items()
                }
            )

    model = zoo.model_config("pit_ti", **OPTIONS)
    _, values = parameters.split(zoo.build(model))
    optimizer = make_optimizer(name, 0.1, weight_decay=0.05)
    state = initial_state(values, optimizer, 0, ema=False)
    step = jax.jit(make_train_step(Partial(SETTINGS, model), optimizer, lambda step: 0.1))
    after, metrics = step(state, {}, batch(8))
    whole, _ = jax.jit(make_train_step(Classification(SETTINGS, model), optimizer, lambda _: 0.1))(
        state, {}, batch(8)
    )
    assert np.isfinite(metrics["loss"])
    for path, leaf in parameters.flatten(after.params).items():
        moved = whole if path.startswith("stage0") else state
        np.testing.assert_array_equal(leaf, parameters.flatten(moved.params)[path])
    moments = jax.tree_util.tree_leaves_with_path(after.optimizer)
    before = jax.tree.leaves(state.optimizer)
    for (path, leaf), old, new in zip(
        moments, before, jax.tree.leaves(whole.optimizer), strict=True
    ):
        of_parameter = leaf.ndim > 0 and "stage0" not in jax.tree_util.keystr(path)
        np.testing.assert_array_equal(leaf, old if of_parameter else new)


def test_a_step_is_compiled_for_every_shape_of_batch(config: ConfigDict, workdir: Path):
    """Two canvases are two programs of one task; the batch tells which one runs."""
    experiment = prepare(config, workdir)
    shapes = experiment.task.batch_shapes(32)[0]
    small = dict(shapes, image=jax.ShapeDtypeStruct((16, 8, 8, 3), jnp.uint8))
    small["label"] = jax.ShapeDtypeStruct((16,), jnp.int32)
    experiment.task.batch_shapes = lambda size: (shapes, small)
    values = experiment.task.initial_values()
    state = create_state(values, experiment.optimizer, experiment.mesh, ema=True, seed=0)
    step = compile_step(experiment, state, {})
    for size in (32, 16):
        rows = sharding.to_global(experiment.mesh, batch(size))
        state, metrics = step(state, {}, rows)
        assert np.isfinite(metrics["loss"])
    with pytest.raises(ValueError, match=r"no step is compiled for a batch of .*24"):
        step(state, {}, sharding.to_global(experiment.mesh, batch(24)))
