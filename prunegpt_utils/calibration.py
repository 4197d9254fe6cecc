"""What criteria know of the weights: gradients and inputs, measured on calibration text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from prunegpt_utils import modeling
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.forward import eval_mode, last_hidden_states
from prunegpt_utils.tokenization import batch_indices


@dataclass
class CalibrationStats:
    """What is known about one weight matrix.

    Attributes:
        axis: dimension of the inputs, 0 for Conv1D, 1 for Linear.  generator: of random numbers.
        gradient, squared_gradient: means over calibration batches, in the shape of the weight.
        squared_inputs: E[x^2] of the inputs x of the layer, shape (inputs,).
    """

    axis: int
    generator: torch.Generator
    gradient: torch.Tensor | None = None
    squared_gradient: torch.Tensor | None = None
    squared_inputs: torch.Tensor | None = None


def calibration_batches(
    windows: torch.Tensor, batch: int, seed: int, batches: int = 16
) -> list[torch.Tensor]:
    """The first batches of training text, on which a criterion looks at the model at rest.

    Args:
        windows: int64 tensor of shape (n, block_size + 1), of which a batch has `batch` rows.
        seed: of their order.  batches: how many.
    """
    return [windows[batch_indices(len(windows), batch, k, seed)] for k in range(batches)]


def calibrate(
    model: PreTrainedModel, needs: str, batches: Sequence[torch.Tensor], loss: Callable,
    seed: int = 0,
) -> dict[str, CalibrationStats]:  # fmt: skip
    """The statistics that a criterion needs, by name of the weight; the weights stay as they are.

    Args:
        needs: `gradients`, `inputs` or "", see `criteria.Criterion`.
        batches: int64 tensors of shape (batch, block_size + 1), see `calibration_batches`.
        loss: function of a batch, a scalar with gradient.  seed: of the random scores.
    """
    stats = blank_stats(model, seed)
    with eval_mode(model):  # dropout would make other statistics of every draw
        if needs == "gradients":
            _measure_gradients(model, stats, batches, loss)
        if needs == "inputs":
            for key, mean in input_moments(model, batches, lambda x: x.square().sum(0)).items():
                stats[key].squared_inputs = mean
    return stats


def stats_from_adam(
    model: PreTrainedModel, squared_gradients: dict[str, torch.Tensor], seed: int = 0
) -> dict[str, CalibrationStats]:
    """Statistics from mean squared gradients that Adam keeps already, as its second moments."""
    stats = blank_stats(model, seed)
    for name, square in squared_gradients.items():
        stats[name].squared_gradient = square
    return stats


def blank_stats(model: PreTrainedModel, seed: int) -> dict[str, CalibrationStats]:
    """Statistics for criteria that need none: {name: CalibrationStats}."""
    generator, axes = torch.Generator().manual_seed(seed), modeling.input_axes(model)
    return {name: CalibrationStats(axis, generator) for name, axis in axes.items()}


def _measure_gradients(model, stats, batches, loss):
    weights = modeling.prunable_weights(model)
    pairs = [(stats[name], weight) for name, weight in weights.items()]
    for known, weight in pairs:
        known.gradient, known.squared_gradient = torch.zeros_like(weight), torch.zeros_like(weight)
    model.zero_grad(set_to_none=True)  # of what somebody did before
    for rows in batches:
        loss(rows).backward()
        _refuse_if_any(name for name, weight in weights.items() if weight.grad is None)
        for known, weight in pairs:
            known.gradient += weight.grad
            known.squared_gradient += weight.grad.square()
        model.zero_grad(set_to_none=True)
    for known, _ in pairs:
        known.gradient /= len(batches)
        known.squared_gradient /= len(batches)


def _refuse_if_any(missing):
    """A ParameterError for layers that calibration text does not reach."""
    for name in missing:
        allowed = "is never called with calibration text; choose a criterion that needs none"
        raise ParameterError("criterion", name, allowed)


def _products(x):
    return x.T @ x


@torch.no_grad()
def input_moments(
    model: PreTrainedModel, batches: Sequence[torch.Tensor], moment: Callable = _products
) -> dict[str, torch.Tensor]:
    """{name: E[x x^T]} of the inputs x of each prunable layer, shape (inputs, inputs).

    Args:
        batches: int64 tensors of shape (batch, block_size + 1).  moment: see `Moments`.
    """
    with Moments(modeling.prunable_layers(model), moment) as moments:
        for rows in batches:
            last_hidden_states(model, rows[:, :-1].to(model.device))
    return moments.means()


class Moments:
    """Within `with`, sums a moment over all inputs x that the layers get.

    `modules` is {name: layer}; `moment` sums something over inputs of shape (tokens, inputs).
    Layers that are always handed the very same tensor, as queries, keys and values are, have one
    sum, computed once. Whatever the precision of the model around it, it is one of float32.
    """

    def __init__(self, modules, moment=_products):
        self.modules, self.moment, self.sums = modules, moment, {}
        self.last = (None, 0, None, None)  # an input, its version, the sum before it and with it

    def __enter__(self):
        self.hooks = [
            module.register_forward_pre_hook(lambda _, inputs, name=name: self._add(name, *inputs))
            for name, module in self.modules.items()
        ]
        return self

    def __exit__(self, *_):
        self.last = (None, 0, None, None)
        for hook in self.hooks:
            hook.remove()

    def _add(self, name, x):
        before = self.sums.get(name)
        same, version, shared, _ = self.last
        if x is not same or x._version != version or before is not shared:
            rows, (total, count) = x.detach().flatten(0, -2).float(), before or (0, 0)
            with torch.autocast(x.device.type, enabled=False):
                self.last = x, x._version, before, (total + self.moment(rows), count + len(rows))
        self.sums[name] = self.last[-1]

    def shared_means(self) -> list[tuple[torch.Tensor, list[str]]]:
        """[(mean over the inputs, E[x x^T] by default; names of the layers that had those)].

        Raises:
            ParameterError: a layer got none.
        """
        _refuse_if_any(name for name in self.modules if not self.sums.get(name, (0, 0))[1])
        groups = {}
        for name, found in self.sums.items():
            groups.setdefault(id(found), (found, []))[1].append(name)
        return [(total / count, names) for (total, count), names in groups.values()]

    def means(self) -> dict[str, torch.Tensor]:
        """{name: mean over the inputs}; see `shared_means`, layers it names together share one."""
        return {name: mean for mean, names in self.shared_means() for name in names}
