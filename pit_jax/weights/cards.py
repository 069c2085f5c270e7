"""The card of a weights file: its origin, and all that is needed to build its model."""

import dataclasses
from typing import Any

import jax

from pit_jax.models import zoo
from pit_jax.models.config import ModelConfig
from pit_jax.version import __version__

Card = dict[str, Any]

# Key of the card, as JSON, in the header of a .safetensors file.
CARD_KEY = "pit_jax"


def make_card(
    name: str,
    config: ModelConfig,
    *,
    source: str,
    sha256: str | None = None,
    layout: str | None = None,
    command: str | None = None,
    torch_version: str | None = None,
    parent: Card | None = None,
) -> Card:
    """The card of weights for a model. It holds JSON values only, and is equal for equal runs.

    Args:
      name: a row of `list_models()`.
      config: the configuration that the weights fit.
      source: the file, hub identifier or training run they come from.
      sha256: hash of the source file, in hexadecimal.
      layout: layout of the source's names, such as "official", "timm" or "pit_jax".
      command: command line that makes the file again.
      torch_version: version of torch, if it was needed to read the source.
      parent: the card of the source, if it had one.
    """
    versions = {"pit_jax": __version__, "jax": jax.__version__}
    if torch_version:
        versions["torch"] = torch_version
    card = {
        "model": name,
        "options": differing_options(zoo.model_config(name), config),
        "image_size": list(config.image_size),
        "num_classes": config.num_classes,
        "distilled": getattr(config, "distilled", False),
        "source": source,
        "sha256": sha256,
        "layout": layout,
        "command": command,
        "versions": versions,
    }
    return card if parent is None else {**card, "parent": parent}


def card_config(card: Card) -> ModelConfig:
    """The configuration that the weights of a card fit.

    Raises:
      ValueError: a card of a model that this version does not have, or that lacks an entry.
    """
    try:
        name, options = card["model"], card["options"]
        sizes = {key: card[key] for key in ("image_size", "num_classes")}
    except KeyError as error:
        raise ValueError(f"the card has no entry {error}; it has {', '.join(card)}") from error
    return zoo.model_config(name, **sizes, **options)


def differing_options(row: ModelConfig, config: ModelConfig) -> dict[str, Any]:
    """Fields in which a configuration is another network than a row of its family: all but image
    size, number of classes, and rates, which belong to a training and not to its weights.
    """
    before = dataclasses.asdict(row)
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in dataclasses.asdict(config).items()
        if value != before[key]
        and key not in ("image_size", "num_classes")
        and not key.endswith("_rate")
    }
