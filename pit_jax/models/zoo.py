"""The models by name: every family's rows, and what turns a row into a network."""

import dataclasses
import fnmatch
import functools
import importlib.metadata
import logging
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from pit_jax.errors import suggestion
from pit_jax.models import parameters
from pit_jax.models.config import ModelConfig
from pit_jax.models.convnet import regnet_family, resnet_family
from pit_jax.models.cost import Cost
from pit_jax.models.family import Family
from pit_jax.models.pit import family as pit_family
from pit_jax.models.psvit import family as psvit_family
from pit_jax.models.vit import family as vit_family

logger = logging.getLogger(__name__)

# The families of this package, and behind them the registered ones.
FAMILIES: list[Family] = [
    pit_family.FAMILY,
    vit_family.FAMILY,
    psvit_family.FAMILY,
    resnet_family.FAMILY,
    regnet_family.FAMILY,
]

# Entry points "package.module:FAMILY" of other packages, loaded when a name is not found here.
ENTRY_POINTS = "pit_jax.families"

# PiT's Figures 2 and 3 compare networks with and without pooling over a range of costs, and give
# neither sizes nor figures. These pairs, (model, fields replaced) with pooling and without, differ
# in multiply-accumulates by less than 3 %. Without pooling a PiT is a ViT; its heads are as wide as
# the PiT's.
Variant = tuple[str, dict[str, int]]
POOLING_PAIRS: dict[str, tuple[Variant, Variant]] = {
    "resnet_w32": (("resnet50", {"base_width": 32}), ("resnet50_nopool", {"base_width": 136})),
    "resnet_w48": (("resnet50", {"base_width": 48}), ("resnet50_nopool", {"base_width": 204})),
    "resnet_w64": (("resnet50", {}), ("resnet50_nopool", {})),
    "resnet_w96": (("resnet50", {"base_width": 96}), ("resnet50_nopool", {"base_width": 408})),
    "vit_ti": (("pit_ti", {}), ("vit_ti", {"width": 128, "heads": 4, "depth": 14})),
    "vit_xs": (("pit_xs", {}), ("vit_ti", {"width": 192, "heads": 4, "depth": 13})),
    "vit_s": (("pit_s", {}), ("vit_s", {"width": 288, "heads": 6, "depth": 13})),
    "vit_b": (("pit_b", {}), ("vit_b", {"width": 640, "heads": 10, "depth": 12})),
}


class Model(Protocol):
    """A network of images, an `nnx.Module`."""

    config: Any

    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        key: jax.Array | None = None,
        capture: tuple[str, ...] = (),
    ) -> Any:
        """Outputs for images (B, H, W, 3), floating and normalised: logits (B, K) in float32."""

    def features(
        self, images: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> dict[int, jax.Array]:
        """Maps by stride, {stride: (B, H, W, C)}, finest first."""


def register(family: Family) -> None:
    """Adds a family of another package: its models are then created, trained and loaded by name.

    To add it without a call, give the package an entry point of the group "pit_jax.families":
    `toy = "toy_models.family:FAMILY"`. Registering the same family again changes nothing.

    Raises:
      ValueError: a name or a type of configuration that is taken; a row of another type.
    """
    if not isinstance(family, Family):
        raise ValueError(f"expected a pit_jax.models.family.Family, found {family!r}")
    if family in FAMILIES:
        return
    wrong = [name for name, row in family.rows.items() if type(row) is not family.config]
    taken = [name for known in FAMILIES for name in known.rows if name in family.rows]
    type_name = family.config.__name__
    if wrong:
        raise ValueError(f"the family of {type_name} has rows of other types: {', '.join(wrong)}")
    if taken:
        raise ValueError(
            f"the family of {type_name} has names that are taken: {', '.join(taken)}; rename them"
        )
    if any(known.config is family.config for known in FAMILIES):
        raise ValueError(f"{type_name} is the configuration of another family already")
    FAMILIES.append(family)


@functools.cache
def _load_plug_ins() -> None:
    """Registers the families of entry points, once. One that fails is named in the log, and the
    models of all others stay available.
    """
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            register(entry.load())
        except Exception as error:  # a plug-in can fail in any way
            package = entry.dist.name if entry.dist else "an unknown package"
            logger.warning(
                "the model family %r of %s is not available, %s: %s",
                *(entry.value, package, type(error).__name__, error),
            )


def _known_rows() -> dict[str, Any]:
    return {name: row for family in FAMILIES for name, row in family.rows.items()}


def rows() -> dict[str, ModelConfig]:
    """All models' configurations by name, those of installed plug-ins included."""
    _load_plug_ins()
    return _known_rows()


def family_of(config: ModelConfig) -> Family:
    """The family that a configuration belongs to, by its type.

    Raises:
      ValueError: a configuration of no known family.
    """
    for look_further in (False, True):
        if look_further:
            _load_plug_ins()
        for family in FAMILIES:
            if family.config is type(config):
                return family
    raise ValueError(
        f"{type(config).__name__} is the configuration of no known family; "
        "pit_jax.models.zoo.register(FAMILY) adds one"
    )


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models, in the order of the table; `pattern` filters them as a shell would
    ("pit_*").
    """
    return [name for name in rows() if fnmatch.fnmatchcase(name, pattern)]


def model_config(
    name: str, *, image_size: int | tuple[int, int] | None = None, **overrides: Any
) -> ModelConfig:
    """The configuration of a model, with any field of it replaced.

    Args:
      name: a row of `list_models()`.
      image_size: an int, or (height, width); None for the row's own.
      **overrides: fields of the configuration; sequences may be lists.

    Raises:
      ValueError: an unknown name or field, with the closest right one; a configuration that cannot
        be built.
    """
    row = _row(name)
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


def _row(name: str) -> ModelConfig:
    known = _known_rows()
    if name not in known:
        known = rows()
    if name not in known:
        raise ValueError(
            f"unknown model {name!r}{suggestion(name, known)}; the models are {', '.join(known)}"
        )
    return known[name]


def _as_size(image_size: int | tuple[int, int]) -> tuple[int, int]:
    if isinstance(image_size, int):
        return (image_size, image_size)
    try:
        height, width = image_size
        if isinstance(image_size, str) or (int(height), int(width)) != (height, width):
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(
            f"image_size must be a number of pixels or (height, width), found {image_size!r}"
        ) from None
    return (int(height), int(width))


def smallest(name: str) -> dict[str, Any]:
    """Fields that shrink a model to one that trains in a second on 32x32 pixels."""
    return dict(family_of(_row(name)).smallest)


def cost(config: ModelConfig) -> Cost:
    """Multiply-accumulates of one image of `config.image_size`, and parameters."""
    return family_of(config).cost(config)


def model_flops(config: ModelConfig, *, training: bool) -> int:
    """Floating-point operations that an image needs: forward, or with the gradients of training;
    see `Cost.flops`.
    """
    return cost(config).flops(training=training)


def build(config: ModelConfig, *, dtype: DTypeLike = jnp.float32, seed: int = 0) -> Model:
    """A freshly initialised model; equal seeds give equal parameters."""
    return family_of(config).module(config, dtype=dtype, rngs=nnx.Rngs(seed))


def abstract(
    config: ModelConfig, *, dtype: DTypeLike = jnp.float32
) -> tuple[nnx.GraphDef, parameters.Params]:
    """Structure and parameter shapes of a model, with nothing computed: (graphdef, dict of
    ShapeDtypeStruct).
    """
    return parameters.split(nnx.eval_shape(lambda: build(config, dtype=dtype)))
