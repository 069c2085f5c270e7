"""The card of a weights file: where it came from, and what it takes to build its model."""

import dataclasses
from typing import Any

import jax

from pit_jax.models import zoo
from pit_jax.version import __version__

Card = dict[str, Any]


def make_card(
    name: str,
    config: zoo.ModelConfig,
    *,
    source: str,
    sha256: str | None = None,
    layout: str | None = None,
    command: str | None = None,
    torch_version: str | None = None,
    parent: Card | None = None,
) -> Card:
    """The card of weights for a model; JSON values only, and nothing that changes between equal
    runs.

    Args:
      name: a row of `list_models()`.
      config: the configuration the weights fit.
      source: the file, hub identifier or training run they come from.
      sha256: of the source file, in hexadecimal.
      layout: names the source was recognised by, "official", "timm" or "pit_jax".
      command: what to type to make the file again.
      torch_version: of the torch that read the source, if one did.
      parent: the card of the source, if it had one.
    """
    versions = {"pit_jax": __version__, "jax": jax.__version__}
    if torch_version:
        versions["torch"] = torch_version
    card = {
        "model": name,
        "options": _options(name, config),
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


def card_config(card: Card) -> zoo.ModelConfig:
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


def _options(name: str, config: zoo.ModelConfig) -> dict[str, Any]:
    """What differs from the row of the table; rates belong to a training, not to its weights."""
    row = dataclasses.asdict(zoo.model_config(name))
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in dataclasses.asdict(config).items()
        if value != row[key]
        and key not in ("image_size", "num_classes")
        and not key.endswith("_rate")
    }
