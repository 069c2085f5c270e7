"""Draw the floors of pit_jax, and which room imports which, into docs/architecture.svg.

python docs/draw_architecture.py

The imports are read from the source files, those inside functions included; nothing is run. A room
is a folder or a single file of pit_jax, or the folder of configs. A `__main__.py` is a program,
which nothing imports: it belongs to the room `cli`. The picture has no counts, so that it changes
only when a room comes or goes, or when one room begins or ceases to import another.
"""

import ast
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "architecture.svg"
PACKAGE = "pit_jax"

Imports = Mapping[str, frozenset[str]]
"""The modules that each module imports, or the rooms that each room imports."""


@dataclasses.dataclass(frozen=True)
class Floor:
    """Rooms that may import the floors below and, without a circle, one another."""

    name: str
    colour: str
    rooms: Mapping[str, str]
    """Contents of each room, in a few words."""


FLOORS = (
    Floor(
        "programs",
        "#7c5cbf",
        {"cli": "the commands", "configs": "one experiment a file", PACKAGE: "the public names"},
    ),
    Floor("reports", "#9b5aa8", {"compile_report": "what a step costs on a TPU"}),
    Floor("tasks", "#b8588a", {"tasks": "what a training learns: loss, data, evaluation"}),
    Floor("training", "#c8604f", {"training": "loop, step, checkpoints, logs"}),
    Floor("weights", "#c47a2c", {"weights": "files of weights, matched and checked"}),
    Floor("networks", "#a08a1e", {"models": "a folder a family, and the zoo"}),
    Floor(
        "parts",
        "#5e9440",
        {"augment": "on the device", "data": "images to batches", "optim": "optimizers"},
    ),
    Floor("operations", "#2f9079", {"ops": "pure functions, a choice of kernels each"}),
    Floor("devices", "#2f7fa8", {"processes": "joining a job", "sharding": "mesh, shardings"}),
    Floor(
        "ground",
        "#5b6b8c",
        {
            "options": "declared fields",
            "option_dict": "as ConfigDict",
            "files": "atomic writes",
            "errors": "closest names",
            "version": "its number",
        },
    ),
)
"""From the roof to the ground. An import goes to a lower floor, or stays on its own."""


def modules(root: Path) -> dict[str, Path]:
    """The source file of every module of the package and of configs/, by dotted name."""
    found = {}
    for folder in (root / PACKAGE, root / "configs"):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def read_imports(root: Path) -> Imports:
    """The modules that each module imports, wherever in its file the import stands."""
    paths = modules(root)
    found = {}
    for module, path in paths.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        names = _imported(ast.parse(path.read_text(), str(path)), package)
        found[module] = frozenset(filter(None, (_module(name, paths) for name in names))) - {module}
    return found


def _imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Dotted names of everything that is imported: of modules, and of what is in them."""
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom():
                base = package.split(".")[: -(node.level - 1) or None] if node.level else []
                source = ".".join([*base, *filter(None, [node.module])])
                yield from (f"{source}.{alias.name}" for alias in node.names)
            case ast.Call(
                func=ast.Name(id="import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield name


def _module(name: str, known: Iterable[str]) -> str | None:
    """The module that is `name` or holds it; None for other packages."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


def room(module: str) -> str:
    """The room of a module: `pit_jax.models.pit.config` is in `models`."""
    parts = module.split(".")
    if parts[-1] == "__main__":
        return "cli"
    return parts[0] if parts[0] != PACKAGE or len(parts) == 1 else parts[1]


def between_rooms(imports: Imports) -> Imports:
    """The other rooms that each room imports."""
    found: dict[str, set[str]] = {}
    for module, targets in imports.items():
        found.setdefault(room(module), set()).update(room(target) for target in targets)
    return {name: frozenset(targets - {name}) for name, targets in found.items()}


def homeless(imports: Imports) -> set[str]:
    """The rooms that stand on no floor."""
    return {room(module) for module in imports} - set(_floor_numbers())


def upward(imports: Imports) -> list[str]:
    """The imports of a higher floor, as `importer -> imported`."""
    floors = _floor_numbers()
    return [
        f"{module} -> {target}"
        for module in sorted(imports)
        for target in sorted(imports[module])
        if {room(module), room(target)} <= set(floors)
        and floors[room(target)] < floors[room(module)]
    ]


def _floor_numbers() -> dict[str, int]:
    """The floor of each room, counted from the roof."""
    return {name: number for number, floor in enumerate(FLOORS) for name in floor.rooms}


def circles(imports: Imports) -> list[list[str]]:
    """Groups of names that all import one another, directly or not."""
    reached = {name: _reachable(name, imports) for name in imports}
    found = {
        tuple(sorted(other for other in reached[name] if name in reached.get(other, ())))
        for name in imports
        if name in reached[name]
    }
    return [list(group) for group in sorted(found)]


def _reachable(start: str, imports: Imports) -> set[str]:
    """Everything that `start` imports, directly or not; `start` itself if it is in a circle."""
    seen: set[str] = set()
    waiting = list(imports.get(start, ()))
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += imports.get(name, ())
    return seen


FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
INK, MUTED, LINE = "#1f2733", "#6b7686", "#e3e7ee"
MARGIN, TITLE = 28, 76  # around the picture, and above the house
STOREY, GAP = 46, 8  # heights of a floor and of what is between two
LABEL, HOUSE = 104, 640  # widths of the names of floors, and of the house with them
CELL, ABOVE, BESIDE = 24, 92, 118  # of the matrix: a cell, and the names above and beside it


def draw(imports: Imports) -> str:
    """The picture: the house at the left, the matrix of imports between its rooms at the right."""
    rooms = between_rooms(imports)
    floors = [
        dataclasses.replace(floor, rooms={k: v for k, v in floor.rooms.items() if k in rooms})
        for floor in FLOORS
    ]
    floors = [floor for floor in floors if floor.rooms]
    matrix_left = MARGIN + HOUSE + 40
    matrix_size = CELL * sum(len(floor.rooms) for floor in floors)
    width = matrix_left + BESIDE + matrix_size + 2 * MARGIN
    height = MARGIN + max(TITLE + len(floors) * (STOREY + GAP) - GAP, TITLE + ABOVE + matrix_size)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="{FONT}" role="img" '
        'aria-label="The floors of pit_jax and the imports between its rooms">',
        f'<rect width="{width}" height="{height}" rx="14" fill="#ffffff"/>',
        *_house(floors),
        *_matrix(floors, rooms, matrix_left),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _text(x: float, y: float, text: str, font: tuple[int, str], more: str = "") -> str:
    size, colour = font
    attributes = f'x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}"{more}'
    return f"<text {attributes}>{escape(text)}</text>"


def _rectangle(x: float, y: float, width: float, height: float, more: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" {more}/>'


BOLD = ' font-weight="600"'
MIDDLE = ' text-anchor="middle"'


def _house(floors: list[Floor]) -> list[str]:
    """The floors, one above the other, each with its rooms side by side."""
    lines = [
        _text(MARGIN, 36, "The house", (17, INK), BOLD),
        _text(MARGIN, 58, "A room imports rooms of its own floor and of those below.", (13, MUTED)),
    ]
    for number, floor in enumerate(floors):
        top = TITLE + number * (STOREY + GAP)
        middle = top + STOREY / 2
        lines.append(
            _rectangle(MARGIN, top, HOUSE, STOREY, f'rx="9" fill="{floor.colour}" opacity="0.10"')
        )
        lines.append(_rectangle(MARGIN, top, 5, STOREY, f'rx="2.5" fill="{floor.colour}"'))
        lines.append(_text(MARGIN + 16, middle + 4.5, floor.name, (13, floor.colour), BOLD))
        share = (HOUSE - LABEL - GAP) / len(floor.rooms)
        for place, (name, purpose) in enumerate(floor.rooms.items()):
            left = MARGIN + LABEL + place * share
            style = f'rx="6" fill="#ffffff" stroke="{floor.colour}" stroke-opacity="0.55"'
            lines.append(_rectangle(left + 4, top + 4, share - 8, STOREY - 8, style))
            centre = left + share / 2
            lines.append(_text(centre, middle - 2, name, (13, INK), BOLD + MIDDLE))
            lines.append(_text(centre, middle + 13, purpose, (11, MUTED), MIDDLE))
    return lines


def _matrix(floors: list[Floor], rooms: Imports, left: float) -> list[str]:
    """A row for each importing room, a column for each imported one, a dot for each import."""
    names = [name for floor in floors for name in floor.rooms]
    colours = {name: floor.colour for floor in floors for name in floor.rooms}
    x0, y0, size = left + BESIDE, TITLE + ABOVE, CELL * len(names)
    lines = [
        _text(left, 36, "Who imports whom", (17, INK), BOLD),
        _text(left, 58, "A dot: the row imports the column.", (13, MUTED)),
    ]
    start = 0
    for floor in floors:
        x, y, side = x0 + start * CELL, y0 + start * CELL, len(floor.rooms) * CELL
        tint = f'fill="{floor.colour}" opacity="0.10"'
        lines.append(_rectangle(x, y, x0 + size - x, side, tint))
        below = f'fill="{floor.colour}" opacity="0.22"'
        lines.append(_rectangle(x, y, side, side, below))
        start += len(floor.rooms)
    for number, name in enumerate(names):
        middle = (number + 0.5) * CELL
        lines.append(
            _text(x0 - 9, y0 + middle + 4, name, (12, colours[name]), BOLD + ' text-anchor="end"')
        )
        turned = f'{BOLD} transform="rotate(-60 {x0 + middle:g} {y0 - 9})"'
        lines.append(_text(x0 + middle, y0 - 9, name, (12, colours[name]), turned))
        for column, target in enumerate(names):
            if target in rooms[name]:
                place = f'cx="{x0 + (column + 0.5) * CELL:g}" cy="{y0 + middle:g}"'
                lines.append(f'<circle {place} r="5.5" fill="{colours[name]}"/>')
    lines += _staircase(floors, x0, y0)
    note = "an import in this corner would run up"
    lines.append(_text(x0 + size * 0.30, y0 + size * 0.80, note, (12, MUTED), MIDDLE))
    return lines


def _staircase(floors: list[Floor], x0: float, y0: float) -> list[str]:
    """The matrix's lines, above its diagonal and through the squares on it."""
    ends = [0]
    for floor in floors:
        ends.append(ends[-1] + len(floor.rooms))
    size = ends[-1]
    lines = []
    for at in range(size + 1):
        left = max(end for end in ends if end < at or end == 0)
        bottom = min(end for end in ends if end > at or end == size)
        right = f"M{x0 + left * CELL:g} {y0 + at * CELL:g}h{(size - left) * CELL:g}"
        down = f"M{x0 + at * CELL:g} {y0:g}v{bottom * CELL:g}"
        lines.append(f'<path d="{right}{down}" stroke="{LINE}"/>')
    return lines


def main() -> None:
    PICTURE.write_text(draw(read_imports(ROOT)))


if __name__ == "__main__":
    main()
