"""Options of dataclasses: values accepted, values refused, and the messages."""

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
from ml_collections import ConfigDict, config_flags

from pit_jax import options
from pit_jax.option_dict import OptionDict, declared, place, recorded, to_config_dict
from pit_jax.options import option, parse


def check_word(text: str) -> None:
    if text != text.lower():
        raise ValueError(f"{text!r} shouts")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images:
    """Images in."""

    name: str = option("digits", "Name of the set.", check=check_word)
    size: tuple[int, int] = option((8, 6), "Height and width.", at_least=1, square=True)
    scale: tuple[float, float] = option((0.1, 1.0), "Share of the area.", within="(0, 1]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """Parameters out."""

    rate: float = option(0.5, "Learning rate.")
    decay: float | None = option(None, "Weight | decay.", within="(0, 1)")
    frozen: tuple[str, ...] = option((), "Parts that stay.")
    options: dict[str, Any] = option({"b2": 0.9}, "Further options.")

    def problems(self) -> list[str]:
        wrong = self.decay is not None and self.decay > self.rate
        return ["config.fit.decay is more than config.fit.rate"] if wrong else []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """One experiment."""

    batch_size: int = option(4, "Images per step.", at_least=1)
    dtype: str = option("bfloat16", "Type.", choices=("bfloat16", "float32"))
    gates: dict[int, float] = option({}, "{epoch: fraction}.")
    start: str | None = option(None, "Weights.")
    fit: Fit = dataclasses.field(default_factory=Fit)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment(Base):
    """One experiment on images."""

    fit: Fit = dataclasses.field(default_factory=lambda: Fit(rate=0.25))
    loud: bool = option(False, "Log more.")
    images: Images = dataclasses.field(default_factory=Images)

    def problems(self) -> list[str]:
        return ["config.loud needs config.start"] if self.loud and not self.start else []


def config() -> OptionDict:
    return to_config_dict(Experiment)


def mistakes(values: Any) -> list[str]:
    with pytest.raises(options.OptionsError) as caught:
        parse(Experiment, values)
    assert str(caught.value).splitlines() == caught.value.mistakes
    return caught.value.mistakes


def test_the_defaults_survive_the_round_trip() -> None:
    """Defaults that a subclass sets for a section of its base survive too."""
    assert parse(Experiment, config()) == parse(Experiment, {}) == Experiment()
    assert config().fit.rate == parse(Experiment, {"fit": {"decay": 0.1}}).fit.rate == 0.25


def test_values_are_taken_in_the_forms_people_write() -> None:
    values = {
        "gates": {1: 1},
        "fit": {"rate": 1, "decay": 0.25, "frozen": ["a", "b"], "options": {"x": None}},
        "images": {"size": 64, "scale": [0.5, 1]},
    }
    parsed = parse(Experiment, values)
    assert parsed.gates == {1: 1.0}
    assert parsed.fit == Fit(rate=1.0, decay=0.25, frozen=("a", "b"), options={"x": None})
    assert parsed.images == Images(size=(64, 64), scale=(0.5, 1.0))
    assert isinstance(parsed.fit.rate, float)
    assert parse(Experiment, {"images": {"size": (64,)}}).images.size == (64, 64)


def test_all_mistakes_are_told_at_once_a_line_each() -> None:
    found = mistakes(
        {
            "batch_size": 0,
            "dtype": "float16",
            "rate": 0.1,
            "loud": 1,
            "fit": {"frozen": "a", "decay": 1.0},
            "images": {"size": "big", "scale": (0.5,), "name": "Digits"},
        }
    )
    assert found == [
        "config.batch_size must be at least 1, found 0",
        "config.dtype must be 'bfloat16' or 'float32', found 'float16'; did you mean 'bfloat16'?",
        "config.rate is not an option; did you mean 'config.fit.rate'?",
        "config.loud must be bool, found 1",
        "config.fit.frozen must be tuple[str, ...], found 'a'",
        "config.fit.decay must be in (0, 1), found 1.0",
        "config.images.size must be int or tuple[int, int] such as (8, 6), found 'big'",
        "config.images.scale must be tuple[float, float] such as (0.1, 1.0), found (0.5,)",
        "config.images.name: 'Digits' shouts",
    ]


@pytest.mark.parametrize(
    ("values", "mistake"),
    [
        ({"batch_size": True}, "config.batch_size must be int, found True"),
        ({"batch_size": 2.0}, "config.batch_size must be int, found 2.0"),
        ({"batch_size": None}, "config.batch_size must be int, found None"),
        ({"fit": {"rate": True}}, "config.fit.rate must be float, found True"),
        ({"fit": {"decay": "x"}}, "config.fit.decay must be float | None, found 'x'"),
        ({"fit": 3}, "config.fit is a section of options, found 3"),
        ({"gates": {"1": 0.5}}, "config.gates must be dict[int, float], found {'1': 0.5}"),
        ({"images": {"size": (8, 0)}}, "config.images.size must be at least 1, found (8, 0)"),
        (
            {"images": {"scale": (0.0, 1)}},
            "config.images.scale must be in (0, 1], found (0.0, 1.0)",
        ),
        ({"start": options.required("FILE")}, "config.start is required: add --config.start=FILE"),
    ],
)
def test_a_wrong_value_is_told_with_what_is_expected(values: dict[str, Any], mistake: str) -> None:
    assert mistakes(values) == [mistake]


def test_options_are_checked_together_where_each_of_them_is_right() -> None:
    assert mistakes({"fit": {"decay": 0.5}, "loud": True}) == [
        "config.fit.decay is more than config.fit.rate"
    ]
    assert mistakes({"loud": True}) == ["config.loud needs config.start"]
    assert mistakes({"loud": True, "batch_size": 0}) == [
        "config.batch_size must be at least 1, found 0"
    ]


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("config.batchsize", "did you mean 'config.batch_size'?"),
        ("config.scale", "did you mean 'config.images.scale'?"),
        ("config.image.name", "did you mean 'config.images.name'?"),
        ("config.imges", "did you mean 'config.images'?"),
        ("config.fit.lr", "config.fit has decay, frozen, options, rate"),
        ("config.batch_size.x", "config has batch_size, dtype, fit, gates, images, loud, start"),
        ("config.train.x", "config has batch_size, dtype, fit, gates, images, loud, start"),
    ],
)
def test_an_unknown_name_comes_with_the_closest_of_the_tree(path: str, advice: str) -> None:
    assert options.advice(path, options.paths(Experiment)) == advice


def test_a_locked_config_refuses_names_and_types_and_says_which_are_right() -> None:
    locked = config()
    with pytest.raises(AttributeError, match=r"^config\.dtyp is not an option; did you mean"):
        locked.dtyp = "float32"
    with pytest.raises(AttributeError, match=r"^config\.fit\.scale is not .*'config.images.scale'"):
        locked.fit["scale"] = (0.5, 1.0)
    with pytest.raises(TypeError, match=r"^config\.fit\.rate must be float, found 'fast'$"):
        locked.fit.rate = "fast"
    with pytest.raises(AttributeError, match=r"^config\.seed is not an option; config has batch_s"):
        _ = locked.seed
    assert parse(Experiment, locked) == Experiment()


def test_a_config_holds_values_as_they_are_parsed() -> None:
    locked = config()
    locked.images.size = 64
    locked.images.scale = [1, 1]
    locked.fit.decay = 0.25
    locked.fit.options = {"b1": (1, 2)}
    locked.gates = {3: 1}
    assert (locked.images.size, locked.images.scale) == ((64, 64), (1.0, 1.0))
    assert locked.fit.options.b1 == (1, 2)
    assert parse(Experiment, locked).fit.options == {"b1": (1, 2)}
    assert parse(Experiment, locked).gates == {3: 1.0}


def test_a_config_is_a_config_dict_with_the_command_line_that_those_have() -> None:
    locked = config()
    assert isinstance(locked, ConfigDict)
    assert declared(locked) is Experiment
    assert declared(locked.fit) is Fit
    assert declared(ConfigDict()) is None
    from absl import flags

    given = [
        "program",
        "--config.images.size=64",
        "--config.images.scale=[0.5,1]",
        "--config.fit.options.b2=0.5",
        "--config.start=x",
        "--config.loud",
        "--config.fit.decay=0.25",
    ]
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", locked, flag_values=values, sys_argv=given)
    values(given)
    parsed = parse(Experiment, values.config)
    assert parsed.images == Images(size=(64, 64), scale=(0.5, 1.0))
    assert (parsed.start, parsed.loud, parsed.fit.decay) == ("x", True, 0.25)
    assert parsed.fit.options == {"b2": 0.5}


def test_recorded_assignments_have_places_and_do_not_end_at_the_first_mistake() -> None:
    locked = config()
    with recorded() as found:
        locked.batchsize = 3
        locked.batch_size = 3
        locked.fit.rate = "fast"
    line = sys._getframe().f_lineno - 1
    assert found.mistakes == [
        f"{place(__file__)}:{line - 2}: config.batchsize is not an option; "
        "did you mean 'config.batch_size'?",
        f"{place(__file__)}:{line}: config.fit.rate must be float, found 'fast'",
    ]
    assert found.places == {"config.batch_size": f"{place(__file__)}:{line - 1}: "}
    assert (locked.batch_size, locked.fit.rate) == (3, 0.25)


@pytest.mark.parametrize("module", ["pit_jax.options", "pit_jax.tasks.classification.config"])
def test_options_are_declared_and_parsed_without_ml_collections(module: str) -> None:
    program = f"import sys, {module}; print('ml_collections' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False"]
