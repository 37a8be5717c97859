"""quickstart: A Flower / NumPy app."""

import numpy as np

FEATURES = 6
# What all partitions have in common.
TRUTH = np.array([1.0, -2.0, 0.5, 0.0, 1.5, -1.0])


def get_model():
    """The weights and the bias of a logistic regression."""
    return [np.zeros(FEATURES), np.zeros(1)]


def load_data(partition_id: int, num_partitions: int):
    """Load partition of the data: features, labels."""
    rng = np.random.default_rng(partition_id)
    x = rng.normal(partition_id / num_partitions, 1.0, (200, FEATURES))
    y = (x @ TRUTH + rng.normal(0, 0.1, 200) > 0).astype(float)
    return (x[:150], y[:150]), (x[150:], y[150:])


def train(model, data, epochs: int, lr: float):
    """Train the model on the training set."""
    (weights, bias), (x, y) = model, data
    for _ in range(epochs):
        wrong = _predict(weights, bias, x) - y
        weights = weights - lr * x.T @ wrong / len(y)
        bias = bias - lr * wrong.mean(keepdims=True)
    return [weights, bias], _loss(weights, bias, x, y)


def test(model, data):
    """Validate the model on the test set."""
    (weights, bias), (x, y) = model, data
    accuracy = ((_predict(weights, bias, x) > 0.5) == y).mean()
    return _loss(weights, bias, x, y), float(accuracy)


def _predict(weights, bias, x):
    return 1 / (1 + np.exp(-(x @ weights + bias)))


def _loss(weights, bias, x, y):
    p = np.clip(_predict(weights, bias, x), 1e-9, 1 - 1e-9)
    return float(-(y * np.log(p) + (1 - y) * np.log(1 - p)).mean())
