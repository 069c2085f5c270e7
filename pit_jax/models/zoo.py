"""The models by name. The zoo is data: a table of configurations, and what turns a row into a
module.
"""

import dataclasses
import fnmatch
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from pit_jax.errors import suggestion
from pit_jax.models import params as parameters
from pit_jax.models.config import PiTConfig
from pit_jax.models.pit import PiT

# Paper, Table 1. Head widths are 32 (Ti), 48 (XS, S) and 64 (B) in every stage.
_PIT = {
    "pit_ti": PiTConfig(
        patch_size=16, stride=8, widths=(64, 128, 256), depths=(2, 6, 4), heads=(2, 4, 8)
    ),
    "pit_xs": PiTConfig(
        patch_size=16, stride=8, widths=(96, 192, 384), depths=(2, 6, 4), heads=(2, 4, 8)
    ),
    "pit_s": PiTConfig(
        patch_size=16, stride=8, widths=(144, 288, 576), depths=(2, 6, 4), heads=(3, 6, 12)
    ),
    "pit_b": PiTConfig(
        patch_size=14, stride=7, widths=(256, 512, 1024), depths=(3, 6, 4), heads=(4, 8, 16)
    ),
}

MODELS: dict[str, PiTConfig] = {
    **_PIT,
    **{f"{name}_distilled": dataclasses.replace(row, distilled=True) for name, row in _PIT.items()},
}


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models, in the order of the table; `pattern` filters them as a shell would
    ("pit_*").
    """
    return [name for name in MODELS if fnmatch.fnmatchcase(name, pattern)]


def model_config(
    name: str, *, image_size: int | tuple[int, int] | None = None, **overrides: Any
) -> PiTConfig:
    """The configuration of a model, with any field of it replaced.

    Args:
      name: a row of `list_models()`.
      image_size: an int, or (height, width); None for the row's own.
      **overrides: fields of the configuration; sequences may be lists.

    Raises:
      ValueError: an unknown name or field, with the closest right one; a configuration that cannot
        be built.
    """
    if name not in MODELS:
        raise ValueError(
            f"unknown model {name!r}{suggestion(name, MODELS)}; the models are {', '.join(MODELS)}"
        )
    row = MODELS[name]
    fields = [field.name for field in dataclasses.fields(row)]
    for key, value in overrides.items():
        if key not in fields:
            raise ValueError(
                f"{name} has no option {key!r}{suggestion(key, fields)}; it has {', '.join(fields)}"
            )
        overrides[key] = tuple(value) if isinstance(value, list) else value
    if image_size is not None:
        overrides["image_size"] = _as_size(image_size)
    return dataclasses.replace(row, **overrides)


def _as_size(image_size: int | tuple[int, int]) -> tuple[int, int]:
    if isinstance(image_size, int):
        return (image_size, image_size)
    height, width = image_size
    return (int(height), int(width))


def builder(config: PiTConfig, *, dtype: DTypeLike = jnp.float32) -> Callable[[nnx.Rngs], PiT]:
    """What makes the module of a configuration from a source of random numbers."""
    return lambda rngs: PiT(config, dtype=dtype, rngs=rngs)


def build(config: PiTConfig, *, dtype: DTypeLike = jnp.float32, seed: int = 0) -> PiT:
    """A freshly initialised model; equal seeds give equal parameters."""
    return builder(config, dtype=dtype)(nnx.Rngs(seed))


def abstract(
    config: PiTConfig, *, dtype: DTypeLike = jnp.float32
) -> tuple[nnx.GraphDef, parameters.Params]:
    """Structure and parameter shapes of a model, with nothing computed: (graphdef, dict of
    ShapeDtypeStruct).
    """
    return parameters.split(nnx.eval_shape(lambda: builder(config, dtype=dtype)(nnx.Rngs(0))))
