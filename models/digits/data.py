"""Scikit-learn's own digits: 1,797 images of 8 by 8, a part of them for training and the rest for judging."""

import numpy as np
from sklearn.datasets import load_digits

SEED = 4
# For judging; training never sees them.
HELD_BACK = 450


def split():
    """Images FP32 [n, 64] from 0 to 16 and labels INT64 [n] for training, then those held back; the same each time."""
    digits = load_digits()
    images, labels = digits.data.astype(np.float32), digits.target.astype(np.int64)
    order = np.random.default_rng(SEED).permutation(len(images))
    judged, trained = order[:HELD_BACK], order[HELD_BACK:]
    return images[trained], labels[trained], images[judged], labels[judged]
