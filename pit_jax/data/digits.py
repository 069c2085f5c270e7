"""The handwritten digits that scikit-learn carries, `digits`, as a TFDS data set.

1,797 real scans, 8x8 pixels in 17 grey levels, ten classes (Alpaydin and Kaynak, UCI, 1998). They
need no download and train in minutes on any machine, through exactly the path of ImageNet.
"""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import filelock
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from pit_jax.data.source import Source
from pit_jax.data.tfds_sets import open_prepared
from pit_jax.files import cache_dir

TEST_EXAMPLES = 360
# Selects the held-out scans: accuracies under another seed cannot be compared.
SPLIT_SEED = 0
MAX_LEVEL = 16

_DESCRIPTION = "Handwritten digits, 8x8 pixels: 1,437 for training and 360 for testing, stratified."
_CITATION = """\
@misc{alpaydin1998optical,
  author = {Alpaydin, E. and Kaynak, C.},
  title = {Optical Recognition of Handwritten Digits},
  year = {1998},
  howpublished = {UCI Machine Learning Repository},
  doi = {10.24432/C50P49}
}"""


class Digits(tfds.core.GeneratorBasedBuilder):
    """The digits as greyscale PNGs with labels 0 to 9, splits "train" and "test"."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "Stratified split: 1,437 and 360 scans."}

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            citation=_CITATION,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        del dl_manager
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        images, labels = load_digits(return_X_y=True)
        train, test = train_test_split(
            np.arange(len(labels)),
            test_size=TEST_EXAMPLES,
            stratify=labels,
            random_state=SPLIT_SEED,
        )
        levels = images.reshape(-1, 8, 8) / MAX_LEVEL
        pixels = np.round(levels * 255).astype(np.uint8)
        return {
            "train": self._generate_examples(pixels, labels, np.sort(train)),
            "test": self._generate_examples(pixels, labels, np.sort(test)),
        }

    def _generate_examples(
        self, pixels: np.ndarray, labels: np.ndarray, indices: np.ndarray
    ) -> Iterator[tuple[int, dict]]:
        for index in indices:
            png = io.BytesIO()
            Image.fromarray(pixels[index]).save(png, format="PNG")
            png.seek(0)
            yield int(index), {"image": png, "label": int(labels[index])}


def open_digits(name: str, split: str, data_dir: str | None = None) -> Source:
    """Opens a split of the digits; prepares them in `data_dir` if they are not there yet.

    Raises:
      ValueError: no such split, or a folder that cannot be written.
    """
    return open_prepared(prepare_digits(data_dir), name, split, data_dir)


def prepare_digits(data_dir: str | None = None) -> Digits:
    """Prepares the digits unless they are; of processes started together, the first one does.

    Args:
      data_dir: TFDS's folder; None for a folder in the user's cache.

    Raises:
      ValueError: the folder cannot be written.
    """
    root = Path(data_dir).expanduser() if data_dir else cache_dir() / "datasets"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(root / "digits.lock"):
            builder = Digits(data_dir=str(root), file_format="array_record")
            with _quiet():
                builder.download_and_prepare()
    except OSError as error:
        raise ValueError(
            f"cannot prepare the digits in {root}: {error}; set data_dir or $PIT_JAX_CACHE to a "
            "folder that can be written"
        ) from error
    return builder


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences TFDS's progress bars and messages: standard output is for results, and preparing
    takes a second.
    """
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
