"""AdamP (Heo et al., ICLR 2021), which optax lacks, for parameters in this package's layouts.

AdamP is Adam without the component of the step along the weights, for tensors that look
scale-invariant: those whose gradient is nearly orthogonal to the weights. The reference tests this
per output channel first, then for the whole tensor. PyTorch keeps output channels on the first
axis, a `kernel` here on the last. Every other tensor of more than one axis (class tokens, position
embeddings) has a first axis of one in PyTorch: its only "channel" is the whole tensor.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamP:
    """AdamP's direction before the learning rate, weight decay included.

    The defaults are those of the authors' `adamp` package. timm's `--opt adamp`, which PiT's
    training script calls, sets `wd_ratio=0.01` and `nesterov=True` instead.

    The projection depends on norms and inner products over whole tensors. These are plain
    reductions: global under `jax.jit` however the tensors are sharded, but over one shard only
    inside `shard_map`.

    Attributes:
      b1: decay of the mean of gradients, in [0, 1).
      b2: decay of the mean of squared gradients, in [0, 1).
      eps: added to the root of the mean square, and to the norm that a projection divides by.
      weight_decay: fraction of a weight removed per step, times the learning rate.
      mask: parameters that decay: a tree of booleans, a function from parameters to such a tree,
        or None for all.
      delta: a tensor is projected if the largest |cosine| between gradient and weights is below
        delta / sqrt(size of the vectors compared).
      wd_ratio: factor on the weight decay of a projected tensor.
      nesterov: whether steps follow the look-ahead mean of gradients.
    """

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    mask: Any = None
    delta: float = 0.1
    wd_ratio: float = 0.1
    nesterov: bool = False

    def init(self, params: optax.Params) -> optax.ScaleByAdamState:
        """Returns moments of zero."""
        zeros = optax.tree.zeros_like(params)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), mu=zeros, nu=zeros)

    def update(
        self,
        updates: optax.Updates,
        state: optax.ScaleByAdamState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        """Returns the directions for gradients, and the new moments.

        Raises:
          ValueError: `params` is missing.
        """
        del extra_args
        if params is None:
            raise ValueError("adamp needs the parameters: call update(gradients, state, params)")
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(updates, state.mu, self.b1, 1)
        nu = optax.tree.update_moment(updates, state.nu, self.b2, 2)
        bias1 = _bias_correction(self.b1, count)
        root_bias2 = jnp.sqrt(_bias_correction(self.b2, count))
        decays = self.mask(params) if callable(self.mask) else self.mask
        if decays is None:
            decays = jax.tree.map(lambda _: True, params)

        def direction(
            path: tuple[Any, ...], w: jax.Array, g: jax.Array, *moments: Any
        ) -> jax.Array:
            m, v, decay = moments
            ahead = self.b1 * m + (1 - self.b1) * g if self.nesterov else m
            step = ahead / (jnp.sqrt(v) / root_bias2 + self.eps)
            step, projected = _project(path, w, g, step, delta=self.delta, eps=self.eps)
            # The reference decays first, then steps. The sum is the same: its projection uses the
            # weights from before both.
            ratio = jnp.where(projected, self.wd_ratio, 1.0)
            return step / bias1 + self.weight_decay * decay * ratio * w

        directions = jax.tree_util.tree_map_with_path(direction, params, updates, mu, nu, decays)
        return directions, optax.ScaleByAdamState(count, mu=mu, nu=nu)


def _bias_correction(decay: float, count: jax.Array) -> jax.Array:
    """Returns 1 - decay^count; computed as written, float32 would keep five digits at the first
    steps.
    """
    return -jnp.expm1(count * math.log(decay)) if decay else jnp.ones(())


def _project(
    path: tuple[Any, ...],
    weight: jax.Array,
    gradient: jax.Array,
    step: jax.Array,
    *,
    delta: float,
    eps: float,
) -> tuple[jax.Array, jax.Array]:
    """Removes the component of the step along the weights if the gradient is nearly orthogonal to
    them, per output channel or else over the whole tensor.

    Returns:
      The step, and whether it was projected in either view.
    """
    if weight.ndim <= 1:  # biases and scales
        return step, jnp.zeros((), bool)
    is_kernel = getattr(path[-1], "key", None) == "kernel"
    axes = tuple(range(weight.ndim - 1 if is_kernel else weight.ndim))
    products = [
        jnp.sum(weight * other, axis=axes, keepdims=True) for other in (weight, gradient, step)
    ]
    products.append(jnp.sum(jnp.square(gradient), axis=axes, keepdims=True))
    size = weight.size // products[0].size
    factor, projected = _view(products, delta / math.sqrt(size), eps)
    if is_kernel:
        whole = [jnp.sum(product, keepdims=True) for product in products]
        whole_factor, as_whole = _view(whole, delta / math.sqrt(weight.size), eps)
        factor = jnp.where(projected, factor, whole_factor)
        projected = projected | as_whole
    return step - jnp.where(projected, factor, 0.0) * weight, projected


def _view(products: list[jax.Array], limit: float, eps: float) -> tuple[jax.Array, jax.Array]:
    """Returns the multiple of the weights that is the step's component along them, and whether all
    cosines between weights and gradient are below the limit.

    Args:
      products: inner products of the weights with themselves, with the gradient and with the step,
        and of the gradient with itself; one per vector of the view.
      limit: largest cosine.
      eps: as in `AdamP`.
    """
    squares, with_gradient, with_step, gradient_squares = products
    norm = jnp.sqrt(squares)
    # The test uses the raw gradient, not its mean; PyTorch's cosine bounds each norm from below.
    bounds = jnp.maximum(norm, eps) * jnp.maximum(jnp.sqrt(gradient_squares), eps)
    fires = jnp.max(jnp.abs(with_gradient) / bounds) < limit
    return with_step / jnp.square(norm + eps), fires
