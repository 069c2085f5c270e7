"""Mistakes in the flags of an experiment, all at once and a line each.

ml_collections stops at the first. Where it does, its own parser is tried on one flag after another.
"""

import ast
import functools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from pit_jax import options
from pit_jax.cli import configs
from pit_jax.errors import suggestion
from pit_jax.option_dict import Assignments, declared, recorded


class Given(NamedTuple):
    """A flag of the command line: its name, its value if it seems to have one, its arguments."""

    name: str
    value: str | None
    arguments: list[str]


def given_flags(arguments: Sequence[str]) -> Iterator[Given]:
    """The flags of a command line, the program's own name first, in their order."""
    for index, argument in enumerate(arguments[1:], start=1):
        match = re.fullmatch(r"--?([A-Za-z][^=]*)(=(.*))?", argument, re.DOTALL)
        if argument == "--":
            return
        if not match:
            continue
        name = match[1].removeprefix("no") if match[1].startswith("noconfig.") else match[1]
        following = list(arguments[index + 1 : index + 2])
        if match[2] or not following or following[0].startswith("-"):
            yield Given(name, match[3], [argument])
        else:
            yield Given(name, following[0], [argument, *following])


def of_command_line(arguments: Sequence[str]) -> list[str]:
    """All mistakes of a command line that cannot be read, found flag by flag."""
    mistakes = list(_wrong_flags(arguments))
    files, overrides = list[str](), dict[str, list[str]]()
    for given in given_flags(arguments):
        if given.name == "config" and given.value:
            files.append(given.value)
        elif given.name.startswith("config."):
            overrides.setdefault(given.name, []).extend(given.arguments)
    if not files:
        return mistakes
    with recorded() as record:
        try:
            config = configs.load(files[-1])
        except ValueError as error:
            record.add(*configs.split_place(str(error)))
            return [*mistakes, *record.mistakes]
        refused = [_override(config, path, arguments) for path, arguments in overrides.items()]
    return [*mistakes, *of_experiment(config, record), *filter(None, refused)]


def _wrong_flags(arguments: Sequence[str]) -> Iterator[str]:
    """Flags beside those of the experiment that there are not, or that have a wrong value."""
    for name, value, _ in given_flags(arguments):
        if name == "config" or name.startswith("config."):
            continue
        if name in flags.FLAGS and value is not None:
            try:
                flags.FLAGS[name].parser.parse(value)
            except ValueError as error:
                yield f"--{name}={value}: {error}"
        elif not {name, name.removeprefix("no")} & set(flags.FLAGS):
            yield f"there is no flag --{name}{suggestion(name, flags.FLAGS)}"


def _override(config: ConfigDict, path: str, arguments: list[str]) -> str | None:
    """Changes an option as ml_collections does for these arguments.

    Returns:
      what is wrong with them, or None.
    """
    known = list(_paths(config))
    if path not in known:
        return f"{path} is not an option; {_advice(config, path, arguments, known)}"
    values, line = flags.FlagValues(), ["", *arguments]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=line)
        values(line)
    except (flags.Error, TypeError, ValueError) as error:
        field = _field(config, path)
        text = arguments[0].partition("=")[2] or arguments[-1]
        return f"{path} must be {field.form()}, found {text!r}" if field else str(error)
    return None


def _paths(config: ConfigDict, path: str = "config") -> Iterator[str]:
    """The paths of all that a configuration holds, keys of free dictionaries included."""
    for name, value in config.items():
        yield f"{path}.{name}"
        if isinstance(value, ConfigDict):
            yield from _paths(value, f"{path}.{name}")


def _field(config: ConfigDict, path: str) -> options.Field | None:
    """The declaration of an option; None for a key of a free dictionary."""
    *sections, name = path.split(".")[1:]
    node: Any = config
    for section in sections:
        node = node.get(section) if isinstance(node, ConfigDict) else None
    cls = declared(node) if isinstance(node, ConfigDict) else None
    return options.fields(cls).get(name) if cls else None


def _advice(config: ConfigDict, path: str, arguments: list[str], known: list[str]) -> str:
    """For an unknown path: what it could be, or how to add a key to a free dictionary."""
    section, _, name = path.rpartition(".")
    field = _field(config, section) if "." in section else None
    if field is None or field.section or not isinstance(field.default, dict):
        return options.advice(path, known)
    held = functools.reduce(getattr, section.split(".")[1:], config).to_dict()
    text = arguments[0].partition("=")[2]
    try:
        literal = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        literal = text or "..."
    items = {**held, int(name) if name.isdecimal() else name: literal}.items()
    inside = ", ".join(f"{_quoted(key)}: {_quoted(item)}" for key, item in items)
    return f"write --{section}='{{{inside}}}'"


def _quoted(value: Any) -> str:
    """A Python literal that may stand between single quotes of a shell."""
    return json.dumps(value) if isinstance(value, str) else repr(value)


def of_experiment(config: ConfigDict, record: Assignments) -> list[str]:
    """Mistakes in an experiment, each behind the file and line of the assignment that made it."""
    found = list(record.mistakes)
    cls = declared(config)
    if cls:
        try:
            options.parse(cls, config)
        except options.OptionsError as error:
            found += [f"{record.places.get(_path(line), '')}{line}" for line in error.mistakes]
    return found


def _path(mistake: str) -> str:
    """The path of the option with which a mistake begins."""
    match = re.match(r"[\w.]+", mistake)
    return match[0] if match else ""
