"""Models by name or from a file, freshly initialised or with weights."""

from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from pit_jax.models import parameters, zoo
from pit_jax.weights.load import fit, load_weights
from pit_jax.weights.match import abstract_model, identify
from pit_jax.weights.read import Source, read


def create_model(
    name: str,
    *,
    image_size: int | tuple[int, int] | None = None,
    num_classes: int = 1000,
    weights: Source | None = None,
    head: str = "load",
    seed: int = 0,
    dtype: DTypeLike = jnp.float32,
    drop_path_rate: float = 0.0,
    **overrides: Any,
) -> zoo.Model:
    """Builds a model by name, and loads weights into it.

    Args:
      name: a row of `list_models()`.
      image_size: an int, or (height, width); None for the row's own. The positions of weights for
        another size are resized.
      num_classes: classes of the head; 0 for a model that returns pooled features.
      weights: path of a .safetensors file, a torch checkpoint in official or timm names or a
        directory of ours, or "hf:owner/name[@revision]"; None for a freshly initialised model.
      head: "load", or "new" to take a fresh head where that of `weights` has another number of
        classes.
      seed: seed of the parameters that are freshly initialised.
      dtype: type of the arithmetic; parameters are float32.
      drop_path_rate: rate of stochastic depth in training.
      **overrides: any other field of the configuration.

    Returns:
      A module to call as `model(images)`, with images (B, H, W, 3), floating and normalised.

    Raises:
      ValueError: an unknown name or option, with the closest right one; weights that cannot be read
        or do not fit, with everything that does not.
    """
    config = zoo.model_config(
        name,
        image_size=image_size,
        num_classes=num_classes,
        drop_path_rate=drop_path_rate,
        **overrides,
    )
    if weights is None:
        return zoo.build(config, dtype=dtype, seed=seed)
    params = load_weights(weights, config, head=head, seed=seed)
    return parameters.merge(abstract_model(config, jnp.dtype(dtype))[0], params)


def load_model(weights: Source, *, dtype: DTypeLike = jnp.float32) -> zoo.Model:
    """The model that a file of weights, a run directory or a repository of the hub holds.

    Its card tells which model that is; without a card the shapes tell it. Image size, classes and
    all options are those of the weights. A network with two names, such as vit_s and deit_s, loads
    under the first, and the log says so.

    Args:
      weights: as for `create_model`.
      dtype: type of the arithmetic; parameters are float32.

    Raises:
      ValueError: weights that cannot be read, or that fit no model or several.
    """
    found = identify(read(weights))
    return parameters.merge(abstract_model(found.config, jnp.dtype(dtype))[0], fit(found))
