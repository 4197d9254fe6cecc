"""How much each weight matters: one function a criterion, registered by its name.

A criterion gets a weight matrix in float32 and the `Facts` about it, and returns scores in the
shape of the matrix; the lowest go first. What facts it `needs` says which calibration it costs.

A file of the reader's own, named by the environment variable PRUNEGPT_CRITERIA, adds to them: see
docs/bring-your-own.md.
"""

import hashlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from prunegpt_utils.models import blocks, hidden_states, input_axes, layers, prunable
from prunegpt_utils.parameters import ParameterError

CRITERIA = {}  # name -> Criterion


@dataclass(frozen=True)
class Criterion:
    """A scoring function, and what it needs: nothing, `gradients` or `inputs`."""

    score: Callable
    needs: str = ""


@dataclass
class Facts:
    """What is known about one weight matrix.

    Attributes:
        axis: dimension of the inputs, 0 for Conv1D and 1 for Linear.
        dice: random generator.
        gradient, squared_gradient: means over calibration batches, in the shape of the weight.
        inputs: E[x^2] of the inputs x of the layer, shape (inputs,).
    """

    axis: int
    dice: torch.Generator
    gradient: torch.Tensor | None = None
    squared_gradient: torch.Tensor | None = None
    inputs: torch.Tensor | None = None


def criterion(name: str, needs: str = "") -> Callable:
    """Register a scoring function under `name`.

    Args:
        name: what the parameter `criterion` calls it.
        needs: "" if the weights alone tell; `gradients` or `inputs` for the `Facts` of that name.

    Raises:
        ParameterError: it needs something that is not measured.
    """
    if needs not in ("", "gradients", "inputs"):
        raise ParameterError("needs", needs, "must be gradients, inputs or empty")

    def register(score):
        CRITERIA[name] = Criterion(score, needs)
        return score

    return register


@criterion("magnitude")
def magnitude(weight: torch.Tensor, facts: Facts) -> torch.Tensor:
    """|w| (Han et al. 2015, arXiv 1506.02626)."""
    return weight.abs()


@criterion("random")
def random(weight: torch.Tensor, facts: Facts) -> torch.Tensor:
    """The control: what any criterion must beat."""
    return torch.rand(weight.shape, generator=facts.dice).to(weight.device)


@criterion("first-order", needs="gradients")
def first_order(weight: torch.Tensor, facts: Facts) -> torch.Tensor:
    """|w E[g]|, the change of the loss to first order (Molchanov et al. 2017, arXiv 1611.06440)."""
    return (weight * facts.gradient).abs()


@criterion("fisher", needs="gradients")
def fisher(weight: torch.Tensor, facts: Facts) -> torch.Tensor:
    """w^2 E[g^2], the rise of the loss to second order with g^2 in place of the curvature.

    LeCun et al. 1990; Theis et al. 2018, arXiv 1801.05787. As its square root, which ranks the
    same and cannot underflow.
    """
    return weight.abs() * facts.squared_gradient.sqrt()


@criterion("wanda", needs="inputs")
def wanda(weight: torch.Tensor, facts: Facts) -> torch.Tensor:
    """|w| ||x||, the weight times the norm of its input (Sun et al. 2024, arXiv 2306.11695).

    The paper compares the weights of one output with one another: scope `per-row`.
    """
    norm = facts.inputs.sqrt()
    return weight.abs() * (norm[:, None] if facts.axis == 0 else norm)


def scores(
    model: PreTrainedModel, name: str = "magnitude", facts: dict[str, Facts] | None = None,
    seed: int = 0,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Scores of every prunable weight.

    Args:
        model: causal language model.
        name: key of `CRITERIA`.
        facts: of `calibrate`; criteria that need none do without.
        seed: of the random scores.

    Returns:
        {name: float32 tensor in the shape of the weight}.

    Raises:
        ParameterError: the criterion does not score every weight.
    """
    facts, found = facts or _blank(model, seed), {}
    for key, weight in prunable(model).items():
        found[key] = CRITERIA[name].score(weight.detach().float(), facts[key])
        if found[key].shape != weight.shape or found[key].isnan().any():
            raise ParameterError("criterion", name, f"must give each weight of {key} a score")
    return found


def calibrate(
    model: PreTrainedModel, name: str, batches: Sequence[torch.Tensor], loss: Callable,
    seed: int = 0,
) -> dict[str, Facts]:  # fmt: skip
    """The facts that criterion `name` needs; the weights stay as they are.

    Args:
        model: causal language model.
        name: key of `CRITERIA`.
        batches: list of int64 tensors of shape (batch, block + 1).
        loss: function of a batch, a scalar with gradient.
        seed: of the random scores.

    Returns:
        {name: Facts}.
    """
    facts = _blank(model, seed)
    needs = CRITERIA[name].needs
    if needs == "gradients":
        _measure_gradients(model, facts, batches, loss)
    if needs == "inputs":
        for key, mean in input_moments(model, batches, _squares).items():
            facts[key].inputs = mean
    return facts


def known_gradients(
    model: PreTrainedModel, squares: dict[str, torch.Tensor], seed: int = 0
) -> dict[str, Facts]:
    """Facts from mean squared gradients that are known already, such as Adam's second moments."""
    facts = _blank(model, seed)
    for name, square in squares.items():
        facts[name].squared_gradient = square
    return facts


def _blank(model, seed):
    dice = torch.Generator().manual_seed(seed)
    return {name: Facts(axis, dice) for name, axis in input_axes(model).items()}


def _measure_gradients(model, facts, batches, loss):
    weights = prunable(model)
    for name, weight in weights.items():
        facts[name].gradient = torch.zeros_like(weight)
        facts[name].squared_gradient = torch.zeros_like(weight)
    for rows in batches:
        loss(rows).backward()
        for name, weight in weights.items():
            facts[name].gradient += weight.grad
            facts[name].squared_gradient += weight.grad.square()
        model.zero_grad(set_to_none=True)
    for name in weights:
        facts[name].gradient /= len(batches)
        facts[name].squared_gradient /= len(batches)


def _squares(x):
    return x.square().sum(0)


def _products(x):
    return x.T @ x


@torch.no_grad()
def input_moments(
    model: PreTrainedModel, batches: Sequence[torch.Tensor], moment: Callable = _products
) -> dict[str, torch.Tensor]:
    """{name: E[x x^T]} of the inputs x of each prunable layer, shape (inputs, inputs).

    Args:
        model: causal language model.
        batches: list of int64 tensors of shape (batch, block + 1).
        moment: function that sums something else over inputs of shape (tokens, inputs).
    """
    with _Moments(layers(model), moment) as moments:
        for rows in batches:
            hidden_states(model, rows[:, :-1].to(model.device))
    return moments.means()


class _Moments:
    """Within `with`, sums a moment over all inputs x that the layers get."""

    def __init__(self, modules, moment=_products):
        self.modules, self.moment, self.sums, self.counts = modules, moment, {}, {}

    def __enter__(self):
        self.hooks = [
            module.register_forward_pre_hook(lambda _, inputs, name=name: self._add(name, *inputs))
            for name, module in self.modules.items()
        ]
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()

    def _add(self, name, x):
        x = x.detach().flatten(0, -2).float()
        self.sums[name] = self.sums.get(name, 0) + self.moment(x)
        self.counts[name] = self.counts.get(name, 0) + len(x)

    def means(self):
        """{name: mean over the inputs}, E[x x^T] by default."""
        return {name: total / self.counts[name] for name, total in self.sums.items()}


@torch.no_grad()
def sparsegpt(
    model: PreTrainedModel, batches: Sequence[torch.Tensor], keep: Callable, columns: int = 128
) -> dict[str, torch.Tensor]:
    """Prune and mend layer by layer (Frantar and Alistarh 2023, arXiv 2301.00774).

    Each block sees the outputs of the blocks pruned before it. What a removed weight contributed is
    made up for by the weights of the same output that are still to come, such that the layer's
    outputs on the calibration text change least.

    Args:
        model: changed in place.
        batches: list of int64 tensors of shape (batch, block + 1).
        keep: function of scores, shape (outputs, some columns), and of how many columns came before
            these: bool tensor in the shape of the scores.
        columns: whose masks are chosen together; m for a pattern n:m, as in the paper.

    Returns:
        {name: bool tensor in the shape of the weight}, True = keep.
    """
    axes, every, masks = input_axes(model), layers(model), {}
    prefix, stack = blocks(model)
    states = _before_blocks(model, stack[0], batches)
    for index, block in enumerate(stack):
        mine = {n: m for n, m in every.items() if n.startswith(f"{prefix}.{index}.")}
        with _Moments(mine) as moments:
            for state, arguments, options in states:
                block(state, *arguments, **options)
        for name, mean in moments.means().items():
            weight = mine[name].weight
            rows = weight.detach().float().movedim(axes[name], 1)  # (outputs, inputs)
            mended, mask = mend(rows, mean, keep, columns)
            weight.copy_(mended.movedim(1, axes[name]))
            masks[name] = mask.movedim(1, axes[name])
        states = [(_first(block(s, *a, **o)), a, o) for s, a, o in states]
    return masks


def mend(
    weight: torch.Tensor, inputs: torch.Tensor, keep: Callable, columns: int = 128,
    damping: float = 0.01,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Prune one matrix column by column, and let later columns make up for it.

    Args:
        weight: shape (outputs, inputs).  inputs: E[x x^T], shape (inputs, inputs).
        keep, columns: as for `sparsegpt`.
        damping: added to the diagonal, as a fraction of its mean.

    Returns:
        (weight with zeros, bool mask), both of shape (outputs, inputs).
    """
    weight, hessian, total = weight.clone(), inputs.clone(), weight.shape[1]
    silent = hessian.diagonal() == 0  # an input that is never there
    weight[:, silent] = 0
    hessian.diagonal()[silent] = 1
    hessian.diagonal().add_(damping * hessian.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor = torch.linalg.cholesky(inverse, upper=True)  # row j: how column j's error spreads
    mask = torch.ones_like(weight, dtype=torch.bool)
    for begin in range(0, total, columns):
        end = min(begin + columns, total)
        part, root = weight[:, begin:end], factor[begin:end, begin:end]
        mask[:, begin:end] = keep((part / root.diagonal()).square(), begin)
        errors = torch.zeros_like(part)
        for j in range(end - begin):
            kept = part[:, j] * mask[:, begin + j]
            errors[:, j] = (part[:, j] - kept) / root[j, j]
            part[:, j:] -= errors[:, j, None] * root[j, j:]
            part[:, j] = kept
        weight[:, end:] -= errors @ factor[begin:end, end:]
    return weight, mask


CRITERIA["sparsegpt"] = Criterion(None)  # no scores: it prunes as it goes


def _own():
    """Register what the file PRUNEGPT_CRITERIA holds; {its name: sha256}, for the records."""
    name, known = os.environ.get("PRUNEGPT_CRITERIA"), dict(CRITERIA)
    if not name:
        return {}
    path = Path(__file__).parent.parent / Path(name).expanduser()
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        spec = importlib.util.spec_from_file_location(path.stem, path)
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    except Exception as error:  # the reader's code may raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ParameterError("PRUNEGPT_CRITERIA", name, f"does not load: {reason}") from error
    for taken in known:
        if CRITERIA[taken] is not known[taken]:
            allowed = f"registers {taken!r}, a name that is taken; choose another"
            raise ParameterError("PRUNEGPT_CRITERIA", name, allowed)
    return {path.name: digest}


OWN = _own()


class _ReachedError(Exception):
    """Raised where a forward pass may stop."""


def _before_blocks(model, first, batches):
    """What the first block is called with for each batch: [(hidden states, arguments, options)]."""
    found = []

    def catch(_, arguments, options):
        found.append((arguments[0], arguments[1:], options))
        raise _ReachedError

    hook = first.register_forward_pre_hook(catch, with_kwargs=True)
    for rows in batches:
        try:
            model(rows[:, :-1].to(model.device))
        except _ReachedError:
            continue
    hook.remove()
    return found


def _first(output):
    return output[0] if isinstance(output, tuple) else output
