"""Options as a locked ConfigDict, which refuses a wrong name or type with the right one."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import os
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict, config_dict

from pit_jax import options


@dataclasses.dataclass
class Assignments:
    """Assignments to an OptionDict while `recorded` is active.

    Attributes:
      places: {path of an option: "FILE:LINE: " of the last assignment to it, "" for one on the
        command line}.
      mistakes: what is wrong with the refused ones, a line each, with their places.
    """

    places: dict[str, str] = dataclasses.field(default_factory=dict)
    mistakes: list[str] = dataclasses.field(default_factory=list)

    def add(self, place: str, mistake: str) -> None:
        """Adds a mistake; the second of a line of a file follows from the first."""
        if not place or not any(known.startswith(place) for known in self.mistakes):
            self.mistakes.append(f"{place}{mistake}")


_record: contextvars.ContextVar[Assignments | None] = contextvars.ContextVar("record", default=None)


@contextlib.contextmanager
def recorded() -> Iterator[Assignments]:
    """Records assignments, and goes on after a wrong line instead of raising at the first."""
    record = Assignments()
    token = _record.set(record)
    try:
        yield record
    finally:
        _record.reset(token)


class OptionDict(ConfigDict):
    """The options of a dataclass. While it is locked, a value that is assigned is converted to the
    type of its option.
    """

    _defaults: Any = None
    _path = ""
    _known: tuple[str, ...] = ()

    def __setitem__(self, name: Any, value: Any) -> None:
        if self._defaults is None or not self.is_locked:
            super().__setitem__(name, value)
            return
        record = _record.get()
        try:
            super().__setitem__(name, self._converted(name, value))
        except (AttributeError, TypeError) as error:
            if record is None:
                raise
            record.add(_caller(), str(error))
        else:
            if record is not None:
                record.places[f"{self._path}.{name}"] = _caller()

    def __getattr__(self, name: str) -> Any:
        if self._defaults is None or name in self:
            return super().__getattr__(name)
        record, place = _record.get(), _caller()
        if record is None or not place or name.startswith("_"):
            raise AttributeError(self._unknown(name))
        record.add(place, self._unknown(name))
        return ConfigDict()  # in place of a section, to go on with the lines below

    def _converted(self, name: str, value: Any) -> Any:
        """The value to be kept. Raises AttributeError for an unknown name, TypeError for a value of
        another type.
        """
        fields = options.fields(self._defaults)
        if name not in fields:
            raise AttributeError(self._unknown(name))
        if value is None or fields[name].section:
            return value
        if isinstance(value, config_dict.FieldReference):
            return value
        if typing.get_origin(fields[name].type) is dict and isinstance(value, dict | ConfigDict):
            return ConfigDict(value)  # parse checks the items
        try:
            return fields[name].convert(value)
        except ValueError as error:
            raise TypeError(f"{self._path}.{name} {error}") from None

    def _unknown(self, name: str) -> str:
        path = f"{self._path}.{name}"
        return f"{path} is not an option; {options.advice(path, self._known)}"


def to_config_dict(cls: type, path: str = "config") -> OptionDict:
    """The defaults of a dataclass of options: known names alone, each with its type.

    Args:
      cls: the dataclass; its sections become ConfigDicts of their own.
      path: how messages call it.
    """
    return _section(cls(), path, tuple(options.paths(cls, path))).lock()


def declared(config: ConfigDict) -> type | None:
    """The dataclass whose options these are; None for a ConfigDict that was made otherwise."""
    has_defaults = isinstance(config, OptionDict) and config._defaults is not None
    return type(config._defaults) if has_defaults else None


def _section(defaults: Any, path: str, known: tuple[str, ...]) -> OptionDict:
    config = OptionDict()
    for name, field in options.fields(defaults).items():
        value = field.default
        if field.section:
            value = _section(field.section, f"{path}.{name}", known)
        elif value is None:
            value = config_dict.placeholder(_inner_type(field.type))
        elif isinstance(value, dict):
            value = ConfigDict(value)
        config[name] = value
    for name, value in (("_defaults", defaults), ("_path", path), ("_known", known)):
        object.__setattr__(config, name, value)
    return config


def _inner_type(hint: Any) -> type:
    """T of `T | None`, and tuple of `tuple[T, T] | None`."""
    inner = next(member for member in typing.get_args(hint) if member is not types.NoneType)
    return typing.get_origin(inner) or inner


def _caller() -> str:
    """ "FILE:LINE: " of the assignment that is under way; "" where it is on the command line."""
    frame = sys._getframe(1)
    while frame.f_back and _package(frame) in ("ml_collections", "pit_jax.option_dict"):
        frame = frame.f_back
    if _package(frame) == "absl":
        return ""
    return f"{place(frame.f_code.co_filename)}:{frame.f_lineno}: "


def _package(frame: types.FrameType) -> str:
    name = str(frame.f_globals.get("__name__"))
    return name if name == __name__ else name.partition(".")[0]


def place(file: str) -> str:
    """A file as a user in the working directory calls it."""
    relative = os.path.relpath(file)
    return file if relative.startswith(os.pardir) else relative
