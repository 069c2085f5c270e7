"""Initial values of networks: drawn from a seed, or read from weights that an option names."""

import logging
from typing import Any

from pit_jax.models import parameters, zoo
from pit_jax.training.config import TrainConfig
from pit_jax.training.errors import TrainingError
from pit_jax.weights.load import HeadError, load_weights

logger = logging.getLogger(__name__)


def initial_values(config: TrainConfig, network: Any) -> parameters.Params:
    """Values of a network, read from `config.init_from` or drawn from `config.seed`.

    Raises:
      TrainingError: the weights cannot be read, or do not fit.
    """
    if config.init_from is None:
        return drawn(network, config.seed)
    logger.info("starting from the weights %s", config.init_from)
    return read(
        "config.init_from", config.init_from, network, head=config.init_head, seed=config.seed
    )


def drawn(network: Any, seed: int) -> parameters.Params:
    """Draws fresh values of a network from a seed."""
    return parameters.split(zoo.build(network, seed=seed))[1]


def read(option: str, weights: str, network: Any, **choices: Any) -> parameters.Params:
    """Reads the weights that an option names.

    Args:
      option: name of the option, for messages.
      weights: a source of weights, as for `create_model(weights=...)`.
      network: configuration of the network that they have to fit.
      **choices: `head` and `seed` of `load_weights`.

    Raises:
      TrainingError: the weights cannot be read, or do not fit.
    """
    try:
        return load_weights(weights, network, **choices)
    except ValueError as error:
        fresh = isinstance(error, HeadError) and "head" in choices
        hint = "; here --config.init_head=new" if fresh else ""
        raise TrainingError(f"{option}={weights!r}: {error}{hint}") from error
