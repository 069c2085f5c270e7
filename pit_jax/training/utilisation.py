"""Model FLOPs utilisation (MFU): FLOPs a model needs per second over the peak of its devices."""

import re

import jax

# Dense bfloat16 FLOPs per second of one device (float16 if it has no bfloat16), from the vendors'
# data sheets. Keys are the first words of JAX's `device_kind`; the longest match counts.
PEAK_FLOPS = {
    "TPU v2": 22.5e12,  # of a core: before v4, JAX counts the two cores of a chip as two devices
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v4 lite": 138e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,  # of a core: JAX counts two devices per chip, which has 2307 TFLOPs
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
    """Peak FLOPs per second of a device; None for a kind not in the table, such as a CPU."""
    fitting = [kind for kind in PEAK_FLOPS if re.match(rf"{re.escape(kind)}\b", device.device_kind)]
    return PEAK_FLOPS[max(fitting, key=len)] if fitting else None


def utilisation(flops: float | None, *, examples: float, peak: float | None) -> float | None:
    """Fraction of a device's peak at one training step per second; None if the peak or the
    operations are unknown.

    The operations are counted on the model, not by the compiler: that one counts neither the inside
    of kernels nor the iterations of a loop, but does count recomputation.

    Args:
      flops: operations per example of a training step.
      examples: examples per device and step.
      peak: FLOPs per second of one device; None for the table's.
    """
    peak = peak or peak_flops(jax.local_devices()[0])
    return examples * flops / peak if peak and flops else None
