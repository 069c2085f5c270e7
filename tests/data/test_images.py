"""Decoding and cropping against PIL, torchvision and timm, pixel for pixel."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision import transforms
from torchvision.transforms import functional

from pit_jax.data import images

BICUBIC = transforms.InterpolationMode.BICUBIC


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)
    return stream.getvalue()


def adobe_cmyk(image: Image.Image) -> bytes:
    """A CMYK JPEG whose Adobe marker says that its inks are stored inverted."""
    data = encoded(image.convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in data
    return data


KINDS = {
    "jpeg": lambda image: encoded(image, "JPEG"),
    "progressive jpeg": lambda image: encoded(image, "JPEG", progressive=True),
    "grey jpeg": lambda image: encoded(image.convert("L"), "JPEG"),
    "cmyk jpeg": adobe_cmyk,
    "png": lambda image: encoded(image, "PNG"),
    "png with alpha": lambda image: encoded(image.convert("RGBA"), "PNG"),
    "palette gif": lambda image: encoded(image.quantize(64), "GIF"),
    "palette png": lambda image: encoded(image.quantize(64), "PNG"),
    "bilevel png": lambda image: encoded(image.convert("1"), "PNG"),
}


class TestDecoding:
    @pytest.mark.parametrize("kind", KINDS)
    def test_equals_pil(self, china, kind):
        data = KINDS[kind](china)
        decoded = images.decode_rgb(data)
        assert decoded.mode == "RGB"
        reference = Image.open(io.BytesIO(data)).convert("RGB")
        np.testing.assert_array_equal(np.asarray(decoded), np.asarray(reference))

    @pytest.mark.parametrize(
        ("kind", "tolerance"), [("jpeg", 6), ("cmyk jpeg", 6), ("png", 0), ("png with alpha", 0)]
    )
    def test_keeps_the_colours(self, china, kind, tolerance):
        """Compares with the photograph itself: an inverted CMYK image would be far off."""
        decoded = np.asarray(images.decode_rgb(KINDS[kind](china)), np.int32)
        assert np.abs(decoded - np.asarray(china, np.int32)).mean() <= tolerance

    def test_sixteen_bits(self):
        levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
        data = encoded(Image.fromarray(levels), "PNG")
        reference = Image.open(io.BytesIO(data)).convert("RGB")
        decoded = images.decode_rgb(data)
        assert decoded.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(decoded), np.asarray(reference))

    def test_exif_orientation_is_ignored(self, china):
        exif = Image.Exif()
        exif[0x0112] = 6  # rotate by 90 degrees to display
        data = encoded(china, "JPEG", exif=exif)
        assert images.decode_rgb(data).size == china.size

    @pytest.mark.parametrize("kind", ["jpeg", "png", "palette gif"])
    @pytest.mark.parametrize("part", [0.0, 0.02, 0.5, 0.97])
    def test_truncated(self, china, kind, part):
        data = KINDS[kind](china)
        with pytest.raises(ValueError, match=r"expected the bytes of an image, found \d+ bytes"):
            images.decode_rgb(data[: int(part * len(data))])

    def test_damaged_bytes_raise_nothing_else(self, china):
        rng = np.random.default_rng(0)
        small = china.resize((48, 32))
        refusals = []
        for kind, encode in KINDS.items():
            for _ in range(60):
                data = bytearray(encode(small))
                for place in rng.integers(0, len(data), 3):
                    data[place] = rng.integers(256)
                try:
                    assert images.decode_rgb(bytes(data)).mode == "RGB", kind
                except ValueError as error:
                    refusals.append(str(error))
        assert refusals
        assert all("found" in refusal for refusal in refusals)


class Replay:
    """Stands in for a generator, with the numbers that torchvision drew."""

    def __init__(self, draws):
        self.draws = list(draws)

    def _next(self, low, high):
        expected_low, expected_high, value = self.draws.pop(0)
        assert (low, high) == pytest.approx((expected_low, expected_high), rel=1e-6)
        return value

    uniform = integers = _next


@pytest.fixture
def torch_draws(monkeypatch):
    """Records every (low, high, value) that torch draws, in order."""
    draws = []
    uniform, randint = torch.Tensor.uniform_, torch.randint

    def recorded_uniform(tensor, low, high):
        result = uniform(tensor, low, high)
        draws.append((float(low), float(high), result.item()))
        return result

    def recorded_randint(low, high, size):
        result = randint(low, high, size)
        draws.append((low, high, result.item()))
        return result

    monkeypatch.setattr(torch.Tensor, "uniform_", recorded_uniform)
    monkeypatch.setattr(torch, "randint", recorded_randint)
    return draws


class TestTrainingCrop:
    @pytest.mark.parametrize(
        ("width", "height"), [(500, 375), (375, 500), (1000, 30), (9, 700), (1, 1), (64, 64)]
    )
    def test_box_of_the_same_draws_equals_torchvision(self, torch_draws, width, height):
        torch.manual_seed(width + height)
        blank = Image.new("RGB", (width, height))
        for _ in range(60):
            torch_draws.clear()
            top, left, rows, columns = transforms.RandomResizedCrop.get_params(
                blank, [0.08, 1.0], [3 / 4, 4 / 3]
            )
            replay = Replay(torch_draws)
            box = images.random_crop_box(width, height, replay)
            assert box == (left, top, left + columns, top + rows)
            assert not replay.draws
            assert 0 <= left < left + columns <= width
            assert 0 <= top < top + rows <= height

    def test_distribution(self):
        """Areas uniform, aspect ratios log-uniform, where every try fits."""
        rng = np.random.default_rng(0)
        boxes = np.array(
            [images.random_crop_box(1000, 1000, rng, scale=(0.1, 0.5)) for _ in range(4000)]
        )
        width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
        area = (width * height / 1e6 - 0.1) / 0.4
        aspect = (np.log(width / height) / math.log(4 / 3) + 1) / 2
        left = boxes[:, 0] / (1000 - width)
        for values in (area, aspect, left):
            quantiles = np.quantile(values, [0.1, 0.25, 0.5, 0.75, 0.9])
            np.testing.assert_allclose(quantiles, [0.1, 0.25, 0.5, 0.75, 0.9], atol=0.03)

    @pytest.mark.parametrize("size", [(224, 224), (32, 48), (33, 7)])
    def test_pixels_equal_torchvision(self, photographs, size):
        rng = np.random.default_rng(1)
        for image in photographs:
            box = images.random_crop_box(*image.size, rng)
            left, top, right, bottom = box
            reference = functional.resized_crop(
                image, top, left, bottom - top, right - left, list(size), BICUBIC
            )
            pixels = images.crop_and_resize(image, box, size)
            assert pixels.dtype == np.uint8
            np.testing.assert_array_equal(pixels, np.asarray(reference))


class TestEvaluationCrop:
    @pytest.mark.parametrize("side", [224, 384, 97, 32])
    def test_deit_equals_torchvision(self, photographs, side):
        reference = transforms.Compose(
            [
                transforms.Resize(int(256 / 224 * side), interpolation=BICUBIC),
                transforms.CenterCrop(side),
            ]
        )
        for image in photographs:
            pixels = images.evaluation_crop(image, (side, side), "deit")
            np.testing.assert_array_equal(pixels, np.asarray(reference(image)))

    @pytest.mark.parametrize("size", [(224, 224), (97, 97), (32, 32), (160, 224), (65, 33)])
    def test_timm_equals_timm(self, photographs, size):
        reference = create_transform(
            input_size=size, crop_pct=0.9, interpolation="bicubic", normalize=False
        )
        for image in photographs:
            pixels = images.evaluation_crop(image, size, "timm")
            expected = reference(image).permute(1, 2, 0).numpy()
            np.testing.assert_array_equal(pixels, expected)

    def test_sizes_of_the_protocols(self, china):
        """224 is cut from 256 and from 248, 384 from 438."""
        for side, protocol, scaled in [(224, "deit", 256), (384, "deit", 438), (224, "timm", 248)]:
            whole = china.resize((int(scaled * 640 / 427), scaled), Image.Resampling.BICUBIC)
            top, left = (scaled - side) // 2, round((whole.width - side) / 2)
            expected = np.asarray(whole)[top : top + side, left : left + side]
            pixels = images.evaluation_crop(china, (side, side), protocol)
            np.testing.assert_array_equal(pixels, expected)

    @pytest.mark.parametrize(
        ("size", "scaled"), [((64, 96), (73, 109)), ((96, 64), (109, 73)), ((33, 200), (37, 228))]
    )
    def test_deit_not_square_equals_torchvision(self, photographs, size, scaled):
        """Cut from the image whose sides both just reach 256 / 224 of the size, rounded down."""
        for image in photographs:
            width, height = image.size
            factor = max(scaled[0] / height, scaled[1] / width)
            covering = (round(height * factor), round(width * factor))
            assert scaled in ((covering[0], scaled[1]), (scaled[0], covering[1]))
            reference = transforms.Compose(
                [transforms.Resize(covering, BICUBIC), transforms.CenterCrop(size)]
            )
            pixels = images.evaluation_crop(image, size, "deit")
            np.testing.assert_array_equal(pixels, np.asarray(reference(image)))

    def test_resize_keeps_everything(self, china):
        expected = china.resize((48, 32), Image.Resampling.BICUBIC)
        pixels = images.evaluation_crop(china, (32, 48), "resize")
        np.testing.assert_array_equal(pixels, np.asarray(expected))


class TestPreprocess:
    def test_equals_timm(self, china, tmp_path):
        reference = create_transform(
            input_size=224,
            crop_pct=0.9,
            interpolation="bicubic",
            mean=images.IMAGENET_MEAN,
            std=images.IMAGENET_STD,
        )
        path = tmp_path / "china.png"
        china.save(path)
        expected = reference(china).permute(1, 2, 0).numpy()[np.newaxis]
        for image in (china, path, str(path), path.read_bytes(), china.convert("RGBA")):
            found = images.preprocess(image)
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, expected)

    def test_size_and_protocol(self, china):
        found = images.preprocess(china, image_size=(64, 96), protocol="resize")
        pixels = images.evaluation_crop(china, (64, 96), "resize") / 255
        expected = (pixels - images.IMAGENET_MEAN) / images.IMAGENET_STD
        np.testing.assert_allclose(found[0], expected, atol=1e-6)

    def test_unknown_protocol(self, china):
        with pytest.raises(ValueError, match=r"'diet'; did you mean 'deit'\?"):
            images.preprocess(china, protocol="diet")

    def test_names_the_file(self, tmp_path):
        path = tmp_path / "notes.jpg"
        path.write_text("not an image")
        with pytest.raises(ValueError, match=r"notes\.jpg: expected the bytes of an image"):
            images.preprocess(path)
