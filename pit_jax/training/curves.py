"""Loss, accuracy and learning rate of a run so far, as a picture."""

import json
from pathlib import Path

PANELS = (
    ("loss", ("train/loss", "test/loss")),
    ("top-1", ("train/top1", "test/top1")),
    ("learning rate", ("train/learning_rate",)),
)


def draw_curves(metrics: Path, picture: Path) -> None:
    """Draws the lines of a metrics.jsonl into a PNG; replaces it whole."""
    # The object interface: no global state, no display, usable beside anyone else's pyplot.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for name in names:
            points = [(row["step"], row[name]) for row in rows if name in row]
            if points:
                marker = "o" if name.startswith("test") else None
                axes.plot(*zip(*points, strict=True), label=name, marker=marker, markersize=3)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        if axes.lines:  # an evaluation may come before the first line of training
            axes.legend()
    partial = picture.with_name(f".{picture.name}")
    FigureCanvasAgg(figure).print_png(str(partial))
    partial.replace(picture)
