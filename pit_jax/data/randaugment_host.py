"""RandAugment on the host, on PIL images, with the same pixels as timm's operations.

pit_jax.augment.policy has the policy, its grammar and the strengths of the operations.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from pit_jax.augment.policy import FILL, Policy, argument

Operation = Callable[[Image.Image, float], Image.Image]


def rand_augment(image: Image.Image, policy: Policy, rng: np.random.Generator) -> Image.Image:
    """Applies one drawn operation per layer of the policy to an RGB image."""
    for name, value in draw_operations(policy, rng):
        image = apply_operation(image, name, value)
    return image


def draw_operations(policy: Policy, rng: np.random.Generator) -> list[tuple[str, float]]:
    """Draws the (operation, argument) pairs of one image, in order; only those to be applied.

    Operations are uniform with replacement, or weighted without; magnitudes are normal and clipped;
    both signs are equally likely.
    """
    drawn = []
    for index in _choose(policy, rng):
        if rng.random() >= policy.probability:
            continue
        magnitude = policy.magnitude
        if np.isinf(policy.magnitude_std):
            magnitude = rng.uniform(0, policy.magnitude)
        elif policy.magnitude_std > 0:
            magnitude = rng.normal(policy.magnitude, policy.magnitude_std)
        magnitude = min(max(magnitude, 0.0), policy.magnitude_max)
        sign = 1 if rng.random() < 0.5 else -1
        name = policy.operations[index]
        value = argument(name, magnitude, sign, increasing=policy.increasing, numpy=np)
        drawn.append((name, float(value)))
    return drawn


def _choose(policy: Policy, rng: np.random.Generator) -> np.ndarray:
    """Draws indices into the policy's operations, one per layer."""
    count = len(policy.operations)
    if policy.weights is None:
        return rng.integers(count, size=policy.layers)
    chances = np.array(policy.weights) / sum(policy.weights)
    return rng.choice(count, size=policy.layers, replace=False, p=chances)


def apply_operation(image: Image.Image, name: str, value: float) -> Image.Image:
    """Applies one operation to an RGB image; pit_jax.augment.policy.argument gives its `value`.

    Geometric operations interpolate bicubically and fill the uncovered part with ImageNet's mean
    colour.
    """
    return _FUNCTIONS[name](image, value)


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    """Warps; `matrix`, row by row, maps (x, y, 1) of the result to (x, y) of the image."""
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        matrix,
        resample=Image.Resampling.BICUBIC,
        fillcolor=FILL,
    )


def _rotate(image: Image.Image, degrees: float) -> Image.Image:
    return image.rotate(degrees, resample=Image.Resampling.BICUBIC, fillcolor=FILL)


def _posterize(image: Image.Image, bits: float) -> Image.Image:
    # ImageOps.posterize refuses to keep no bit (a black image) from Pillow 13 on.
    dropped = 8 - min(max(int(bits), 0), 8)
    return image.point([level >> dropped << dropped for level in range(256)] * 3)


def _solarize_add(image: Image.Image, addend: float) -> Image.Image:
    table = [min(255, level + int(addend)) if level < 128 else level for level in range(256)]
    return image.point(table * 3)


_FUNCTIONS: dict[str, Operation] = {
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Invert": lambda image, _: ImageOps.invert(image),
    "Rotate": _rotate,
    "Posterize": _posterize,
    "Solarize": lambda image, threshold: ImageOps.solarize(image, int(threshold)),
    "SolarizeAdd": _solarize_add,
    "Color": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "Contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "Brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "Sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    "ShearX": lambda image, slope: _affine(image, (1, slope, 0, 0, 1, 0)),
    "ShearY": lambda image, slope: _affine(image, (1, 0, 0, slope, 1, 0)),
    "TranslateX": lambda image, part: _affine(image, (1, 0, part * image.width, 0, 1, 0)),
    "TranslateY": lambda image, part: _affine(image, (1, 0, 0, 0, 1, part * image.height)),
    "Desaturate": lambda image, part: ImageEnhance.Color(image).enhance(1.0 - part),
    "GaussianBlur": lambda image, sigma: image.filter(ImageFilter.GaussianBlur(sigma)),
}
