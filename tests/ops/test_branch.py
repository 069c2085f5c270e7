"""A residual branch in one kernel equals its modules in sequence, with gradients."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pit_jax import sharding
from pit_jax.compile_report import chips, libtpu
from pit_jax.ops import branch_tpu, branch_tpu_middle, branch_tpu_plan, lowerings
from pit_jax.ops.attention import plain_attention
from pit_jax.ops.branch import Attention, Fusible, Gelu, Middle, Weights, residual_branch
from pit_jax.ops.layer_norm import EPSILON, from_library

Example = tuple[jax.Array, jax.Array, Weights, jax.Array]
# Factors of branches as in training, where an image's branch is dropped or scaled up.
KEEP = (0.0, 1.25, 1.0, 1.25, 0.0, 1.0, 1.25, 1.0) * 4


def middle_widths(middle: Middle, channels: int) -> tuple[int, int]:
    """Outputs of the first linear layer, and inputs of the second one."""
    return (3 * channels, channels) if isinstance(middle, Attention) else (4 * channels,) * 2


def example(middle: Middle, shape: tuple[int, int, int], dtype: str = "float32") -> Example:
    """Tokens (B, N, C), factors of their branches, weights, and a gradient."""
    rng = np.random.default_rng(0)
    batch, _, width = shape

    def normal(*size: int, deviation: float = 1.0, to: str = dtype) -> jax.Array:
        return jnp.asarray(deviation * rng.standard_normal(size), to)

    widened, mixed = middle_widths(middle, width)
    weights = Weights(
        scale=1 + normal(width, deviation=0.2, to="float32"),
        shift=normal(width, deviation=0.2, to="float32"),
        kernel_in=normal(width, widened, deviation=width**-0.5),
        bias_in=normal(widened, deviation=0.3),
        kernel_out=normal(mixed, width, deviation=mixed**-0.5),
        bias_out=normal(width, deviation=0.3),
    )
    return normal(*shape), jnp.asarray(KEEP[:batch]), weights, normal(*shape)


def by_definition(middle: Middle, x: jax.Array, keep: jax.Array, weights: Weights) -> jax.Array:
    """The branch in plain JAX."""
    given = from_library(x, weights.scale, weights.shift, EPSILON) @ weights.kernel_in
    given += weights.bias_in[None, None]
    if isinstance(middle, Attention):
        batch, tokens, _ = x.shape
        heads = given.reshape(batch, tokens, 3, middle.heads, -1)
        taken = plain_attention(*(heads[:, :, kind] for kind in range(3)))
        taken = taken.reshape(batch, tokens, -1)
    else:
        taken = jax.nn.gelu(given, approximate=False)
    return x + keep[:, None, None] * (taken @ weights.kernel_out + weights.bias_out[None, None])


def values_and_gradients(branch: Callable[..., jax.Array], operands: Example) -> Any:
    """The result, and gradients of tokens and weights, on one device."""

    def both(x: jax.Array, keep: jax.Array, weights: Weights, gradient: jax.Array) -> Any:
        out, transposed = jax.vjp(lambda x, weights: branch(x, keep, weights), x, weights)
        return out, transposed(gradient)

    return jax.jit(both)(*on_one_device(operands))


def on_one_device(operands: Example) -> Example:
    """Operands on a mesh of one device, whose type says that the images are not split."""
    mesh = Mesh(np.asarray(jax.devices()[:1]), ("data",))
    return jax.device_put(operands, NamedSharding(mesh, PartitionSpec()))


def kernel(middle: Middle) -> Callable[..., jax.Array]:
    return functools.partial(branch_tpu.add_branch, middle, interpret=True)


def assert_equal(found: Any, expected: Any, tolerance: float) -> None:
    """Asserts equality within a fraction of the largest value of each array."""
    for arrays in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        left, right = (np.asarray(array, np.float64) for array in arrays)
        assert np.abs(left - right).max() <= tolerance * np.abs(right).max()


# One image per program, 2 to 16 side by side, blocks of queries; PiT's head widths.
CASES = [
    (Gelu(), (2, 197, 48)),
    (Gelu(), (8, 50, 128)),
    (Attention(2), (2, 197, 64)),
    (Attention(2), (32, 50, 96)),
    (Attention(1), (16, 65, 48)),
    (Attention(1), (2, 962, 16)),
    (Attention(2), (8, 197, 32)),
]


@pytest.mark.parametrize(("middle", "shape"), CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_equals_the_definition(
    middle: Middle, shape: tuple[int, int, int], dtype: str, tolerance: float
):
    operands = example(middle, shape, dtype)
    found = values_and_gradients(kernel(middle), operands)
    assert [leaf.dtype for leaf in jax.tree.leaves(found[1])] == [
        leaf.dtype for leaf in jax.tree.leaves((operands[0], operands[2]))
    ]
    precise = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), operands)
    with jax.default_matmul_precision("highest"):
        expected = values_and_gradients(functools.partial(by_definition, middle), precise)
    assert_equal(found, expected, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_wide_layers_slice_by_slice(monkeypatch: pytest.MonkeyPatch, dtype: str, tolerance: float):
    """Three slices of a hidden layer give the same as all of it."""
    operands = example(Gelu(), (4, 50, 96), dtype)
    expected = values_and_gradients(kernel(Gelu()), operands)
    monkeypatch.setattr(branch_tpu_middle, "_SLICE_SIZE", 200 * 4 * 96 // 3)
    jax.clear_caches()
    assert Gelu().slices(branch_tpu_middle.Work(50, 4, 96, 4 * 96, jnp.dtype(dtype))) == 3
    found = values_and_gradients(kernel(Gelu()), operands)
    assert_equal(found, expected, tolerance)
    only = jax.jit(kernel(Gelu()))(*on_one_device(operands)[:3])
    assert_equal(only, expected[0], tolerance)


@pytest.mark.parametrize(("middle", "shape"), [CASES[1], CASES[2], CASES[3], CASES[6]])
def test_without_a_gradient_it_is_the_same(middle: Middle, shape: tuple[int, int, int]):
    operands = example(middle, shape)
    out, _ = values_and_gradients(kernel(middle), operands)
    assert_equal(jax.jit(kernel(middle))(*on_one_device(operands)[:3]), out, 1e-5)


def test_large_tokens_do_not_overflow():
    x, keep, weights, gradient = example(Gelu(), (1, 50, 32))
    weights = weights._replace(scale=weights.scale * 1e18)
    out, gradients = values_and_gradients(kernel(Gelu()), (x, keep + 1, weights, gradient))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((out, gradients)))


@pytest.mark.parametrize(
    ("batch", "tokens", "channels", "images"),
    [
        (128, 730, 48, 1),
        (128, 197, 48, 4),
        (6, 197, 48, 1),  # two fill no more of the lanes than one
        (128, 257, 48, 2),  # four are too long
        (128, 50, 48, 16),
        (8, 50, 48, 2),  # four and eight fill no more
        (3, 50, 48, 1),
        (128, 65, 48, 8),
        (2, 65, 48, 1),
        (128, 197, 288, 1),  # the MLP of more images does not fit the VMEM of a v4
        (128, 50, 768, 1),  # no number of images fits
    ],
)
def test_images_fill_the_lanes(batch: int, tokens: int, channels: int, images: int):
    x = jax.ShapeDtypeStruct((batch, tokens, channels), jnp.bfloat16)
    assert branch_tpu_plan.plan_work(Attention(3), x, 3 * channels).images == images


@pytest.mark.parametrize(
    ("middle", "shape", "dtype", "faster"),
    [
        (Attention(3), (128, 730, 144), "bfloat16", True),
        (Gelu(), (128, 730, 144), "bfloat16", True),
        (Gelu(), (128, 730, 144), "float32", False),
        (Attention(3), (128, 730, 72), "bfloat16", False),  # heads of 24 channels
        (Gelu(), (128, 730, 72), "bfloat16", False),
        (Gelu(), (3, 50, 144), "bfloat16", False),  # most lanes would be empty
        (Gelu(), (128, 197, 768), "bfloat16", False),  # too much for the VMEM of a v4
        (Attention(6), (128, 2811, 384), "bfloat16", False),
    ],
)
def test_what_is_faster(middle: Middle, shape: tuple[int, ...], dtype: str, faster: bool):
    width, _ = middle_widths(middle, shape[2])
    assert branch_tpu_plan.is_faster(middle, jax.ShapeDtypeStruct(shape, dtype), width) == faster


def test_an_unknown_batch_size_is_left_to_the_parts():
    x = jax.ShapeDtypeStruct((*export.symbolic_shape("batch"), 730, 144), "bfloat16")
    assert not branch_tpu_plan.is_faster(Gelu(), x, 4 * 144)


def test_what_does_not_fuse_runs_in_parts_whatever_is_named():
    x, _, weights, _ = example(Gelu(), (2, 5, 32))
    other_epsilon = Fusible(Gelu(), weights, 1e-5, x.dtype, lambda ones: ones)
    with lowerings.override(branch="pallas"):
        for fusible in (None, other_epsilon):
            assert residual_branch(x, lambda x: x[:1], fusible).shape == (1, 5, 32)


def test_what_the_kernel_cannot_do_is_an_error():
    x, keep, weights, _ = example(Gelu(), (1, 5, 24))
    with pytest.raises(ValueError, match=r'float32\[1, 5, 24\].*override\(branch="parts"\)'):
        branch_tpu.add_branch(Gelu(), x, keep, weights)


def weighted_sum(x: jax.Array, weights: Weights) -> jax.Array:
    out = branch_tpu.add_branch(Attention(2), x, jnp.ones(len(x)), weights, interpret=True)
    return (out * jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)).sum()


def at(index: int, tree: Any) -> Any:
    """One entry of the stack in every leaf."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


GRADIENTS = jax.grad(weighted_sum, argnums=(0, 1))


@pytest.mark.parametrize("batch", [8, 4, 3])
def test_each_device_has_its_images(batch: int):
    """A batch of 4 is split over half of the mesh, a batch of 3 is not split. Gradients of weights
    are summed over devices.
    """
    mesh = sharding.make_mesh(fsdp=2)
    x, _, weights, _ = example(Attention(2), (8, 5, 32))
    x = x[:batch]
    rows = sharding.batch_sharding(mesh) if batch == 8 else sharding.replicated(mesh)
    placed = jax.device_put(x, rows), jax.device_put(weights, sharding.replicated(mesh))
    assert_equal(jax.jit(GRADIENTS)(*placed), GRADIENTS(x, weights), 1e-5)


def test_shards_found_while_compiling():
    """Arguments have no mesh; the jitted function splits them."""
    mesh = sharding.make_mesh(fsdp=2)
    rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    x, _, weights, _ = example(Attention(2), (8, 5, 32))
    program = jax.jit(GRADIENTS, in_shardings=(rows, whole), out_shardings=(rows, whole))
    assert_equal(program(np.asarray(x), weights), GRADIENTS(x, weights), 1e-5)
    text = program.lower(np.asarray(x), weights).compile().as_text()
    assert "all-gather" not in text
    assert "all-reduce" in text


def test_weights_split_over_devices_are_gathered():
    mesh = sharding.make_mesh(fsdp=2)
    x, _, weights, _ = example(Attention(2), (8, 5, 32))
    split = NamedSharding(mesh, PartitionSpec(sharding.FSDP_AXIS))
    placed = jax.device_put(x, sharding.batch_sharding(mesh)), jax.device_put(weights, split)
    found = jax.jit(GRADIENTS, out_shardings=(None, split))(*placed)
    assert_equal(found, GRADIENTS(x, weights), 1e-5)


def test_inside_shard_map():
    """Inside `shard_map`, a device has its images and its part of the weights' gradients."""
    mesh = sharding.make_mesh()
    rows = PartitionSpec((sharding.DATA_AXIS, sharding.FSDP_AXIS))
    x, _, weights, _ = example(Attention(2), (8, 5, 32))

    def share(x: jax.Array, weights: Weights) -> Any:
        to_x, to_weights = GRADIENTS(x, weights)
        return to_x, jax.tree.map(lambda leaf: leaf[None], to_weights)

    mapped = jax.shard_map(
        share, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows, check_vma=False
    )
    to_x, to_weights = jax.jit(mapped)(x, weights)
    devices = len(jax.devices())
    for device, (one, part) in enumerate(
        zip(jnp.split(x, devices), jnp.split(to_x, devices), strict=True)
    ):
        assert_equal((part, at(device, to_weights)), GRADIENTS(one, weights), 1e-5)


def test_mapped_weights_have_gradients_of_their_own():
    x, _, weights, _ = example(Attention(2), (6, 5, 32))
    found = jax.vmap(GRADIENTS, in_axes=(0, None))(x.reshape(2, 3, 5, 32), weights)
    for index in range(2):
        alone = GRADIENTS(x[3 * index : 3 * index + 3], weights)
        assert_equal(at(index, found), alone, 1e-5)


def test_rematerialised_gradients_are_the_same():
    x, _, weights, _ = example(Attention(2), (2, 5, 32))
    found = jax.jit(jax.grad(jax.checkpoint(weighted_sum), argnums=(0, 1)))(x, weights)
    assert_equal(found, GRADIENTS(x, weights), 1e-5)


@pytest.mark.libtpu
@pytest.mark.parametrize(
    ("topology", "middle", "tokens", "channels", "images"),
    [
        ("v4:2x2x1", Attention(3), 730, 144, 1),
        ("v4:2x2x1", Gelu(), 197, 288, 1),
        ("v5p:2x2x1", Gelu(), 50, 576, 16),
    ],
)
def test_what_is_faster_fits(
    topology: str, middle: Middle, tokens: int, channels: int, images: int
):
    """PiT-S's branches that need most VMEM compile; the compiler refuses one that does not fit."""
    (device, *_) = libtpu.devices(chips.parse_slice(topology))
    place = NamedSharding(Mesh(np.asarray([device]), ("data",)), PartitionSpec())
    width, taken = middle_widths(middle, channels)

    def shape(*sizes: int, dtype: str = "bfloat16") -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=place)

    weights = Weights(
        *[shape(channels, dtype="float32")] * 2,
        shape(channels, width),
        shape(width),
        shape(taken, channels),
        shape(channels),
    )
    seen = []

    def both(x: jax.Array, keep: jax.Array, weights: Weights, gradient: jax.Array) -> Any:
        assert branch_tpu_plan.is_faster(middle, x, width)
        seen.append(branch_tpu_plan.plan_work(middle, x, width).images)
        branch = functools.partial(branch_tpu.add_branch, middle)
        return jax.vjp(lambda x, weights: branch(x, keep, weights), x, weights)[1](gradient)

    x = shape(64, tokens, channels)
    jax.jit(both).lower(x, shape(64, dtype="float32"), weights, x).compile()
    assert seen == [images]
