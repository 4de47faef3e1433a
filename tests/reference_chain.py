"""The two-order chain of Real-ESRGAN as published (Wang et al., 2021): a sample at a time, a step at a time.

Written from the paper and the settings published with it (`train_realesrgan_x4plus`), and from the docstrings of
`bdg_fast.data.degrade` where this project says to differ: edges, fixed photons of Poisson noise, clamping after each
step, resizing by exact areas and by the pixels there are, whole qualities of JPEG files. In float64 and plain loops;
random numbers are the project's own (see `reference_degrade`), twelve for each step.
"""

import math

import numpy as np
import torch
from PIL import Image
from scipy import special

from bdg_fast.kernels.pixelwise import derived_seeds, uniforms
from reference_degrade import convolved, cubic, jpeg, kernel_of, normals, poisson_numbers, turned

BORDER = "mirror"
"""Of convolutions, by scipy's name: edges are mirrored, without the last pixel."""
NUMBERS = 11
"""What the chain's uniform numbers are drawn for."""
FAMILIES = ("round", "oblong", "generalized round", "generalized oblong", "plateau round", "plateau oblong")
METHODS = ("area", "bilinear", "bicubic")
PUBLISHED = (
    {
        "blur": 1.0,
        "sinc": 0.1,
        "sigma": (0.2, 3.0),
        "resize": (0.2, 0.7, 0.1),  # up, down, keep
        "size": (0.15, 1.5),
        "noise": (1.0, 30.0),
        "poisson": (0.05, 3.0),
        "gray": 0.4,
        "quality": (30.0, 95.0),
        "final": 0.0,
    },
    {
        "blur": 0.8,
        "sinc": 0.1,
        "sigma": (0.2, 1.5),
        "resize": (0.3, 0.4, 0.3),
        "size": (0.3, 1.2),
        "noise": (1.0, 25.0),
        "poisson": (0.05, 2.5),
        "gray": 0.4,
        "quality": (30.0, 95.0),
        "final": 0.8,
    },
)


def between(limits, share):
    return limits[0] + (limits[1] - limits[0]) * share


def radius_of(share):
    """Sides of 7, 9, ... 21 pixels, equally likely."""
    return 3 + math.floor(8 * share)


def blur_kernel(draw, order):
    """A kernel `[2 r + 1, 2 r + 1]` and what it is, of twelve numbers."""
    kind, shape, size, first, second, turn, half, power, cut, whether = draw[:10]
    if whether >= order["blur"]:
        return np.ones((1, 1)), "no blur"
    radius = radius_of(size)
    if kind < order["sinc"]:
        return sinc_kernel(radius, between((math.pi / 3 if 2 * radius + 1 < 13 else math.pi / 5, math.pi), cut)), "sinc"
    limits = np.cumsum((0.45, 0.25, 0.12, 0.03, 0.12, 0.03))
    family = FAMILIES[min(int((shape >= limits).sum()), 5)]
    wide = between(order["sigma"], first)
    tall = between(order["sigma"], second) if "oblong" in family else wide
    angle = between((-math.pi, math.pi), turn)
    low, high = (0.5, 4.0) if "generalized" in family else (1.0, 2.0)
    beta = between((low, 1.0), power) if half < 0.5 else between((1.0, high), power)

    def weight(y, x):
        along, across = turned(y, x, angle)
        q = (along / wide) ** 2 + (across / tall) ** 2
        if "plateau" in family:
            return 1 / (1 + q**beta)
        return math.exp(-0.5 * (q**beta if "generalized" in family else q))

    return kernel_of(weight, radius), family


def sinc_kernel(radius, cutoff):
    """The low pass of a cut-off in any direction."""

    def weight(y, x):
        r = math.hypot(y, x)
        return cutoff * special.j1(cutoff * r) / (2 * math.pi * r) if r else cutoff**2 / (4 * math.pi)

    return kernel_of(weight, radius)


def final_kernel(draw, order):
    """Of the last step: cut-offs from pi/3 to pi, whatever the size."""
    size, cut, whether = draw[1:4]
    if whether >= order["final"]:
        return np.ones((1, 1)), "no final filter"
    return sinc_kernel(radius_of(size), between((math.pi / 3, math.pi), cut)), "final sinc"


def blurred(image, kernel):
    return np.clip(convolved(image, kernel, BORDER), 0, 1)


def axis(before, after, method):
    """Weights `[after, before]`; those of pixels that are not there go to the others."""
    factor = before / after
    weights = np.zeros((after, before))
    for i in range(after):
        for j in range(before):
            distance = j + 0.5 - (i + 0.5) * factor
            if method == "area":  # that pixels of both sizes have in common
                weights[i, j] = max(0.0, min((i + 1) * factor, j + 1) - max(i * factor, j))
            elif method == "bilinear":
                weights[i, j] = max(0.0, 1 - abs(distance))
            else:
                weights[i, j] = cubic(distance, -0.75)
    return weights / weights.sum(1, keepdims=True)


def method_of(share):
    return METHODS[min(int(3 * share), 2)]


def resized(image, height, width, method):
    rows, columns = axis(image.shape[1], height, method), axis(image.shape[2], width, method)
    return np.clip(rows @ image @ columns.T, 0, 1)


def noisy(image, draw, order, normal):
    """The image with noise, and which."""
    kind, strength, gray = draw[:3]
    alike = gray < order["gray"]
    if alike:
        normal = np.broadcast_to(normal[:1], image.shape)
    if kind < 0.5:
        change = between(order["noise"], strength) / 255 * normal
    else:
        bright = image
        if alike:
            bright = np.broadcast_to(0.299 * image[:1] + 0.587 * image[1:2] + 0.114 * image[2:], image.shape)
        change = between(order["poisson"], strength) * (poisson_numbers(bright * 256, normal) / 256 - bright)
    told = ("Gaussian" if kind < 0.5 else "Poisson") + (", gray" if alike else ", colour")
    return np.clip(image + change, 0, 1), told


def chain(image, seed):
    """The sample after each of its eight steps, and what was chosen in them.

    Args:
        image: float64 `[3, H, W]` in [0, 1].
        seed: a whole number of 64 bits.

    Returns:
        Eight images of their own sizes, and eight tuples of words.
    """
    _, height, width = image.shape
    canvas = math.ceil(1.5 * height), math.ceil(1.5 * width)  # pixels are numbered for noise on the largest size
    states, told = [], []
    for step in range(8):
        order, own = PUBLISHED[step // 4], derived_seeds(torch.tensor([seed]), step)
        draw = uniforms(own, 3, NUMBERS)[0].double().numpy().ravel()
        if step % 4 == 0:
            kernel, word = blur_kernel(draw, order)
            image, words = blurred(image, kernel), (word,)
        elif step % 4 == 1:
            (up, down, _), scale, word = order["resize"], 1.0, "keep"
            if draw[0] < up:
                scale, word = between((1.0, order["size"][1]), draw[1]), "up"
            elif draw[0] < up + down:
                scale, word = between((order["size"][0], 1.0), draw[1]), "down"
            size = (max(1, math.floor(side * scale)) for side in (height, width))
            image, words = resized(image, *size, method_of(draw[2])), (word, method_of(draw[2]))
        elif step % 4 == 2:
            normal = normals(own.item(), *canvas, 0)[:, : image.shape[1], : image.shape[2]]
            image, word = noisy(image, draw, order, normal)
            words = (word,)
        elif step == 3:
            image, words = jpeg(image, between(order["quality"], draw[0])), ()
        else:
            kernel, word = final_kernel(draw, order)
            method, before = method_of(draw[5]), draw[4] < 0.5
            if before:
                image = blurred(resized(image, height, width, method), kernel)
            image = jpeg(image, between(order["quality"], draw[0]))
            if not before:
                image = blurred(resized(image, height, width, method), kernel)
            words = (word, method, "before JPEG" if before else "after JPEG")
        states.append(image)
        told.append(words)
    return states, told


def as_taken(image, height, width):
    """At the original size, by Pillow's bicubic filter, in whole levels of 1/255."""
    channels = [Image.fromarray(channel.astype(np.float32)) for channel in image]
    full = np.stack([np.array(channel.resize((width, height), Image.Resampling.BICUBIC)) for channel in channels])
    return np.rint(np.clip(full, 0, 1).astype(float) * 255) / 255
