"""The teacher in a training step: its mode, precision and place; it never changes."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from pit_jax.models import parameters, zoo
from pit_jax.tasks.classification import losses
from pit_jax.tasks.classification import task as classification
from pit_jax.tasks.experiments import prepare
from pit_jax.training import start, step
from pit_jax.training.batches import TrainBatches
from pit_jax.training.setup import Experiment
from pit_jax.training.state import create_state
from pit_jax.weights.cards import make_card
from pit_jax.weights.write import write_weights

TEACHER = {"base_width": 2, "depths": (1, 1), "drop_path_rate": 0.5}
TEACHER_CONFIG = zoo.model_config("resnet50", image_size=16, num_classes=10, **TEACHER)
TINY = Path(__file__).parents[2] / "tiny.py"


@pytest.fixture(scope="module")
def teacher_values() -> parameters.Params:
    """Values of a ResNet whose running statistics are far from those of any batch."""
    rng = np.random.default_rng(0)
    _, values = parameters.split(zoo.build(TEACHER_CONFIG))
    trained, statistics = parameters.separate(values)
    statistics = {
        path: rng.uniform(0.5, 2.0, value.shape).astype(np.float32)
        for path, value in parameters.flatten(statistics).items()
    }
    return parameters.join(trained, parameters.unflatten(statistics))


@pytest.fixture
def distilling(tmp_path: Path, teacher_values: parameters.Params) -> ConfigDict:
    weights = tmp_path / "teacher.safetensors"
    write_weights(weights, teacher_values, make_card("resnet50", TEACHER_CONFIG, source="here"))
    config = runpy.run_path(str(TINY))["get_config"]()
    config.model.name = "pit_ti_distilled"
    config.model.image_size = (16, 16)
    config.model.dtype = "bfloat16"
    config.distillation.kind = "hard"
    config.distillation.teacher = "resnet50"
    config.distillation.teacher_options = TEACHER
    config.distillation.teacher_weights = str(weights)
    return config


def begin(setup: Experiment) -> tuple[Any, Any, Any, Any]:
    """State, teacher, compiled step and first batch of an experiment."""
    state = create_state(
        setup.task.initial_values(),
        setup.optimizer,
        setup.mesh,
        ema=True,
        seed=setup.config.seed,
    )
    teacher = start.constants(setup)
    compiled = start.compile_step(setup, state, teacher)
    batch = next(TrainBatches(setup, 0))
    return state, teacher, compiled, batch


def watch_distillation(monkeypatch: pytest.MonkeyPatch, look: Callable[[jax.Array], None]) -> None:
    """Passes the teacher's logits inside the step to a function; the loss does not change."""

    def loss(outputs: Any, targets: jax.Array, teacher_logits: jax.Array, **options: Any) -> Any:
        look(teacher_logits)
        return losses.distillation_loss(outputs, targets, teacher_logits, **options)

    monkeypatch.setattr(classification, "distillation_loss", loss)


def test_the_teacher_is_in_evaluation_mode_in_bfloat16_on_the_batch_of_the_student(
    distilling: ConfigDict,
    teacher_values: parameters.Params,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    seen: list[np.ndarray] = []
    shardings: list[Any] = []

    def look(logits: jax.Array) -> None:
        jax.debug.callback(lambda value: seen.append(np.asarray(value)), logits)
        jax.debug.inspect_array_sharding(logits, callback=shardings.append)

    watch_distillation(monkeypatch, look)
    distilling.augment.cutmix_alpha = 1.0
    distilling.augment.mix_group = 4
    setup = prepare(distilling, tmp_path / "run")
    state, teacher, compiled, batch = begin(setup)
    augment_key, _ = step.step_keys(setup.config.seed, 0)
    images = jax.jit(lambda batch: setup.task.prepare(augment_key, batch))(batch)["images"]
    assert images.dtype == jnp.bfloat16
    compiled(state, teacher, batch)
    jax.effects_barrier()

    graphdef, _ = zoo.abstract(TEACHER_CONFIG, dtype=jnp.bfloat16)
    evaluate = jax.jit(lambda values, x: parameters.merge(graphdef, values)(x))
    expected = np.asarray(evaluate(teacher_values, images))
    found = next(value for value in seen if value.shape == expected.shape)
    # Rounded as in bfloat16, not as in float32.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-2 * np.abs(expected).max())
    exact, _ = zoo.abstract(TEACHER_CONFIG, dtype=jnp.float32)
    precise = jax.jit(parameters.merge(exact, teacher_values))(images.astype(jnp.float32))
    assert np.abs(found - expected).max() < 0.5 * np.abs(found - np.asarray(precise)).max()

    rows = {sharding.shard_shape(expected.shape) for sharding in shardings}
    assert rows == {(setup.config.batch_size // jax.device_count(), 10)}


def test_nothing_of_the_teacher_is_trained_or_in_the_state(distilling: ConfigDict, tmp_path: Path):
    setup = prepare(distilling, tmp_path / "run")
    state, teacher, compiled, batch = begin(setup)
    shapes = {path: leaf.shape for path, leaf in parameters.flatten(setup.abstract).items()}
    before = jax.device_get(teacher)
    state, _ = compiled(state, teacher, batch)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(teacher), before)
    assert {path: leaf.shape for path, leaf in parameters.flatten(state.params).items()} == shapes
    # AdamW: two moments of every parameter, and counts.
    moments = [leaf.shape for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim]
    assert sorted(moments) == sorted([*shapes.values(), *shapes.values()])


def test_a_missing_teacher_is_told_with_its_tag_and_how_to_convert_it(
    distilling: ConfigDict, tmp_path: Path
):
    distilling.distillation.teacher_weights = None
    message = r"hf:timm/regnety_160\.deit_in1k.*convert_torch_weights\.py --model=regnety_160"
    with pytest.raises(ValueError, match=message):
        prepare(distilling, tmp_path / "run")


def test_an_untrained_teacher_is_for_synthetic_data_alone(distilling: ConfigDict, tmp_path: Path):
    distilling.distillation.teacher_weights = "untrained"
    with pytest.raises(
        ValueError, match=r"'untrained' is for config\.data\.name='synthetic' alone"
    ):
        prepare(distilling, tmp_path / "run")


def test_a_plain_student_is_refused(distilling: ConfigDict, tmp_path: Path):
    distilling.model.name = "pit_ti"
    with pytest.raises(ValueError, match=r"set config\.model\.name to pit_ti_distilled"):
        prepare(distilling, tmp_path / "run")
