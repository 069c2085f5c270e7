"""Trees that go with a parameter dict: which parameters decay, and their distance to the head."""

import re
from collections.abc import Mapping
from typing import Any

import jax
from flax import traverse_util

# PyTorch's `no_weight_decay` lists of PiT and of DeiT as it was when PiT was trained. A separate
# distillation token (DeiT's; PiT's is a row of the class token) was not on the list, and decays.
UNDECAYED = ("class_token", "position")

_BLOCK = re.compile(r"^(?:stage(\d+)/)?block(\d+)/")
_POOL = re.compile(r"^pool(\d+)/")
_INPUT = re.compile(r"^(embedding|stem|position|class_token|distillation_token)(/|$)")


def decays(path: str, ndim: int) -> bool:
    """Tells whether weight decay applies to the parameter at path "a/b/c" with `ndim` axes.

    It does not apply to biases, normalisation scales, class tokens and position embeddings.
    """
    return ndim > 1 and path.rsplit("/", 1)[-1] not in UNDECAYED


def weight_decay_mask(params: Any) -> Any:
    """A tree of booleans like `params`, for the `mask` of optax transformations.

    For PiT-Ti 54 tensors decay and 106 do not.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: decays(
            jax.tree_util.keystr(path, simple=True, separator="/"), leaf.ndim
        ),
        params,
    )


def layer_ids(params: Mapping[str, Any]) -> dict[str, int]:
    """Layer of every parameter by path, such as {"stage0/block1/mlp/fc1/kernel": 2}.

    The embedding or stem is layer 0, the blocks of all stages are 1, 2, ..., and the final norm and
    the heads come last. A pooling between stages belongs to the block after it.
    """
    paths = list(traverse_util.flatten_dict(dict(params), sep="/"))
    places = {path: _place(path) for path in paths}
    blocks = sorted({place for place in places.values() if place is not None})
    number = {place: index for index, place in enumerate(blocks, start=1)}
    last = len(blocks) + 1
    ids = {}
    for path, place in places.items():
        outside = 0 if _INPUT.match(path) else last
        ids[path] = outside if place is None else number[place]
    return ids


def layer_decay_scales(params: Mapping[str, Any], decay: float) -> dict[str, Any]:
    """A factor on the learning rate for every parameter, `decay` to the power of its distance in
    layers from the head (BEiT's layer-wise decay); the head's is 1.

    Raises:
      ValueError: a decay outside (0, 1].
    """
    if not 0.0 < decay <= 1.0:
        raise ValueError(f"layer-wise decay must be in (0, 1], found {decay}")
    ids = layer_ids(params)
    last = max(ids.values())
    return traverse_util.unflatten_dict(
        {path: decay ** (last - layer) for path, layer in ids.items()}, sep="/"
    )


def _place(path: str) -> tuple[int, int] | None:
    """(stage, block) that a parameter belongs to; None outside the blocks."""
    if block := _BLOCK.match(path):
        return int(block[1] or 0), int(block[2])
    if pool := _POOL.match(path):
        return int(pool[1]) + 1, 0
    return None
