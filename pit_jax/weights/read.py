"""Reading weights: the format of a file is told from its content, not from its name.

Reads a `.safetensors` file (ours or torch's, without torch), a torch checkpoint (with
`weights_only=True`), a directory of ours, and "hf:owner/name".
"""

import argparse
import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors

from pit_jax.models import parameters, zoo
from pit_jax.weights import hub
from pit_jax.weights.cards import CARD_KEY, Card, make_card
from pit_jax.weights.run_directory import WEIGHTS_FILE, restore_params

Source = str | os.PathLike[str]

# Keys under which checkpoints nest their state dict, outermost first.
WRAPPERS = ("model", "state_dict")
PREFIX = "module."  # of torch's data-parallel wrappers

# safetensors reads bfloat16 into NumPy only from a path, which would read the file a second time.
_NUMPY_TYPES = {
    "BF16": np.dtype(jnp.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "I8": np.dtype(np.int8),
    "I16": np.dtype(np.int16),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """The content of a source of weights.

    Attributes:
      tensors: arrays by the names they are stored under, floating-point ones in float32.
      source: the path or identifier read; for the hub with its commit.
      sha256: hash of the file, in hexadecimal; None for a directory of checkpoints.
      card: the card of a file of ours; None for others.
      torch_version: version of torch, if it was needed to read the file.
    """

    tensors: dict[str, np.ndarray]
    source: str
    sha256: str | None = None
    card: Card | None = None
    torch_version: str | None = None


def read(source: Source) -> WeightFile:
    """Reads weights from a file, a directory or the hub, once.

    Args:
      source: path of a .safetensors file, a torch checkpoint or a directory of ours, or
        "hf:owner/name[@revision]".

    Raises:
      ValueError: nothing there, a truncated file, a file that is no checkpoint, a checkpoint of
        other Python objects, a torch checkpoint without torch installed.
    """
    if isinstance(source, str) and source.startswith(hub.PREFIX):
        path, name = hub.download(source.removeprefix(hub.PREFIX))
        return dataclasses.replace(_read_file(path), source=name)
    path = Path(source)
    if path.is_dir():
        return _read_run_directory(path)
    if not path.is_file():
        raise ValueError(
            f"there is no file or directory {str(source)!r}; a model on the hub is written "
            f"{hub.PREFIX}owner/name"
        )
    return _read_file(path)


def _read_run_directory(path: Path) -> WeightFile:
    """Reads the model.safetensors of a directory; without one, as in an unfinished run, the newest
    checkpoint.

    Raises:
      ValueError: a directory with neither.
    """
    if (path / WEIGHTS_FILE).is_file():
        return dataclasses.replace(_read_file(path / WEIGHTS_FILE), source=str(path))
    params, model = restore_params(path)
    config = zoo.model_config(model["name"], **model["options"])
    tensors = {
        name: np.asarray(value, np.float32) for name, value in parameters.flatten(params).items()
    }
    return WeightFile(tensors, str(path), card=make_card(model["name"], config, source=str(path)))


def import_torch(purpose: str) -> Any:
    """The torch module, or an error that says what needs it."""
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"{purpose} needs PyTorch: pip install torch, or use .safetensors files"
        ) from error
    return torch


def _read_file(path: Path) -> WeightFile:
    """Reads a file once: its hash is taken of the same bytes as its tensors."""
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    # A .safetensors file starts with the length of its JSON header; torch writes zip archives, and
    # before torch 1.6 wrote pickles of protocol 2.
    if content[8:9] == b"{":
        tensors, card = _read_safetensors(content, path)
        return WeightFile(tensors, str(path), sha256, card)
    if content.startswith((b"PK\x03\x04", b"\x80\x02")):
        tensors, version = _read_torch(content, path)
        return WeightFile(tensors, str(path), sha256, torch_version=version)
    raise ValueError(
        f"{path} is no weights file: expected a .safetensors file or a torch checkpoint, found "
        f"{_describe(content[:256])}"
    )


def _describe(start: bytes) -> str:
    """Guesses from its first bytes what a file that is no checkpoint is instead."""
    text = start.lstrip().lower()
    if not start:
        return "an empty file"
    if text.startswith((b"<!doctype", b"<html")):
        return "a web page, as downloads leave behind that ask for a confirmation"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer; fetch the content with `git lfs pull`"
    return f"a file that starts with {start[:8]!r}"


def _read_safetensors(content: bytes, path: Path) -> tuple[dict[str, np.ndarray], Card | None]:
    try:
        entries = safetensors.deserialize(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        card = json.loads(header.get("__metadata__", {}).get(CARD_KEY, "null"))
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is a damaged or truncated .safetensors file: {error}") from error
    tensors = {}
    for name, entry in sorted(entries):
        if entry["dtype"] not in _NUMPY_TYPES:
            raise ValueError(f"{path}: {name} is of the unsupported type {entry['dtype']}")
        value = np.frombuffer(entry["data"], _NUMPY_TYPES[entry["dtype"]])
        tensors[name] = _as_float32(value.reshape(entry["shape"]))
    return tensors, card


def _as_float32(value: np.ndarray) -> np.ndarray:
    """Floating-point values in float32, which holds bfloat16 and float16 exactly; others as is."""
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return value
    return value.astype(np.float32, copy=False)


def _read_torch(content: bytes, path: Path) -> tuple[dict[str, np.ndarray], str]:
    torch = import_torch(f"reading {path}, a torch checkpoint,")
    try:
        # Training scripts store their argparse options beside the weights; those run no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler stumbles over
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{path} cannot be read as a torch checkpoint of tensors: it is truncated, damaged, or "
            f"holds other Python objects (then save the model's state_dict() instead); torch says: "
            f"{reason}"
        ) from error
    state = _unwrap(loaded, path)
    tensors = {}
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(
                f"{path}: expected tensors only, the entry {name!r} is of type "
                f"{type(value).__name__}"
            )
        plain = value.detach()
        tensors[name] = (plain.float() if plain.is_floating_point() else plain).numpy()
    return tensors, str(torch.__version__)


def _unwrap(content: Any, path: Path) -> dict[str, Any]:
    """The state dict of a checkpoint, out of its wrappers and without the data-parallel prefix."""
    while isinstance(content, Mapping):
        inner = [key for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        content = content[inner[0]]
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected a state dict, found {type(content).__name__}")
    if not any(hasattr(value, "shape") for value in content.values()):
        raise ValueError(
            f"{path}: expected a state dict, or one under {' or '.join(map(repr, WRAPPERS))}; "
            f"found {', '.join(map(repr, content)) or 'nothing'}"
        )
    names = {str(name): value for name, value in content.items()}
    if all(name.startswith(PREFIX) for name in names):
        names = {name.removeprefix(PREFIX): value for name, value in names.items()}
    return names
