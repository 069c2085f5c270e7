"""Contents of the data sets, the table of them, and messages about missing ones."""

import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from pit_jax.data import sources
from pit_jax.data.source import Example, Source


def pixels(example: Example) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(example["image"])))


def test_digits_are_all_of_scikit_learns_once():
    train, test = (sources.open_source("digits", split) for split in ("train", "test"))
    assert (len(train), len(test), train.num_classes) == (1437, 360, 10)
    assert train.class_names == test.class_names == tuple("0123456789")
    images, labels = load_digits(return_X_y=True)
    expected = {
        (np.round(image / 16 * 255).astype(np.uint8).tobytes(), int(label))
        for image, label in zip(images, labels, strict=True)
    }
    examples = [source.examples[i] for source in (train, test) for i in range(len(source))]
    found = {(pixels(example).tobytes(), int(example["label"])) for example in examples}
    assert len(examples) == 1797
    assert found == expected
    # Stratified: each class is split in the same proportion, to within one.
    counts = np.bincount([test.examples[i]["label"] for i in range(360)])
    np.testing.assert_allclose(counts, np.bincount(labels) * 360 / 1797, atol=1)


def test_processes_that_start_together_prepare_once(tmp_path: Path):
    program = (
        "import os;"
        "from pit_jax.data.digits import Digits;"
        "from pit_jax.data.sources import open_source;"
        "generate = Digits._generate_examples;"
        "Digits._generate_examples = lambda *all: os.write(2, b'<made>') and generate(*all);"
        f"print(len(open_source('digits', 'test', {str(tmp_path)!r})))"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=400) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    assert [output.split()[-1] for output, _ in outputs] == [b"360", b"360"]
    # Once for each of the two splits.
    assert sum(error.count(b"<made>") for _, error in outputs) == 2
    prepared = sorted(path.name for path in (tmp_path / "digits").iterdir())
    assert prepared == ["1.0.0"]


def test_a_split_with_a_file_missing_is_refused(tmp_path: Path):
    """Otherwise training would end when it reaches the gap."""
    data_dir = str(tmp_path)
    whole = sources.open_source("digits", "test", data_dir)
    assert len(whole) == 360
    (lost,) = tmp_path.rglob("*test*array_record*")
    lost.unlink()
    found = (
        r"digits/test is not complete: looked in .*, found 0 of 1 files, not digits-test.*; copy"
    )
    with pytest.raises(ValueError, match=found):
        sources.open_source("digits", "test[:10]", data_dir)
    assert len(sources.open_source("digits", "train", data_dir)) == 1437


def test_slices_and_synthetic_images():
    assert len(sources.open_source("digits", "train[:10]")) == 10
    synthetic = sources.open_source("synthetic", "train")
    assert synthetic.num_classes == 1000
    assert pixels(synthetic.examples[3]).shape == (256, 256, 3)
    assert synthetic.examples[3] == synthetic.examples[3]
    assert synthetic.examples[3]["image"] != synthetic.examples[4]["image"]


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        (
            "digits",
            "tset",
            r"no split 'tset'; did you mean 'test'\?: looked in .*, found train, test; choose one",
        ),
        ("imagnet2012", "train", r"unknown data set 'imagnet2012'; did you mean 'imagenet2012'\?"),
        ("/pictures", "train", r"'/pictures' is no data .* of images write folder:/pictures$"),
        ("folders:/x", "train", r"'folders:/x' is no data .* of images write folder:/x$"),
        ("~/x", "train", r"for a folder of images write folder:~/x$"),
        (
            "cifar10",
            "train",
            r"looked in .*, found no folder 'cifar10'; run: python -m pit_jax\.cli\.prepare ci",
        ),
    ],
)
def test_what_is_missing_is_named(name: str, split: str, message: str, tmp_path: Path):
    data_dir = None if name == "digits" else str(tmp_path)
    with pytest.raises(ValueError, match=message):
        sources.open_source(name, split, data_dir)


def test_a_data_dir_that_cannot_be_read_is_named(tmp_path: Path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "cifar10").symlink_to(tmp_path / "cifar10")
    for data_dir in (tmp_path / "loop", tmp_path):
        message = (
            f"cifar10 is not prepared: looked in {data_dir}, found no directory that can be read "
            "(Too many levels of symbolic links); run: python -m pit_jax.cli.prepare cifar10 "
            f"--data_dir={data_dir}"
        )
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            sources.open_source("cifar10", "train", str(data_dir))


TEXT = tfds.features.FeaturesDict(
    {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=2)}
)
PIXELS = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(6, 4, 3))})


class Unsuitable(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A set of one example, prepared by TFDS, that lacks images or labels."""

    name = "unsuitable"
    VERSION = tfds.core.Version("1.0.0")
    features = TEXT

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=self.features)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        del dl_manager
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict]]:
        file = io.BytesIO()
        Image.new("RGB", (4, 6)).save(file, "PNG")
        file.seek(0)
        example = {"text": "a sentence", "label": 1, "image": file}
        yield 0, {name: example[name] for name in self.features}


@pytest.mark.parametrize(("features", "found"), [(TEXT, "'text': Text"), (PIXELS, "'image': Im")])
def test_a_set_without_images_or_labels_is_refused(
    features: tfds.features.FeaturesDict,
    found: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(Unsuitable, "features", features)
    Unsuitable(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    message = rf"'unsuitable' has no 'image' and 'label' features: (?s:.*){found}"
    with pytest.raises(ValueError, match=message):
        sources.open_source("unsuitable", "train", str(tmp_path))


MODULE = """
from pit_jax.data.source import Source


def open_squares(name, split, data_dir):
    return Source(f"{name}/{split}", [{"image": b"", "label": 1}] * 3, 2, ("round", "square"))
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package as pip installs it, with openers among its entry points."""
    (tmp_path / "shapes.py").write_text(MODULE)
    described = tmp_path / "shapes-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: shapes\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text(
        "[pit_jax.sources]\nsquares = shapes:open_squares\nbroken: = shapes:nothing\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_another_package_adds_data_sets(plugin: Path):
    found = sources.open_source("squares", "train")
    assert (found.name, len(found)) == ("squares/train", 3)
    assert found.class_names == ("round", "square")
    with pytest.raises(ValueError, match=r"unknown data set 'squars'; did you mean 'squares'\?"):
        sources.open_source("squars", "train")
    with pytest.raises(ValueError, match=r"shapes:nothing of the data set 'broken:x' cannot be im"):
        sources.open_source("broken:x", "train")


def test_a_program_adds_data_sets_in_a_line(monkeypatch: pytest.MonkeyPatch):
    def open_mine(name: str, split: str, data_dir: str | None) -> Source:
        return Source(f"{name}/{split}/{data_dir}", [], 0)

    monkeypatch.setitem(sources.SOURCES, "mine:", open_mine)
    assert sources.open_source("mine:x", "train", "there").name == "mine:x/train/there"
    with pytest.raises(ValueError, match=r"unknown data set 'mine'"):
        sources.open_source("mine", "train")


def test_a_source_names_all_of_its_classes_or_none():
    with pytest.raises(ValueError, match=r"cats has 3 classes and 2 names of classes: the source"):
        Source("cats", [], 3, ("tabby", "tiger"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot prepare the digits in .*PIT_JAX_CACHE"):
        sources.open_source("digits", "train", str(tmp_path / "file" / "folder"))
