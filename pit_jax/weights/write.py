"""Writing weights: our own files with their card, and torch's; each whole or not at all."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from pit_jax.files import replace_file
from pit_jax.models import parameters
from pit_jax.weights.cards import CARD_KEY, Card
from pit_jax.weights.read import Source, import_torch

SAFETENSORS_SUFFIX = ".safetensors"
TORCH_SUFFIXES = (".pth", ".pt", ".bin")


def write_weights(path: Source, params: Mapping[str, Any], card: Card) -> None:
    """Writes parameters under their paths, float32, with their card, as .safetensors.

    Args:
      path: the file, ending in .safetensors; replaced as a whole.
      params: nested dict of arrays.
      card: from `make_card`.

    Raises:
      ValueError: another suffix, or parameters that are not floating point.
    """
    path = Path(path)
    check_suffix(path, torch=False)
    flat = {name: np.asarray(value) for name, value in parameters.flatten(params).items()}
    for name, value in flat.items():
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(f"expected floating-point parameters, {name} is {value.dtype}")
    replace_file(path, _safetensors_bytes(flat, card))


def write_torch(path: Source, state: Mapping[str, np.ndarray], card: Card) -> None:
    """Writes a torch state dict: by torch.save for .pth, .pt and .bin, or as .safetensors.

    Only the latter has room for the card; a .pth file holds the flat state dict and nothing else.

    Raises:
      ValueError: another suffix; torch.save without torch installed.
    """
    path = Path(path)
    check_suffix(path, torch=True)
    if path.suffix == SAFETENSORS_SUFFIX:
        replace_file(path, _safetensors_bytes(state, card))
        return
    torch = import_torch(f"writing {path.suffix} files")
    # A copy, since torch shares memory with the arrays and they may be read-only.
    tensors = {name: torch.from_numpy(np.array(value, np.float32)) for name, value in state.items()}
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    replace_file(path, buffer.getvalue())


def check_suffix(path: Path, *, torch: bool) -> None:
    """Refuses a file name that does not end in a suffix of our files, or of torch's."""
    suffixes = (*TORCH_SUFFIXES, SAFETENSORS_SUFFIX) if torch else (SAFETENSORS_SUFFIX,)
    if path.suffix not in suffixes:
        raise ValueError(
            f"expected a file name that ends in {' or '.join(suffixes)}, found {str(path)!r}"
        )


def _safetensors_bytes(tensors: Mapping[str, np.ndarray], card: Card) -> bytes:
    # The library writes memory as it lies, so a transposed view has to be laid out first.
    dense = {name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()}
    # A single metadata key: the library writes several in no particular order.
    return safetensors.numpy.save(dense, {CARD_KEY: json.dumps(card)})
