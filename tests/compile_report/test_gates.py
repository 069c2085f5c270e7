"""The gates of benchmarks/tpu_gates.py judge what they should."""

import dataclasses
import importlib.util
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pit_jax.compile_report.collectives import Collective
from pit_jax.compile_report.hlo import Module
from pit_jax.compile_report.report import Estimate, Memory, Report
from pit_jax.models import zoo
from pit_jax.tasks.experiments import parse

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "tpu_gates.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tpu_gates", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tpu_gates"] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module


def _case(script: ModuleType, *, xla_cycles: float, kernel_cycles: float, megabytes: float) -> Any:
    """A step of 128 images on each of four chips, by its costs an image."""
    seconds = 128 * (xla_cycles + kernel_cycles) / 1.5e9
    estimate = Estimate(
        clock=1.5e9,
        xla_cycles=round(128 * xla_cycles),
        attention_cycles=0,
        kernel_cycles=round(128 * kernel_cycles),
        compute_seconds=seconds,
        collective_seconds=seconds / 9,
        step_seconds=seconds * 10 / 9,
        images_per_second=128 / seconds * 0.9,
        images_per_second_alone=128 / seconds,
        mfu=0.25,
        unestimated={},
        unknown_loops=0,
    )
    reduced = Collective(
        kind="all-reduce", devices=4, calls=2, asynchronous=0, bytes=50_700_000, seconds=1e-3
    )
    report = Report(
        model="pit_s",
        program="train",
        topology="v5e:2x2",
        devices=4,
        device_kind="TPU v5 lite",
        fsdp=1,
        batch_size=512,
        image_size=(224, 224),
        memory=Memory(available=100, peak=50),
        fits=True,
        flops=1e12,
        bytes_accessed=128 * megabytes * 1e6,
        model_flops=17_000_000_000,
        peak_flops=197e12,
        estimate=estimate,
        kernels=[],
        collectives=[reduced],
        operations=[],
        trace_seconds=1.0,
        compile_seconds=60.0,
        load=(1.0, 2),
        versions={},
    )
    return script.Case(report, [], [])


def _missed(script: ModuleType, train: Any, inference: Any, attention: float) -> list[str]:
    return [gate.name for gate in script.gates(train, inference, attention) if not gate.holds]


def test_what_keeps_all_bounds_passes(script: ModuleType) -> None:
    train = _case(script, xla_cycles=200e3, kernel_cycles=240e3, megabytes=270)
    inference = _case(script, xla_cycles=120e3, kernel_cycles=20e3, megabytes=20)
    assert _missed(script, train, inference, 70e3) == []
    assert _missed(script, train, inference, 50e3) == ["cycles but attention's, k/image"]
    assert _missed(script, train, inference, 80e3) == ["attention bundles, k/image"]


def test_the_bare_step_is_the_recipe_s_without_its_extras(script: ModuleType) -> None:
    config = runpy.run_path(str(script.CONFIG))["get_config"](script.GATED)
    recipe = parse(config)
    config.update_from_flattened_dict(script.STEPS["bare"])
    bare = parse(config)
    assert recipe.optimizer.name == "adamp"
    assert (bare.optimizer.name, bare.ema_decay, bare.model.drop_path_rate) == ("adamw", None, 0.0)
    chances = ("mix_probability", "erasing_probability", "flip_probability")
    assert all(getattr(recipe.augment, name) > 0 for name in chances)
    assert not any(getattr(bare.augment, name) for name in chances)
    assert (
        dataclasses.replace(
            bare,
            optimizer=recipe.optimizer,
            ema_decay=recipe.ema_decay,
            model=recipe.model,
            augment=recipe.augment,
        )
        == recipe
    )


def test_every_bound_is_judged(script: ModuleType) -> None:
    train = _case(script, xla_cycles=300e3, kernel_cycles=160e3, megabytes=281)
    gathered = Collective(
        kind="all-gather", devices=4, calls=1, asynchronous=0, bytes=10**8, seconds=1e-3
    )
    train = dataclasses.replace(
        train,
        report=dataclasses.replace(train.report, collectives=[gathered]),
        grouped_convolutions=["convolution.1"],
        attention_maps=["bf16[128, 3, 730, 730]"],
    )
    inference = _case(script, xla_cycles=140e3, kernel_cycles=20e3, megabytes=20)
    found = _missed(script, train, inference, 77e3)
    assert len(found) == len(script.gates(train, inference, 77e3)) == 8


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


def test_ratios_of_plain_and_ours(script: ModuleType) -> None:
    plain = _case(script, xla_cycles=800e3, kernel_cycles=0, megabytes=480)
    ours = _case(script, xla_cycles=330e3, kernel_cycles=70e3, megabytes=240)
    rows = {line[:24].strip(): line.split() for line in script.side_by_side(plain, ours)}
    assert rows["images/s/chip"][-3:] == ["1,875.0", "3,750.0", "2.000"]
    assert rows["XLA bytes, MB/image"][-1] == "0.500"
    assert rows["kernel bundles, k/image"][-2:] == ["0.0", "70.0"]


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


def test_advantages_are_of_the_rival(script: ModuleType) -> None:
    rates = {
        ("pit_s", "train"): 3000.0,
        ("pit_s", "inference"): 9000.0,
        ("deit_s", "train"): 2000.0,
        ("deit_s", "inference"): 10_000.0,
    }
    head, ours, rival = script.advantages(rates)
    assert head == ["model", "train", "inference", "train, perfect", "inference, perfect"]
    assert ours[:3] == ["pit_s", "1.50x", "0.90x"]
    assert rival == ["deit_s", *["1.00x"] * 4]
