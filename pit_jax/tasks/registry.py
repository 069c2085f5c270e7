"""The tasks by name: one line each.

Another package adds a task by an entry point of the group `pit_jax.tasks`: its name is that of the
task, its value "package.module:Class". Python code adds a task by `register`.
"""

import importlib.metadata

from pit_jax.errors import suggestion
from pit_jax.training.task import Task

GROUP = "pit_jax.tasks"

# Imported on demand: a task imports its data and its losses.
TASKS = {
    "classification": "pit_jax.tasks.classification.task:Classification",
}
_REGISTERED: dict[str, type[Task]] = {}


def register(name: str, task: type[Task]) -> None:
    """Adds a task under a name, in this process.

    Raises:
      ValueError: another task has that name.
    """
    known = _REGISTERED.get(name)
    if name in TASKS or known not in (None, task):
        raise ValueError(f"there is a task named {name!r} already; choose another name")
    _REGISTERED[name] = task


def names() -> list[str]:
    """Names of all tasks, ours first."""
    installed = importlib.metadata.entry_points(group=GROUP)
    return [*TASKS, *_REGISTERED, *(entry.name for entry in installed)]


def find(name: str) -> type[Task]:
    """Looks up a task by name.

    Raises:
      ValueError: there is none, and the closest name is suggested; or it cannot be imported.
    """
    if name in _REGISTERED:
        return _REGISTERED[name]
    found = {entry.name: entry for entry in importlib.metadata.entry_points(group=GROUP)}
    found |= {
        known: importlib.metadata.EntryPoint(known, where, GROUP) for known, where in TASKS.items()
    }
    if name not in found:
        known = names()
        raise ValueError(
            f"unknown task {name!r}{suggestion(name, known)}; there are {', '.join(known)}"
        )
    try:
        task: type[Task] = found[name].load()
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"the task {name!r} cannot be imported from {found[name].value}: {error}"
        ) from error
    return task
