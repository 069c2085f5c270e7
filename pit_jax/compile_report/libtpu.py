"""Slices of absent TPUs, of any size, from the compiler in libtpu; the schedules that it writes.

libtpu reads its settings when it is loaded: a process has one set of them. Call `load` first.
"""

import atexit
import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax

from pit_jax.compile_report.chips import Slice

# Write the final schedule of every program; the other stages would fill the disk.
_SETTINGS = (
    "--xla_jf_dump_to={dump}",
    "--xla_jf_dump_llo_text=true",
    "--xla_jf_emit_annotations=true",
    "--xla_jf_dump_llo_pass_label_regex=final_bundles",
)
# The compiler needs neither a TPU's metadata server nor its lock. The last three silence it.
_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}

# The folder of schedules, once libtpu is loaded.
_LOADED: list[Path] = []


def check_installed() -> None:
    """Checks that libtpu is installed.

    Raises:
      ValueError: it is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "compiling for a TPU needs its compiler, libtpu, though no TPU: pip install "
            "libtpu, or give --topology=local"
        )


def version() -> str:
    """Returns the version of the installed libtpu."""
    return importlib.metadata.version("libtpu")


def load(*, schedules: bool = True) -> Path:
    """Sets this process up to compile for TPUs, with a CPU as its only device; returns the folder
    of schedules. Later calls change nothing.

    Args:
      schedules: whether the compiler writes schedules, which takes several times as long.

    Raises:
      ValueError: libtpu is not installed.
    """
    if _LOADED:
        return _LOADED[0]
    check_installed()
    dump = Path(tempfile.mkdtemp(prefix="pit_jax_schedules_"))
    atexit.register(shutil.rmtree, dump, ignore_errors=True)
    os.environ.update(_ENVIRONMENT)
    given = os.environ.get("LIBTPU_INIT_ARGS", "")
    settings = " ".join(_SETTINGS).format(dump=dump) if schedules else ""
    os.environ["LIBTPU_INIT_ARGS"] = f"{given} {settings}".strip()
    jax.config.update("jax_platforms", "cpu")
    # A program from the cache is not compiled and so leaves no schedules.
    jax.config.update("jax_enable_compilation_cache", False)
    _LOADED.append(dump)
    return dump


def forget() -> None:
    """Removes the schedules of everything compiled so far."""
    for folder in _LOADED:
        for path in folder.iterdir():
            path.unlink()


def devices(slice_: Slice) -> Sequence[jax.Device]:
    """Returns the devices of a slice.


    Raises:
      ValueError: no such slice.
    """
    from jax.experimental import topologies

    load()
    options: dict[str, object] = {}
    if slice_.chip.config:
        options["chip_config_name"] = slice_.chip.config
    if set(slice_.shape) == {1}:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return topologies.get_topology_desc(slice_.full_name, "tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"--topology={slice_.name}: {error}") from error
