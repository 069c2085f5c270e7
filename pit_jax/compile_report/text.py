"""Reports as text, alone or side by side."""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

NOTE = (
    "An estimate, nothing was run: the compiler's cost model for what XLA compiles, the schedules "
    "of Pallas kernels as if they never waited for memory, and the links' bandwidth for exchanges, "
    "none of it hidden. docs/performance.md says how far to trust it."
)


def to_text(report: Mapping[str, Any]) -> str:
    """Formats the report of `Report.to_json` as text of about forty lines."""
    lines = [_title(report), ""]
    lines += [f"{label:<22} {figure.text}" for label, figure in _figures(report).items()]
    if report["estimate"]:
        lines += ["", *_wrapped(NOTE), *_warnings(report["estimate"])]
    lines += _kernels(report) + _collectives(report) + _operations(report)
    return "\n".join(lines)


def compare(report: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Formats two reports side by side, with the ratios of their figures."""
    columns = (_figures(report), _figures(other))
    rows = [["", "this", "other", "this / other"]]
    for label in dict.fromkeys([*columns[0], *columns[1]]):
        first, second = (column.get(label, Figure(None, "-")) for column in columns)
        ratio = f"{first.number / second.number:.3f}" if first.number and second.number else ""
        rows.append([label, first.text, second.text, ratio])
    titles = [f"this   {_title(report)}", f"other  {_title(other)}"]
    return "\n".join([*titles, "", *table(rows)])


def table(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Aligns columns, the first `left` ones to the left, all others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = (
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return [line.rstrip() for line in aligned]


def _title(report: Mapping[str, Any]) -> str:
    size = "x".join(map(str, report["image_size"]))
    return (
        f"{report['model']} {report['program']} on {report['topology']} "
        f"({report['devices']} x {report['device_kind']}), {report['batch_size']} images of {size}"
        f", fsdp {report['fsdp']}"
    )


def _images(report: Mapping[str, Any]) -> float:
    return report["batch_size"] / report["devices"]


class Figure(NamedTuple):
    """A number, for ratios, and its text."""

    number: float | None
    text: str


def _figures(report: Mapping[str, Any]) -> dict[str, Figure]:
    """Lists the known figures by label."""
    figures = {**_sizes(report), **_counts(report), **_times(report)}
    return {label: figure for label, figure in figures.items() if figure is not None}


def _sizes(report: Mapping[str, Any]) -> dict[str, Figure | None]:
    memory = report["memory"]
    fits = "fits" if report["fits"] else "DOES NOT FIT"
    if memory["available"] is not None and memory["peak"] is not None:
        free = memory["available"] - memory["peak"]
        fits += f", {_gib(abs(free))} {'free' if free >= 0 else 'too much'}"
    return {
        "images a device": Figure(_images(report), f"{_images(report):g}"),
        "memory of a device": Figure(None, fits),
        "  available": _figure(memory["available"], _gib),
        "  peak": _figure(memory["peak"], _gib),
        "  arguments": _figure(memory["arguments"], _gib),
        "  outputs": _figure(memory["outputs"], _gib),
        "  of these in place": _figure(memory["aliased"], _gib),
        "  temporaries": _figure(memory["temporaries"], _gib),
        "  code": _figure(memory["code"], _gib),
    }


def _counts(report: Mapping[str, Any]) -> dict[str, Figure | None]:
    images = _images(report)

    def flops(value: float) -> str:
        return f"{value / 1e9:,.1f} G, {value / images / 1e9:,.2f} G an image"

    def size(value: float) -> str:
        return f"{value / 1e9:,.2f} GB, {value / images / 1e6:,.1f} MB an image"

    return {
        "FLOPs of a device": _figure(report["flops"], flops),
        "model FLOPs an image": _figure(
            report["model_flops"], lambda value: f"{value / 1e9:.2f} G"
        ),
        "bytes accessed": _figure(report["bytes_accessed"], size),
    }


def _times(report: Mapping[str, Any]) -> dict[str, Figure | None]:
    estimate, images = report["estimate"] or {}, _images(report)
    load, cores = report["load"]

    def cycles(value: float) -> str:
        return f"{value / 1e6:,.2f} M, {value / images / 1e3:,.1f} k an image"

    def exchanges(value: float) -> str:
        return f"{_ms(value)}, {value / estimate['step_seconds']:.1%} of the step"

    def rate(value: float) -> str:
        return f"{value:,.0f}"

    def compiling(value: float) -> str:
        return f"{value:.1f} s, load {load} on {cores} cores"

    return {
        "estimated XLA cycles": _figure(estimate.get("xla_cycles"), cycles),
        "  of these attention": _figure(estimate.get("attention_cycles"), cycles),
        "kernel cycles": _figure(estimate.get("kernel_cycles") or None, cycles),
        "estimated computation": _figure(estimate.get("compute_seconds"), _ms),
        "estimated exchanges": _figure(estimate.get("collective_seconds"), exchanges),
        "estimated step": _figure(estimate.get("step_seconds"), _ms),
        "images/s/chip": _figure(estimate.get("images_per_second"), rate),
        "  without exchanges": _figure(estimate.get("images_per_second_alone"), rate),
        "MFU": _figure(estimate.get("mfu"), lambda value: f"{value:.1%}"),
        "traced": _figure(report["trace_seconds"], lambda value: f"{value:.1f} s"),
        "compiled": _figure(report["compile_seconds"], compiling),
    }


def _figure(number: float | None, text: Callable[[float], str]) -> Figure | None:
    return None if number is None else Figure(number, text(number))


def _warnings(estimate: Mapping[str, Any]) -> list[str]:
    lines = []
    if estimate["unestimated"]:
        found = ", ".join(f"{count} {kind}" for kind, count in estimate["unestimated"].items())
        lines.append(f"Without an estimate, counted as nothing: {found}.")
    if estimate["unknown_loops"]:
        lines.append(f"{estimate['unknown_loops']} loops of unknown length count as one round.")
    return lines


def _kernels(report: Mapping[str, Any]) -> list[str]:
    if not report["kernels"]:
        return []
    rows = [["Pallas kernels", "calls", "grid", "bundles", "cycles an image"]]
    for kernel in report["kernels"]:
        cycles = kernel["cycles"]
        rows.append(
            [
                kernel["name"],
                str(kernel["calls"]),
                "-" if kernel["grid"] is None else f"{kernel['grid']:,}",
                "-" if kernel["bundles"] is None else f"{kernel['bundles']:,}",
                "-" if cycles is None else f"{cycles / _images(report):,.0f}",
            ]
        )
    return ["", *table(rows)]


def _collectives(report: Mapping[str, Any]) -> list[str]:
    if not report["collectives"]:
        return ["", "no exchanges between devices"] if report["fits"] else []
    step = (report["estimate"] or {}).get("step_seconds")
    rows = [["exchanges", "devices", "calls", "asynchronous", "MB", "estimated", "of the step"]]
    for one in report["collectives"]:
        seconds = one["seconds"]
        rows.append(
            [
                one["kind"],
                str(one["devices"]),
                str(one["calls"]),
                str(one["asynchronous"]),
                f"{one['bytes'] / 1e6:,.2f}",
                "-" if seconds is None else _ms(seconds),
                "-" if seconds is None or not step else f"{seconds / step:.2%}",
            ]
        )
    return ["", *table(rows)]


def _operations(report: Mapping[str, Any]) -> list[str]:
    if not report["operations"]:
        return []
    rows = [["most expensive", "pass", "calls", "M cycles", "share"]]
    for one in report["operations"]:
        rows.append(
            [
                one["location"],
                "backward" if one["backward"] else "forward",
                str(one["calls"]),
                f"{one['cycles'] / 1e6:,.2f}",
                f"{one['share']:.1%}",
            ]
        )
    return ["", *table(rows, left=2)]


def _wrapped(text: str, width: int = 96) -> list[str]:
    lines = collections.deque([""])
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return list(lines)


def _gib(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**28 else f"{size / 2**20:,.1f} MiB"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:,.1f} us"
