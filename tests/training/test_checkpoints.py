"""Checkpoints on disk: which are kept, what they hold, and that the loop does not wait."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax import sharding
from pit_jax.training.checkpoints import CheckpointError, Checkpoints
from pit_jax.training.recovery import restore_newest
from pit_jax.training.state import TrainState


def state_of(value: float, size: int = 8) -> TrainState:
    place = sharding.replicated(sharding.make_mesh())
    leaf = jax.device_put(jnp.full((size, size), value), place)
    return TrainState(
        step=jax.device_put(jnp.int32(0), place),
        seed=jax.device_put(jnp.int32(0), place),
        params={"kernel": leaf},
        statistics={},
        optimizer={"momentum": leaf * 2},
        ema={},
        skipped=jax.device_put(jnp.zeros(2, jnp.int32), place),
    )


@contextlib.contextmanager
def checkpoints(workdir: Path, keep: int = 2) -> Iterator[Checkpoints]:
    with contextlib.closing(Checkpoints(workdir, keep=keep)) as saved:
        yield saved


def steps(workdir: Path) -> list[int]:
    folder = workdir / "checkpoints"
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())


def test_the_newest_and_the_best_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A checkpoint without metrics is never the best, and is deleted by age."""
    evaluated = {1: {}, 2: {"top1": 0.9}, 3: {}, 4: {"top1": 0.5}, 5: {}, 6: {}}
    with checkpoints(tmp_path) as saved:
        for step, metrics in evaluated.items():
            saved.save(state_of(float(step)), step, {"next_batch": step}, metrics)
    assert steps(tmp_path) == [2, 5, 6]
    assert "metrics" not in caplog.text


def test_the_best_is_known_after_a_restart(tmp_path: Path):
    for evaluated in ({2: 0.9, 3: 0.5, 4: 0.4}, {5: 0.3, 6: 0.2}, {7: 0.95, 8: 0.1, 9: 0.1}):
        with checkpoints(tmp_path) as saved:
            for step, top1 in evaluated.items():
                saved.save(state_of(float(step)), step, {}, {"top1": top1})
        assert steps(tmp_path) == {4: [2, 3, 4], 6: [2, 5, 6], 9: [7, 8, 9]}[max(evaluated)]


def destroy(workdir: Path, step: int) -> None:
    for path in (workdir / "checkpoints" / str(step)).rglob("*"):
        if path.is_file():
            path.write_bytes(b"")


def test_a_step_may_be_damaged_twice(tmp_path: Path):
    for _ in range(2):
        with checkpoints(tmp_path) as saved:
            saved.save(state_of(1.0), 1, {}, {})
            saved.save(state_of(2.0), 2, {}, {})
        destroy(tmp_path, 2)
        with checkpoints(tmp_path) as saved:
            restored = restore_newest(saved, state_of(0.0), seed=0)
        assert restored is not None
        assert int(restored[0].step) == 1
    names = {path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()}
    assert names == {"1", "damaged-2", "damaged-2.1"}


def test_a_run_whose_checkpoints_are_all_damaged_stops_once(tmp_path: Path):
    """It must not start over unnoticed; the next start may."""
    with checkpoints(tmp_path) as saved:
        for step in (1, 2):
            saved.save(state_of(1.0), step, {}, {})
    for step in (1, 2):
        destroy(tmp_path, step)
    with (
        checkpoints(tmp_path) as saved,
        pytest.raises(CheckpointError, match="can be read: those of steps 2, 1 are set aside"),
    ):
        restore_newest(saved, state_of(0.0), seed=0)
    with checkpoints(tmp_path) as saved:
        assert restore_newest(saved, state_of(0.0), seed=0) is None


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(CheckpointError, match=r"cannot make .*checkpoints: File exists; remove"):
        Checkpoints(tmp_path, keep=1)


def test_what_is_saved_is_the_state_of_that_moment(tmp_path: Path):
    """The next training step overwrites the state while it is being written."""
    state = state_of(3.0, size=512)
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0, tree), donate_argnums=0)
    progress = {"next_batch": 7, "window": [{"loss": 1.0}]}
    with checkpoints(tmp_path) as saved:
        saved.save(state, 7, progress, {})
        zeroed = overwrite(state)
        progress["window"].append({"loss": 2.0})
        restored = restore_newest(saved, zeroed, seed=5)
    assert restored is not None
    assert restored[1] == {"next_batch": 7, "window": [{"loss": 1.0}]}
    np.testing.assert_array_equal(restored[0].params["kernel"], 3.0)
    np.testing.assert_array_equal(restored[0].optimizer["momentum"], 6.0)
    assert (int(restored[0].step), int(restored[0].seed)) == (7, 5)


def test_the_caller_goes_on_while_it_is_written(tmp_path: Path):
    """A save of a thousand arrays takes Orbax seconds; the caller waits for none of them."""
    many = state_of(1.0)
    many = TrainState(
        **{**vars(many), "params": {f"kernel{i}": many.params["kernel"] for i in range(300)}}
    )
    with checkpoints(tmp_path) as saved:
        saved.save(many, 1, {}, {})
        saved.wait()
        began = time.perf_counter()
        saved.save(many, 2, {}, {})
        blocked = time.perf_counter() - began
        saved.wait()
        whole = time.perf_counter() - began
    assert steps(tmp_path) == [1, 2]
    assert blocked < 0.25 * whole


def test_a_failure_is_told_at_the_next_occasion(tmp_path: Path):
    with checkpoints(tmp_path) as saved:
        saved.save(state_of(1.0), 1, {}, {})
        saved.wait()
        (tmp_path / "checkpoints").rename(tmp_path / "elsewhere")
        (tmp_path / "checkpoints").touch()
        saved.save(state_of(2.0), 2, {}, {})
        with pytest.raises(CheckpointError, match=r"cannot write the checkpoint of step 2 to .*"):
            saved.save(state_of(3.0), 3, {}, {})


def test_a_step_already_saved_is_left_alone(tmp_path: Path):
    with checkpoints(tmp_path) as saved:
        saved.save(state_of(1.0), 1, {"of": "the first"}, {})
        saved.save(state_of(2.0), 1, {"of": "the second"}, {})
        restored = restore_newest(saved, state_of(0.0), seed=5)
    assert restored is not None
    assert restored[1] == {"of": "the first"}


def test_a_state_that_is_not_finite_is_not_saved(tmp_path: Path):
    with checkpoints(tmp_path) as saved:
        saved.save(state_of(1.0), 1, {}, {})
        saved.save(state_of(float("nan")), 2, {}, {})
        with pytest.raises(CheckpointError, match=r"step 2 .* not finite.*Intact: 1"):
            saved.wait()
    assert steps(tmp_path) == [1]
