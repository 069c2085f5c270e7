"""The flag `--config` with its overrides, help and version, for every program that has it."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable, Sequence

from absl import app, flags
from ml_collections import config_flags

from pit_jax.cli import configs, console, mistakes, reference
from pit_jax.option_dict import recorded
from pit_jax.tasks import registry
from pit_jax.training.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Program:
    """A program with the flag `--config`.

    Attributes:
      name: how users start it.
      about: its docstring.
      module: the module that defines its other flags.
      required: names of the flags that must be given.
    """

    name: str
    about: str
    module: str
    required: tuple[str, ...]


def run(
    main: Callable[[], None], name: str, about: str | None, required: Iterable[str] = ()
) -> None:
    """Runs a program with the flag `--config` beside those that its module has defined.

    Args:
      main: called when the command line is read and without a mistake.
      name: how users start it.
      about: its docstring.
      required: names of the flags that must be given, beside `--config`.
    """
    config_flags.DEFINE_config_file(
        "config",
        help_string="Experiment: NAME[:VARIANT] (see --list_configs), or FILE.py[:VARIANT].",
    )
    flags.DEFINE_bool("list_configs", False, "List the experiments of the package.")
    module = sys.argv[0] if main.__module__ == "__main__" else main.__module__
    program = Program(name, about or "", module, ("config", *required))
    app.run(lambda _: main(), flags_parser=functools.partial(parse_flags, program))


def parse_flags(program: Program, arguments: Sequence[str]) -> list[str]:
    """Reads the command line and checks the experiment; mistakes end the program, a line each."""
    _inform(program, arguments[1:])
    arguments = flags.FLAGS.read_flags_from_files(arguments, force_gnu=False)
    given = {given.name for given in mistakes.given_flags(arguments)}
    missing = [f"--{name}" for name in program.required if name not in given]
    found = [f"{' and '.join(missing)} must be given; --help says more"] if missing else []
    try:
        with recorded() as record:
            rest = flags.FLAGS(_with_files(arguments))
        found += [
            f"unexpected argument {argument!r}: options are written --name=value"
            for argument in rest[1:]
        ]
        if "config" in given:
            # A file that cannot be loaded says so only here, when something is asked of it.
            flags.FLAGS.config.keys()
            found += mistakes.of_experiment(flags.FLAGS.config, record)
    except Exception as error:  # whatever a config file may raise
        found += mistakes.of_command_line(arguments) or [" ".join(str(error).split())]
    if found:
        console.fail(*found)
    return list(arguments[:1])


def _inform(program: Program, arguments: Sequence[str]) -> None:
    """Prints what --help, --version or --list_configs ask for, and ends the program."""
    if {"-h", "--help"} & set(arguments):
        console.leave(_help(program))
    if "--version" in arguments:
        console.leave(console.version(program.name))
    if "--list_configs" in arguments:
        known = configs.names()
        width = max(map(len, known))
        console.leave("\n".join(f"{name:<{width}}  {line}" for name, line in known.items()))


def _with_files(arguments: Sequence[str]) -> list[str]:
    """The arguments with the file of an experiment for its name."""
    named = list(arguments)
    for given in mistakes.given_flags(arguments):
        if given.name == "config" and given.value:
            at = named.index(given.arguments[0])
            named[at : at + len(given.arguments)] = [f"--config={configs.find(given.value)}"]
    return named


def _help(program: Program) -> str:
    """Usage, flags, examples, and all options of the default experiment."""
    needed = " ".join(f"--{name}=..." for name in program.required)
    lines = [f"usage: {program.name} {needed} [--config.OPTION=VALUE ...]", "", program.about, ""]
    lines += ["Flags:"]
    own = flags.FLAGS.get_flags_for_module(program.module)
    for flag in [flags.FLAGS[name] for name in ("config", "list_configs")] + own:
        name = flag.name
        shown = f"--[no]{name}" if flag.boolean else f"--{name}=..."
        default = "" if flag.default is None else f" (default: {flag.default})"
        lines.append(f"  {shown}  {flag.help}{default}")
    lines += ["  --help, --version, and --helpfull for the flags of libraries", "", "Options:", ""]
    return "\n".join([*lines, reference.help_text(registry.find(TrainConfig().task).config_class)])
