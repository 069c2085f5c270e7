"""RandAugment on the device: PIL's operations on a whole batch at once.

Policy and distribution are those of the host (pit_jax.data.randaugment_host), pixels within a grey
level or two of PIL's. Every image passes through every kind of operation and keeps the result of
the one it drew: the geometric operations are one warp with a matrix per image, the enhancing ones
one blend with a degenerate image, the others maps of the 256 levels. The warp gathers and the
histogram scatters, which GPUs do well and TPUs do not.

Images are uint8 (B, H, W, 3); `operation` (B,) int32 is an index into policy.KNOWN, or NOTHING;
`value` (B,) float32 is its argument, see policy.argument.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from pit_jax.augment.policy import ENHANCING, FILL, GEOMETRIC, KNOWN, OPERATIONS, Policy, argument

NOTHING = -1
LEVELS = 256
# Weights of red, green and blue in the luma, in units of 1 / 65536.
LUMA = (19595, 38470, 7471)


def rand_augment(images: jax.Array, keys: jax.Array, policy: Policy) -> jax.Array:
    """Applies operations drawn from `keys` (B,) to images (B, H, W, 3) uint8."""
    operations, values = draw_operations(keys, policy)

    def layer(images: jax.Array, drawn: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return apply_operations(images, *drawn, among=policy.operations), None

    # A loop, since XLA does not fuse across its border: otherwise it may repeat the draws for every
    # pixel, and the warp of the first layer for every pixel of the second.
    return jax.lax.scan(layer, images, (operations.T, values.T))[0]


def draw_operations(keys: jax.Array, policy: Policy) -> tuple[jax.Array, jax.Array]:
    """Draws operations, int32 (B, layers), NOTHING where none is applied, and their arguments,
    float32 (B, layers).

    Operations are uniform with replacement, or weighted without; magnitudes are normal and clipped;
    both signs are equally likely.
    """
    places = jnp.array([KNOWN.index(name) for name in policy.operations], jnp.int32)

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        choice, applied, direction, level = jax.random.uniform(key, (4, policy.layers))
        if math.isinf(policy.magnitude_std):
            magnitude = level * policy.magnitude
        else:
            magnitude = policy.magnitude + policy.magnitude_std * jax.scipy.special.ndtri(level)
        magnitude = jnp.clip(magnitude, 0.0, policy.magnitude_max)
        sign = jnp.where(direction < 0.5, 1.0, -1.0)
        if policy.weights is None:
            place = (choice * len(places)).astype(jnp.int32)
        else:
            # Gumbel top-k: the largest of Gumbel variables shifted by the logarithms of the weights
            # are a weighted draw without replacement.
            scores = jnp.log(jnp.array(policy.weights))
            scores += jax.random.gumbel(jax.random.fold_in(key, 1), scores.shape)
            place = jax.lax.top_k(scores, policy.layers)[1]
        operation = places[place]
        value = _arguments(operation, magnitude, sign, policy)
        return jnp.where(applied < policy.probability, operation, NOTHING), value

    return jax.vmap(draw)(keys)


def _arguments(
    operation: jax.Array, magnitude: jax.Array, sign: jax.Array, policy: Policy
) -> jax.Array:
    """Returns the argument of each operation; all arrays have one shape."""
    table = [
        argument(name, magnitude, sign, increasing=policy.increasing, numpy=jnp)
        for name in policy.operations
    ]
    return jnp.select([operation == KNOWN.index(name) for name in policy.operations], table)


def apply_operations(
    images: jax.Array,
    operation: jax.Array,
    value: jax.Array,
    *,
    among: Sequence[str] = OPERATIONS,
) -> jax.Array:
    """Applies one operation to each image; `among` names the operations that can occur."""
    if "Desaturate" in among:
        desaturates = operation == KNOWN.index("Desaturate")
        operation = jnp.where(desaturates, KNOWN.index("Color"), operation)
        value = jnp.where(desaturates, 1.0 - value, value)
    result = jnp.where(_drawn(operation, GEOMETRIC), _warp(images, operation, value), images)
    result = jnp.where(_drawn(operation, ENHANCING), _enhance(images, operation, value), result)
    result = jnp.where(
        _drawn(operation, _LEVEL_MAPS), _map_levels(images, operation, value), result
    )
    if "GaussianBlur" in among:
        result = jnp.where(_is(operation, "GaussianBlur"), _blur(images, value), result)
    return result


def _is(operation: jax.Array, name: str) -> jax.Array:
    """Marks the images that drew an operation: (B, 1, 1, 1)."""
    return (operation == KNOWN.index(name))[:, None, None, None]


def _drawn(operation: jax.Array, names: tuple[str, ...]) -> jax.Array:
    """Marks the images that drew one of several operations: (B, 1, 1, 1)."""
    return jnp.isin(operation, jnp.array([KNOWN.index(name) for name in names]))[
        :, None, None, None
    ]


# Geometric operations.


def _matrices(
    operation: jax.Array, value: jax.Array, size: tuple[int, int]
) -> tuple[jax.Array, ...]:
    """Returns six (B,) coefficients: the result at (x, y) shows (ax + by + c, dx + ey + f)."""
    height, width = size
    angle = -jnp.deg2rad(value)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    rotates, shears_x, shears_y, moves_x, moves_y = (
        operation == KNOWN.index(name) for name in GEOMETRIC
    )
    a = e = jnp.where(rotates, cosine, 1.0)
    b = jnp.where(rotates, sine, jnp.where(shears_x, value, 0.0))
    d = jnp.where(rotates, -sine, jnp.where(shears_y, value, 0.0))
    # A rotation keeps the centre of the image in place, a shear its upper left corner.
    c = width / 2 - cosine * (width / 2) - sine * (height / 2)
    f = height / 2 + sine * (width / 2) - cosine * (height / 2)
    c = jnp.where(rotates, c, jnp.where(moves_x, value * width, 0.0))
    f = jnp.where(rotates, f, jnp.where(moves_y, value * height, 0.0))
    return a, b, c, d, e, f


def _warp(images: jax.Array, operation: jax.Array, value: jax.Array) -> jax.Array:
    """Warps as PIL's affine transform: bicubic without antialiasing, `FILL` outside the image."""
    batch, height, width, _ = images.shape
    a, b, c, d, e, f = (
        coefficient[:, None, None] for coefficient in _matrices(operation, value, (height, width))
    )
    x = jnp.arange(width, dtype=jnp.float32)[None, None, :] + 0.5
    y = jnp.arange(height, dtype=jnp.float32)[None, :, None] + 0.5
    source_x, source_y = a * x + b * y + c, d * x + e * y + f  # (B, H, W)
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)

    left, above = jnp.floor(source_x - 0.5), jnp.floor(source_y - 0.5)
    part_x, part_y = source_x - 0.5 - left, source_y - 0.5 - above
    columns = [jnp.clip(left.astype(jnp.int32) + i, 0, width - 1) for i in (-1, 0, 1, 2)]
    rows = [jnp.clip(above.astype(jnp.int32) + i, 0, height - 1) for i in (-1, 0, 1, 2)]
    packed = _pack(jnp.unstack(images, axis=-1)).reshape(batch, height * width)

    def pixels(row: jax.Array, column: jax.Array) -> jax.Array:
        places = (row * width + column).reshape(batch, height * width)
        return jnp.take_along_axis(packed, places, axis=1).reshape(batch, height, width)

    taps = [[pixels(row, column) for column in columns] for row in rows]
    channels = []
    for channel in range(3):
        crossings = [_cubic([_unpack(tap, channel) for tap in row], part_x) for row in taps]
        value = jnp.clip(_cubic(crossings, part_y), 0, LEVELS - 1)
        channels.append(jnp.where(inside, value.astype(jnp.uint8), jnp.uint8(FILL[channel])))
    # Without the barrier XLA may gather all taps again for each channel of the result.
    warped = jax.lax.optimization_barrier(_pack(channels))
    return jnp.stack([_unpack(warped, channel) for channel in range(3)], -1).astype(jnp.uint8)


def _cubic(values: list[jax.Array], part: jax.Array) -> jax.Array:
    """Interpolates at `part` of the way from the second to the third of four values, by the cubic
    kernel with a = -1: PIL resizes with -0.5 but transforms with -1.
    """
    before, first, second, after = values
    slope = second - before
    bend = 2 * (before - first) + second - after
    twist = first - before - second + after
    return first + part * (slope + part * (bend + part * twist))


def _pack(channels: Sequence[jax.Array]) -> jax.Array:
    """Packs red, green and blue into one number, so that one gather fetches all three."""
    red, green, blue = (channel.astype(jnp.uint32) for channel in channels)
    return red | green << 8 | blue << 16


def _unpack(packed: jax.Array, channel: int) -> jax.Array:
    return ((packed >> (8 * channel)) & 255).astype(jnp.float32)


# Enhancing operations.


def _enhance(images: jax.Array, operation: jax.Array, value: jax.Array) -> jax.Array:
    """Enhances as PIL: away from a degenerate image (factor above 1) or towards it."""
    grey = _luma(images)
    degenerate = jnp.where(_is(operation, "Color"), grey, 0)
    degenerate = jnp.where(_is(operation, "Contrast"), _mean(grey), degenerate)
    degenerate = jnp.where(_is(operation, "Sharpness"), _smooth(images), degenerate)
    degenerate = degenerate.astype(jnp.float32)
    blended = degenerate + value[:, None, None, None] * (images.astype(jnp.float32) - degenerate)
    return jnp.clip(blended, 0, LEVELS - 1).astype(jnp.uint8)


def _luma(images: jax.Array) -> jax.Array:
    """Returns the luma, int32 (B, H, W, 1), in PIL's integer arithmetic."""
    weights = jnp.array(LUMA, jnp.int32)[None, None, None]
    total = (images.astype(jnp.int32) * weights).sum(-1, keepdims=True)
    return (total + 0x8000) >> 16


def _mean(grey: jax.Array) -> jax.Array:
    """Returns the mean over each image, rounded: int32 (B, 1, 1, 1)."""
    pixels = grey.shape[1] * grey.shape[2]
    total = grey.astype(jnp.uint32).sum((1, 2, 3), keepdims=True)
    return ((total + pixels // 2) // pixels).astype(jnp.int32)


def _smooth(images: jax.Array) -> jax.Array:
    """Applies PIL's SMOOTH filter, ones around a five over 13; the outermost pixels stay."""
    wide = images.astype(jnp.int32)
    height, width = images.shape[1:3]
    if height < 3 or width < 3:
        return wide
    rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * wide[:, 1:-1, 1:-1]
    return wide.at[:, 1:-1, 1:-1].set((2 * total + 13) // 26)


# Blurring.


def _blur(images: jax.Array, sigma: jax.Array) -> jax.Array:
    """Blurs as PIL's GaussianBlur for standard deviations (B,) of at most 2.

    Three boxes across, then three down, each rounded to levels. The ends of a box count in part, so
    that the variances add up. Weights are in units of 1 / 2^24, as PIL's: with a standard deviation
    of 1 every sixth sum is half a level.
    """
    variance = jnp.square(sigma) / 3
    whole = jnp.floor((jnp.sqrt(12 * variance + 1) - 1) / 2)  # pixels on each side, 0 or 1
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    part /= 6 * (variance - jnp.square(whole + 1))
    inside = ((1 << 24) / (2 * (whole + part) + 1)).astype(jnp.uint32)
    end = ((1 << 24) - (2 * whole.astype(jnp.uint32) + 1) * inside) // 2
    near, far = jnp.where(whole > 0, inside, end), jnp.where(whole > 0, end, 0)
    levels = images.astype(jnp.uint32)
    for axis in (2, 1):
        for _ in range(3):
            levels = _box(levels, axis, (far, near, inside, near, far))
    return levels.astype(jnp.uint8)


def _box(levels: jax.Array, axis: int, weights: Sequence[jax.Array]) -> jax.Array:
    """Sums five neighbours along an axis by weights (B,): uint32, rounded."""
    size = levels.shape[axis]
    padding = [(2, 2) if number == axis else (0, 0) for number in range(levels.ndim)]
    padded = jnp.pad(levels, padding, mode="edge")
    total = jnp.full_like(levels, 1 << 23)
    for place, weight in enumerate(weights):
        neighbour = jax.lax.slice_in_dim(padded, place, place + size, axis=axis)
        total += weight[:, None, None, None] * neighbour
    return total >> 24


# Maps of levels.

_LEVEL_MAPS = tuple(name for name in OPERATIONS if name not in GEOMETRIC + ENHANCING)


def _map_levels(images: jax.Array, operation: jax.Array, value: jax.Array) -> jax.Array:
    levels = images.astype(jnp.int32)
    number = value.astype(jnp.int32)[:, None, None, None]
    dropped = 8 - jnp.clip(number, 0, 8)
    brightened = jnp.where(levels < 128, jnp.minimum(levels + number, LEVELS - 1), levels)
    maps = {
        "AutoContrast": _stretch(levels),
        "Equalize": _equalize(levels, _is(operation, "Equalize")),
        "Invert": 255 - levels,
        "Posterize": levels >> dropped << dropped,
        "Solarize": jnp.where(levels < number, levels, 255 - levels),
        "SolarizeAdd": brightened,
    }
    result = levels
    for name, mapped in maps.items():
        result = jnp.where(_is(operation, name), mapped, result)
    return result.astype(jnp.uint8)


def _stretch(levels: jax.Array) -> jax.Array:
    """Stretches the levels of each channel: the darkest to 0, the brightest to 255."""
    low, high = levels.min((1, 2), keepdims=True), levels.max((1, 2), keepdims=True)
    return jnp.where(high > low, (levels - low) * 255 // jnp.maximum(high - low, 1), levels)


def _equalize(levels: jax.Array, wanted: jax.Array) -> jax.Array:
    """Equalises the histogram of each channel; only in images that are `wanted` (B, 1, 1, 1)."""
    batch, height, width, channels = levels.shape
    flat = levels.reshape(batch, height * width, channels).swapaxes(1, 2)  # (B, 3, HW)
    # Counting is the costly part; images that are not wanted count outside the table, for free.
    counted = jnp.where(wanted[..., 0], flat, LEVELS)
    # vmap: a scatter over explicit batch indices would be exchanged between devices.
    counts = jax.vmap(jax.vmap(_count))(counted)

    brightest = jnp.take_along_axis(counts, flat.max(-1, keepdims=True), axis=-1)
    step = (height * width - brightest) // 255
    below = jnp.cumsum(counts, axis=-1) - counts
    table = jnp.where(
        step > 0,
        jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), LEVELS - 1),
        jnp.arange(LEVELS, dtype=jnp.int32)[None, None],
    )
    equal = jnp.take_along_axis(table, flat, axis=-1)
    return equal.swapaxes(1, 2).reshape(levels.shape)


def _count(levels: jax.Array) -> jax.Array:
    """Counts how many of `levels` (N,) are 0, 1, ..., 255; others are not counted."""
    return jnp.zeros(LEVELS, jnp.int32).at[levels].add(1, mode="drop")
