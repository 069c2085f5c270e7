"""The fast decoder against PIL, and the files that it leaves to PIL."""

import io
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from pit_jax.data import images, jpeg


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)
    return stream.getvalue()


@pytest.fixture
def decodings(monkeypatch):
    """Counts how often PIL decodes, without the prefetching of other tests' pipelines."""
    calls = []
    decode_rgb = images.decode_rgb

    def counted(data):
        if threading.current_thread() is threading.main_thread():
            calls.append(len(data))
        return decode_rgb(data)

    monkeypatch.setattr(jpeg, "decode_rgb", counted)
    return calls


def check(data: bytes) -> None:
    pixels = jpeg.decode_pixels(data)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.asarray(images.decode_rgb(data)))


class TestDecoding:
    @pytest.mark.parametrize("subsampling", [0, 1, 2])
    @pytest.mark.parametrize("progressive", [False, True])
    @pytest.mark.parametrize("quality", [30, 92, 100])
    def test_equals_pil(self, photographs, decodings, subsampling, progressive, quality):
        for image in photographs:
            check(encoded(image, quality=quality, subsampling=subsampling, progressive=progressive))
        assert not decodings

    def test_unusual_files(self, china, decodings):
        """Grey, RGB without conversion, restart markers, an orientation, a profile."""
        exif = Image.Exif()
        exif[0x0112] = 6
        check(encoded(china.convert("L")))
        check(encoded(china, keep_rgb=True))
        check(encoded(china, restart_marker_blocks=3))
        check(encoded(china, exif=exif, icc_profile=b"none"))
        assert not decodings

    def test_the_rest_is_pil_s(self, china, decodings):
        check(encoded(china.convert("CMYK")))
        check(encoded(china, "PNG"))
        check(encoded(china.quantize(16), "GIF"))
        assert len(decodings) == 3

    def test_what_pil_thinks_a_bomb_is_left_to_it(self, china, decodings, monkeypatch):
        data = encoded(china)
        pixels = china.width * china.height
        monkeypatch.setattr(jpeg, "LARGEST_DECODED", pixels)
        check(data)
        assert not decodings
        monkeypatch.setattr(jpeg, "LARGEST_DECODED", pixels - 1)
        check(data)
        assert len(decodings) == 1
        assert pixels < 2 * Image.MAX_IMAGE_PIXELS

    @pytest.mark.parametrize("part", [0.1, 0.5, 0.97])
    def test_truncated(self, china, part):
        data = encoded(china)
        with pytest.raises(ValueError, match="expected the bytes of an image"):
            jpeg.decode_pixels(data[: int(part * len(data))])

    def test_not_an_image(self):
        for data in (b"", b"text", jpeg.JPEG_MAGIC + b"text"):
            with pytest.raises(ValueError, match="expected the bytes of an image"):
                jpeg.decode_pixels(data)

    def test_damage_is_judged_by_pil(self, china):
        """A flawed file is read as PIL reads it, and refused if PIL refuses it."""
        rng = np.random.default_rng(0)
        original = encoded(china.resize((80, 60)))
        read = 0
        for _ in range(150):
            data = bytearray(original)
            data[rng.integers(20, len(data))] = rng.integers(256)
            try:
                expected = np.asarray(images.decode_rgb(bytes(data)))
            except ValueError:
                with pytest.raises(ValueError, match="expected the bytes"):
                    jpeg.decode_pixels(bytes(data))
                continue
            read += 1
            np.testing.assert_array_equal(jpeg.decode_pixels(bytes(data)), expected)
        assert read > 50

    def test_an_image_that_is_held_stays_as_it_is(self, photographs):
        """Pixels stay, whole or in part, while others are decoded into reused memory."""
        files = [encoded(image) for image in photographs] * 3
        whole = [jpeg.decode_pixels(data) for data in files[:-1]]
        part = jpeg.decode_pixels(files[-1])[5:50, 7:]
        for data in files:
            jpeg.decode_pixels(data)
        for data, pixels in zip(files, whole, strict=False):
            np.testing.assert_array_equal(pixels, np.asarray(images.decode_rgb(data)))
        np.testing.assert_array_equal(part, np.asarray(images.decode_rgb(files[-1]))[5:50, 7:])

    def test_without_simplejpeg(self, china, decodings, monkeypatch):
        monkeypatch.setitem(sys.modules, "simplejpeg", None)
        jpeg.fast_decoder.cache_clear()
        try:
            check(encoded(china))
            assert len(decodings) == 1
        finally:
            jpeg.fast_decoder.cache_clear()


class TestCut:
    def test_is_the_box(self, china):
        pixels = np.asarray(china)
        crop = jpeg.cut(pixels, (30, 40, 130, 240), (256, 300), (64, 64))
        assert crop.extent == (200, 100)
        np.testing.assert_array_equal(crop.pixels, pixels[40:240, 30:130])

    @pytest.mark.parametrize("box", [(0, 0, 301, 200), (5, 5, 200, 262)])
    def test_larger_than_the_canvas_is_resized_by_pil(self, china, box):
        crop = jpeg.cut(np.asarray(china), box, (256, 300), (64, 80))
        assert crop.extent == (64, 80)
        expected = images.crop_and_resize(china, box, (64, 80))
        np.testing.assert_array_equal(crop.pixels, expected)

    def test_refuses_a_small_canvas(self):
        jpeg.check_canvas((224, 200), (224, 200))
        for canvas in ((223, 300), (300, 199)):
            with pytest.raises(ValueError, match=r"at least the image size \(224, 200\)"):
                jpeg.check_canvas(canvas, (224, 200))
