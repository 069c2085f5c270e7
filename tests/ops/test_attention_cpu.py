"""Attention by groups of images equals plain attention, on one device and on several."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pit_jax.ops import attention_cpu, lowerings
from pit_jax.ops.attention import attention_weights, self_attention, weighted_values
from pit_jax.ops.attention_cpu import attention_in_groups

BATCH, HEADS, WIDTH = 8, 3, 16
# One group of all images, several groups, one image at a time, and that with halved queries.
SIZES = {"whole": (11, 8), "some": (11, 4), "single": (11, 1), "halves": (257, 1)}


def plain(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    return weighted_values(attention_weights(query, key), value)


@functools.cache
def example(dtype: str, tokens: int = 11) -> tuple[jax.Array, ...]:
    """Queries, keys and values (8, N, 3, 16), large enough for a softmax far from uniform."""
    drawn = np.random.default_rng(0).standard_normal((3, BATCH, tokens, HEADS, WIDTH))
    return tuple(jnp.asarray(1.5 * part, dtype) for part in drawn)


def both_ways(attention: Callable[..., jax.Array], *operands: jax.Array) -> tuple[jax.Array, ...]:
    def run(*operands: jax.Array) -> tuple[jax.Array, ...]:
        mixed, transpose = jax.vjp(attention, *operands)
        return (mixed, *transpose(jnp.cos(mixed)))

    return jax.jit(run)(*operands)


@pytest.fixture(params=SIZES)
def tokens(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """N, with the size of a group set to a case's number of images."""
    tokens, images = SIZES[request.param]
    monkeypatch.setattr(attention_cpu, "_GROUP_BYTES", images * 4 * HEADS * tokens**2)
    return tokens


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-2)])
def test_values_and_gradients_equal_the_plain_ones(
    dtype: str, tolerance: float, tokens: int
) -> None:
    operands = example(dtype, tokens)
    exact = both_ways(plain, *(operand.astype(jnp.float32) for operand in operands))
    found = both_ways(attention_in_groups, *operands)
    mixed, gradient = both_ways(attention_in_groups, jnp.stack(operands, 2))
    for results in (found, (mixed, *(gradient[:, :, part] for part in range(3)))):
        for result, expected in zip(results, exact, strict=True):
            assert result.dtype == dtype
            scale = float(jnp.abs(expected).max())
            np.testing.assert_allclose(
                result.astype(jnp.float32), expected, rtol=0, atol=tolerance * scale
            )


@pytest.mark.parametrize("named", [{}, {"attention": "in_groups"}])
def test_self_attention_is_that_of_the_projected_heads(tokens: int, named: dict[str, str]) -> None:
    drawn = np.random.default_rng(0).standard_normal
    x, kernel, bias = (
        jnp.asarray(drawn(shape), jnp.float32) / 3
        for shape in ((BATCH, tokens, 48), (48, 3 * HEADS * WIDTH), (3 * HEADS * WIDTH,))
    )

    def attend(*operands: jax.Array) -> jax.Array:
        with lowerings.override(**named):
            return self_attention(HEADS, *operands)

    def attend_plainly(*operands: jax.Array) -> jax.Array:
        with lowerings.override(attention="plain"):
            return self_attention(HEADS, *operands)

    expected = both_ways(attend_plainly, x, kernel, bias)
    for result, exact in zip(both_ways(attend, x, kernel, bias), expected, strict=True):
        scale = float(jnp.abs(exact).max())
        np.testing.assert_allclose(result, exact, rtol=0, atol=2e-6 * scale)


@pytest.mark.parametrize("packed", [False, True])
def test_every_device_works_on_its_own_images(packed: bool) -> None:
    operands = example("float32")
    mesh = Mesh(np.array(jax.devices()), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    arrays = (jnp.stack(operands, 2),) if packed else operands
    split = jax.device_put(arrays, rows)
    compiled = jax.jit(attention_in_groups, out_shardings=rows).lower(*split).compile()
    assert "all-gather" not in compiled.as_text()
    np.testing.assert_allclose(compiled(*split), plain(*operands), rtol=0, atol=1e-6)


def test_no_images_are_no_error() -> None:
    none = tuple(operand[:0] for operand in example("float32"))
    for result in both_ways(attention_in_groups, *none):
        assert result.shape == (0, 11, HEADS, WIDTH)


def test_no_array_holds_the_logits_of_the_batch() -> None:
    def total(*operands: jax.Array) -> jax.Array:
        return attention_in_groups(*operands).sum()

    # The attention logits of an image in PiT-S's first stage take 6 MB.
    query = jax.ShapeDtypeStruct((4, 730, 3, 48), jnp.float32)
    program = jax.jit(jax.grad(total)).lower(query, query, query).compile().as_text()
    assert "[3,730,730]" in program
    assert "[4,3,730,730]" not in program
