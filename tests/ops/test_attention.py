"""Every lowering of attention is softmax(q k^T / sqrt(D)) v, with its gradients; each platform has
its own.
"""

import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import Mesh, PartitionSpec

from pit_jax import sharding
from pit_jax.compile_report import chips, libtpu
from pit_jax.ops import attention as lowered
from pit_jax.ops import attention_tpu, lowerings

Arrays = tuple[jax.Array, ...]

KERNEL = functools.partial(attention_tpu.attention, interpret=True)


def example(batch: int, tokens: int, heads: int, width: int, dtype: str = "float32") -> Arrays:
    """Queries, keys, values and a gradient of the output, each (B, N, H, D)."""
    rng = np.random.default_rng(0)
    shape = (4, batch, tokens, heads, width)
    return tuple(jnp.asarray(2 * rng.standard_normal(shape), dtype))


def values_and_gradients(attention: Callable[..., jax.Array], operands: Arrays) -> Arrays:
    def both(query: jax.Array, key: jax.Array, value: jax.Array, gradient: jax.Array) -> Arrays:
        out, transposed = jax.vjp(attention, query, key, value)
        return out, *transposed(gradient)

    return jax.jit(both)(*operands)


def reference(operands: Arrays) -> list[np.ndarray]:
    """Output and gradients in float64, from the formula."""
    query, key, value, gradient = (np.asarray(x, np.float64) for x in operands)
    scale = query.shape[-1] ** -0.5
    logits = np.einsum("bnhd,bmhd->bhnm", query, key) * scale
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    to_weights = np.einsum("bnhd,bmhd->bhnm", gradient, value)
    mean = (weights * to_weights).sum(-1, keepdims=True)
    to_logits = weights * (to_weights - mean) * scale
    return [
        np.einsum("bhnm,bmhd->bnhd", weights, value),
        np.einsum("bhnm,bmhd->bnhd", to_logits, key),
        np.einsum("bhnm,bnhd->bmhd", to_logits, query),
        np.einsum("bhnm,bnhd->bmhd", weights, gradient),
    ]


def assert_equal(found: Arrays, operands: Arrays, tolerance: float) -> None:
    """Asserts equality within a fraction of the largest value of each result."""
    for x, expected in zip(found, reference(operands), strict=True):
        assert x.dtype == operands[0].dtype
        difference = np.abs(np.asarray(x, np.float64) - expected).max()
        assert difference <= tolerance * np.abs(expected).max()


# Lengths and head widths of the PiTs, and an odd one; 730 tokens need groups of one head.
SHAPES = [(2, 50, 3, 48), (3, 5, 2, 32), (1, 66, 2, 64), (1, 197, 2, 48), (1, 730, 2, 32)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("attention", [lowered.plain_attention, KERNEL], ids=["plain", "pallas"])
def test_equals_the_formula(
    attention: Callable[..., jax.Array], dtype: str, tolerance: float, shape: tuple[int, ...]
):
    operands = example(*shape, dtype)
    assert_equal(values_and_gradients(attention, operands), operands, tolerance)


def test_long_sequences_in_blocks_of_queries():
    """1100 tokens are two blocks of 512 queries and part of a third."""
    assert attention_tpu.plan(1100, 2, 16, jnp.float32).queries == 512
    operands = example(1, 1100, 2, 16)
    assert_equal(values_and_gradients(KERNEL, operands), operands, 1e-5)


def test_large_logits_do_not_overflow():
    query, key, value, gradient = example(1, 20, 2, 32)
    operands = (query * 40, key * 40, value, gradient)
    found = values_and_gradients(KERNEL, operands)
    assert all(jnp.isfinite(x).all() for x in found)
    np.testing.assert_allclose(found[0], reference(operands)[0], rtol=0, atol=2e-2)


@pytest.mark.parametrize("tokens", [50, 197, 198, 730, 731, 962, 1024, 2210, 4096])
@pytest.mark.parametrize("heads", [1, 2, 3, 6, 12, 16])
def test_plan_covers_all_heads(tokens: int, heads: int):
    plan = attention_tpu.plan(tokens, heads, 64, jnp.bfloat16)
    assert heads % plan.heads == 0
    assert plan.heads % plan.group == 0
    assert plan.queries == tokens or plan.queries % 128 == 0


def gradient_program(platform: str, operands: Arrays) -> str:
    """StableHLO of attention and its gradient by the lowering chosen for a platform."""

    def both(query: jax.Array, key: jax.Array, value: jax.Array, gradient: jax.Array) -> Arrays:
        return jax.vjp(lowered.attention, query, key, value)[1](gradient)

    return export.export(jax.jit(both), platforms=[platform])(*operands).mlir_module()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tpus_get_the_kernel(dtype: str):
    program = gradient_program("tpu", example(2, 50, 2, 32, dtype))
    assert program.count("tpu_custom_call") == 2
    assert "pit_attention_forward_50x2x32" in program
    assert "pit_attention_backward_50x2x32" in program


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_others_do_not(platform: str):
    assert "tpu_custom_call" not in gradient_program(platform, example(2, 50, 2, 32, "bfloat16"))


@pytest.mark.parametrize(
    "operands", [example(1, 5, 2, 24), example(1, 5, 2, 32, "float16"), example(1, 3000, 1, 64)]
)
def test_what_the_kernel_cannot_do_is_plain_on_tpus(operands: Arrays):
    assert not attention_tpu.supports(operands[0])
    assert "tpu_custom_call" not in gradient_program("tpu", operands)
    with (
        lowerings.override(attention="pallas"),
        pytest.raises(ValueError, match=r'use lowerings\.override\(attention="plain"\)'),
    ):
        lowered.attention(*operands[:3])


@pytest.mark.parametrize(
    ("dtype", "width", "fits"),
    [
        ("bfloat16", 48, True),
        ("float16", 32, True),
        ("float32", 64, False),
        ("bfloat16", 36, False),
        ("bfloat16", 136, False),
    ],
)
def test_what_cudnn_takes(dtype: str, width: int, fits: bool):
    operands = example(1, 200, 1, width, dtype)[:3]
    assert lowered.fits_cudnn(operands[0]) == fits
    if not fits:
        with (
            lowerings.override(attention="cudnn"),
            pytest.raises(ValueError, match="cuDNN attends in bfloat16 or float16"),
        ):
            lowered.attention(*operands)


def test_lowerings_by_name():
    operands = example(1, 5, 2, 16)
    with lowerings.override(attention="plain"):
        plain = lowered.attention(*operands[:3])
    assert (plain == lowered.plain_attention(*operands[:3])).all()
    with (
        lowerings.override(attention="palas"),
        pytest.raises(ValueError, match="no lowering 'palas'; did you mean 'pallas'"),
    ):
        lowered.attention(*operands[:3])


def test_a_model_s_lowering_overrides_the_platform_s():
    operands = example(2, 50, 2, 32)
    with lowerings.override(attention="plain"):
        assert "tpu_custom_call" not in gradient_program("tpu", operands)


def test_projections_are_the_same_on_every_platform():
    rng = np.random.default_rng(1)
    x, kernel, bias = (
        jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((2, 5, 12), (12, 36), 36)
    )
    joint = lowered._joint_projection(3, x, kernel, bias)
    separate = lowered._separate_projections(3, x, kernel, bias)
    for found, expected, columns in zip(separate, joint, range(3), strict=True):
        part = slice(12 * columns, 12 * columns + 12)
        by_hand = np.asarray(x) @ np.asarray(kernel[:, part]) + np.asarray(bias[part])
        np.testing.assert_allclose(expected, by_hand.reshape(2, 5, 3, 4), rtol=0, atol=1e-5)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def weighted_sum(query: jax.Array) -> jax.Array:
    weights = jnp.cos(jnp.arange(query.size, dtype=jnp.float32)).reshape(query.shape)
    return (KERNEL(query, 2 * query, query) * weights).sum()


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return np.asarray(jax.grad(weighted_sum)(example(8, 5, 2, 16)[0]))


@pytest.mark.parametrize("batch", [8, 4, 3])
def test_each_device_attends_to_its_images(batch: int, expected: np.ndarray):
    """A batch of 4 is split over half of the mesh, a batch of 3 is not split."""
    mesh = sharding.make_mesh(fsdp=2)
    query = np.asarray(example(8, 5, 2, 16)[0][:batch])
    rows = sharding.batch_sharding(mesh) if batch == 8 else sharding.replicated(mesh)
    found = jax.jit(jax.grad(weighted_sum))(jax.device_put(query, rows))
    np.testing.assert_allclose(found, expected[:batch], rtol=0, atol=1e-5)


def test_shards_found_while_compiling(expected: np.ndarray):
    """Arguments have no mesh; the jitted function splits them."""
    rows = sharding.batch_sharding(sharding.make_mesh(fsdp=2))
    program = jax.jit(jax.grad(weighted_sum), in_shardings=rows, out_shardings=rows)
    query = np.asarray(example(8, 5, 2, 16)[0])
    np.testing.assert_allclose(program(query), expected, rtol=0, atol=1e-5)
    assert "all-gather" not in program.lower(query).compile().as_text()


def test_inside_shard_map(expected: np.ndarray):
    mesh = sharding.make_mesh()
    rows = PartitionSpec((sharding.DATA_AXIS, sharding.FSDP_AXIS))
    query = jax.device_put(np.asarray(example(8, 5, 2, 16)[0]), sharding.batch_sharding(mesh))
    attend = jax.shard_map(KERNEL, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
    found = jax.jit(attend)(query, query, query)
    np.testing.assert_allclose(found, KERNEL(query, query, query), rtol=0, atol=1e-6)


def test_mapped_axes_join_the_batch():
    queries = example(6, 5, 2, 16)[0].reshape(2, 3, 5, 2, 16)
    found = jax.vmap(KERNEL, in_axes=(0, None, 0))(queries, queries[0], queries)
    for one, query in zip(found, queries, strict=True):
        np.testing.assert_allclose(one, KERNEL(query, queries[0], query), rtol=0, atol=1e-6)


def test_rematerialised_gradients_are_the_same():
    query = example(2, 5, 2, 16)[0]
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    found = jax.jit(jax.grad(jax.checkpoint(weighted_sum, policy=policy)))(query)
    np.testing.assert_allclose(found, jax.grad(weighted_sum)(query), rtol=0, atol=1e-5)


@pytest.mark.libtpu
@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_tpu_programs_gather_no_activations_and_store_no_maps(topology: str):
    devices = libtpu.devices(chips.parse_slice(topology))
    mesh = Mesh(np.asarray(devices).reshape(2, -1), (sharding.DATA_AXIS, sharding.FSDP_AXIS))
    heads, width = 2, 64

    def loss(kernel: jax.Array, x: jax.Array) -> jax.Array:
        bias = jnp.zeros(3 * width, x.dtype)
        operands = lowered.project_heads(heads, x, kernel.astype(x.dtype), bias)
        return lowered.attention(*operands).astype(jnp.float32).var()

    kernel = jax.ShapeDtypeStruct(
        (width, 3 * width), jnp.float32, sharding=sharding.replicated(mesh)
    )
    x = jax.ShapeDtypeStruct((16, 50, width), jnp.bfloat16, sharding=sharding.batch_sharding(mesh))
    program = jax.jit(jax.value_and_grad(loss)).lower(kernel, x).compile().as_text()
    assert program.count('custom_call_target="tpu_custom_call"') == 2
    assert "all-reduce" in program
    assert not re.search(r"all-gather|all-to-all|collective-permute|reduce-scatter", program)
    assert not re.search(r"\[[\d,]*50,50\]", program)


@pytest.mark.libtpu
@pytest.mark.parametrize(("tokens", "heads"), [(578, 2), (962, 2), (2811, 1)])
def test_long_sequences_compile(tokens: int, heads: int):
    """PiT-B, and stages of 384-pixel images, fit in the VMEM of a v4."""
    device = libtpu.devices(chips.parse_slice("v4:2x2x1"))[0]
    x = jax.ShapeDtypeStruct(
        (1, tokens, heads, 64), jnp.bfloat16, sharding=jax.sharding.SingleDeviceSharding(device)
    )

    def loss(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return lowered.attention(query, key, value).astype(jnp.float32).sum()

    program = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x).compile().as_text()
    assert program.count('custom_call_target="tpu_custom_call"') == 2
