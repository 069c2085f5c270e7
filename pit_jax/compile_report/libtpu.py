"""TPUs that are not there: slices of any size from the compiler in libtpu, and what it writes down.

libtpu reads its settings when it is loaded, so that a process has one set of them: `load` first.
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

# The final schedule of everything it compiles: other stages fill the disk.
_SETTINGS = (
    "--xla_jf_dump_to={dump}",
    "--xla_jf_dump_llo_text=true",
    "--xla_jf_emit_annotations=true",
    "--xla_jf_dump_llo_pass_label_regex=final_bundles",
)
# The compiler needs neither a TPU's metadata server nor its lock, and is to be silent.
_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}

# The folder of schedules, once libtpu's settings are made.
_LOADED: list[Path] = []


def check_installed() -> None:
    """Refuses to go on without libtpu.

    Raises:
      ValueError: it is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "compiling for a TPU needs its compiler, libtpu, though no TPU: pip install "
            "libtpu, or give --topology=local"
        )


def version() -> str:
    """Of the installed libtpu."""
    return importlib.metadata.version("libtpu")


def load(*, schedules: bool = True) -> Path:
    """Makes this process one that compiles for TPUs and has a CPU alone; the folder of schedules.
    The first call decides.

    Args:
      schedules: has the compiler write them down, which takes it several times as long.

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
    # What comes from the cache has not been compiled and leaves no schedules.
    jax.config.update("jax_enable_compilation_cache", False)
    _LOADED.append(dump)
    return dump


def forget() -> None:
    """Removes the schedules of what was compiled so far."""
    for folder in _LOADED:
        for path in folder.iterdir():
            path.unlink()


def devices(slice_: Slice) -> Sequence[jax.Device]:
    """The devices of a slice.

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
