"""Which weights go: scores and a sparsity become masks {name: bool tensor}, True = keep."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from prunegpt_utils import criteria
from prunegpt_utils.calibration import CalibrationStats
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.forward import eval_mode
from prunegpt_utils.modeling import input_axes, prunable_layers, prunable_weights
from prunegpt_utils.sparsegpt import check_blocks, sparsegpt

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by their size in bytes


def prune(
    model: PreTrainedModel, criterion: str, sparsity: float, scope: str,
    stats: dict[str, CalibrationStats] | None = None, batches: Sequence[torch.Tensor] = (),
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Set the weights that matter least to zero, in place; returns the masks, as `make_masks` does.

    Args:
        criterion: key of `criteria.CRITERIA`. `sparsegpt` also updates what is left.
        sparsity, scope: as for `make_masks`; for `sparsegpt`, `uniform` or a pattern.
        stats: of `calibration.calibrate`.  batches: calibration text for `sparsegpt`.

    Raises:
        ParameterError: sparsity or scope that cannot be had.
    """
    check_cut(model, criterion, sparsity, scope)
    if criterion == "sparsegpt":
        with eval_mode(model):
            masks = sparsegpt(model, batches, *_column_rule(sparsity, scope))
    else:
        scores = criteria.scores(model, criterion, stats)
        masks = make_masks(scores, sparsity, scope, input_axes(model))
    apply_masks(model, masks)
    return masks


def check_cut(model: PreTrainedModel, criterion: str, sparsity: float, scope: str) -> None:
    """Raise the `ParameterError` of `prune` before anything was trained or measured."""
    if ":" in scope:
        _pattern(scope, sparsity)
        _check_widths(scope, prunable_weights(model), input_axes(model))
    if criterion == "sparsegpt":
        _column_rule(sparsity, scope)
        check_blocks(model)
    elif criteria.CRITERIA[criterion].needs == "inputs":
        prunable_layers(model)


def make_masks(
    scored: dict[str, torch.Tensor], sparsity: float, scope: str = "global",
    axes: dict[str, int] | None = None,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Prune exactly round(sparsity * n) weights, those with the lowest scores.

    Args:
        scored: {name: scores}.  sparsity: fraction to remove, in [0, 1).
        scope: `global` ranks all matrices together, `uniform` prunes each by the same fraction,
            `per-row` each output of each matrix. `n:m`, such as `2:4`, leaves n of m neighbours
            along a matrix's inputs, which hardware can use (Mishra et al. 2021, arXiv
            2104.08378); at a lower sparsity, some of the way there.
        axes: {name: dimension of the inputs}, for `per-row` and `n:m`; see `modeling.input_axes`.

    Returns:
        {name: bool tensor in the shape of the scores}, True = keep.

    Raises:
        ParameterError: the pattern does not fit the matrices, or allows no such sparsity.
    """
    if scope == "per-row":
        return {name: _each_row(tensor, sparsity, axes[name]) for name, tensor in scored.items()}
    if scope == "uniform":
        return {name: _each_matrix(tensor, sparsity) for name, tensor in scored.items()}
    if ":" in scope:
        scored = _keep_pattern(scored, scope, sparsity, axes)
    goal = round(sparsity * sum(tensor.numel() for tensor in scored.values()))
    return {name: low.logical_not_() for name, low in _lowest(scored, goal).items()}


def _keep_pattern(scored, pattern, sparsity, axes):
    """Scores in which the n highest of every m neighbours can no longer be the lowest."""
    n, m = _pattern(pattern, sparsity)
    _check_widths(pattern, scored, axes)
    kept = {}
    for name, tensor in scored.items():
        rows = tensor.movedim(axes[name], -1)
        kept[name] = rows.where(~_best(rows, n, m), torch.inf).movedim(-1, axes[name])
    return kept


def _check_widths(scope, matrices, axes):
    """Raise unless a scope n:m divides the inputs of all matrices."""
    m = int(scope.split(":")[1])
    for name, matrix in matrices.items():
        if (inputs := matrix.shape[axes[name]]) % m:
            raise ParameterError("scope", scope, f"does not divide the {inputs} inputs of {name}")


def _pattern(scope, sparsity):
    """(n, m) of the pattern n:m, if it allows this sparsity."""
    n, m = map(int, scope.split(":"))
    if sparsity > 1 - n / m:
        raise ParameterError("sparsity", sparsity, f"must be at most {1 - n / m:g} with {scope}")
    return n, m


def _best(scored, n, m):
    """Bool tensor, True at the n highest of every m neighbours along the last dimension."""
    groups = scored.unflatten(-1, (-1, m))
    best = torch.zeros_like(groups, dtype=torch.bool)
    return best.scatter(-1, groups.topk(n, dim=-1).indices, True).flatten(-2)


def _each_matrix(scored, sparsity):
    """Mask that prunes a matrix, or each of those that stand in a stack, by the same fraction."""
    if scored.ndim > 2:
        return torch.stack([_each_matrix(matrix, sparsity) for matrix in scored])
    return _lowest({"": scored}, round(sparsity * scored.numel()))[""].logical_not_()


def _each_row(scored, sparsity, axis):
    """Mask that prunes the same number of inputs of every output."""
    rows = scored.movedim(axis, -1)
    order = rows.argsort(dim=-1, stable=True)[..., : round(sparsity * rows.shape[-1])]
    return torch.ones_like(rows, dtype=torch.bool).scatter(-1, order, False).movedim(-1, axis)


def _column_rule(sparsity, scope):
    """(which of some columns' weights to keep, how many columns to choose at a time)."""
    if ":" in scope:
        n, m = _pattern(scope, sparsity)
        if sparsity != 1 - n / m:
            raise ParameterError("sparsity", sparsity, f"must be {1 - n / m:g} with {scope}")
        return lambda scored, before: _best(scored, n, m), m
    if scope != "uniform":
        raise ParameterError("scope", scope, "must be uniform or a pattern such as 2:4 here")

    def keep(scored, before):
        rows, columns = scored.shape  # rounded so that the matrix as a whole gets it exactly
        goal = round(sparsity * rows * (before + columns)) - round(sparsity * rows * before)
        return ~_lowest({"": scored}, goal)[""]

    return keep, 128


def _lowest(scored, k):
    """{name: bool tensor} with exactly `k` True, at the lowest scores; of equal ones the first go.

    One copy of the scores is all the memory it needs beside its outcome.
    """
    if k == 0:
        return {name: torch.zeros_like(t, dtype=torch.bool) for name, t in scored.items()}
    threshold = _kth_lowest(scored.values(), k)
    low = {name: tensor < threshold for name, tensor in scored.items()}
    left = k - sum(int(mask.sum()) for mask in low.values())
    for name, tensor in scored.items():
        if left:
            ties = (tensor == threshold).nonzero()[:left]
            low[name][tuple(ties.T)] = True
            left -= len(ties)
    return low


def _kth_lowest(tensors, k):
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    if flat.is_cuda:
        return flat.kthvalue(k).values
    flat.numpy().partition(k - 1)  # introselect, in place: twice as fast as torch.kthvalue
    return flat[k - 1].clone()


@torch.no_grad()
def apply_masks(model: PreTrainedModel, masks: dict[str, torch.Tensor]) -> None:
    """Set the pruned weights to zero, in place."""
    weights = prunable_weights(model)
    for name, mask in masks.items():
        # Products of integers: those with bools are not vectorised, and -1.5 times 0 is -0, whose
        # sign a compressor would have to keep.
        bits = _INTEGERS[weights[name].element_size()]
        weights[name].detach().view(bits).mul_(mask.view(torch.uint8))


def measure_sparsity(model: PreTrainedModel) -> dict[str, float]:
    """Fractions of zeros, measured: {"prunable": of the block matrices, "model": of all}."""
    groups = {"prunable": prunable_weights(model).values(), "model": list(model.parameters())}
    zeros = {name: sum(int((w == 0).sum()) for w in group) for name, group in groups.items()}
    return {name: zeros[name] / sum(w.numel() for w in group) for name, group in groups.items()}


def sparsity_tolerance(model: PreTrainedModel, scope: str) -> float:
    """How far from the sparsity asked for a cut may end: half a weight in each group it ranks."""
    axes, weights = input_axes(model), prunable_weights(model)
    if scope == "per-row":
        return 0.5 / min(weight.shape[axes[name]] for name, weight in weights.items())
    if scope == "uniform":
        return 0.5 / min(weight.shape[-2:].numel() for weight in weights.values())
    return 0.5 / sum(weight.numel() for weight in weights.values())


def sparsity_by_matrix(model: PreTrainedModel) -> dict[str, float]:
    """Sparsity of each prunable matrix: {name: percentage of zeros}."""
    weights = prunable_weights(model).items()
    return {name: 100 * float((weight == 0).float().mean()) for name, weight in weights}
