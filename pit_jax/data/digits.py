"""The handwritten digits that scikit-learn carries, as a TFDS data set.

1,797 real scans, 8x8 pixels in 17 grey levels, ten classes (Alpaydin and Kaynak, UCI, 1998). Small
enough to train on in minutes anywhere, without a download, through exactly the path ImageNet takes.
"""

import io
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

TEST_EXAMPLES = 360
# Fixes which scans are held out; changing it makes accuracies incomparable.
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
    """Digits as greyscale PNGs with labels 0 to 9, splits "train" and "test"."""

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
