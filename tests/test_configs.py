"""Every experiment of configs/ loads in every variant, and the trainer accepts it."""

import itertools
import runpy
from pathlib import Path

import pytest
from ml_collections import ConfigDict

import pit_jax
from pit_jax.models.psvit.family import PUBLISHED
from pit_jax.models.zoo import POOLING_PAIRS
from pit_jax.tasks.classification.config import ClassificationConfig
from pit_jax.tasks.experiments import parse, prepare

CONFIGS = Path(__file__).parents[1] / "configs"


def finetuning_variants() -> list[str]:
    models = [name for name in pit_jax.list_models() if name.startswith("pit_")]
    options = ("", ",transfer", ",smoke", ",transfer,smoke")
    return [
        f"{model},{size}{option}"
        for model, size, option in itertools.product(models, (224, 384), options)
    ]


def with_smoke(variants: list[str]) -> list[str]:
    return [f"{variant}{option}" for variant in variants for option in ("", ",smoke")]


PITS = ["pit_ti", "pit_xs", "pit_s", "pit_b"]
VITS = ["vit_ti", "vit_s", "vit_b"]
DEITS = ["deit_ti", "deit_s", "deit_b"]
RECIPES = {
    "vanilla": with_smoke([*PITS, *VITS, "resnet50", "resnet50_nopool"]),
    "cutmix": with_smoke([*PITS, *VITS]),
    "deit": with_smoke([*PITS, *DEITS]),
    "distill": with_smoke([f"{name}_distilled" for name in [*PITS, *DEITS]]),
    "psvit": with_smoke(list(PUBLISHED)),
    "pooling_ablation": with_smoke(
        [f"{pair},{kind}" for pair in POOLING_PAIRS for kind in ("pooling", "no_pooling")]
    ),
}

# A config file that is added has to be listed here with its variants, or the first test fails.
VARIANTS = {
    **{f"{name}.py": variants for name, variants in RECIPES.items()},
    "digits.py": ["", "smoke"],
    "finetune.py": finetuning_variants(),
}


def get_config(file: str, variant: str) -> ConfigDict:
    return runpy.run_path(str(CONFIGS / file))["get_config"](variant)


def load(file: str, variant: str) -> ClassificationConfig:
    """Loads an experiment as the trainer takes it; fine-tuning gets weights to start from."""
    config = get_config(file, variant)
    if config.init_from:
        config.init_from = "pit_s.safetensors"
    return parse(config)


def test_every_file_is_listed():
    assert sorted(path.name for path in CONFIGS.glob("*.py")) == sorted(VARIANTS)


@pytest.mark.parametrize("file", VARIANTS)
def test_every_variant_is_a_valid_experiment(file: str):
    for variant in VARIANTS[file]:
        config = load(file, variant)
        assert config.model.name in pit_jax.list_models(), variant
        if variant.endswith("smoke"):
            assert config.duration in ("2 epochs", "3 epochs", "4 steps")


@pytest.mark.parametrize("file", VARIANTS)
def test_an_unknown_variant_is_refused(file: str):
    with pytest.raises(ValueError, match=f"configs/{file} .*'smok'"):
        load(file, "smok")


@pytest.mark.parametrize("variant", ["pit_s", "pit_s,256", "pit_s,384,smoke,smoke", ",384", ""])
def test_finetuning_names_what_its_argument_is_made_of(variant: str):
    with pytest.raises(ValueError, match=r"needs :MODEL,SIZE\[,transfer\]\[,smoke\] with SIZE 224"):
        load("finetune.py", variant)


def test_finetuning_at_384_has_the_values_of_deit():
    config = load("finetune.py", "pit_s,384")
    assert config.model.image_size == (384, 384)
    assert (config.batch_size, config.duration) == (512, "30 epochs")
    assert config.optimizer.name == "adamw"
    assert config.optimizer.base_learning_rate == config.optimizer.min_learning_rate == 5e-6
    assert config.optimizer.weight_decay == 1e-8
    assert config.model.drop_path_rate == 0.0
    assert config.augment.erasing_probability == 0.25
    assert config.data.randaugment == "rand-m9-mstd0.5-inc1"
    assert config.init_head == "load"


def test_transfer_has_the_values_of_deit():
    config = load("finetune.py", "pit_s,224,transfer")
    assert (config.batch_size, config.duration) == (768, "1000 epochs")
    assert config.optimizer.name == "sgd"
    peak = config.optimizer.base_learning_rate * config.batch_size / 512
    assert peak == pytest.approx(0.01, rel=1e-12)
    assert config.optimizer.weight_decay == 1e-4
    assert config.augment.erasing_probability == config.model.drop_path_rate == 0.0
    assert config.data.randaugment == "rand-m9-mstd0.5-inc1"
    assert config.init_head == "new"


@pytest.mark.parametrize("option", ["", ",transfer"])
def test_finetuning_starts_from_weights_that_the_user_names(option: str):
    config = get_config("finetune.py", f"pit_s,384{option}")
    with pytest.raises(
        ValueError, match=r"^config\.init_from is required: add --config\.init_from=WEI"
    ):
        parse(config)
    config.init_from = "pit_s.safetensors"
    assert parse(config).init_from == "pit_s.safetensors"


@pytest.mark.parametrize("option", ["", ",transfer"])
@pytest.mark.parametrize("size", [224, 384])
def test_the_smoke_variant_of_finetuning_can_run(tmp_path: Path, size: int, option: str):
    setup = prepare(get_config("finetune.py", f"pit_b,{size}{option},smoke"), tmp_path)
    assert setup.steps.total == 4
    assert setup.task.train_source.name == "digits/train"
