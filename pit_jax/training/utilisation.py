"""Model FLOPs utilisation: what a model needs computed a second over what its devices could."""

import re

import jax

# Dense bfloat16 FLOPs per second (float16 where there is no bfloat16) of one device, by the first
# words of JAX's name for its kind; the longest that fits counts. From the vendors' data sheets.
PEAK_FLOPS = {
    "TPU v2": 22.5e12,  # a core: JAX counts two to a chip before v4
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v4 lite": 138e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,  # a core: the chip's 2307 are those of the two that JAX counts
    "Tesla V100": 125e12,
    "Tesla V100-PCIE": 112e12,
    "NVIDIA V100": 125e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA GeForce RTX 3090": 71e12,
    "NVIDIA GeForce RTX 4090": 165.2e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """Peak of a device, or None for a kind that is not in the table, such as a CPU."""
    fitting = [kind for kind in PEAK_FLOPS if re.match(rf"{re.escape(kind)}\b", device.device_kind)]
    return PEAK_FLOPS[max(fitting, key=len)] if fitting else None


def utilisation(flops: float | None, *, examples: float, peak: float | None) -> float | None:
    """Fraction of a device's peak that one training step a second would be; None where the peak or
    the operations are unknown.

    The operations are the model's own: a compiler counts neither what kernels compute inside nor
    how often a loop runs, but does count what is computed again.

    Args:
      flops: operations of a step per example.
      examples: of a step and device.
      peak: FLOPs per second of one device, None for the table's.
    """
    peak = peak or peak_flops(jax.local_devices()[0])
    return examples * flops / peak if peak and flops else None
