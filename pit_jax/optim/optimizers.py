"""The optimizers by name, with gradient clipping and layer-wise learning rates around them."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from pit_jax.errors import suggestion
from pit_jax.optim.adamp import AdamP
from pit_jax.optim.masks import weight_decay_mask


def adamw(
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    mask: Any = None,
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Adam with decoupled weight decay, as `torch.optim.AdamW`."""
    return optax.chain(
        optax.scale_by_adam(b1, b2, eps, nesterov=nesterov),
        optax.add_decayed_weights(weight_decay, mask),
    )


def sgd(
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    mask: Any = None,
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Stochastic gradient descent with momentum, as `torch.optim.SGD`: weight decay is added to the
    gradient and so enters the momentum.
    """
    decayed = optax.add_decayed_weights(weight_decay, mask)
    return optax.chain(decayed, *([optax.trace(momentum, nesterov)] if momentum else []))


# Name -> rule that gives the direction of a step, before the learning rate.
OPTIMIZERS: dict[str, Callable[..., Any]] = {"adamw": adamw, "adamp": AdamP, "sgd": sgd}


def make_optimizer(
    name: str,
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
    layer_scales: Mapping[str, Any] | None = None,
    mask: Any = weight_decay_mask,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """Makes the optimizer of a training run: clip, then step, then scale per layer.

    Args:
      name: one of `OPTIMIZERS`.
      learning_rate: a number, or a function from the step (from 0) to one.
      weight_decay: fraction of a weight removed per step, times the learning rate.
      clip_norm: largest global L2 norm of the gradient; longer gradients are scaled to it. None
        for no clipping.
      layer_scales: factors on the learning rate of every parameter, a tree like the parameters
        (`masks.layer_decay_scales`); they scale the weight decay too, as the rate does.
      mask: parameters that decay; by default all but biases, norms, class tokens and positions.
      **options: of the named optimizer, e.g. b1, b2, eps; delta, wd_ratio, nesterov for "adamp";
        momentum for "sgd". PiT's recipe is "adamp" with wd_ratio=0.01, nesterov=True.

    Returns:
      A transformation whose `update` needs `params`; its state is a tree of arrays.

    Raises:
      ValueError: the optimizer has no such option; the message has the closest one.
    """
    known = list(inspect.signature(OPTIMIZERS[name]).parameters)
    for option in options:
        if option not in known:
            raise ValueError(
                f"{name} has no option {option!r}{suggestion(option, known)}; it has "
                f"{', '.join(known)}"
            )
    rule = OPTIMIZERS[name](weight_decay=weight_decay, mask=mask, **options)
    # Clipping and scales have no state of their own: a stored state fits with and without them.
    return optax.chain(
        optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm),
        optax.GradientTransformationExtraArgs(rule.init, rule.update),
        optax.scale_by_learning_rate(learning_rate),
        optax.identity() if layer_scales is None else _scale_by_tree(layer_scales),
    )


def _scale_by_tree(scales: Mapping[str, Any]) -> optax.GradientTransformation:
    """Multiplies every update by its factor, which is exact for optimizers that are linear in their
    learning rate, as all here are.
    """
    return optax.stateless(
        lambda updates, _: jax.tree.map(lambda update, scale: update * scale, updates, scales)
    )
