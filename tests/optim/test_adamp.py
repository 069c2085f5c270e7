"""AdamP against the reference's arithmetic, in double precision and on sharded tensors."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pit_jax.models import parameters
from pit_jax.optim.optimizers import make_optimizer

# Our shape, and the order of our axes that gives torch's tensor.
TENSORS = {
    "dense/kernel": ((6, 10), (1, 0)),
    "conv/kernel": ((3, 3, 8, 4), (3, 2, 0, 1)),
    "depthwise/kernel": ((3, 3, 1, 12), (3, 2, 0, 1)),
    "pointwise/kernel": ((1, 1, 6, 5), (3, 2, 0, 1)),
    "embedding/position": ((1, 5, 4, 6), (0, 3, 1, 2)),
    "class_token": ((1, 2, 6), (0, 1, 2)),
    "dense/bias": ((10,), (0,)),
    "norm/scale": ((6,), (0,)),
}
SETTINGS = {
    "package": {"delta": 0.1, "wd_ratio": 0.1, "nesterov": False},
    "timm": {"delta": 0.1, "wd_ratio": 0.01, "nesterov": True},
    # Large enough to project every tensor of more than one axis, per channel.
    "always": {"delta": 1e3, "wd_ratio": 0.01, "nesterov": False},
    "never": {"delta": 0.0, "wd_ratio": 0.01, "nesterov": False},
}
STEPS = 6
RATE = 1e-3
DECAY = 10.0


def draws(kind: str) -> dict[str, np.ndarray]:
    """Normal values for every tensor."""
    rng = np.random.default_rng(sum(kind.encode()))
    return {name: rng.standard_normal(shape) for name, (shape, _) in TENSORS.items()}


def gradients(step: int) -> dict[str, np.ndarray]:
    """Noise whose part along the weights is all but removed: for the tensor as a whole in step 0,
    in every channel in odd steps, so that the tests fire in either view, or in none. In step 3 all
    channels lean on the weights just below their limit, and the tensor as a whole is above its.
    """
    result = draws(f"gradients {step}")
    for name, weight in draws("weights").items():
        if weight.ndim == 1 or (step and step % 2 == 0):
            continue
        per_channel = step and name.endswith("kernel")
        axes = tuple(range(weight.ndim - 1)) if per_channel else None
        along = np.sum(result[name] * weight, axes, keepdims=True)
        square = np.sum(weight**2, axes, keepdims=True)
        result[name] -= 0.99 * weight * along / square
        if step == 3 and per_channel:
            length = np.prod([weight.shape[axis] for axis in axes])
            norm = np.sqrt(np.sum(result[name] ** 2, axes, keepdims=True))
            result[name] += 0.08 / np.sqrt(length) * weight * norm / np.sqrt(square)
    return result


@functools.cache
def reference(name: str) -> dict[str, np.ndarray]:
    """Returns the weights after timm's AdamP, in our layout."""
    import torch
    from timm.optim import AdamP

    tensors = {
        name: torch.nn.Parameter(torch.tensor(value.transpose(TENSORS[name][1]).copy()))
        for name, value in draws("weights").items()
    }
    decayed = [tensor for name, tensor in tensors.items() if name.endswith("kernel")]
    others = [tensor for name, tensor in tensors.items() if not name.endswith("kernel")]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others}]
    optimizer = AdamP(groups, lr=RATE, **SETTINGS[name])
    for step in range(STEPS):
        for tensor, gradient in gradients(step).items():
            tensors[tensor].grad = torch.tensor(gradient.transpose(TENSORS[tensor][1]).copy())
        optimizer.step()
    return {
        name: tensor.detach().numpy().transpose(np.argsort(TENSORS[name][1]))
        for name, tensor in tensors.items()
    }


def place_whole(value: np.ndarray) -> jax.Array:
    return jnp.asarray(value)


@functools.cache
def train(
    name: str, place: Callable[[np.ndarray], jax.Array] = place_whole
) -> dict[str, np.ndarray]:
    """Returns the weights after our "adamp", under jit."""
    optimizer = make_optimizer("adamp", RATE, weight_decay=DECAY, **SETTINGS[name])

    @jax.jit
    def step(gradients, state, params):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    def tree(values):
        return parameters.unflatten({name: place(value) for name, value in values.items()})

    params = tree(draws("weights"))
    state = optimizer.init(params)
    for number in range(STEPS):
        params, state = step(tree(gradients(number)), state, params)
    return {name: np.asarray(value) for name, value in parameters.flatten(params).items()}


@pytest.mark.parametrize("name", SETTINGS)
def test_equals_the_reference_in_double_precision(name, timm):
    with jax.enable_x64(True):
        found = train.__wrapped__(name)
    for tensor, expected in reference(name).items():
        assert found[tensor].dtype == np.float64
        np.testing.assert_allclose(found[tensor], expected, rtol=1e-12, atol=1e-14, err_msg=tensor)


def test_equals_the_reference_in_single_precision(timm):
    found = train("package")
    for tensor, expected in reference("package").items():
        assert found[tensor].dtype == np.float32
        np.testing.assert_allclose(found[tensor], expected, rtol=0, atol=2e-6, err_msg=tensor)


def test_only_tensors_of_more_than_one_axis_are_projected(timm):
    projected, plain = reference("package"), reference("never")
    changed = [name for name in TENSORS if not np.array_equal(projected[name], plain[name])]
    assert changed == [name for name, (shape, _) in TENSORS.items() if len(shape) > 1]
    found, plain = train("package"), train("never")
    assert changed == [name for name in TENSORS if not np.array_equal(found[name], plain[name])]


def test_sharding_does_not_change_the_steps():
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

    def shard(value: np.ndarray) -> jax.Array:
        # The longest axis, of channels or not, as the size rule of training does.
        axes = [None] * value.ndim
        longest = int(np.argmax(value.shape))
        if value.shape[longest] % 4 == 0:
            axes[longest] = "fsdp"
        return jax.device_put(jnp.asarray(value), NamedSharding(mesh, PartitionSpec(*axes)))

    assert not shard(draws("weights")["conv/kernel"]).is_fully_replicated
    whole, sharded = train("package"), train("package", shard)
    for name, expected in whole.items():
        np.testing.assert_allclose(sharded[name], expected, rtol=0, atol=1e-6, err_msg=name)


def test_follows_a_schedule():
    optimizer = make_optimizer("adamp", lambda step: 0.1 * (step + 1))
    params = {"bias": jnp.zeros(3)}
    state = optimizer.init(params)
    for step in range(3):
        updates, state = optimizer.update({"bias": jnp.ones(3)}, state, params)
        np.testing.assert_allclose(updates["bias"], -0.1 * (step + 1), rtol=1e-6)


def test_needs_the_parameters():
    optimizer = make_optimizer("adamp", 0.1)
    params = {"bias": jnp.zeros(3)}
    with pytest.raises(ValueError, match=r"needs the parameters: call update\("):
        optimizer.update(params, optimizer.init(params))
