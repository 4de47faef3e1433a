"""Degradations as their docstrings define them: a sample at a time, in float64, by plain loops.

Nothing here calls what it is to check. Only random numbers are the project's own, a function of a sample's seed: they
are held to published vectors and to each other in `test_noise.py`, `test_draws.py` and `test_degrade.py`. Convolutions
are scipy's, with the edge replicated.
"""

import io
import math

import numpy as np
import torch
from PIL import Image
from scipy import ndimage, special, stats

from bdg_fast.kernels.pixelwise import image_normals, uniforms

NOISE, POISSON, ANISOTROPIC, MOTION, RAIN, DROPS, SMALL_SNOW, LARGE_SNOW, HAZE, RELIEF, LOWLIGHT = range(11)
"""What numbers of a seed are drawn for: a change would give other pictures for the same seeds."""


def numbers(seed, purpose, count=1):
    """Uniform numbers `[4, count]`."""
    return uniforms(torch.tensor([seed]), count, purpose)[0].double().numpy()


def normals(seed, height, width, purpose):
    """Standard normals `[3, height, width]`."""
    return image_normals(torch.tensor([seed]), height, width, purpose)[0].double().numpy()


def convolved(image, kernel, border="nearest"):
    """`[C, H, W]`, each channel by one kernel, which is its own mirror image."""
    return np.stack([ndimage.correlate(channel, kernel, mode=border) for channel in image])


def kernel_of(weight, radius):
    """`weight(y, x)` at all whole numbers up to `radius` both ways, scaled to sum 1."""
    kernel = np.zeros((2 * radius + 1, 2 * radius + 1))
    for y in range(-radius, radius + 1):
        for x in range(-radius, radius + 1):
            kernel[y + radius, x + radius] = weight(y, x)
    return kernel / kernel.sum()


def turned(y, x, angle):
    """Coordinates along a direction, `angle` from the horizontal, and across it."""
    return x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)


def on_segment(y, x, length, angle):
    """1 minus the distance of a pixel from a segment of `length - 1` through the origin, at least 0."""
    reach = (length - 1) / 2
    along, _ = turned(y, x, angle)
    along = min(max(along, -reach), reach)  # of the segment's nearest point
    return max(0.0, 1 - math.hypot(x - along * math.cos(angle), y - along * math.sin(angle)))


def noise(image, level, seed):
    return image + level / 255 * normals(seed, *image.shape[1:], NOISE)


def poisson_numbers(mean, normal):
    """Up to 5 the quantile that scipy finds; beyond, Cornish and Fisher's expansion of it."""
    mean, normal = np.broadcast_arrays(mean, normal)
    rank = np.minimum(special.ndtr(normal), 1 - 1e-6)
    few = np.maximum(stats.poisson.ppf(rank, np.minimum(mean, 5)), 0)
    root = np.sqrt(np.maximum(mean, 5))
    expansion = root**2 + np.sqrt(root**2 - 1 / 12) * normal
    expansion += (normal**2 - 1) / 6 + (normal - normal**3) / (72 * root)
    return np.where(mean <= 5, np.where(mean == 0, 0, few), np.maximum(np.rint(expansion), 0))


def poisson(image, level, seed):
    photons = 255 / level
    return poisson_numbers(image * photons, normals(seed, *image.shape[1:], POISSON)) / photons


def anisotropic_blur(image, level, seed):
    turn, share = numbers(seed, ANISOTROPIC)[:2, 0]
    narrow = level * (0.2 + (0.7 - 0.2) * share)

    def weight(y, x):
        along, across = turned(y, x, turn * math.pi)
        return math.exp(-((along / level) ** 2) / 2 - (across / narrow) ** 2 / 2)

    return convolved(image, kernel_of(weight, 12))


def motion_blur(image, level, seed):
    angle = numbers(seed, MOTION)[0, 0] * math.pi
    return convolved(image, kernel_of(lambda y, x: on_segment(y, x, level, angle), 14))


def drops(height, width, percent, seed, purpose):
    """`(y, x, brightness)` of each."""
    where, bright, _, _ = numbers(seed, purpose, height * width)
    for place in range(height * width):
        if where[place] < percent / 100:
            yield *divmod(place, width), 0.5 + 0.5 * bright[place]


def screened(image, cover):
    """White that covers a share of each pixel."""
    return image * (1 - cover) + cover


def rain(image, level, seed):
    _, height, width = image.shape
    turn, size = numbers(seed, RAIN)[:2, 0]
    length, angle = 9 + (17 - 9) * size, math.radians(70 + (110 - 70) * turn)
    streaks = np.zeros((height, width))
    for top, left, bright in drops(height, width, level, seed, DROPS):
        for y in range(height):
            for x in range(max(left - 9, 0), min(left + 10, width)):
                streaks[y, x] += bright * on_segment(y - top, x - left, length, angle)
    return screened(image, 0.6 * np.minimum(streaks, 1))


def snow(image, level, seed):
    _, height, width = image.shape
    flakes = np.zeros((height, width))
    for purpose, share, sigma, radius in ((SMALL_SNOW, 0.7, 0.9, 3), (LARGE_SNOW, 0.3, 1.8, 6)):
        spots = np.zeros((1, height, width))
        for y, x, bright in drops(height, width, share * level, seed, purpose):
            spots[0, y, x] = bright
        kernel = kernel_of(lambda y, x, sigma=sigma: math.exp(-(y**2 + x**2) / (2 * sigma**2)), radius)
        flakes += 2 * math.pi * sigma**2 * convolved(spots, kernel)[0]
    return screened(image, np.minimum(flakes, 0.95))


def cubic(distance, a):
    """Keys' kernel."""
    x = abs(distance)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def haze(image, level, seed):
    _, height, width = image.shape
    grid = numbers(seed, RELIEF, 4)
    air = 0.75 + (0.95 - 0.75) * numbers(seed, HAZE)[0, 0]
    found = np.empty_like(image)
    for y in range(height):
        for x in range(width):
            v, u = (3 * at / (side - 1) if side > 1 else 0.0 for at, side in ((y, height), (x, width)))
            relief = 0.0
            for row in range(math.floor(v) - 1, math.floor(v) + 3):
                for column in range(math.floor(u) - 1, math.floor(u) + 3):
                    weight = cubic(v - row, -0.75) * cubic(u - column, -0.75)
                    relief += weight * grid[min(max(row, 0), 3), min(max(column, 0), 3)]
            down = y / (height - 1) if height > 1 else 0.0
            depth = (1 - 0.6 * down) * (0.6 + 0.4 * min(max(relief, 0.0), 1.0))
            through = math.exp(-level * depth)
            found[:, y, x] = image[:, y, x] * through + air * (1 - through)
    return found


def low_light(image, level, seed):
    dark = image**level
    return dark + np.sqrt(dark / 400 + (1.5 / 255) ** 2) * normals(seed, *image.shape[1:], LOWLIGHT)


def tables(quality):
    """Steps of luma and chroma, `[8, 8]` each: Pillow's, of a file of that quality."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG", quality=quality)
    found = Image.open(file).quantization
    return [np.array(found[number], dtype=float).reshape(8, 8) for number in (0, 1)]


def coded(plane, steps):
    """A plane of whole blocks of 8 x 8 in 0..255 by the cosine transform, its coefficients in whole `steps`."""
    matrix = np.array([[math.cos(math.pi * k * (2 * i + 1) / 16) / 2 for i in range(8)] for k in range(8)])
    matrix[0] /= math.sqrt(2)
    found = np.empty(plane.shape)
    for y in range(0, plane.shape[0], 8):
        for x in range(0, plane.shape[1], 8):
            coefficients = matrix @ (plane[y : y + 8, x : x + 8] - 128) @ matrix.T
            whole = np.floor(np.abs(coefficients) / steps + 0.5 + 1e-4)  # halves away from 0
            found[y : y + 8, x : x + 8] = matrix.T @ (np.sign(coefficients) * whole * steps) @ matrix + 128
    return np.clip(np.floor(found + 0.5 + 1e-4), 0, 255).astype(int)  # halves up


def fixed(number):
    """In whole numbers of 1/65536, as libjpeg has JFIF's five decimals."""
    return math.floor(number * 65536 + 0.5)


def jpeg(image, quality):
    """What libjpeg makes of a file, but for cosine transforms without rounding; chroma is halved both ways."""
    _, height, width = image.shape
    luma_steps, chroma_steps = tables(round(quality))
    red, green, blue = np.rint(np.clip(image, 0, 1) * 255).astype(int)
    luma = fixed(0.299) * red + fixed(0.587) * green + fixed(0.114) * blue
    blueness = fixed(0.5) * blue - fixed(0.16874) * red - fixed(0.33126) * green
    redness = fixed(0.5) * red - fixed(0.41869) * green - fixed(0.08131) * blue
    planes = [(luma + 32768) >> 16, *(((chroma + 32767) >> 16) + 128 for chroma in (blueness, redness))]
    planes = [np.pad(plane, ((0, -height % 16), (0, -width % 16)), mode="edge") for plane in planes]
    luma = coded(planes[0], luma_steps)[:height, :width]
    chroma = []
    for plane in planes[1:]:
        total = plane[::2, ::2] + plane[::2, 1::2] + plane[1::2, ::2] + plane[1::2, 1::2]
        half = (total + 1 + np.arange(total.shape[1]) % 2) >> 2  # halves down and up in turn
        half = coded(half, chroma_steps)[: (height + 1) // 2, : (width + 1) // 2]
        chroma.append(doubled(half)[:height, :width] - 128)
    blueness, redness = chroma
    decoded = (
        luma + ((fixed(1.402) * redness + 32768) >> 16),
        luma + ((32768 - fixed(0.34414) * blueness - fixed(0.71414) * redness) >> 16),
        luma + ((fixed(1.772) * blueness + 32768) >> 16),
    )
    return np.clip(np.stack(decoded), 0, 255) / 255


def doubled(half):
    """Of twice the size: 3/4 of the nearest pixel and 1/4 of the next, both ways; halves up and down in turn."""
    near = np.pad(half, 1, mode="edge")
    full = np.empty((2 * half.shape[0], 2 * half.shape[1]), dtype=int)
    for y in range(full.shape[0]):
        for x in range(full.shape[1]):
            row, column = y // 2 + 1, x // 2 + 1  # in `near`
            next_row, next_column = row + (1 if y % 2 else -1), column + (1 if x % 2 else -1)
            total = 9 * near[row, column] + 3 * near[row, next_column]
            total += 3 * near[next_row, column] + near[next_row, next_column]
            full[y, x] = (total + (7 if x % 2 else 8)) >> 4
    return full


KINDS = {
    "noise": noise,
    "poisson": poisson,
    "anisotropic_blur": anisotropic_blur,
    "motion_blur": motion_blur,
    "rain": rain,
    "snow": snow,
    "haze": haze,
    "lowlight": low_light,
}
"""Functions of an image float64 `[3, H, W]` in [0, 1], a level and a seed, to images of any range."""
