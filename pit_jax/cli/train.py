"""Trains an experiment, or continues it where it was interrupted.

    pit-train --config=digits --workdir=runs/digits
    pit-train --config=deit:pit_s --workdir=runs/pit_s --config.batch_size=512
    pit-train --config=my_experiment.py --workdir=runs/mine

The workdir receives checkpoints, metrics and the result. From a checkout, `python train.py` is the
same program.
"""

import logging

from absl import flags
from ml_collections import config_flags

from pit_jax.cli import console, experiment

logger = logging.getLogger(__name__)


def run() -> None:
    """Entry point: parses the command line, trains, prints `done: ...`."""
    flags.DEFINE_string("workdir", None, "Run directory: checkpoints, metrics, result.")
    flags.DEFINE_bool(
        "allow_config_changes", False, "Continue a run directory with another configuration."
    )
    flags.DEFINE_string("coordinator", None, "host:port of process 0, on plain hosts.")
    flags.DEFINE_integer("num_processes", None, "Processes of the job, on plain hosts.")
    flags.DEFINE_integer("process_id", None, "Number of this process, on plain hosts.")
    flags.DEFINE_integer("timeout", 1800, "Seconds to wait for the other processes.")
    flags.DEFINE_integer("heartbeat", 100, "Seconds after which a silent process counts as dead.")
    experiment.run(_main, "pit-train", __doc__, required=["workdir"])


@console.of_several()
def _main() -> None:
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
