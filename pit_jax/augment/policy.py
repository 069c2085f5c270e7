"""RandAugment's policy: the meaning of a string such as "rand-m9-mstd0.5-inc1".

An image passes through `layers` operations out of fifteen, or out of another set, each applied with
`probability`; a magnitude on the scale 0 to 10 sets its strength. The operations exist on the host
(pit_jax.data.randaugment_host) and on the device (pit_jax.augment.randaugment_device), which differ
only in where they run. Grammar and constants are timm's: the published accuracies come from its
recipes.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

from pit_jax.errors import suggestion

OPERATIONS = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "SolarizeAdd",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
)
# Operations that only some of the sets contain.
SPECIAL = ("Desaturate", "GaussianBlur")
KNOWN = OPERATIONS + SPECIAL
GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
ENHANCING = ("Color", "Contrast", "Brightness", "Sharpness")

# ImageNet's mean colour, which fills what a geometric operation uncovers.
FILL = (124, 116, 104)
FULL_MAGNITUDE = 10.0
# timm takes a larger standard deviation for "uniform between 0 and the magnitude".
LARGEST_STD = 100.0


@dataclasses.dataclass(frozen=True)
class Policy:
    """A parsed RandAugment string.

    Attributes:
      magnitude: mean of an operation's magnitude; full strength is 10.
      magnitude_std: standard deviation of the magnitude, drawn per operation; infinity draws it
        uniformly from 0 to `magnitude` instead.
      magnitude_max: drawn magnitudes are clipped to 0 and this.
      increasing: every operation grows stronger with the magnitude. Otherwise enhancement factors
        run from 0.1 to 1.9, and Posterize and Solarize grow weaker.
      layers: operations per image.
      probability: chance that a chosen operation is applied.
      operations: the operations to choose from, out of `KNOWN`.
      weights: relative chance of each operation; none is then chosen twice for an image. None
        chooses uniformly, with replacement.
    """

    magnitude: float = FULL_MAGNITUDE
    magnitude_std: float = 0.0
    magnitude_max: float = FULL_MAGNITUDE
    increasing: bool = False
    layers: int = 2
    probability: float = 0.5
    operations: tuple[str, ...] = OPERATIONS
    weights: tuple[float, ...] | None = None


# Section -> (attribute of Policy, pattern of its number).
_SECTIONS = {
    "m": ("magnitude", r"\d+(\.\d+)?"),
    "mstd": ("magnitude_std", r"\d+(\.\d+)?|inf"),
    "mmax": ("magnitude_max", r"\d+(\.\d+)?"),
    "inc": ("increasing", r"[01]"),
    "n": ("layers", r"\d+"),
    "p": ("probability", r"0(\.\d+)?|1(\.0*)?"),
}

# timm's sets: operations, or operations with their weights. Posterize, Solarize and the enhancing
# operations are there in their increasing form.
_SETS: dict[str, tuple[str, ...] | dict[str, float]] = {
    "weights": {
        "Rotate": 3,
        "ShearX": 2,
        "ShearY": 2,
        "TranslateX": 1,
        "TranslateY": 1,
        **dict.fromkeys(("Color", "Sharpness", "AutoContrast"), 0.25),
        **dict.fromkeys(("Solarize", "SolarizeAdd", "Contrast", "Brightness"), 0.05),
        **dict.fromkeys(("Equalize", "Posterize", "Invert"), 0.05),
    },
    "3a": ("Solarize", "Desaturate", "GaussianBlur"),
    "3aw": {
        **dict.fromkeys(("Solarize", "Desaturate", "GaussianBlur"), 6),
        "Rotate": 3,
        "ShearX": 2,
        "ShearY": 2,
        **dict.fromkeys(("Posterize", "AutoContrast", "Color", "Sharpness"), 1),
        **dict.fromkeys(("Contrast", "Brightness", "Equalize", "Invert"), 1),
    },
}


def parse(text: str) -> Policy:
    """Reads a policy: "rand" followed by sections "-<name><number>" in any order.

    Sections: `m` magnitude (10), `mstd` its standard deviation (0; above 100 uniform), `mmax` the
    largest magnitude (10), `inc` 1 for increasing severity (0), `n` operations per image (2), `p`
    probability of each (0.5). `t` is followed by the name of a set of operations, all of
    increasing severity: `tweights`, the fifteen by weights; `t3a`, Solarize, Desaturate and
    GaussianBlur; `t3aw`, fourteen by weights, those three above all.

    Raises:
      ValueError: another scheme than "rand", an unknown or repeated section, a malformed number,
        an unknown set, or more operations per image than a set with weights has.
    """
    scheme, *sections = text.split("-")
    if scheme != "rand":
        raise ValueError(
            f"expected a RandAugment policy such as 'rand-m9-mstd0.5-inc1', found {text!r}"
        )
    values: dict[str, Any] = {}
    for section in sections:
        if section.startswith("t"):
            if "operations" in values:
                raise ValueError(f"'t' appears twice in the RandAugment policy {text!r}")
            values |= _operations(section[1:], text)
            continue
        name = re.split(r"\d|inf$", section, maxsplit=1)[0]
        if name not in _SECTIONS:
            raise ValueError(
                f"unknown section {section!r} of the RandAugment policy {text!r}"
                f"{suggestion(name, _SECTIONS)}; there are {', '.join(_SECTIONS)}, t"
            )
        attribute, pattern = _SECTIONS[name]
        number = section[len(name) :]
        if not re.fullmatch(pattern, number):
            raise ValueError(
                f"expected a number matching {pattern} after {name!r}, found {section!r} in the "
                f"RandAugment policy {text!r}"
            )
        if attribute in values:
            raise ValueError(f"{name!r} appears twice in the RandAugment policy {text!r}")
        values[attribute] = _value(attribute, float(number))
    if "operations" in values:
        values["increasing"] = True
    policy = Policy(**values)
    if policy.weights is not None and policy.layers > len(policy.operations):
        raise ValueError(
            f"expected at most n{len(policy.operations)} in the RandAugment policy {text!r}, whose "
            "operations are chosen by weights and none twice"
        )
    return policy


def _operations(name: str, text: str) -> dict[str, Any]:
    """Returns the attributes of a policy that its set of operations decides."""
    if name not in _SETS:
        raise ValueError(
            f"unknown set {name!r} of operations in the RandAugment policy {text!r}"
            f"{suggestion(name, _SETS)}; there are {', '.join(_SETS)}"
        )
    found = _SETS[name]
    weights = tuple(found.values()) if isinstance(found, dict) else None
    return {"operations": tuple(found), "weights": weights}


def _value(attribute: str, number: float) -> float | int | bool:
    if attribute == "layers":
        return int(number)
    if attribute == "increasing":
        return bool(number)
    if attribute == "magnitude_std" and number > LARGEST_STD:
        return math.inf
    return number


def argument(name: str, magnitude: Any, sign: Any, *, increasing: bool, numpy: Any) -> Any:
    """Returns the argument of an operation's function.

    Args:
      name: of the operation.
      magnitude: 0 to 10, or above if the policy allows it; a float or an array.
      sign: -1 or 1, of the same shape; ignored by operations without a direction.
      increasing: as in `Policy`.
      numpy: the array module of both, numpy or jax.numpy.

    Returns:
      Rotate: degrees counter-clockwise. ShearX, ShearY: slope. TranslateX, TranslateY: part of
      the width or height. Posterize: bits to keep. Solarize: the first level to invert.
      SolarizeAdd: levels to add. Color, Contrast, Brightness, Sharpness: enhancement factor.
      Desaturate: part of the colour to remove. GaussianBlur: standard deviation in pixels.
      AutoContrast, Equalize, Invert: 0, unused.
    """
    table = _INCREASING if increasing and name in _INCREASING else _ARGUMENTS
    return table[name](magnitude / FULL_MAGNITUDE, sign, numpy)


def _unused(part: Any, sign: Any, numpy: Any) -> Any:
    return part * 0.0


def _shear(part: Any, sign: Any, numpy: Any) -> Any:
    return sign * (part * 0.3)


def _translation(part: Any, sign: Any, numpy: Any) -> Any:
    return sign * (part * 0.45)


def _enhancement(part: Any, sign: Any, numpy: Any) -> Any:
    return part * 1.8 + 0.1


def _increasing_enhancement(part: Any, sign: Any, numpy: Any) -> Any:
    return numpy.maximum(0.1, 1.0 + sign * (part * 0.9))


def _bits(part: Any, sign: Any, numpy: Any) -> Any:
    return numpy.trunc(part * 4)


def _threshold(part: Any, sign: Any, numpy: Any) -> Any:
    return numpy.minimum(256, numpy.trunc(part * 256))


_ARGUMENTS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "AutoContrast": _unused,
    "Equalize": _unused,
    "Invert": _unused,
    "Rotate": lambda part, sign, numpy: sign * (part * 30.0),
    "Posterize": _bits,
    "Solarize": _threshold,
    "SolarizeAdd": lambda part, sign, numpy: numpy.minimum(128, numpy.trunc(part * 110)),
    **dict.fromkeys(ENHANCING, _enhancement),
    "ShearX": _shear,
    "ShearY": _shear,
    "TranslateX": _translation,
    "TranslateY": _translation,
    "Desaturate": lambda part, sign, numpy: 0.5 + (1.0 - 0.5) * numpy.minimum(part, 1.0),
    "GaussianBlur": lambda part, sign, numpy: 0.1 + (2.0 - 0.1) * numpy.minimum(part, 1.0),
}
_INCREASING: dict[str, Callable[[Any, Any, Any], Any]] = {
    "Posterize": lambda part, sign, numpy: 4 - _bits(part, sign, numpy),
    "Solarize": lambda part, sign, numpy: 256 - _threshold(part, sign, numpy),
    **dict.fromkeys(ENHANCING, _increasing_enhancement),
}
