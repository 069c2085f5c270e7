"""Every lowering of the patch embedding is the convolution that PyTorch computes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pit_jax.ops import lowerings, patches

# Patch and stride: overlap of a half and of two thirds, none; one that cannot be cut.
SHAPES = [(4, 2), (6, 2), (4, 4), (5, 5)]
ODD = (3, 2)


@functools.cache
def example(patch: int) -> tuple[np.ndarray, ...]:
    """Images (2, 17, 22, 3), which no stride here divides on both axes, a kernel and a bias."""
    rng = np.random.default_rng(0)
    shapes = ((2, 17, 22, 3), (patch, patch, 3, 7), (7,))
    images, kernel, bias = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    return images, kernel, bias


def torch_patches(patch: int, stride: int) -> np.ndarray:
    images, kernel, bias = (torch.from_numpy(array).double() for array in example(patch))
    maps = torch.nn.functional.conv2d(
        images.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1), bias, stride=stride
    )
    return maps.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(
    ("patch", "stride", "lowering"),
    [
        *((*shape, lowering) for shape in SHAPES for lowering in (None, *patches.LOWERINGS)),
        *((*ODD, lowering) for lowering in (None, "convolution")),
    ],
)
def test_equals_torch(patch: int, stride: int, lowering: str | None):
    embed = lowerings.override(patches=lowering)(patches.embed_patches)
    found = jax.jit(functools.partial(embed, stride=stride))(*example(patch))
    expected = torch_patches(patch, stride)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize(("patch", "stride"), [(4, 2), (5, 5)])
@pytest.mark.parametrize("lowering", ["rows", "product"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-2)])
def test_gradients_equal_the_definition(
    patch: int, stride: int, lowering: str, dtype: str, tolerance: float
):
    shape = torch_patches(patch, stride).shape
    weights = jnp.asarray(np.random.default_rng(1).standard_normal(shape), "bfloat16")

    def gradients(lowering: str, dtype: str) -> tuple[jax.Array, ...]:
        def loss(*operands: jax.Array) -> jax.Array:
            maps = patches.LOWERINGS[lowering](*operands, stride)
            return (maps.astype(jnp.float32) * weights).sum()

        images, kernel = (jnp.asarray(array, dtype) for array in example(patch)[:2])
        return jax.jit(jax.grad(loss, argnums=(0, 1)))(images, kernel)

    exact = gradients("convolution", "float32")
    for found, expected in zip(gradients(lowering, dtype), exact, strict=True):
        assert found.dtype == dtype
        scale = float(jnp.abs(expected).max())
        np.testing.assert_allclose(
            found.astype(jnp.float32), expected, rtol=0, atol=tolerance * scale
        )


def test_cpus_compute_a_product_and_tpus_a_convolution_of_rows():
    images, kernel, bias = example(4)

    def operations(platform: str) -> dict[str, tuple[int, ...]]:
        """Names of the operations, and the shapes of their second operands."""

        def embed(images: jax.Array) -> jax.Array:  # a new function each time: JAX caches traces
            return patches.embed_patches(images, kernel, bias, stride=2)

        with lowerings.compiling_for(platform):
            jaxpr = jax.make_jaxpr(embed)(images).jaxpr
        return {
            equation.primitive.name: equation.invars[1].aval.shape
            for equation in jaxpr.eqns
            if len(equation.invars) > 1
        }

    assert "dot_general" in operations("cpu")
    assert "conv_general_dilated" not in operations("cpu")
    assert operations("tpu")["conv_general_dilated"] == (4, 2, 6, 7)


def test_patches_that_cannot_be_cut_are_refused():
    images, kernel, bias = example(3)
    messages = {
        "rows": r'3 x 3 pixels .* stride 2: use lowerings.override\(patches="convolution"\)',
        "product": "3 x 3 pixels .* stride 2: use",
        "convolutoin": "patches has no lowering 'convolutoin'",
    }
    for lowering, message in messages.items():
        with lowerings.override(patches=lowering), pytest.raises(ValueError, match=message):
            patches.embed_patches(images, kernel, bias, stride=2)
