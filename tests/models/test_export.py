"""Models are exported for any batch size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from pit_jax.models import zoo

TINY = {
    "pit_ti": {"widths": (16, 32), "depths": (1, 2), "heads": (1, 2), "patch_size": 4, "stride": 4},
    "deit_ti_distilled": {"width": 32, "heads": 2, "depth": 2, "patch_size": 4},
    "resnet50": {"base_width": 4, "depths": (1, 1)},
    "regnety_160": {"widths": (8, 8), "depths": (1, 1), "group_width": 4},
}


def exported(
    name: str, dtype: str, platforms: list[str]
) -> tuple[export.Exported, jax.stages.Wrapped]:
    """A model for any batch size, read back from its serialised form, and itself."""
    config = zoo.model_config(name, image_size=24, num_classes=5, **TINY[name])
    model = jax.jit(zoo.build(config, dtype=jnp.dtype(dtype)))
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, 24, 24, 3), jnp.float32)
    return export.deserialize(export.export(model, platforms=platforms)(images).serialize()), model


@pytest.mark.parametrize("name", TINY)
def test_an_exported_model_takes_any_batch_size(name: str) -> None:
    again, model = exported(name, "float32", ["cpu"])
    for size in (1, 6):
        images = np.random.default_rng(size).standard_normal((size, 24, 24, 3)).astype("float32")
        expected = np.asarray(model(images))
        found = again.call(images)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_an_exported_model_runs_on_several_platforms() -> None:
    """The TPU kernels need to know how many images they take, so that there are none."""
    again, _ = exported("pit_ti", "bfloat16", ["cpu", "cuda", "tpu"])
    assert again.platforms == ("cpu", "cuda", "tpu")
    assert "tpu_custom_call" not in again.mlir_module()
