"""The floors of pit_jax hold: no import runs up, none in a circle, and the picture is current."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "docs" / "draw_architecture.py"


@pytest.fixture(scope="module")
def drawing() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_architecture", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_room_stands_on_a_floor(drawing: ModuleType) -> None:
    homeless = drawing.homeless(drawing.read_imports(ROOT))
    assert not homeless, "name the floor of these in FLOORS of docs/draw_architecture.py"


def test_no_import_runs_up(drawing: ModuleType) -> None:
    assert drawing.upward(drawing.read_imports(ROOT)) == []


def test_no_modules_import_each_other_in_a_circle(drawing: ModuleType) -> None:
    assert drawing.circles(drawing.read_imports(ROOT)) == []


def test_no_rooms_import_each_other_in_a_circle(drawing: ModuleType) -> None:
    assert drawing.circles(drawing.between_rooms(drawing.read_imports(ROOT))) == []


def test_the_picture_is_current(drawing: ModuleType) -> None:
    current = drawing.draw(drawing.read_imports(ROOT))
    assert drawing.PICTURE.read_text() == current, "run: python docs/draw_architecture.py"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return root


@pytest.mark.parametrize(
    "source",
    [
        "import pit_jax.training.loop",
        "from pit_jax.training import loop",
        "from pit_jax.training.loop import train",
        "from ..training import loop",
        "from ..training.loop import train",
        "def late():\n    from pit_jax.training.loop import train\n    return train",
        "import importlib\nloop = importlib.import_module('pit_jax.training.loop')",
    ],
)
def test_an_import_that_runs_up_is_found(drawing: ModuleType, tmp_path: Path, source: str) -> None:
    loop = "def train():\n    pass\n"
    files = {"pit_jax/ops/gelu.py": source, "pit_jax/training/loop.py": loop}
    imports = drawing.read_imports(write(tmp_path, files))
    assert drawing.upward(imports) == ["pit_jax.ops.gelu -> pit_jax.training.loop"]


def test_a_circle_is_found(drawing: ModuleType, tmp_path: Path) -> None:
    files = {
        "pit_jax/ops/a.py": "from pit_jax.ops import b",
        "pit_jax/ops/b.py": "def late():\n    import pit_jax.ops.c",
        "pit_jax/ops/c.py": "from . import a, d",
        "pit_jax/ops/d.py": "import math",
    }
    imports = drawing.read_imports(write(tmp_path, files))
    assert drawing.circles(imports) == [["pit_jax.ops.a", "pit_jax.ops.b", "pit_jax.ops.c"]]


def test_a_circle_of_rooms_is_found(drawing: ModuleType, tmp_path: Path) -> None:
    files = {
        "pit_jax/data/a.py": "import pit_jax.augment.a",
        "pit_jax/augment/a.py": "",
        "pit_jax/augment/b.py": "import pit_jax.data.b",
        "pit_jax/data/b.py": "",
    }
    imports = drawing.read_imports(write(tmp_path, files))
    assert drawing.circles(imports) == []
    assert drawing.circles(drawing.between_rooms(imports)) == [["augment", "data"]]


def test_a_room_without_a_floor_is_found(drawing: ModuleType, tmp_path: Path) -> None:
    files = {"pit_jax/attic/box.py": "", "pit_jax/ops/gelu.py": "", "pit_jax/__main__.py": ""}
    assert drawing.homeless(drawing.read_imports(write(tmp_path, files))) == {"attic"}
