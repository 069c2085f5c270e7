"""Mistakes in flags, overrides and config files: all are told, a line each, with what is right."""

from pathlib import Path

import pytest

from pit_jax.cli import configs, mistakes

MINE = """
from pit_jax.tasks.experiments import default_config


def get_config(variant=""):
    config = default_config()
    config.model.options = {"depths": (1, 2, 1), "widths": (32, 64, 128)}
    LINE
    return config
"""
LINE = MINE.splitlines().index("    LINE") + 1


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config file of a user's own, in the working directory."""
    monkeypatch.chdir(tmp_path)
    file = Path("mine.py")
    file.write_text(MINE.replace("LINE", "pass"))
    return file


def told(*arguments: str) -> list[str]:
    return mistakes.of_command_line(["pit-train", *arguments])


@pytest.mark.parametrize(
    ("argument", "advice"),
    [
        ("--config.batchsize=8", "did you mean 'config.batch_size' or 'config.eval_batch_size'?"),
        ("--noconfig.tensorbord", "did you mean 'config.tensorboard'?"),
        ("--config.dta.name=x", "did you mean 'config.data.name' or 'config.model.name'?"),
        ("--config.model.optionss.depths=(1,)", "did you mean 'config.model.options.depths'?"),
        ("--config.weight_decay=0.1", "did you mean 'config.optimizer.weight_decay'?"),
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
def test_an_unknown_option_comes_with_what_it_could_be(mine: Path, argument: str, advice: str):
    (found,) = told(f"--config={mine}", "--config.model.options.depths=(1,1,1)", argument)
    name = argument.partition("=")[0].lstrip("-").removeprefix("no")
    assert found.startswith(f"{name} is not an option; ")
    assert advice in found


@pytest.mark.parametrize(
    ("argument", "mistake"),
    [
        ("--config.seed=many", "config.seed must be int, found 'many'"),
        ("--config.ema_decay=x", "config.ema_decay must be float | None, found 'x'"),
        ("--config.tensorboard=maybe", "config.tensorboard must be bool, found 'maybe'"),
        (
            "--config.data.crop_scale=0.5",
            "config.data.crop_scale must be tuple[float, float] such as (0.08, 1.0), found (0.5,)",
        ),
        (
            "--config.profile_steps=1,2,3",
            "config.profile_steps must be tuple[int, int] such as (0, 0), found (1, 2, 3)",
        ),
        ("--config.model.options=3", "config.model.options must be dict[str, Any], found '3'"),
    ],
)
def test_a_wrong_value_comes_with_the_form_expected(mine: Path, argument: str, mistake: str):
    assert told(f"--config={mine}", argument) == [mistake]


def test_all_mistakes_of_a_command_line_are_told(mine: Path):
    assert told(
        f"--config={mine}",
        "--config.seed",
        "many",
        "--config.batch_size=32",
        "--config.lerning_rate=1",
        "--config.tensorboard=maybe",
        "--verbositi=1",
    ) == [
        "there is no flag --verbositi; did you mean 'verbosity'?",
        "config.seed must be int, found 'many'",
        "config.lerning_rate is not an option; did you mean "
        "'config.optimizer.min_learning_rate' or 'config.optimizer.base_learning_rate'?",
        "config.tensorboard must be bool, found 'maybe'",
    ]


def test_what_is_right_is_not_blamed(mine: Path):
    right = ["--config.model.options.depths=(1,)", "--config.tensorboard", "--config.seed", "3"]
    assert told(f"--config={mine}", *right) == []
    assert told("--config.lr=1") == []


@pytest.mark.parametrize(
    ("line", "mistakes"),
    [
        (
            "config.batchsize = 3\n    config.seed = 'x'",
            [
                "mine.py:8: config.batchsize is not an option; did you mean 'config.batch_size' "
                "or 'config.eval_batch_size'?",
                "mine.py:9: config.seed must be int, found 'x'",
            ],
        ),
        (
            "config.model.weight_decay = 0.1",
            [
                "mine.py:8: config.model.weight_decay is not an option; did you mean "
                "'config.optimizer.weight_decay'?"
            ],
        ),
        (
            "config.seed = config.sede",
            ["mine.py:8: config.sede is not an option; did you mean 'config.seed'?"],
        ),
        (
            "config.optimiser.name = 'adamp'\n    config.seed = 1.5",
            [
                "mine.py:8: config.optimiser is not an option; did you mean 'config.optimizer'?",
                "mine.py:9: config.seed must be int, found 1.5",
            ],
        ),
        (
            "config.batch_size = config.batchsize // 2\n    x",
            [
                "mine.py:8: config.batchsize is not an option; did you mean 'config.batch_size' "
                "or 'config.eval_batch_size'?",
            ],
        ),
        (
            "config.seed = 'x'\n    y",
            [
                "mine.py:8: config.seed must be int, found 'x'",
                "mine.py:9: NameError: name 'y' is not defined",
            ],
        ),
        ("int('x')", ["mine.py:8: ValueError: invalid literal for int() with base 10: 'x'"]),
        ("x", ["mine.py:8: NameError: name 'x' is not defined"]),
        ("x = (", ["mine.py:8: SyntaxError: '(' was never closed"]),
        ("return 3", ["mine.py has no function get_config that returns a ConfigDict"]),
    ],
)
def test_a_mistake_in_a_file_comes_with_its_line(mine: Path, line: str, mistakes: list[str]):
    assert LINE == 8
    mine.write_text(MINE.replace("LINE", line))
    assert told(f"--config={mine}") == mistakes


def test_the_lines_and_the_command_line_are_told_together(mine: Path):
    mine.write_text(MINE.replace("LINE", "config.batchsize = 3"))
    in_file, in_flags = told(f"--config={mine}", "--config.seed=x")
    assert in_file.startswith("mine.py:8: config.batchsize is not an option")
    assert in_flags == "config.seed must be int, found 'x'"


def test_a_config_that_is_not_there(mine: Path, tmp_path: Path):
    mine.unlink()
    ours = ", ".join(configs.names())
    with pytest.raises(ValueError, match=f"no config file a.py; there are {ours}$"):
        configs.find("a.py:x")
    with pytest.raises(ValueError, match=f"no config 'digit'; did you mean 'digits'.*are {ours}, "):
        configs.find("digit:smoke")
    (tmp_path / "configs").mkdir()
    for name in ("digits", "deit"):
        (tmp_path / "configs" / f"{name}.py").touch()
    expected = "did you mean 'configs/digits.py'?; there are configs/deit.py, configs/digits.py"
    for named in ("configs/digit.py:smoke", "confgs/digits.py", "digits.py"):
        with pytest.raises(ValueError, match="there is no config file") as caught:
            configs.find(named)
        assert str(caught.value) == f"there is no config file {named.partition(':')[0]}; {expected}"
    assert configs.find("configs/deit.py:x") == "configs/deit.py:x"
    assert configs.find("deit:pit_s") == f"{configs.folder()}/deit.py:pit_s"
