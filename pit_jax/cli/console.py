"""Shared parts of the command-line programs: log lines, errors as lines, help and version."""

import argparse
import contextlib
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn, TypeVar

from absl import logging as absl_logging

from pit_jax.options import OptionsError
from pit_jax.version import __version__

Result = TypeVar("Result")

USER_ERROR = 2
# Seconds that process 0 stays when it has failed: what is wrong is often wrong everywhere, and when
# it goes JAX ends the others, whatever they were about to say.
LAST_WORDS = 5


def set_up_logging() -> None:
    """Our messages as "HH:MM:SS message" on standard error; from libraries only warnings."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    absl_logging.set_verbosity(absl_logging.WARNING)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logger = logging.getLogger("pit_jax")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)


def quieten_all_but_the_first() -> None:
    """In a job of several processes one speaks; from the others only warnings."""
    import jax

    if jax.process_index() > 0:
        logging.getLogger("pit_jax").setLevel(logging.WARNING)


def set_up_compilation_cache() -> None:
    """Keeps compiled programs between runs, unless JAX is already told where."""
    import jax

    from pit_jax.files import cache_dir

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "compiled"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # A start compiles dozens of programs, most of them in a tenth of a second.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def fail(*messages: object) -> NoReturn:
    """Ends the program with a line for each message on standard error and exit status 2."""
    for message in messages:
        print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    raise SystemExit(USER_ERROR)


def or_fail(function: Callable[..., Result], *arguments: object, **options: object) -> Result:
    """The function's result; a ValueError, which is how bad input shows, ends the program."""
    try:
        return function(*arguments, **options)
    except OptionsError as error:
        fail(*error.mistakes)
    except ValueError as error:
        fail(error)


def leave(text: str) -> NoReturn:
    """Ends the program with a text on standard output and exit status 0."""
    print(text)
    raise SystemExit(0)


def version(program: str) -> str:
    """The line that `--version` prints."""
    return f"{program} (pit_jax {__version__})"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ValueErrors of one line.

    Args:
      program: how users start it.
      about: its docstring.
      add_help: whether there are -h and --help.
    """

    def __init__(self, program: str, about: str | None, *, add_help: bool = True):
        super().__init__(
            prog=program,
            description=about,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=add_help,
        )
        self.add_argument("--version", action="version", version=version(program))

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; --help lists the flags")


def image_size(text: str) -> tuple[int, int]:
    """Height and width that "SIZE" or "HEIGHT,WIDTH" says.

    Raises:
      ValueError: it says neither.
    """
    try:
        sizes = [int(part) for part in text.split(",")]
        height, width = sizes * 2 if len(sizes) == 1 else sizes
    except ValueError:
        raise ValueError(f"expected SIZE or HEIGHT,WIDTH, found {text!r}") from None
    return height, width


@contextlib.contextmanager
def of_several() -> Iterator[None]:
    """Ends a process of several at once when it fails, for the others to notice that it is gone.

    Without this JAX would keep the failed process, and with it all others, waiting for a common end
    that does not come. A process on its own fails as any program does.
    """
    try:
        yield
    except BaseException as error:
        import jax

        if not jax.distributed.is_initialized():
            raise
        if isinstance(error, SystemExit):
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        else:
            traceback.print_exc()
            print(
                "error: this process of several ends; if it was another that failed first, that "
                "one's log has the reason",
                file=sys.stderr,
            )
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(RuntimeError):  # devices may be what it lacks
            if jax.process_index() == 0:
                time.sleep(LAST_WORDS)
        os._exit(status)
