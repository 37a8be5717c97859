"""How a site trains: two layers by stochastic gradient descent with momentum, in NumPy.

The graph is the same: each recording is brought to mean 0 and deviation 1, then layer 1, ReLU, layer 2, softmax.
"""

import numpy as np

# So that silence does not divide by nothing.
SMALLEST = 1e-5
WEIGHTS = ("layer1.weight", "layer1.bias", "layer2.weight", "layer2.bias")


def train(arrays, data, settings):
    """The arrays after `epochs` passes over the site's recordings, and the loss of the last pass."""
    seen, labels = _normal(data.inputs["logmel"]), data.targets.astype(np.int64)
    weights = {name: arrays[name].astype(np.float32) for name in WEIGHTS}
    moving = {name: np.zeros_like(weight) for name, weight in weights.items()}
    rate, momentum = np.float32(settings["learning_rate"]), np.float32(settings["momentum"])
    # The mesh gives another one in each round.
    order = np.random.default_rng(settings.get("seed", 0))
    losses = []
    for _ in range(int(settings["epochs"])):
        losses = []
        rows = order.permutation(len(labels))
        for some in np.array_split(rows, max(1, len(rows) // int(settings["batch_size"]))):
            loss, gradients = _gradients(weights, seen[some], labels[some])
            losses.append(loss)
            for name, gradient in gradients.items():
                moving[name] = momentum * moving[name] + gradient
                weights[name] -= rate * moving[name]
    return weights, {"loss": float(np.mean(losses))}


def evaluate(arrays, data, settings):
    """Share of the recordings that are understood, and the mean loss."""
    scores = outputs(arrays, data.inputs)
    right = scores[np.arange(len(scores)), data.targets.astype(np.int64)]
    return {
        "accuracy": float((scores.argmax(axis=1) == data.targets).mean()),
        "loss": float(-np.log(np.maximum(right, 1e-12)).mean()),
    }


def outputs(arrays, inputs):
    """What the graph answers."""
    _, scores = _forward(arrays, _normal(inputs["logmel"]))
    return scores


def _normal(recordings):
    flat = recordings.reshape(len(recordings), -1).astype(np.float32)
    centred = flat - flat.mean(axis=1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(axis=1, keepdims=True) + np.float32(SMALLEST))


def _forward(weights, seen):
    hidden = np.maximum(seen @ weights["layer1.weight"].T + weights["layer1.bias"], 0)
    logits = hidden @ weights["layer2.weight"].T + weights["layer2.bias"]
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return hidden, odds / odds.sum(axis=1, keepdims=True)


def _gradients(weights, seen, labels):
    """The cross-entropy of some recordings, and its slope by each weight."""
    hidden, scores = _forward(weights, seen)
    rows = np.arange(len(labels))
    loss = float(-np.log(np.maximum(scores[rows, labels], 1e-12)).mean())
    wrong = scores.copy()
    wrong[rows, labels] -= 1
    wrong /= len(labels)
    back = (wrong @ weights["layer2.weight"]) * (hidden > 0)
    return loss, {
        "layer1.weight": back.T @ seen,
        "layer1.bias": back.sum(axis=0),
        "layer2.weight": wrong.T @ hidden,
        "layer2.bias": wrong.sum(axis=0),
    }
