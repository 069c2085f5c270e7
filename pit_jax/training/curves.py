"""A picture of a run's metrics and learning rate so far."""

import json
from collections.abc import Sequence
from pathlib import Path


def draw_curves(metrics: Path, picture: Path, names: Sequence[str]) -> None:
    """Draws the lines of a metrics.jsonl into a PNG, which is replaced atomically.

    Args:
      metrics: the metrics.jsonl file.
      picture: the PNG file.
      names: metrics to draw, without a prefix; a panel each, with training and evaluation.
    """
    # matplotlib's object interface has no global state and needs no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    panels = [(name, [f"train/{name}", f"test/{name}"]) for name in names]
    panels.append(("learning_rate", ["train/learning_rate"]))
    figure = Figure(figsize=(4 * len(panels), 3.5), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for name in lines:
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
