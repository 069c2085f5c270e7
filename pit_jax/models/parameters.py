"""Between a module and its parameters as a plain nested dict with string keys.

Everything outside the models (optimizer, checkpoints, weight files, jit) sees the dict. `nnx.merge`
matches leaves by order and takes a dict with renamed or re-ordered keys without a word, so whatever
comes from a file is checked first (`weights.strict`).

The running statistics of models with batch normalisation travel in the same dict, as one more
entry, `BATCH_STATS`, with the nesting of the parameters they belong to. They are no parameters:
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
    """The static structure of a module, and its parameters as a nested dict of arrays; with running
    statistics, where it has any, under `BATCH_STATS`.
    """
    graphdef, *states = nnx.split(model, nnx.Param, nnx.BatchStat)
    trained, statistics = (nnx.to_pure_dict(state) for state in states)
    return graphdef, join(trained, statistics)


def merge(graphdef: nnx.GraphDef, params: Params) -> Any:
    """The module with these parameters, which must have the names and shapes that `split` gives."""
    trained, statistics = separate(params)
    return nnx.merge(graphdef, trained, *([statistics] if statistics else []))


def separate(params: Mapping[str, Any]) -> tuple[Params, Params]:
    """(what an optimizer trains, the running statistics: {} of a model without any)."""
    trained = {name: value for name, value in params.items() if name != BATCH_STATS}
    return trained, params.get(BATCH_STATS, {})


def join(trained: Params, statistics: Params) -> Params:
    """The inverse of `separate`."""
    return {**trained, BATCH_STATS: statistics} if statistics else trained


def update_statistics(
    statistics: Params, batch: Mapping[str, jax.Array], decay: float = 0.9
) -> Params:
    """Running statistics after one more batch: decay * running + (1 - decay) * batch.

    Args:
      statistics: as of `separate`.
      batch: captured as "batch_statistics" in training, under the same paths.
      decay: 0.9 is PyTorch's momentum of 0.1.

    Raises:
      ValueError: statistics that the batch has none for, or the reverse.
    """
    running = flatten(statistics)
    if running.keys() != batch.keys():
        strange = sorted(running.keys() ^ batch.keys())
        raise ValueError(
            "running and batch statistics are not of the same model: only one of them has "
            f"{', '.join(strange[:5])}; capture 'batch_statistics' alone"
        )
    return unflatten(
        {path: decay * value + (1.0 - decay) * batch[path] for path, value in running.items()}
    )


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """{"stage0/block1/mlp/fc1/kernel": array}, in the module's order."""
    return traverse_util.flatten_dict(dict(params), sep="/")


def unflatten(flat: Mapping[str, Any]) -> Params:
    """The inverse of `flatten`."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def count(params: Mapping[str, Any]) -> int:
    """Number of parameters, of arrays or of abstract ones; running statistics do not count."""
    return sum(leaf.size for leaf in jax.tree.leaves(separate(params)[0]))
