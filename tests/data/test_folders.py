"""Folders of images: labels, splits, error messages."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pit_jax.data import images, sources


def save(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (level, 0, 0)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for level, name in enumerate(["train/dog/b.png", "train/dog/deep/a.JPEG", "train/ant/x.png"]):
        save(tmp_path / name, level)
    save(tmp_path / "val/dog/only.png", 7)
    (tmp_path / "train/dog/notes.txt").touch()
    return tmp_path


def test_classes_are_numbered_by_name_over_all_splits(folder: Path):
    train = sources.open_source(f"folder:{folder}", "train")
    held_out = sources.open_source(f"folder:{folder}", "validation")
    assert (len(train), train.num_classes) == (3, 2)
    found = [(Path(example["file_name"]).name, example["label"]) for example in train.examples]
    assert found == [("x.png", 0), ("b.png", 1), ("a.JPEG", 1)]
    # "dog" is the only class of the split and has the label of the training split.
    assert [example["label"] for example in held_out.examples] == [1]
    assert held_out.num_classes == 2
    assert np.asarray(images.decode_rgb(held_out.examples[0]["image"]))[0, 0, 0] == 7


def test_folders_beside_the_splits_are_no_classes(folder: Path):
    save(folder / "__MACOSX/train/x.png", 1)
    save(folder / "raw/cat/x.png", 1)
    assert sources.open_source(f"folder:{folder}", "train").num_classes == 2
    chosen = sources.open_source(f"folder:{folder}", "raw")
    assert (chosen.class_names, chosen.absent) == (("ant", "cat", "dog"), ("ant", "dog"))


def test_splits_of_a_training_have_to_number_their_classes_alike(
    folder: Path, caplog: pytest.LogCaptureFixture
):
    save(folder / "raw/cat/x.png", 1)
    train, held_out, raw = (
        sources.open_source(f"folder:{folder}", split) for split in ("train", "val", "raw")
    )
    assert train.class_names == held_out.class_names == ("ant", "dog")
    sources.check_splits(train, held_out)
    assert not caplog.records
    sources.check_splits(held_out, train)
    assert "1 of 2 classes have no training image: ant" in caplog.text
    with pytest.raises(ValueError, match=r"differently: only one of them knows cat\. Give both"):
        sources.check_splits(train, raw)


def test_without_splits_the_folder_is_one(folder: Path):
    assert len(sources.open_source(f"folder:{folder / 'train'}", "all")) == 3
    with pytest.raises(ValueError, match=r"found ant, dog; without .* the only split is 'all'"):
        sources.open_source(f"folder:{folder / 'train'}", "train")


@pytest.mark.parametrize(
    ("change", "split", "message"),
    [
        (lambda root: (root / "train/cat").mkdir(), "train", r"looked in .*cat for images .*found"),
        (lambda root: (root / "test").mkdir(), "test", r"directory per class, found nothing; put"),
        (lambda root: None, "trian", r"for a folder 'trian', found train, val; did you mean 'tra"),
        (lambda root: None, "train[:9%]", r"slices such as 'train\[:10%\]' are for TFDS"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, change, split: str, message: str):
    change(folder)
    with pytest.raises(ValueError, match=message):
        sources.open_source(f"folder:{folder}", split)


def test_directories_that_cannot_be_read_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"looked in .*none, found no directory .*No such file"):
        sources.open_source(f"folder:{tmp_path / 'none'}", "train")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ValueError, match=r"loop, found no directory that can be read \(Too many"):
        sources.open_source(f"folder:{tmp_path / 'loop'}", "all")


def test_a_file_that_vanishes_is_named(folder: Path):
    train = sources.open_source(f"folder:{folder}", "train")
    (folder / "train/ant/x.png").unlink()
    with pytest.raises(ValueError, match=r"cannot read .*x\.png: No such file"):
        train.examples[0]
