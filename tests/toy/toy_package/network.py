"""A family of networks in one file: pooled pixels through two linear layers."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from pit_jax.models.cost import Cost, linear
from pit_jax.models.family import Family


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyConfig:
    width: int = 16
    image_size: tuple[int, int] = (8, 8)
    in_channels: int = 3
    num_classes: int = 1  # numbers that the network predicts
    drop_path_rate: float = 0.0

    @property
    def strides(self) -> tuple[int, ...]:
        return (1,)

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.width,)

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        return (self.image_size,)


class Toy(nnx.Module):
    def __init__(self, config: ToyConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        options = {"dtype": dtype, "rngs": rngs}
        self.hidden = nnx.Linear(config.in_channels, config.width, **options)
        self.head = nnx.Linear(config.width, config.num_classes, **options)

    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        key: jax.Array | None = None,
        capture: tuple[str, ...] = (),
    ) -> Any:
        outputs = self.head(jax.nn.relu(self.hidden(images.mean((1, 2)))))  # (B, K)
        return (outputs, {}) if capture else outputs


def cost(config: ToyConfig) -> Cost:
    return linear(1, config.in_channels, config.width) + linear(1, config.width, config.num_classes)


FAMILY = Family(config=ToyConfig, module=Toy, rows={"toy": ToyConfig()}, cost=cost)
