"""The optimizers by name: equal to PyTorch's, clipped, scaled per layer, helpful when misnamed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from pit_jax.optim.optimizers import make_optimizer

WEIGHTS = {"dense": {"kernel": np.linspace(-1, 1, 12).reshape(3, 4), "bias": np.ones(4)}}
# AdamP projects none of these gradients, so that all optimizers act elementwise.
GRADIENTS = {"dense": {"kernel": np.linspace(3, 5, 12).reshape(3, 4), "bias": np.full(4, -2.0)}}
STEPS = 4


def to_jax(tree):
    return jax.tree.map(jnp.asarray, tree)


def train(optimizer, scale=lambda step: 1.0 + step):
    params = to_jax(WEIGHTS)
    state = optimizer.init(params)
    for step in range(STEPS):
        gradients = jax.tree.map(lambda g, step=step: jnp.asarray(g * scale(step)), GRADIENTS)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return params


def train_torch(make, scale=lambda step: 1.0 + step, clip=None):
    kernel, bias = (
        torch.nn.Parameter(torch.tensor(WEIGHTS["dense"][k])) for k in ("kernel", "bias")
    )
    optimizer = make(
        [{"params": [kernel], "weight_decay": 0.3}, {"params": [bias], "weight_decay": 0}]
    )
    for step in range(STEPS):
        kernel.grad = torch.tensor(GRADIENTS["dense"]["kernel"] * scale(step))
        bias.grad = torch.tensor(GRADIENTS["dense"]["bias"] * scale(step))
        if clip is not None:
            torch.nn.utils.clip_grad_norm_([kernel, bias], clip)
        optimizer.step()
    return {"dense": {"kernel": kernel.detach().numpy(), "bias": bias.detach().numpy()}}


def assert_close(found, expected, rtol=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol), found, expected)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_that_of_pytorch(nesterov):
    with jax.enable_x64(True):
        optimizer = make_optimizer("sgd", 0.1, weight_decay=0.3, momentum=0.8, nesterov=nesterov)
        found = train(optimizer)
    assert_close(
        found,
        train_torch(lambda groups: torch.optim.SGD(groups, 0.1, momentum=0.8, nesterov=nesterov)),
    )


def test_sgd_without_momentum():
    with jax.enable_x64(True):
        found = train(make_optimizer("sgd", 0.1, weight_decay=0.3, momentum=0.0))
    assert_close(found, train_torch(lambda groups: torch.optim.SGD(groups, 0.1)))


def test_adamw_is_that_of_pytorch():
    with jax.enable_x64(True):
        found = train(make_optimizer("adamw", 0.1, weight_decay=0.3, b2=0.99, eps=1e-3))
    expected = train_torch(
        lambda groups: torch.optim.AdamW(groups, 0.1, betas=(0.9, 0.99), eps=1e-3)
    )
    assert_close(found, expected)


def test_clipping_is_by_the_global_norm():
    with jax.enable_x64(True):
        found = train(make_optimizer("sgd", 0.1, weight_decay=0.3, clip_norm=20.0))
    # The first step's norm is below the limit, the later ones' above; torch adds 1e-6 to the norm.
    expected = train_torch(lambda groups: torch.optim.SGD(groups, 0.1, momentum=0.9), clip=20.0)
    assert_close(found, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "adamp", "sgd"])
def test_layer_scales_are_factors_of_the_learning_rate(name):
    scales = {"dense": {"kernel": 0.25, "bias": 0.5}}
    scaled = train(make_optimizer(name, 0.1, weight_decay=0.3, layer_scales=scales))
    for leaf, factor in scales["dense"].items():
        slow = train(make_optimizer(name, 0.1 * factor, weight_decay=0.3))
        # Nothing is clipped, so that the other parameter's rate has no influence.
        np.testing.assert_allclose(scaled["dense"][leaf], slow["dense"][leaf], rtol=1e-6)


def test_mask_can_be_replaced():
    plain = train(make_optimizer("sgd", 0.1, weight_decay=0.3))
    everywhere = train(make_optimizer("sgd", 0.1, weight_decay=0.3, mask=None))
    np.testing.assert_array_equal(plain["dense"]["kernel"], everywhere["dense"]["kernel"])
    assert np.all(plain["dense"]["bias"] != everywhere["dense"]["bias"])


@pytest.mark.parametrize("name", ["adamw", "adamp", "sgd"])
def test_state_is_a_tree_of_arrays_under_string_keys(name):
    params = to_jax(WEIGHTS)
    state = make_optimizer(name, lambda step: 0.1, weight_decay=0.1, clip_norm=1.0).init(params)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    assert leaves
    assert all(isinstance(leaf, jax.Array) for _, leaf in leaves)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adamp", {"nestrov": True}, "adamp has no option 'nestrov'; did you mean 'nesterov'"),
        ("sgd", {"b1": 0.9}, "sgd has no option 'b1'; it has momentum, weight_decay"),
    ],
)
def test_mistakes_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(name, 0.1, **options)
