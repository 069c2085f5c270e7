"""Families of other packages: registered by a call, or found through their entry point."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pit_jax.models import zoo
from pit_jax.models.family import Family

ROOT = Path(__file__).parents[2]


def test_a_registered_family_is_one_of_the_zoo(toy: Family) -> None:
    assert zoo.list_models()[-2:] == ["toy_s", "toy_b"]
    config = zoo.model_config("toy_b", image_size=16, num_classes=3)
    assert zoo.family_of(config) is toy
    assert zoo.cost(config).parameters == 4 * 16 + 17 * 3
    assert zoo.smallest("toy_s") == {"hidden": 2}
    zoo.register(toy)  # again, which changes nothing
    assert zoo.list_models().count("toy_s") == 1
    with pytest.raises(ValueError, match="unknown model 'toy_x'; did you mean 'toy_"):
        zoo.model_config("toy_x")


def test_what_is_taken_is_not_registered(toy: Family) -> None:
    before = zoo.list_models()
    row = toy.rows["toy_s"]
    with pytest.raises(ValueError, match="names that are taken: pit_s, toy_s; rename them"):
        zoo.register(dataclasses.replace(toy, rows={"pit_s": row, "toy_s": row, "toy_l": row}))
    with pytest.raises(ValueError, match="is the configuration of another family already"):
        zoo.register(dataclasses.replace(toy, rows={"toy_l": row}))
    with pytest.raises(ValueError, match="ToyConfig has rows of other types: toy_l"):
        zoo.register(dataclasses.replace(toy, rows={"toy_l": zoo.model_config("pit_s")}))
    with pytest.raises(ValueError, match=r"expected a .*Family, found 'toy'"):
        zoo.register("toy")  # type: ignore[arg-type]
    assert zoo.list_models() == before


Install = Callable[..., dict[str, str]]


@pytest.fixture
def install(tmp_path: Path) -> Install:
    """Puts a package with an entry point into a folder, as pip does; gives the environment."""

    def put(name: str, module: str, value: str) -> dict[str, str]:
        (tmp_path / f"{name}.py").write_text(module)
        information = tmp_path / f"{name}-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0")
        (information / "entry_points.txt").write_text(f"[pit_jax.families]\nfamily = {value}\n")
        return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}

    return put


def run(program: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_plug_in_is_found_when_it_is_asked_for(install: Install, data_dir: Path) -> None:
    source = (data_dir / "toy_family.py").read_text()
    environment = install("toy_models", source, "toy_models:FAMILY")
    program = """
import sys
import pit_jax
pit_jax.create_model("pit_ti", image_size=32, depths=(1, 1, 1))
print("toy_models" in sys.modules)
print(pit_jax.create_model("toy_s", num_classes=3).config.num_classes)
print(*pit_jax.list_models("toy_*"))
"""
    done = run(program, environment)
    assert done.stdout.splitlines() == ["False", "3", "toy_s toy_b"], done.stderr
    done = run("import pit_jax; print(*pit_jax.list_models('toy_*'))", environment)
    assert done.stdout == "toy_s toy_b\n"


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("import what_is_not_there", "ModuleNotFoundError: No module named 'what_is_not_there'"),
        ("FAMILY = 3", "ValueError: expected a pit_jax.models.family.Family, found 3"),
    ],
)
def test_a_plug_in_that_fails_is_named_in_a_line(
    module: str, reason: str, install: Install
) -> None:
    environment = install("broken_models", module, "broken_models:FAMILY")
    program = "import pit_jax; print(len(pit_jax.list_models())); pit_jax.model_config('pit_x')"
    done = run(program, environment)
    assert int(done.stdout) == len([name for name in zoo.list_models() if "toy" not in name])
    line, *_, last = done.stderr.splitlines()
    assert line == (
        "the model family 'broken_models:FAMILY' of broken_models is not available, " + reason
    )
    assert last.startswith("ValueError: unknown model 'pit_x'; did you mean")
