"""Images per second of the input pipeline on JPEG files, next to timm's transforms.

    python benchmarks/input.py [--only work threads] [--repeats 5] [--images 256] [--json]

work     one thread: timm's transforms (PIL) and ours, from the bytes of a file to the array for the
         device: training with RandAugment, the random crop alone, as a transform and in a whole
         pipeline, repeated augmentation, and evaluation
threads  our training input over threads and processes, next to Grain reading row by row

The files are cut from scikit-learn's and scikit-image's photographs at ImageNet's mean size,
500x375 and about 110 KB, and are held in memory. All variants run in turn, `repeats` times. Figures
are medians; "against" is the median of the ratio to the baseline in the same turn, which a busy
machine disturbs least. "per core" divides by the seconds of all cores that the process used, "wall"
by elapsed seconds. Needs timm and scikit-image (pip install -e '.[test]'), but neither TensorFlow
nor TFDS.
"""

import argparse
import io
import json
import math
import multiprocessing
import os
import platform
import random
import re
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
from PIL import Image

from pit_jax.augment.policy import parse
from pit_jax.data import batching, jpeg, pipeline
from pit_jax.data.images import random_crop_box
from pit_jax.data.loading import Loader
from pit_jax.data.source import Source

POLICY = "rand-m9-mstd0.5-inc1"
SIZE = (224, 224)
WIDTH, HEIGHT = 500, 375
MEAN_BYTES = 110_000
FILES = 64
BATCH = 32
THREADS = (1, 2, 4, 16)
FLIP = Image.Transpose.FLIP_LEFT_RIGHT


class Rate(NamedTuple):
    """Images per second of core time, and per second of elapsed time."""

    per_core: float
    wall: float


Variant = Callable[[int], Rate]
"""Makes about the given number of images and returns the rate."""


class Table(NamedTuple):
    """Variants by name, and the baseline that the others are compared with."""

    title: str
    baseline: str
    variants: dict[str, Variant]


class Files:
    """A few files repeated to as many examples as ImageNet has: drawing an order of few examples
    costs more.
    """

    def __init__(self, files: list[bytes]) -> None:
        self.files = files

    def __len__(self) -> int:
        return 1_281_167

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.files[index % len(self.files)], "label": index % 1000}


def photographs() -> Source:
    """Makes JPEG files from the colour photographs of scikit-learn and scikit-image, in the quality
    whose mean file size is ImageNet's.
    """
    from skimage import data
    from sklearn.datasets import load_sample_images

    found = (data.astronaut, data.chelsea, data.coffee, data.rocket)
    wholes = [*load_sample_images().images, *(load() for load in found)]
    rng = np.random.default_rng(0)
    pictures = []
    for index in range(FILES):
        whole = Image.fromarray(wholes[index % len(wholes)])
        width = rng.uniform(0.85, 1.0) * min(whole.width, whole.height * WIDTH / HEIGHT)
        height = width * HEIGHT / WIDTH
        left, top = rng.uniform(0, whole.width - width), rng.uniform(0, whole.height - height)
        box = (left, top, left + width, top + height)
        picture = whole.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, box=box)
        pictures.append(picture if rng.random() < 0.5 else picture.transpose(FLIP))
    sets = (_files(pictures, quality) for quality in range(92, 100))
    files = min(sets, key=lambda files: abs(statistics.mean(map(len, files)) - MEAN_BYTES))
    return Source("photographs", Files(files), 1000)


def _files(pictures: list[Image.Image], quality: int) -> list[bytes]:
    """Encodes JPEG files, every other one in the next better quality: a whole step of quality is
    20 % of the size.
    """
    files = []
    for index, picture in enumerate(pictures):
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=quality + index % 2)
        files.append(stream.getvalue())
    return files


class Clock:
    """Core seconds of this process and its children, and elapsed seconds, since it was made."""

    def __init__(self) -> None:
        self._cpu, self._wall = _cpu_seconds(), time.perf_counter()

    def read(self) -> tuple[float, float]:
        return _cpu_seconds() - self._cpu, time.perf_counter() - self._wall


def _cpu_seconds() -> float:
    seconds = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def loop(files: Source, transform: Callable[[Image.Image], Any]) -> Variant:
    """Measures a plain loop over PIL images, as a worker of torch's DataLoader but unstacked."""

    def measure(images: int) -> Rate:
        clock = Clock()
        for index in range(images):
            picture = Image.open(io.BytesIO(files.examples[index]["image"])).convert("RGB")
            try:
                transform(picture)
            except ValueError:  # timm's strongest Posterize keeps no bit, which Pillow 13 refuses
                transform(picture)
        cpu, wall = clock.read()
        return Rate(images / cpu, images / wall)

    return measure


def canvases(files: Source, canvas: tuple[int, int]) -> Variant:
    """Measures the plain loop of `loop` for images that the device resizes: decoded, cropped and
    copied to their places in a batch.
    """
    batch = np.zeros((BATCH, *canvas, 3), np.uint8)
    rng = np.random.default_rng(0)

    def measure(images: int) -> Rate:
        clock = Clock()
        for index in range(images):
            pixels = jpeg.decode_pixels(files.examples[index]["image"])
            height, width, _ = pixels.shape
            crop = jpeg.cut(pixels, random_crop_box(width, height, rng), canvas, SIZE)
            batching.put(batch[index % BATCH], crop.pixels)
        cpu, wall = clock.read()
        return Rate(images / cpu, images / wall)

    return measure


class Torch:
    """Examples for torch's DataLoader, transformed by timm."""

    def __init__(self, files: Source, transform: Callable[[Image.Image], Any]) -> None:
        self._files = files
        self._transform = transform

    def __len__(self) -> int:
        return len(self._files.examples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        example = self._files.examples[index]
        picture = Image.open(io.BytesIO(example["image"])).convert("RGB")
        return self._transform(picture), example["label"]


def data_loader(files: Source, transform: Callable[[Image.Image], Any]) -> Variant:
    """Measures timm's training pipeline in this process: torch's order and timm's collation."""
    from timm.data.loader import fast_collate
    from torch.utils.data import DataLoader, RandomSampler

    dataset = Torch(files, transform)

    def measure(images: int) -> Rate:
        count = math.ceil(images / BATCH)
        # A permutation of the whole epoch would be charged to these few batches.
        sampler = RandomSampler(dataset, replacement=True, num_samples=count * BATCH)
        loader = DataLoader(dataset, BATCH, sampler=sampler, collate_fn=fast_collate)
        clock = Clock()
        for _ in loader:
            pass
        cpu, wall = clock.read()
        return Rate(count * BATCH / cpu, count * BATCH / wall)

    return measure


def batches(make: Callable[[], Iterator[Any]], ahead: int) -> Variant:
    """Measures a pipeline that makes `ahead` batches more than requested."""

    def measure(images: int) -> Rate:
        count = math.ceil(images / BATCH)
        clock = Clock()
        iterator = make()
        next(iterator)
        wall = Clock()
        for _ in range(count):
            next(iterator)
        _, seconds = wall.read()
        _wait_until_idle()
        cpu, _ = clock.read()
        return Rate((count + 1 + ahead) * BATCH / cpu, count * BATCH / seconds)

    return measure


def _wait_until_idle() -> None:
    """Waits until all prefetched batches are made."""
    idle = 0
    while idle < 3:
        before = _cpu_seconds()
        time.sleep(0.05)
        idle = idle + 1 if _cpu_seconds() - before < 0.004 else 0


def training(files: Source, *, threads: int = 1, ahead: int = 1, **views: Any) -> Variant:
    """Measures our training input."""

    def make() -> Iterator[Any]:
        return iter(
            pipeline.train_batches(
                files,
                pipeline.Views(size=SIZE, **views),
                batch_size=BATCH,
                seed=0,
                reading=pipeline.Reading(threads=threads, prefetch=ahead),
            )
        )

    return batches(make, ahead)


def evaluation(files: Source, protocol: str) -> Variant:
    """Measures our evaluation input."""

    def make() -> Iterator[Any]:
        reading = pipeline.Reading(threads=1, prefetch=1)
        return iter(
            pipeline.eval_batches(
                files, image_size=SIZE, batch_size=BATCH, protocol=protocol, reading=reading
            )
        )

    return batches(make, ahead=1)


def row_by_row(files: Source, threads: int) -> Variant:
    """Measures the same views, read one by one by Grain's threads and stacked on request."""

    def make() -> Iterator[Any]:
        view = pipeline.RandomView(Loader(files), pipeline.Views(size=SIZE))
        rows = grain.MapDataset.range(len(files)).seed(0).shuffle().repeat().random_map(view)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=BATCH)
        return iter(rows.to_iter_dataset(options).batch(BATCH))

    return batches(make, ahead=1)


def in_processes(files: Source, workers: int) -> Variant:
    """Measures whole batches made in other processes, by one thread each, and copied through shared
    memory. The start of the processes, seconds each, is not included.
    """

    def measure(images: int) -> Rate:
        from absl import flags

        flags.FLAGS.mark_as_parsed()  # Grain asks for flags of its own
        count = max(math.ceil(images / BATCH), 2 * workers)
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
        reading = pipeline.Reading(threads=1, prefetch=1)
        dataset = pipeline.train_batches(
            files, pipeline.Views(size=SIZE), batch_size=BATCH, seed=0, reading=reading
        )
        iterator = iter(dataset.mp_prefetch(options))
        for _ in range(2 * workers):
            next(iterator)
        clock = Clock()
        for _ in range(count):
            next(iterator)
        cpu, wall = clock.read()
        iterator.close()
        return Rate(count * BATCH / cpu, count * BATCH / wall)

    return measure


def work(files: Source) -> list[Table]:
    """Compares the work of one thread."""
    from pit_jax.weights.verify import import_timm

    create_transform = import_timm().data.create_transform
    shared = {"input_size": SIZE[0], "interpolation": "bicubic", "use_prefetcher": True}
    crop = {"is_training": True, "color_jitter": None, **shared}
    policy = parse(POLICY)
    sides = {side: (side, side) for side in (384, 448, 512)}
    full = {
        "timm": loop(files, create_transform(**crop, auto_augment=POLICY)),
        "ours, all on the host": training(files, policy=policy, flip_probability=0.5),
        "ours, RandAugment on the device": training(files),
        "ours, resizing and RandAugment on the device": training(files, canvas=(512, 512)),
        "ours, all on the host, 3 views": training(
            files, policy=policy, flip_probability=0.5, repeats=3
        ),
        "ours, RandAugment on the device, 3 views": training(files, repeats=3),
        "ours, both on the device, 3 views": training(files, canvas=(512, 512), repeats=3),
    }
    timms = create_transform(**crop, hflip=0.0)
    crops = {
        "timm": loop(files, timms),
        **{
            f"ours, to canvases of {side} for the device": canvases(files, canvas)
            for side, canvas in sides.items()
        },
    }
    if jpeg.fast_decoder() is not None:
        crops["decoding alone, by libjpeg-turbo"] = decoding(files)
    pipelines = {
        "timm, in torch's DataLoader": data_loader(files, timms),
        "ours, resized by PIL": training(files),
        **{
            f"ours, in canvases of {side} for the device": training(files, canvas=canvas)
            for side, canvas in sides.items()
        },
    }
    evaluations = {
        "timm": loop(files, create_transform(**shared, crop_pct=0.9)),
        "ours, protocol timm": evaluation(files, "timm"),
        "ours, protocol deit": evaluation(files, "deit"),
    }
    return [
        Table("training: crop, flip, RandAugment", "timm", full),
        Table("training: the random crop alone, transforms", "timm", crops),
        Table("training: the random crop alone, pipelines", next(iter(pipelines)), pipelines),
        Table("evaluation", "timm", evaluations),
    ]


def decoding(files: Source) -> Variant:
    """Measures decoding alone, the bound of every variant."""

    def measure(images: int) -> Rate:
        clock = Clock()
        for index in range(images):
            jpeg.decode_pixels(files.examples[index]["image"])
        cpu, wall = clock.read()
        return Rate(images / cpu, images / wall)

    return measure


def threads(files: Source) -> list[Table]:
    """Compares threads and processes for the random crop alone; two batches are prefetched."""
    ours = {
        f"ours, {count:2} threads": training(files, threads=count, ahead=2) for count in THREADS
    }
    rows = {f"Grain row by row, {count:2} threads": row_by_row(files, count) for count in THREADS}
    others = {f"ours in {count} processes": in_processes(files, count) for count in (1, 2)}
    canvas = {
        f"ours in canvases, {count:2} threads": training(
            files, threads=count, ahead=2, canvas=(512, 512)
        )
        for count in THREADS
    }
    everything = ours | rows | others | canvas
    return [Table("threads and processes, the random crop alone", next(iter(ours)), everything)]


MEASUREMENTS: dict[str, Callable[[Source], list[Table]]] = {"work": work, "threads": threads}


def measured(table: Table, repeats: int, images: int) -> dict[str, dict[str, Any]]:
    """Measures all variants in turns; returns rates and ratios to the baseline of the turn."""
    for variant in table.variants.values():
        variant(BATCH)
    turns = []
    for _ in range(repeats):
        turns.append({name: variant(images) for name, variant in table.variants.items()})
    report = {}
    for name in table.variants:
        rates = [turn[name] for turn in turns]
        ratios = [turn[name].per_core / turn[table.baseline].per_core for turn in turns]
        report[name] = {
            "per_core": statistics.median(rate.per_core for rate in rates),
            "wall": statistics.median(rate.wall for rate in rates),
            "against": statistics.median(ratios),
            "against_range": (min(ratios), max(ratios)),
        }
    return report


def machine(files: Source) -> dict[str, Any]:
    """Describes the machine and the files."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.M) if info.exists() else None
    sizes = [len(files.examples[index]["image"]) for index in range(FILES)]
    return {
        "cpu": found[1] if found else platform.processor(),
        "cores": batching.cores(),
        "load": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "decoder": "PIL alone" if jpeg.fast_decoder() is None else "libjpeg-turbo (simplejpeg)",
        "files": f"{FILES} of {WIDTH}x{HEIGHT}, {statistics.mean(sizes) / 1000:.0f} KB in the mean",
        "versions": {name: version(name) for name in ("pillow", "simplejpeg", "timm", "grain")},
    }


def version(package: str) -> str:
    """Returns the version of a package."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def main() -> None:
    """Measures the chosen tables and prints them, with --json as JSON too."""
    parser = argparse.ArgumentParser(description="Images per second of the input side.")
    add = parser.add_argument
    add("--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS))
    add("--repeats", type=int, default=5, help="turns of all variants")
    add("--images", type=int, default=256, help="images per measurement")
    add("--json", action="store_true", help="print the figures as JSON as well")
    options = parser.parse_args()
    random.seed(0)
    files = photographs()
    described = machine(files)
    for name, value in described.items():
        print(f"{name:<10} {value}")
    report: dict[str, Any] = {"machine": described}
    for name in options.only:
        for table in MEASUREMENTS[name](files):
            print(f"\n{table.title:<50} {'per core':>9} {'wall':>8}  against {table.baseline}")
            rows = measured(table, options.repeats, options.images)
            for label, row in rows.items():
                low, high = row["against_range"]
                print(
                    f"{label:<50} {row['per_core']:>7.0f}/s {row['wall']:>6.0f}/s  "
                    f"{row['against']:.2f} ({low:.2f} to {high:.2f})",
                    flush=True,
                )
            report[table.title] = rows
    print(f"\nload at the end: {os.getloadavg()[0]:.1f}")
    if options.json:
        print(json.dumps(report))


if __name__ == "__main__":
    main()
