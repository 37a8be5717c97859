"""How a hospital trains: a logistic regression by stochastic gradient descent, in NumPy.

`features` is what the graph does first: findings as they are written down become 27 features. The constants are what is
usual among adults, not what any hospital has, so that nothing about a hospital's patients is needed to agree on them.
"""

import numpy as np

COLUMNS = (
    "age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca", "thal",
)  # fmt: skip
MISSING = -9.0
# Mean and deviation; what is further out than MOST deviations counts as so far.
USUAL = {
    "age": (54, 9), "trestbps": (132, 19), "chol": (230, 50), "thalach": (140, 25), "oldpeak": (1, 1), "ca": (0.7, 1),
}  # fmt: skip
MOST = 3.0
# Yes or no.
FLAGS = ("sex", "fbs", "exang")
KINDS = {"cp": (1, 2, 3, 4), "restecg": (0, 1, 2), "slope": (1, 2, 3), "thal": (3, 6, 7)}
# 0 where nobody measured: nobody lives with that.
NEVER_ZERO = ("trestbps", "chol")
# That nobody looked for it says something too.
TOLD_IF_MISSING = ("chol", "fbs", "slope", "ca", "thal")
# In the order of the weights.
FEATURES = (
    *USUAL,
    *FLAGS,
    *(f"{column}={kind}" for column, kinds in KINDS.items() for kind in kinds),
    *(f"no {column}" for column in TOLD_IF_MISSING),
)


def features(findings):
    """FP32 [n, 27] of findings FP32 [n, 13]."""
    column = {name: findings[:, at] for at, name in enumerate(COLUMNS)}
    missing = {n: (v == MISSING) | ((v == 0) & (n in NEVER_ZERO)) for n, v in column.items()}
    found = [
        np.where(missing[n], 0, np.clip((column[n] - mean) / deviation, -MOST, MOST))
        for n, (mean, deviation) in USUAL.items()
    ]
    found += [np.where(missing[n], 0, 2 * column[n] - 1) for n in FLAGS]
    found += [column[n] == kind for n, kinds in KINDS.items() for kind in kinds]
    found += [missing[n] for n in TOLD_IF_MISSING]
    return np.stack(found, axis=1).astype(np.float32)


def train(arrays, data, settings):
    """The arrays after `epochs` passes over the hospital's patients, and the loss of the last pass."""
    seen, labels = features(data.inputs["findings"]), data.targets.astype(np.int64)
    weight, bias = arrays["layer.weight"].astype(np.float32), arrays["layer.bias"].astype(np.float32)
    rate, decay = np.float32(settings["learning_rate"]), np.float32(settings["decay"])
    # The mesh gives another one in each round.
    order = np.random.default_rng(settings.get("seed", 0))
    losses = []
    for _ in range(int(settings["epochs"])):
        losses = []
        rows = order.permutation(len(labels))
        for some in np.array_split(rows, max(1, len(rows) // int(settings["batch_size"]))):
            scores = _scores(weight, bias, seen[some])
            losses.append(_loss(scores, labels[some]))
            wrong = (scores - np.eye(2, dtype=np.float32)[labels[some]]) / len(some)
            weight = weight - rate * (seen[some].T @ wrong + decay * weight)
            bias = bias - rate * wrong.sum(axis=0)
    return {"layer.weight": weight, "layer.bias": bias}, {"loss": float(np.mean(losses))}


def evaluate(arrays, data, settings):
    """Share of the patients who are judged right, and the mean loss."""
    scores = outputs(arrays, data.inputs)
    labels = data.targets.astype(np.int64)
    return {"accuracy": float((scores.argmax(axis=1) == labels).mean()), "loss": _loss(scores, labels)}


def outputs(arrays, inputs):
    """What the graph answers."""
    return _scores(arrays["layer.weight"], arrays["layer.bias"], features(inputs["findings"]))


def _scores(weight, bias, seen):
    logits = seen @ weight + bias
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def _loss(scores, labels):
    return float(-np.log(np.maximum(scores[np.arange(len(labels)), labels], 1e-12)).mean())
