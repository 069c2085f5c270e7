"""Layers of the transformers: flax's with our operations, and blocks in kernels or in parts."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pit_jax import sharding
from pit_jax.compile_report import chips, libtpu
from pit_jax.models.capture import Recorder
from pit_jax.models.initializers import deit_init, torch_default_init
from pit_jax.models.layers import MLP, Block, LayerNorm, Linear, PatchProjection
from pit_jax.models.stochastic import DropRates
from pit_jax.ops import branch_tpu, lowerings


def test_linear_is_flax_s_with_its_parameters() -> None:
    x = jax.random.normal(jax.random.key(0), (3, 50, 6))
    ours = Linear(6, 10, init=deit_init, dtype=jnp.float32, rngs=nnx.Rngs(0))
    ours.bias[...] = jnp.arange(10.0)
    flax = nnx.Linear(6, 10, rngs=nnx.Rngs(0))
    assert jax.tree.structure(nnx.state(ours)) == jax.tree.structure(nnx.state(flax))
    nnx.update(flax, nnx.state(ours))
    np.testing.assert_allclose(ours(x), flax(x), atol=1e-6)
    half = Linear(6, 10, init=deit_init, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert half(x).dtype == jnp.bfloat16


def test_layer_norm_is_flax_s_with_its_parameters() -> None:
    x = jax.random.normal(jax.random.key(0), (3, 5, 24))
    ours = LayerNorm(24, dtype=jnp.float32, rngs=nnx.Rngs(0))
    flax = nnx.LayerNorm(24, epsilon=1e-6, rngs=nnx.Rngs(0))
    assert jax.tree.structure(nnx.state(ours)) == jax.tree.structure(nnx.state(flax))
    np.testing.assert_allclose(ours(x), flax(x), atol=2e-6)
    assert ours(x.astype(jnp.bfloat16)).dtype == jnp.float32
    with pytest.raises(ValueError, match=r"takes no mask: use flax\.nnx\.LayerNorm"):
        ours(x, mask=jnp.ones(x.shape, bool))


def test_patch_projection_is_flax_s_with_its_parameters() -> None:
    images = jax.random.normal(jax.random.key(0), (2, 17, 22, 3))
    ours = PatchProjection(3, 7, patch=4, stride=2, dtype=jnp.float32, rngs=nnx.Rngs(0))
    flax = nnx.Conv(3, 7, (4, 4), strides=2, padding="VALID", rngs=nnx.Rngs(0))
    assert jax.tree.structure(nnx.state(ours)) == jax.tree.structure(nnx.state(flax))
    nnx.update(flax, nnx.state(ours))
    np.testing.assert_allclose(ours(images), flax(images), atol=2e-6)


def assert_equal(found: Any, expected: Any, tolerance: float) -> None:
    """Within a fraction of the largest value of each array."""
    for arrays in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        left, right = (np.asarray(array, np.float64) for array in arrays)
        assert np.abs(left - right).max() <= tolerance * np.abs(right).max()


def block(drop: DropRates, dtype: str = "bfloat16") -> Block:
    return Block(
        64, 2, 4.0, drop, init=torch_default_init, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0)
    )


def run(
    module: Block, x: jax.Array, key: jax.Array | None = None, capture: tuple[str, ...] = ()
) -> jax.Array:
    return module(x, key, Recorder(capture, ("attention", "blocks")), "block")


def tpu_kernels(module: Block, *, capture: tuple[str, ...] = (), **override: str) -> list[str]:
    """Names of the kernels of a block's program for TPUs, in training."""
    x = jax.ShapeDtypeStruct((4, 100, 64), module.norm1.dtype)

    def step(x: jax.Array) -> jax.Array:
        return jax.grad(lambda x: run(module, x, jax.random.key(0), capture).sum())(x)

    with lowerings.override(**override), lowerings.compiling_for("tpu"):
        program = jax.jit(step).trace(x).lower(lowering_platforms=("tpu",)).as_text()
    return sorted(set(re.findall(r'kernel_name = "pit_(\w+)_\d+x\d+', program)))


BRANCHES = [
    f"{kind}_branch_{direction}"
    for kind in ("attention", "mlp")
    for direction in ("backward", "forward")
]
PARTS = ["attention_backward", "attention_forward"]


def test_tpus_get_the_kernels():
    assert tpu_kernels(block(DropRates(path=0.1))) == BRANCHES


@pytest.mark.parametrize(
    ("drop", "dtype", "override", "expected"),
    [
        (DropRates(), "float32", {}, PARTS),
        (DropRates(), "bfloat16", {"branch": "parts"}, PARTS),
        (DropRates(), "bfloat16", {"gelu": "xla"}, PARTS),
        (DropRates(), "bfloat16", {"attention": "plain"}, []),
        (DropRates(), "float32", {"branch": "pallas"}, BRANCHES),
        (DropRates(features=0.1), "bfloat16", {}, PARTS),
        (DropRates(attention=0.1), "bfloat16", {}, ["mlp_branch_backward", "mlp_branch_forward"]),
    ],
)
def test_others_get_the_parts(
    drop: DropRates, dtype: str, override: dict[str, str], expected: list[str]
):
    assert tpu_kernels(block(drop, dtype), **override) == expected


@pytest.mark.parametrize("train", [True, False])
def test_a_block_is_the_same_in_kernels_and_in_parts(monkeypatch: pytest.MonkeyPatch, train: bool):
    """The same weights at the same places, the same images' branches dropped."""
    module = block(DropRates(path=0.4), "float32")
    x = jax.random.normal(jax.random.key(1), (6, 20, 64))
    key = jax.random.key(2) if train else None
    definition, state = nnx.split(module)

    def loss(state: Any, x: jax.Array) -> jax.Array:
        out = run(nnx.merge(definition, state), x, key)
        return (out * jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)).sum()

    with lowerings.override(branch="parts", gelu="polynomial"):
        expected = jax.value_and_grad(loss, (0, 1))(state, x)
    monkeypatch.setattr(
        branch_tpu, "add_branch", functools.partial(branch_tpu.add_branch, interpret=True)
    )
    with lowerings.override(branch="pallas"):
        found = jax.value_and_grad(loss, (0, 1))(state, x)
    assert_equal(found, expected, 1e-5)


def test_other_layers_in_their_place_are_not_passed_over():
    class Twice(Linear):
        def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
            return 2 * super().__call__(inputs, out_sharding)

    module = block(DropRates())
    module.mlp.fc2 = Twice(256, 64, init=torch_default_init, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    module.norm1.epsilon = 1e-5
    assert tpu_kernels(module) == PARTS

    class Idle(MLP):
        def __call__(self, x_bnc: jax.Array, key: jax.Array | None) -> jax.Array:
            return x_bnc

    other = block(DropRates())
    other.mlp = Idle(
        64, 256, DropRates(), init=torch_default_init, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)
    )
    assert tpu_kernels(other) == ["attention_branch_backward", "attention_branch_forward"]


def test_recorded_attention_maps_come_from_the_parts():
    names = tpu_kernels(block(DropRates()), capture=("attention",))
    assert names == ["mlp_branch_backward", "mlp_branch_forward"]


@pytest.mark.libtpu
@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
@pytest.mark.parametrize("tokens", [50, 197])
def test_tpu_programs_gather_weights_alone(topology: str, tokens: int):
    """Two blocks on four chips, parameters split over pairs of them."""
    devices = libtpu.devices(chips.parse_slice(topology))
    mesh = Mesh(np.asarray(devices).reshape(2, -1), (sharding.DATA_AXIS, sharding.FSDP_AXIS))
    definition, state = nnx.split([block(DropRates(path=0.1)) for _ in range(2)])

    def loss(state: Any, x: jax.Array) -> jax.Array:
        for module in nnx.merge(definition, state):
            x = run(module, x, jax.random.key(0))
        return x.astype(jnp.float32).var()

    def placed(leaf: jax.Array) -> jax.ShapeDtypeStruct:
        spec = PartitionSpec(sharding.FSDP_AXIS if leaf.ndim > 1 else None)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    x = jax.ShapeDtypeStruct((16, tokens, 64), jnp.bfloat16, sharding=sharding.batch_sharding(mesh))
    step = jax.jit(lowerings.compiling_for("tpu")(jax.value_and_grad(loss)))
    program = step.lower(jax.tree.map(placed, state), x).compile().as_text()
    assert program.count('custom_call_target="tpu_custom_call"') == 8
    assert "all-reduce" in program
    for shape in re.findall(r"= \w+\[([\d,]*)\][^=]* all-gather", program):
        assert all(int(size) % tokens for size in shape.split(",") if size)
    assert not re.search(r"all-to-all|collective-permute", program)
