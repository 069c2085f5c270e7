"""Figures that benchmarks/tpu_gates.py computes from first principles, checked by hand."""

import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pit_jax.compile_report.hlo import Module
from pit_jax.models import zoo

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "tpu_gates.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tpu_gates", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tpu_gates"] = module  # dataclasses look up their annotations here
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("model", "shape", "stored"),
    [
        ("pit_s", "bf16[128,3,730,730]{3,2,1,0:T(8,128)(2,1)}", True),
        ("pit_s", "f32[128,3,736,768]{3,2,1,0:T(8,128)}", True),
        ("pit_s", "bf16[3,730,730]{2,1,0:T(8,128)(2,1)S(1)}", False),  # in a core's own memory
        ("pit_s", "bf16[128,730,144]{2,1,0}", False),
        ("deit_s", "bf16[128,6,197,256]{3,2,1,0}", True),
        ("deit_s", "bf16[128,224,224,3]{3,2,1,0}", False),  # images
    ],
)
def test_attention_maps_in_memory_are_found(
    script: ModuleType, model: str, shape: str, stored: bool
) -> None:
    text = f"ENTRY %main (p: f32[]) -> f32[] {{\n  ROOT %x = {shape} fusion(%p), calls=%f\n}}\n"
    assert bool(script.attention_maps(Module(text), model)) == stored


def test_products_by_hand(script: ModuleType) -> None:
    """DeiT-S: twelve layers of 197 tokens, six heads of 64 channels; 384 is three times 128."""
    config = zoo.model_config("deit_s")
    linear = 12 * 197 * 384 * 384
    maps = 6 * (197 * 128 * 256 + 64 * 256 * 256)
    assert script.product_cycles(config, "inference") * 65536 == 12 * (linear + maps)
    again = 6 * (2 * 197 * 128 * 256 + 3 * 64 * 256 * 256)
    trained = 12 * (3 * linear + maps + again)
    assert script.product_cycles(config, "train") * 65536 == trained


def test_channels_are_padded(script: ModuleType) -> None:
    """PiT-S's first stage contracts 144 channels as 256."""
    config = dataclasses.replace(zoo.model_config("pit_s"), depths=(1, 0, 0))
    taken = 3 * 144 * 256 + 144 * 256 + 4 * 144 * 256 + 144 * 640
    maps = 3 * (730 * 128 * 768 + 48 * 768 * 768)
    assert script.product_cycles(config, "inference") * 65536 == 730 * taken + maps
