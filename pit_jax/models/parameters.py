"""Converts modules to nested dicts of arrays with string keys, and back.

Everything outside the models (optimizer, checkpoints, weight files, jit) sees the dict. `nnx.merge`
matches leaves by order and silently accepts a dict with renamed or re-ordered keys, so that the
contents of files are checked first (`weights.strict`).

The running statistics of models with batch normalisation travel in the same dict, as one more
entry, `BATCH_STATS`, with the nesting of the parameters they belong to. They are not parameters:
nothing counts, decays or optimizes them (`separate`), and a training step replaces them by
`update_statistics`.
"""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx, traverse_util

Params = dict[str, Any]

# The entry of running statistics, {BATCH_STATS: {"stem": {"norm": {"mean": ..., "var": ...}}}}.
BATCH_STATS = "batch_stats"


def split(model: Any) -> tuple[nnx.GraphDef, Params]:
    """Splits a module into its static structure and a nested dict of its parameters, with its
    running statistics, if any, under `BATCH_STATS`.
    """
    graphdef, *states = nnx.split(model, nnx.Param, nnx.BatchStat)
    trained, statistics = (nnx.to_pure_dict(state) for state in states)
    return graphdef, join(trained, statistics)


def merge(graphdef: nnx.GraphDef, params: Params) -> Any:
    """Inverse of `split`; the parameters must have the names, shapes and order of its result."""
    trained, statistics = separate(params)
    return nnx.merge(graphdef, trained, *([statistics] if statistics else []))


def separate(params: Mapping[str, Any]) -> tuple[Params, Params]:
    """(the parameters, which an optimizer trains; the running statistics, {} without any)."""
    trained = {name: value for name, value in params.items() if name != BATCH_STATS}
    return trained, params.get(BATCH_STATS, {})


def join(trained: Params, statistics: Params) -> Params:
    """Inverse of `separate`."""
    return {**trained, BATCH_STATS: statistics} if statistics else trained


def update_statistics(
    statistics: Params, batch: Mapping[str, jax.Array], decay: float = 0.9
) -> Params:
    """Running statistics after one more batch: decay * running + (1 - decay) * batch.

    Args:
      statistics: from `separate`.
      batch: captured as "batch_statistics" in training, under the same paths.
      decay: of the running statistics; 0.9 is PyTorch's momentum of 0.1.

    Raises:
      ValueError: the two have different paths.
    """
    running = flatten(statistics)
    if running.keys() != batch.keys():
        different = sorted(running.keys() ^ batch.keys())
        raise ValueError(
            "running and batch statistics are not of the same model: only one of them has "
            f"{', '.join(different[:5])}; capture 'batch_statistics' alone"
        )
    return unflatten(
        {path: decay * value + (1.0 - decay) * batch[path] for path, value in running.items()}
    )


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """{"stage0/block1/mlp/fc1/kernel": array}, in the module's order."""
    return traverse_util.flatten_dict(dict(params), sep="/")


def unflatten(flat: Mapping[str, Any]) -> Params:
    """Inverse of `flatten`."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def count(params: Mapping[str, Any]) -> int:
    """Number of parameters, without the running statistics; leaves may be abstract."""
    return sum(leaf.size for leaf in jax.tree.leaves(separate(params)[0]))
