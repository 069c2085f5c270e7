"""A family of networks, and all that the project has to know of it in one value.

A new family is a folder with its configuration, its module and a `Family`, and one line in
`zoo.FAMILIES`. One outside this package is one call of `zoo.register`, or an entry point.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from pit_jax.models.config import ModelConfig
from pit_jax.models.cost import Cost
from pit_jax.models.torch_names import Table


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Family:
    """All that is known of one kind of network.

    Attributes:
      config: type of its configurations, a frozen dataclass; see `models.config.ModelConfig`. No
        other family has it.
      module: makes the network, an `nnx.Module`: `module(config, dtype=..., rngs=...)`.
      rows: configurations by the names of the zoo. Names with equal configurations are one network:
        the first is the one that its files are told by.
      cost: multiply-accumulates and parameters of a configuration.
      names: names and axes of a configuration's parameters in torch files. None for a family that
        torch does not have: its files are of our own layout.
      reference: torch's module of a configuration, for the converter's `--verify` and for
        benchmarks; imports timm itself, and gives None for a configuration that timm does not have.
        None for a family that timm does not have.
      reference_state: tensors of a torch file under the names of the reference, by timm's own
        renaming: `reference_state(tensors, reference)`. None where they have them already.
      smallest: fields of a network that trains in a second on 32x32 pixels, for smoke runs and
        tests.
    """

    config: type[ModelConfig]
    module: Callable[..., Any]
    rows: Mapping[str, Any]
    cost: Callable[[Any], Cost]
    names: Callable[[Any], Table] | None = None
    reference: Callable[[Any], Any] | None = None
    reference_state: Callable[[dict[str, Any], Any], dict[str, Any]] | None = None
    smallest: Mapping[str, Any] = dataclasses.field(default_factory=dict)
