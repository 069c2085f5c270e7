"""Between a module and its parameters as a plain nested dict with string keys.

Everything outside the models (optimizer, checkpoints, weight files, jit) sees the dict. `nnx.merge`
matches leaves by order and takes a dict with renamed or re-ordered keys without a word; `merge`
here checks first.
"""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx, traverse_util

Params = dict[str, Any]


def split(model: nnx.Module) -> tuple[nnx.GraphDef, Params]:
    """The static structure of a module, and its parameters as a nested dict of arrays."""
    graphdef, state = nnx.split(model, nnx.Param)
    return graphdef, nnx.to_pure_dict(state)


def merge(graphdef: nnx.GraphDef, params: Params) -> Any:
    """The module with these parameters; `params` must come from `split`, or have passed
    `check_against`.
    """
    return nnx.merge(graphdef, params)


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """{"stage0/block1/mlp/fc1/kernel": array}, in the module's order."""
    return traverse_util.flatten_dict(dict(params), sep="/")


def unflatten(flat: Mapping[str, Any]) -> Params:
    """The inverse of `flatten`."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def count(params: Mapping[str, Any]) -> int:
    """Number of parameters, of arrays or of abstract ones."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
