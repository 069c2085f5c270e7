"""What is wrong with --config and --config.x=y, said with the names that would be right."""

import ast
import contextlib
import difflib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import config_flags
from ml_collections.config_dict import ConfigDict

from pit_jax.errors import suggestion


def missing_file(arguments: Sequence[str]) -> str | None:
    """The first config file that is not there, with those that are; None where all are."""
    for named in _config_files(arguments):
        path = Path(named.partition(":")[0])
        if path.is_file():
            continue
        beside = path.parent.is_dir() and path.parent != Path()
        folder = path.parent if beside else Path("configs")
        known = sorted(str(found) for found in folder.glob("*.py"))
        there = f"there are {', '.join(known)}" if known else f"nor any in {folder.absolute()}"
        return f"there is no config file {path}{suggestion(str(path), known)}; {there}"
    return None


def unknown_option(arguments: Sequence[str]) -> str | None:
    """The first --config.x.y that is no option, with what it could be; None where all are, or where
    the config file cannot be loaded.
    """
    config = _load(arguments)
    if config is None:
        return None
    for argument in arguments:
        match = re.match(r"--?(?:no)?config\.([\w.]+)(?:=(.*))?$", argument, re.DOTALL)
        if match and match[1] not in _paths(config):
            return f"config.{match[1]} is not an option; {_advice(match[1], match[2], config)}"
    return None


def _config_files(arguments: Sequence[str]) -> list[str]:
    """What is given as --config, with variants."""
    found = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        match = re.match("--?config(=|$)", argument)
        if match:
            found.append(argument[match.end() :] if match[1] else following)
    return found


def _load(arguments: Sequence[str]) -> ConfigDict | None:
    """The configuration of the last --config without its overrides, or None."""
    files = _config_files(arguments)
    # Whatever a config file may raise has been told by the flag itself.
    with contextlib.suppress(Exception):
        config = config_flags.config_flags.ConfigFileFlagParser("config").parse(files[-1])
        return config if isinstance(config, ConfigDict) else None
    return None


def _paths(config: ConfigDict, prefix: str = "") -> list[str]:
    paths = []
    for key, value in config.items():
        paths += _paths(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else []
        paths.append(f"{prefix}{key}")
    return paths


def _advice(key: str, value: str | None, config: ConfigDict) -> str:
    """The nearest names of where an unknown option was looked for, else of anywhere, else all the
    names there; where names are free, how to set one.
    """
    section, names = config, key.split(".")
    known: list[str] = []
    while isinstance(section.get(names[0]), ConfigDict):
        section = section[names[0]]
        known.append(names.pop(0))
    if _is_free(known):
        free = ".".join(known)
        return f"write --config.{free}='{_dictionary(section, names[0], value)}'"
    near = _near(names, known, section, _paths(config))
    if near:
        return f"did you mean {' or '.join(repr(path) for path in near[:3])}?"
    where = ".".join(["config", *known])
    return f"{where} has {', '.join(map(str, section.keys()))}"


def _near(names: list[str], known: list[str], section: ConfigDict, paths: list[str]) -> list[str]:
    """Paths of what `names` could mean, of which a `section` named `known` has not the first."""
    by_name: dict[str, list[str]] = {}
    for path in paths:
        by_name.setdefault(path.rpartition(".")[2], []).append(path)
    if len(names) == 1 and names[0] in by_name:
        return by_name[names[0]]
    here = [
        ".".join([*known, name, *names[1:]]) for name in _close(names[0], map(str, section.keys()))
    ]
    elsewhere = [path for name in _close(names[-1], by_name, cutoff=0.7) for path in by_name[name]]
    return [path for path in here if path in paths] or elsewhere


def _close(name: str, known: Iterable[str], cutoff: float = 0.6) -> list[str]:
    return difflib.get_close_matches(name, list(known), n=3, cutoff=cutoff)


def _is_free(names: list[str]) -> bool:
    """Whether a section takes any name: one that is empty by default, such as model.options."""
    from pit_jax.tasks.experiments import default_config

    node: Any = default_config()
    for name in names:
        node = node.get(name) if isinstance(node, ConfigDict) else None
    return isinstance(node, ConfigDict) and not node


def _dictionary(section: ConfigDict, name: str, value: str | None) -> str:
    """What sets one more name of a section, and keeps those that it has."""
    try:
        literal = ast.literal_eval(value or "")
    except (SyntaxError, ValueError):
        literal = value or "..."
    added = {int(name) if name.isdecimal() else name: literal}
    items = {**section.to_dict(), **added}.items()
    return "{" + ", ".join(f"{_quoted(key)}: {_quoted(item)}" for key, item in items) + "}"


def _quoted(value: Any) -> str:
    """A Python literal that may stand between single quotes of a shell."""
    return json.dumps(value) if isinstance(value, str) else repr(value)
