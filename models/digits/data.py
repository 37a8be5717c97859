"""Scikit-learn's own digits: 1,797 images of 8 by 8 pixels; who has which of them, and what all are judged by."""

import numpy as np
from sklearn.datasets import load_digits

SEED = 4
# For judging; no training sees them.
HELD_BACK = 450
# The author of the package has so many of the others, and the sites have the rest.
AUTHORS = 100
# By site, the digits that it never gets to see. Each of the others goes to those who see it in turn.
UNSEEN = ((7, 8, 9), (0, 1, 2), (3, 4, 5))
# Of its images a site holds back each one of so many, to judge models by.
ONE_IN = 4


def split():
    """Images FP32 [n, 64] from 0 to 16 and labels INT64 [n] for training, then those held back; the same each time."""
    digits = load_digits()
    images, labels = digits.data.astype(np.float32), digits.target.astype(np.int64)
    order = np.random.default_rng(SEED).permutation(len(images))
    judged, trained = order[:HELD_BACK], order[HELD_BACK:]
    return images[trained], labels[trained], images[judged], labels[judged]


def authors():
    """What the author has for training: images and labels."""
    images, labels, _, _ = split()
    return images[:AUTHORS], labels[:AUTHORS]


def sites():
    """For each site: images and labels to train on, then those that it holds back."""
    images, labels, _, _ = split()
    rows = [[] for _ in UNSEEN]
    for digit in range(10):
        seers = [site for site, unseen in enumerate(UNSEEN) if digit not in unseen]
        for turn, row in enumerate(AUTHORS + np.flatnonzero(labels[AUTHORS:] == digit)):
            rows[seers[turn % len(seers)]].append(row)
    found = []
    for mine in map(np.sort, rows):
        held = np.arange(len(mine)) % ONE_IN == 0
        found.append((images[mine[~held]], labels[mine[~held]], images[mine[held]], labels[mine[held]]))
    return found
