"""What the data sets hold, and what is said where one is missing."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from pit_jax.data import sources


def pixels(example: sources.Example) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(example["image"])))


def test_digits_are_all_of_scikit_learns_once():
    train, test = (sources.open_source("digits", split) for split in ("train", "test"))
    assert (len(train), len(test), train.num_classes) == (1437, 360, 10)
    images, labels = load_digits(return_X_y=True)
    expected = {
        (np.round(image / 16 * 255).astype(np.uint8).tobytes(), int(label))
        for image, label in zip(images, labels, strict=True)
    }
    examples = [source.examples[i] for source in (train, test) for i in range(len(source))]
    found = {(pixels(example).tobytes(), int(example["label"])) for example in examples}
    assert len(examples) == 1797
    assert found == expected
    # Stratified: every class has its tenth, give or take one.
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
        ("digits", "tset", r"no split 'tset'; did you mean 'test'\?; it has train, test"),
        ("imagnet2012", "train", r"unknown data set 'imagnet2012'; did you mean 'imagenet2012'\?"),
        (
            "cifar10",
            "train",
            r"looked in .*, found no folder 'cifar10'; run: python -m pit_jax\.data\.prepare ci",
        ),
    ],
)
def test_what_is_missing_is_named(name: str, split: str, message: str, tmp_path: Path):
    data_dir = None if name == "digits" else str(tmp_path)
    with pytest.raises(ValueError, match=message):
        sources.open_source(name, split, data_dir)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot prepare the digits in .*PIT_JAX_CACHE"):
        sources.open_source("digits", "train", str(tmp_path / "file" / "folder"))
