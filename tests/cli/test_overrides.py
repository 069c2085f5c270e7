"""What is said about options and config files that there are not."""

from pathlib import Path

import pytest

from pit_jax.cli import overrides

ROOT = Path(__file__).parents[2]
DIGITS = f"--config={ROOT / 'configs' / 'digits.py'}:smoke"


@pytest.mark.parametrize(
    ("argument", "advice"),
    [
        ("--config.batchsize=8", "did you mean 'batch_size' or 'eval_batch_size'?"),
        ("--noconfig.tensorbord", "did you mean 'tensorboard'?"),
        ("--config.dta.name=x", "did you mean 'data.name'?"),
        ("--config.model.optionss.depths=(1,)", "did you mean 'model.options.depths'?"),
        ("--config.weight_decay=0.1", "did you mean 'optimizer.weight_decay'?"),
        ("--config.optimizer.lr=1", "config.optimizer has base_learning_rate, clip_norm, frozen"),
        ("--config.train.x=1", "config has accumulate, augment, batch_size"),
        ("--config.epochs=3", "config has accumulate, augment, batch_size"),
        ("--config.seed.x=3", "config has accumulate, augment, batch_size"),
        (
            "--config.optimizer.options.b2=0.95",
            """write --config.optimizer.options='{"b2": 0.95}'""",
        ),
        ("--config.min_metric_at.5=0.3", "write --config.min_metric_at='{5: 0.3}'"),
        ("--config.model.options.act=gelu", '"widths": (32, 64, 128), "act": "gelu"}'),
        ("--config.optimizer.options.b2", """write --config.optimizer.options='{"b2": "..."}'"""),
    ],
)
def test_an_unknown_option_comes_with_what_it_could_be(argument: str, advice: str):
    known = "--config.model.options.depths=(1,1,1)"
    found = overrides.unknown_option([DIGITS, known, argument])
    assert found is not None
    assert found.startswith(argument.split("=", maxsplit=1)[0].lstrip("-").removeprefix("no"))
    assert advice in found


def test_options_that_there_are_are_not_blamed():
    """Nor any where the file that knows them cannot be loaded: that is told first."""
    assert overrides.unknown_option([DIGITS, "--config.model.options.depths=(1,)"]) is None
    assert overrides.unknown_option([f"{DIGITS}y", "--config.lr=1"]) is None
    assert overrides.unknown_option(["--config.lr=1"]) is None


def test_a_config_file_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert overrides.missing_file(["--config", "a.py:x"]) == (
        f"there is no config file a.py; nor any in {tmp_path / 'configs'}"
    )
    (tmp_path / "configs").mkdir()
    for name in ("digits", "deit"):
        (tmp_path / "configs" / f"{name}.py").touch()
    expected = "did you mean 'configs/digits.py'?; there are configs/deit.py, configs/digits.py"
    for named in ("configs/digit.py:smoke", "confgs/digits.py", "digits.py"):
        found = overrides.missing_file([f"--config={named}"])
        assert found == f"there is no config file {named.partition(':')[0]}; {expected}"
    assert overrides.missing_file(["--config=configs/deit.py:x", "--workdir=y"]) is None
