"""A recipe that is a PyTorch module, and the loop that trains it: plain, on one machine, the same each time."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from nearmesh.errors import NotInstalled
from nearmesh_agent.training.data import Data
from nearmesh_agent.training.failures import Diverged, RecipeError
from nearmesh_agent.training.recipe import LOSS, Array, Arrays, Metrics, Settings, check, said_metrics

if TYPE_CHECKING:
    import torch

# Where the settings do not say.
EPOCHS, BATCH_SIZE, LEARNING_RATE = 1, 32, 0.01
# Rows at a time where nothing is learnt from them; bounds memory.
ROWS = 256


def need_torch() -> None:
    """Raises NotInstalled."""
    if importlib.util.find_spec("torch") is None:
        raise NotInstalled("this recipe is a PyTorch module: pip install 'nearmesh-agent[torch]' on this node")


class TorchRecipe:
    """The module that `model` of a recipe file makes, with the mesh's loop around it."""

    def __init__(self, module: ModuleType, *, device: str = "cpu", threads: int = 1) -> None:
        import torch

        self._torch = torch
        self._module = module
        self._device = torch.device(device)
        torch.set_num_threads(threads)

    def train(self, arrays: Arrays, data: Data, settings: Settings) -> tuple[Arrays, Metrics]:
        """Epochs over shuffled batches. Deterministic on a processor, given the seed in the settings."""
        torch = self._torch
        model = self._model(arrays)
        torch.manual_seed(int(settings.get("seed", 0)))
        began = [(one, one.detach().clone()) for one in model.parameters() if one.requires_grad]
        pull = float(settings.get("proximal-mu", 0.0))
        optimizer = self._optimizer(model, settings)
        inputs, targets = self._tensors(data)
        model.train()
        mean = math.nan
        for _ in range(_whole(settings, "epochs", EPOCHS)):
            total, seen = 0.0, 0
            for rows in self._batches(len(data), _whole(settings, "batch_size", BATCH_SIZE)):
                optimizer.zero_grad()
                loss = self._loss(_called(model, inputs, rows), targets[rows])
                # What is reported is the loss itself; the pull towards the beginning is fedprox's.
                whole: Any = loss + pull / 2 * _distance(began) if pull else loss
                whole.backward()
                optimizer.step()
                total, seen = total + float(loss.detach()) * len(rows), seen + len(rows)
            mean = total / seen
            if not math.isfinite(mean):
                raise Diverged(f"the loss is {mean}; a smaller learning_rate may help")
        state = model.state_dict()
        after = {name: state[name].detach().cpu().numpy() for name in arrays}
        return check(after, arrays, "the parameters after training"), {LOSS: mean}

    def evaluate(self, arrays: Arrays, data: Data, settings: Settings) -> Metrics:
        """The loss, and the metrics of the outputs."""
        model = self._model(arrays)
        inputs, targets = self._tensors(data)
        total, parts = 0.0, []
        with self._torch.no_grad():
            for rows in self._slices(len(data)):
                outputs = _called(model, inputs, rows)
                total += float(self._loss(outputs, targets[rows])) * len(rows)
                parts.append(_arrays(outputs))
        return {LOSS: total / len(data), **self.metrics(_joined(parts), data.targets)}

    def outputs(self, arrays: Arrays, inputs: Mapping[str, Array]) -> list[Array] | None:
        """Of the module, as the graph's outputs stand in order."""
        model = self._model(arrays)
        given = self._inputs(inputs)
        with self._torch.no_grad():
            rows = len(next(iter(inputs.values())))
            return _joined([_arrays(_called(model, given, chosen)) for chosen in self._slices(rows)])

    def metrics(self, outputs: list[Array], targets: Array) -> Metrics:
        return said_metrics(self._module, outputs, targets)

    def _model(self, arrays: Arrays) -> torch.nn.Module:
        """With these parameters, ready to be asked. What rounds do not change stays as `model` made it, and is not
        trained; all that is random in making it is the same at every site."""
        self._torch.manual_seed(0)
        model: torch.nn.Module = self._module.model()
        state = model.state_dict()
        missing = sorted(arrays.keys() - state.keys())
        if missing:
            raise RecipeError(f"the module of `model` has no {', '.join(missing)}; it has {', '.join(state)}")
        check({name: state[name].cpu().numpy() for name in arrays}, arrays, "the module's own parameters")
        for name, array in arrays.items():
            state[name] = self._torch.from_numpy(array.copy())
        model.load_state_dict(state)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in arrays)
        return model.to(self._device).eval()

    def _optimizer(self, model: torch.nn.Module, settings: Settings) -> Any:
        own = getattr(self._module, "optimizer", None)
        if own is not None:
            return own(model, dict(settings))
        trained = [one for one in model.parameters() if one.requires_grad]
        rate = float(settings.get("learning_rate", LEARNING_RATE))
        return self._torch.optim.SGD(trained, lr=rate, momentum=float(settings.get("momentum", 0.0)))

    def _loss(self, outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        own = getattr(self._module, "loss", None)
        if own is not None:
            found: torch.Tensor = own(outputs, targets)
            return found
        first = outputs[0] if isinstance(outputs, tuple | list) else outputs
        if first.ndim == 2 and first.shape[1] > 1 and targets.ndim == 1 and not targets.is_floating_point():
            return self._torch.nn.functional.cross_entropy(first, targets)
        return self._torch.nn.functional.mse_loss(first, targets.to(first.dtype).reshape(first.shape))

    def _tensors(self, data: Data) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        return self._inputs(data.inputs), self._torch.tensor(data.targets, device=self._device)

    def _inputs(self, inputs: Mapping[str, Array]) -> dict[str, torch.Tensor]:
        return {name: self._torch.tensor(array, device=self._device) for name, array in inputs.items()}

    def _batches(self, rows: int, size: int) -> Iterator[torch.Tensor]:
        """Of shuffled rows. A last one of a single row is left out: layers that normalize over a batch refuse it."""
        order = self._torch.randperm(rows).to(self._device)
        for begin in range(0, rows, size):
            batch = order[begin : begin + size]
            if len(batch) > 1 or rows == 1 or size == 1:
                yield batch

    def _slices(self, rows: int) -> Iterator[torch.Tensor]:
        for begin in range(0, rows, ROWS):
            yield self._torch.arange(begin, min(begin + ROWS, rows), device=self._device)


def _called(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], rows: torch.Tensor) -> Any:
    """With its one input as it is; with several, by their names."""
    chosen = {name: tensor[rows] for name, tensor in inputs.items()}
    return model(*chosen.values()) if len(chosen) == 1 else model(**chosen)


def _distance(began: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Squared length of all that has changed, as in Li et al., Federated Optimization in Heterogeneous Networks."""
    parts = [(now - then).square().sum() for now, then in began]
    return sum(parts[1:], parts[0])


def _arrays(outputs: Any) -> list[Array]:
    return [one.cpu().numpy() for one in (outputs if isinstance(outputs, tuple | list) else (outputs,))]


def _joined(parts: list[list[Array]]) -> list[Array]:
    return [np.concatenate(of_one) for of_one in zip(*parts, strict=True)]


def _whole(settings: Settings, name: str, default: int) -> int:
    found = int(settings.get(name, default))
    if found < 1:
        raise RecipeError(f"setting {name} is {found}, expected 1 or more")
    return found
