"""Files are replaced atomically."""

from pathlib import Path

import pytest

from pit_jax.files import replace_file


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "model.safetensors"
    target.mkdir()  # cannot be replaced by a file, which shows only at the very end
    with pytest.raises(OSError, match=r"model\.safetensors"):
        replace_file(target, b"new")
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    target.rmdir()
    replace_file(target, b"old")
    replace_file(target, b"new")
    assert target.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
