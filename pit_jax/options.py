"""Options: fields of frozen dataclasses that say their type, default, meaning, range and choices.

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Training:
        batch_size: int = option(1024, "Images per step.", at_least=1)
        dtype: str = option("bfloat16", "Type of the arithmetic.", choices=("bfloat16", "float32"))
        ema_decay: float | None = option(None, "Decay of the average.", within="(0, 1)")
        data: Data = dataclasses.field(default_factory=Data)  # a section, of the same kind

        def problems(self) -> list[str]:  # what concerns several fields; may be left out
            ...

`parse` makes an instance from a dictionary or ConfigDict and reports all mistakes at once;
`option_dict.to_config_dict` gives the defaults as a ConfigDict.
"""

import copy
import dataclasses
import difflib
import functools
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pit_jax.errors import suggestion

KEY = "option"
REQUIRED = re.compile(r"<required: (.*)>")


class OptionsError(ValueError):
    """Mistakes in options, a line each; every line begins with the path of its option."""

    def __init__(self, mistakes: Iterable[str]):
        self.mistakes = list(mistakes)
        super().__init__("\n".join(self.mistakes))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Declaration:
    """Meaning and allowed values of an option, as `option` takes them."""

    help: str = ""
    within: str = ""
    choices: tuple[Any, ...] = ()
    check: Callable[[Any], object] | None = None
    square: bool = False

    def refusal(self, value: Any) -> str | None:
        """The reason why a value of the right type is not allowed; None if it is."""
        if self.choices and value not in self.choices:
            known = " or ".join(map(repr, self.choices))
            return f"must be {known}, found {value!r}{suggestion(str(value), self.choices)}"
        if self.within and value is not None:
            numbers = value if isinstance(value, tuple) else (value,)
            if not all(_is_within(number, self.within) for number in numbers):
                return f"must be {self.range_text()}, found {value!r}"
        return None

    def range_text(self) -> str:
        """The allowed numbers: "in [0, 1)", "at least 1" or "above 0"."""
        bound = re.fullmatch(r"([\[(])(.+), inf\)", self.within)
        if bound is None:
            return f"in {self.within}"
        return f"{'at least' if bound[1] == '[' else 'above'} {bound[2]}"


def option(
    default: Any,
    help: str,
    *,
    at_least: float | None = None,
    within: str = "",
    choices: Iterable[Any] = (),
    check: Callable[[Any], object] | None = None,
    square: bool = False,
) -> Any:
    """A field of a dataclass of options.

    Args:
      default: its value where none is given; not checked.
      help: its meaning: a sentence or two.
      at_least: the smallest number, of each item of a tuple.
      within: an interval, "[0, 1)" or "(0, inf)": round brackets leave out the end.
      choices: all values that there are.
      check: called with a value of the right type, raises ValueError on a wrong one; the message
        may begin with "must", to follow the option's path.
      square: an integer N stands for the tuple (N, N).
    """
    declaration = Declaration(
        help=help,
        within=within if at_least is None else f"[{at_least}, inf)",
        choices=tuple(choices),
        check=check,
        square=square,
    )
    if isinstance(default, dict):
        return dataclasses.field(
            default_factory=lambda: copy.deepcopy(default), metadata={KEY: declaration}
        )
    return dataclasses.field(default=default, metadata={KEY: declaration})


def required(value: str) -> str:
    """The value of an option of strings that the user has to set; `value` is a word for it.

    ml_collections' own `required_placeholder` cannot be overridden on the command line.
    """
    return f"<required: {value}>"


@dataclasses.dataclass(frozen=True)
class Field:
    """An option or a section of a dataclass."""

    name: str
    type: Any
    default: Any
    declaration: Declaration

    @property
    def section(self) -> Any:
        """The defaults of a section, an instance of its dataclass; None for an option."""
        return self.default if dataclasses.is_dataclass(self.default) else None

    def convert(self, value: Any) -> Any:
        """The value as the field's type: a tuple for a list, a float for an int.

        Raises:
          ValueError: a value of another type.
        """
        try:
            return _convert(_squared(value) if self.declaration.square else value, self.type)
        except TypeError:
            raise ValueError(f"must be {self.form()}, found {value!r}") from None

    def form(self) -> str:
        """Its type as the source has it, and an example: "tuple[int, int] such as (224, 224)"."""
        form = _type_text(self.type)
        if self.declaration.square:
            form = f"int or {form}"
        is_tuple = isinstance(self.default, tuple)
        return f"{form} such as {self.default!r}" if self.default and is_tuple else form

    def values_text(self) -> str:
        """Its choices, or its type and range: "float in [0, 1]"."""
        if self.declaration.choices:
            return " | ".join(map(repr, self.declaration.choices))
        text = _type_text(self.type)
        return f"{text} {self.declaration.range_text()}" if self.declaration.within else text


def fields(node: Any) -> dict[str, Field]:
    """The options and sections of a dataclass, or of an instance with other defaults, by name."""
    defaults = node() if isinstance(node, type) else node
    hints = _hints(defaults.__class__)
    return {
        field.name: Field(
            field.name,
            hints[field.name],
            getattr(defaults, field.name),
            field.metadata.get(KEY, Declaration()),
        )
        for field in dataclasses.fields(defaults)
    }


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def paths(node: Any, path: str = "config") -> Iterator[str]:
    """The paths of all sections and options: "config.model", "config.model.name"."""
    for field in fields(node).values():
        yield f"{path}.{field.name}"
        if field.section:
            yield from paths(field.section, f"{path}.{field.name}")


def parse(cls: type, values: Any, path: str = "config") -> Any:
    """An instance of `cls` with the given values, and defaults for the others.

    Args:
      cls: a dataclass of options.
      values: a dictionary of dictionaries, or a ConfigDict.
      path: how messages call it.

    Raises:
      OptionsError: all mistakes: unknown names (with the closest one anywhere in the tree), wrong
        types, values out of range, sections whose values do not fit together.
    """
    values = values if isinstance(values, dict) else values.to_dict()
    mistakes: list[str] = []
    parsed = _parse(cls(), values, path, list(paths(cls, path)), mistakes)
    if mistakes:
        raise OptionsError(mistakes)
    return parsed


def _parse(
    defaults: Any, values: dict[str, Any], path: str, known: list[str], mistakes: list[str]
) -> Any:
    """The defaults with the values, or None where there are mistakes; the list takes those up."""
    declared, arguments, before = fields(defaults), dict[str, Any](), len(mistakes)
    for name, value in values.items():
        own = f"{path}.{name}"
        if name not in declared:
            mistakes.append(f"{own} is not an option; {advice(own, known)}")
        elif section := declared[name].section:
            if isinstance(value, dict):
                arguments[name] = _parse(section, value, own, known, mistakes)
            else:
                mistakes.append(f"{own} is a section of options, found {value!r}")
        else:
            try:
                arguments[name] = _checked(declared[name], value, own)
            except ValueError as error:
                mistakes.append(str(error))
    if len(mistakes) > before:
        return None
    parsed = dataclasses.replace(defaults, **arguments)
    mistakes += parsed.problems() if hasattr(parsed, "problems") else []
    return parsed


def _checked(field: Field, value: Any, path: str) -> Any:
    """The value of an option. Raises ValueError, with the path, if it cannot have this value."""
    missing = REQUIRED.fullmatch(value) if isinstance(value, str) else None
    if missing:
        raise ValueError(f"{path} is required: add --{path}={missing[1]}")
    try:
        value = field.convert(value)
        refusal = field.declaration.refusal(value)
    except ValueError as error:
        refusal = str(error)
    if refusal:
        raise ValueError(f"{path} {refusal}")
    if field.declaration.check and value != field.default:
        try:
            field.declaration.check(value)
        except ValueError as error:
            joint = " " if str(error).startswith("must ") else ": "
            raise ValueError(f"{path}{joint}{error}") from None
    return value


def advice(path: str, known: Iterable[str]) -> str:
    """For a path that is none of the known: those of the closest names, those of its section first;
    else all names of its section.
    """
    known = list(known)
    name, near = _name(path), {}
    for other in known:
        likeness = _likeness(name, _name(other))
        if likeness >= 0.7:
            near[other] = likeness + _likeness(path, other)
    best = sorted(near, key=lambda other: -near[other])[:2]
    # The second is worth a mention only if it is about as close.
    best = [other for other in best if near[other] > near[best[0]] - 0.5]
    if best:
        return f"did you mean {' or '.join(map(repr, best))}?"
    section = path.rpartition(".")[0]
    while section.count(".") and not any(other.startswith(f"{section}.") for other in known):
        section = section.rpartition(".")[0]
    names = [_name(other) for other in known if other.rpartition(".")[0] == section]
    return f"{section} has {', '.join(sorted(names))}"


def _name(path: str) -> str:
    return path.rpartition(".")[2]


def _likeness(one: str, other: str) -> float:
    """Between 0 and 1."""
    return difflib.SequenceMatcher(None, one, other).ratio()


def _squared(value: Any) -> Any:
    """(N, N) for N, and for (N,), which the command line makes of N."""
    items = value if isinstance(value, tuple | list) else (value,)
    return (*items, *items) if len(items) == 1 else value


def _convert(value: Any, hint: Any) -> Any:
    """The value as the type. Raises TypeError if it is of another."""
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and types.NoneType in members:
            return None
        return _convert(value, next(member for member in members if member is not types.NoneType))
    if origin is tuple and isinstance(value, tuple | list):
        inner = members[:1] * len(value) if members[1:] == (Ellipsis,) else members
        if len(inner) == len(value):
            return tuple(_convert(item, one) for item, one in zip(value, inner, strict=True))
    if origin is dict and isinstance(value, Mapping):
        key, item = members
        return {_convert(k, key): _convert(v, item) for k, v in value.items()}
    if hint in (int, float) and isinstance(value, int) and not isinstance(value, bool):
        return hint(value)
    if hint is Any or (hint is not int and not origin and isinstance(value, hint)):
        return value
    raise TypeError


def _type_text(hint: Any) -> str:
    plain = isinstance(hint, type) and not typing.get_args(hint)
    return hint.__name__ if plain else str(hint).replace("typing.", "")


def _is_within(number: float, interval: str) -> bool:
    low, high = map(float, interval[1:-1].split(","))
    above = number > low if interval[0] == "(" else number >= low
    below = number < high if interval[-1] == ")" else number <= high
    return above and below
