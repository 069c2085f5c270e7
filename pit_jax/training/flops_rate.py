"""Model FLOPs utilisation: what a compiled step computes a second over what its devices could."""

import logging
from typing import Any

import jax

logger = logging.getLogger(__name__)

# Dense bfloat16 FLOPs per second of one device, by the start of JAX's name for its kind; the
# longest that fits counts. From the vendors' data sheets.
PEAK_FLOPS = {
    "TPU v2": 22.5e12,  # a core: JAX counts two to a chip before v4
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA V100": 125e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA L4": 121e12,
    "NVIDIA GeForce RTX 3090": 71e12,
    "NVIDIA GeForce RTX 4090": 165.2e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """Peak of a device, or None for a kind that is not in the table, such as a CPU."""
    fitting = [kind for kind in PEAK_FLOPS if device.device_kind.startswith(kind)]
    return PEAK_FLOPS[max(fitting, key=len)] if fitting else None


def utilisation(compiled: Any, peak: float | None) -> float | None:
    """Fraction of the peak that one step a second would be; None where either is unknown.

    Args:
      compiled: a compiled program; the compiler's count of its FLOPs is per device.
      peak: FLOPs per second of one device, None for the table's.
    """
    peak = peak or peak_flops(jax.local_devices()[0])
    analysis = compiled.cost_analysis() or {}
    flops = analysis.get("flops")
    return flops / peak if peak and flops else None
