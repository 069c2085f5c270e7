"""`train.py` and `pit-train`: flags in, a trained model and one line out."""

import logging
import sys
from collections.abc import Sequence

from absl import app, flags
from ml_collections import config_flags

from pit_jax.cli import console, overrides

logger = logging.getLogger(__name__)


def run() -> None:
    """Entry point: parses the command line, trains, prints `done: ...`."""
    config_flags.DEFINE_config_file("config", help_string="The experiment, e.g. configs/digits.py.")
    flags.DEFINE_string("workdir", None, "Run directory: checkpoints, metrics, result.")
    flags.DEFINE_bool(
        "allow_config_changes", False, "Continue a run directory with another configuration."
    )
    flags.DEFINE_string("coordinator", None, "host:port of process 0, on plain hosts.")
    flags.DEFINE_integer("num_processes", None, "Processes of the job, on plain hosts.")
    flags.DEFINE_integer("process_id", None, "Number of this process, on plain hosts.")
    flags.DEFINE_integer("timeout", 1800, "Seconds to wait for the other processes.")
    flags.DEFINE_integer("heartbeat", 100, "Seconds after which a silent process counts as dead.")
    flags.mark_flags_as_required(["config", "workdir"])
    # --help lists the flags of the program, which this module is not.
    for flag in flags.FLAGS.get_flags_for_module(__name__):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    app.run(_main, flags_parser=parse_flags)


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """Reads the command line; what is wrong with it or with the config file ends the program in one
    line.
    """
    try:
        rest = flags.FLAGS(arguments)
        # A file that cannot be loaded says so only when something is asked of it.
        flags.FLAGS.config.keys()
        return rest
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        explained = overrides.missing_file(arguments) or overrides.unknown_option(arguments)
        if explained:
            console.fail(explained)
        message = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
        # A config file that raises arrives as a traceback; its last line is the message.
        lines = [line for line in message.splitlines() if line.strip()]
        console.fail(lines[-1] if "Traceback" in message else " ".join(lines))


@console.of_several()
def _main(arguments: Sequence[str]) -> None:
    if len(arguments) > 1:
        console.fail(f"unexpected argument {arguments[1]!r}: options are written --name=value")
    console.set_up_logging()
    console.set_up_compilation_cache()
    from pit_jax import processes
    from pit_jax.tasks import experiments
    from pit_jax.training import loop
    from pit_jax.training.checkpoints import CheckpointError
    from pit_jax.training.errors import TrainingError

    options = flags.FLAGS
    console.or_fail(
        processes.start_processes,
        options.coordinator,
        options.num_processes,
        options.process_id,
        timeout=options.timeout,
        heartbeat_timeout=options.heartbeat,
    )
    console.quieten_all_but_the_first()
    prepared = console.or_fail(
        experiments.prepare,
        options.config,
        options.workdir,
        allow_config_changes=options.allow_config_changes,
    )
    values = config_flags.get_override_values(options["config"])
    if values:
        changed = ", ".join(f"{key}={value!r}" for key, value in sorted(values.items()))
        logger.info("changed on the command line: %s", changed)
    try:
        print(loop.run(prepared), flush=True)
    except (TrainingError, CheckpointError) as error:
        console.fail(error)
