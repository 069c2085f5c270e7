"""Values before the first step: drawn from the seed, or read from weights that an option names."""

import logging
from typing import Any

from pit_jax.models import parameters, zoo
from pit_jax.training.config import TrainConfig
from pit_jax.training.errors import TrainingError
from pit_jax.weights.load import HeadError, load_weights

logger = logging.getLogger(__name__)


def initial_values(config: TrainConfig, network: Any) -> parameters.Params:
    """Values of a network: those of `config.init_from`, or fresh ones of `config.seed`.

    Raises:
      TrainingError: weights that cannot be read or do not fit.
    """
    if config.init_from is None:
        return drawn(network, config.seed)
    logger.info("starting from the weights %s", config.init_from)
    return read(
        "config.init_from", config.init_from, network, head=config.init_head, seed=config.seed
    )


def drawn(network: Any, seed: int) -> parameters.Params:
    """Fresh values of a network."""
    return parameters.split(zoo.build(network, seed=seed))[1]


def read(option: str, weights: str, network: Any, **choices: Any) -> parameters.Params:
    """Weights that an option names.

    Args:
      option: its name, for messages.
      weights: what `create_model(weights=...)` takes.
      network: the configuration that they have to fit.
      **choices: `head` and `seed` of `load_weights`.

    Raises:
      TrainingError: they cannot be read, or do not fit.
    """
    try:
        return load_weights(weights, network, **choices)
    except ValueError as error:
        fresh = isinstance(error, HeadError) and "head" in choices
        how = "; here --config.init_head=new" if fresh else ""
        raise TrainingError(f"{option}={weights!r}: {error}{how}") from error
