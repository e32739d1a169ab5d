"""The data of every model, made from scikit-learn's 1797 handwritten digits.

`load("digits_resnet")` gives the same `Split` every time and needs no network: the digits come with scikit-learn,
and all chance is a frozen `RandomState`. No test input is made from an image that training saw.
Every model answers with one score per class along axis 1, so `decisions` and `accuracy` are the same for all.
Nothing here knows of torch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Examples = tuple[tuple[Floats, ...], Integers]

SEED = 0
TEST_IMAGES = 450
NOISE = 0.15
FRAMES = 4
DIRECTIONS = ((-1, 0), (1, 0), (0, -1), (0, 1))


@dataclass(frozen=True)
class Split:
    """Inputs, one array for each argument of the network, and integer labels, for training and for testing."""

    train_x: tuple[Floats, ...]
    train_y: Integers
    test_x: tuple[Floats, ...]
    test_y: Integers


@dataclass(frozen=True)
class Task:
    """What is asked of a network: `make(images, digits, random)` gives its examples."""

    question: str
    classes: int
    make: Callable[[Floats, Integers, np.random.RandomState], Examples]


def load(name: str) -> Split:
    """The examples of the model called `name`."""
    random = np.random.RandomState(SEED)
    pixels, digits = load_digits(return_X_y=True)
    order = random.permutation(len(digits))
    images, digits = (pixels[order] / 16).astype(np.float32).reshape(-1, 8, 8), digits[order].astype(np.int64)
    make = TASKS[name].make
    train_x, train_y = make(images[TEST_IMAGES:], digits[TEST_IMAGES:], random)
    test_x, test_y = make(images[:TEST_IMAGES], digits[:TEST_IMAGES], random)
    return Split(train_x, train_y, test_x, test_y)


def decisions(name: str, outputs: NDArray[np.floating]) -> Integers:
    """The class with the highest score, for each example (each pixel for digits_unet)."""
    classes = TASKS[name].classes
    if outputs.ndim < 2 or outputs.shape[1] != classes:
        raise ValueError(f"{name} answers with {classes} scores along axis 1, not with shape {outputs.shape}")
    return outputs.argmax(axis=1).astype(np.int64)


def accuracy(name: str, outputs: NDArray[np.floating], labels: Integers) -> float:
    """The share of decisions that agree with the labels."""
    decided = decisions(name, outputs)
    if decided.shape != labels.shape:
        raise ValueError(f"{name}: {decided.shape} decisions for {labels.shape} labels")
    return float((decided == labels).mean())


def as_image(images: Floats, digits: Integers, random: np.random.RandomState) -> Examples:
    return (images[:, None],), digits


def as_rows(images: Floats, digits: Integers, random: np.random.RandomState) -> Examples:
    return (images,), digits


def as_table(images: Floats, digits: Integers, random: np.random.RandomState) -> Examples:
    return (images.reshape(-1, 64),), digits


def as_noisy(images: Floats, digits: Integers, random: np.random.RandomState) -> Examples:
    noise = random.normal(0, NOISE, images.shape).astype(np.float32)
    return ((images + noise)[:, None],), (images > 0.4).astype(np.int64)


def as_clip(images: Floats, digits: Integers, random: np.random.RandomState) -> Examples:
    labels = random.randint(len(DIRECTIONS), size=len(images)).astype(np.int64)
    clips = [
        [np.roll(image, (time * DIRECTIONS[label][0], time * DIRECTIONS[label][1]), (0, 1)) for time in range(FRAMES)]
        for image, label in zip(images, labels, strict=True)
    ]
    return (np.asarray(clips, dtype=np.float32)[:, None],), labels


def as_pairs(images: Floats, digits: Integers, random: np.random.RandomState) -> Examples:
    """Four pairs per image, half of them of the same digit; no image is paired with itself."""
    left = np.repeat(np.arange(len(digits)), 4)
    same = np.tile([1, 1, 0, 0], len(digits))
    matches = digits[left, None] == digits[None, :]
    wanted = np.where(same[:, None] == 1, matches, ~matches)
    wanted[np.arange(len(left)), left] = False
    right = np.array([random.choice(np.flatnonzero(row)) for row in wanted])
    return (images[left, None], images[right, None]), same.astype(np.int64)


DIGIT = Task("which digit, from an image", 10, as_image)

TASKS: dict[str, Task] = {
    "digits_resnet": DIGIT,
    "digits_mobilenet": DIGIT,
    "digits_densenet": DIGIT,
    "digits_repvgg": DIGIT,
    "digits_levit": DIGIT,
    "digits_convmixer": DIGIT,
    "digits_unet": Task("which pixels are ink, from a noisy image", 2, as_noisy),
    "digits_conv1d": Task("which digit, from 8 rows as channels", 10, as_rows),
    "digits_conv3d": Task("which way the digit moves, from 4 frames", 4, as_clip),
    "digits_mlp": Task("which digit, from 64 numbers", 10, as_table),
    "digits_siamese": Task("the same digit or not, from two images", 2, as_pairs),
    "digits_demo": DIGIT,
}
