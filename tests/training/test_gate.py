"""`min_metric_at`: a run that is clearly broken stops, and says why and how to continue."""

import re
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from pit_jax.tasks import experiments
from pit_jax.tasks.classification.config import ClassificationConfig
from pit_jax.tasks.experiments import parse, prepare
from pit_jax.training import loop
from pit_jax.training.errors import TrainingError


def test_there_is_no_gate_by_default():
    assert ClassificationConfig().min_metric_at == {}


def test_a_run_below_a_gate_stops_and_stays_stopped_until_it_is_opened(
    config: ConfigDict, workdir: Path
):
    config.min_metric_at = {1: 0.0, 2: 1.0}
    pattern = re.compile(
        r"test/top1 after epoch 2 is \d+\.\d\d%, expected at least 100\.00% "
        r"\(config\.min_metric_at\): .*"
        rf"curves are in {workdir}, the last checkpoint: {workdir}/checkpoints/3\. .*"
        r"--config\.min_metric_at=\{} --allow_config_changes"
    )
    for _ in range(2):
        with pytest.raises(TrainingError, match=pattern):
            experiments.train(config, workdir)
    config.min_metric_at = {}
    result = loop.run(prepare(config, workdir, allow_config_changes=True))
    assert isinstance(result, loop.Result)
    assert result.step == 9


def test_the_last_epoch_may_have_a_gate(config: ConfigDict, workdir: Path):
    config.eval_every = "3 epochs"
    config.min_metric_at = {3: 0.5}
    prepare(config, workdir)


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        ({0: 0.5}, r"values for epochs from 1, found \{0: 0\.5\}"),
        ({2: 50}, r"fractions in \[0, 1\], found \{2: 50\}"),
        ({"2": 0.5}, r"config\.min_metric_at must be dict\[int, float\], found \{'2': 0\.5\}"),
        ({2: "half"}, r"config\.min_metric_at must be dict\[int, float\]"),
        ({4: 0.5}, r"names epoch 4, after which there is no evaluation: config\.duration='3 ep"),
        ({1: 0.5}, r"names epoch 1, after which .*config\.eval_every='2 epochs'"),
    ],
)
def test_gates_that_cannot_be_meant_are_refused(
    gates: dict[Any, Any], message: str, config: ConfigDict, workdir: Path
):
    config.eval_every = "2 epochs"
    config.min_metric_at = gates
    with pytest.raises(ValueError, match=message):
        prepare(config, workdir)


def test_options_of_models_may_hold_anything_under_names(config: ConfigDict):
    config.optimizer.options = {"b2": 0.95, "nesterov": True}
    assert parse(config).optimizer.options == {"b2": 0.95, "nesterov": True}
