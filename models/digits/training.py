"""How federated rounds train the network further: the module, whose state is called as the graph's initializers are.

The mesh brings the loop, and tells it `epochs`, `batch_size`, `learning_rate` and `momentum`. Needs PyTorch.
"""

import torch

# Ink goes from 0 to 16.
MOST_INK = 16.0


class Digits(torch.nn.Module):
    """As in `train.py`."""

    def __init__(self):
        super().__init__()
        self.layer1 = torch.nn.Linear(64, 64)
        self.layer2 = torch.nn.Linear(64, 10)

    def forward(self, pixels):
        hidden = torch.relu(self.layer1(pixels / MOST_INK))
        return torch.softmax(self.layer2(hidden), dim=1)


def model():
    return Digits()


def loss(scores, digits):
    """Of probabilities, which is what the graph gives."""
    return torch.nn.functional.nll_loss(torch.log(scores + 1e-9), digits)


def metrics(scores, digits):
    """Over NumPy arrays, whoever computed the scores."""
    return {"accuracy": float((scores.argmax(axis=1) == digits).mean())}


def export(module, path):
    """For the author: the graph with the module's parameters. `train.py` writes the same one without PyTorch."""
    import onnx
    from train import graph_of

    onnx.save(graph_of({name: tensor.numpy() for name, tensor in module.state_dict().items()}), path)
