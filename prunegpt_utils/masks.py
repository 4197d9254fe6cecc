"""Which weights go: scores and a sparsity become masks {name: bool tensor}, True = keep."""

import numpy as np
import torch

from prunegpt_utils.models import prunable
from prunegpt_utils.parameters import ParameterError


def scores(model, criterion="magnitude", seed=0, squared_gradients=None):
    """How much each prunable weight matters; the lowest scores go first.

    Args:
        model: causal language model.
        criterion: `magnitude`, |w| (Han et al. 2015, arXiv 1506.02626); `fisher`, w^2 E[g^2], the
            rise of the loss to second order with the squared gradients g^2 in place of the
            curvature (LeCun et al. 1990; Theis et al. 2018, arXiv 1801.05787), as its square root,
            which ranks the same and cannot underflow; or `random`, the control.
        seed: of the random scores.
        squared_gradients: E[g^2] as {name: tensor}, for `fisher`.

    Returns:
        {name: float32 tensor in the shape of the weight}.
    """
    weights = {name: weight.detach().float() for name, weight in prunable(model).items()}
    if criterion == "magnitude":
        return {name: weight.abs() for name, weight in weights.items()}
    if criterion == "fisher":
        return {name: w.abs() * squared_gradients[name].sqrt() for name, w in weights.items()}
    dice = torch.Generator().manual_seed(seed)
    return {name: torch.rand(w.shape, generator=dice).to(w.device) for name, w in weights.items()}


def make_masks(scored, sparsity, scope="global", axes=None):
    """Prune exactly round(sparsity * n) weights, those with the lowest scores.

    Args:
        scored: {name: scores}.
        sparsity: fraction to remove, in [0, 1).
        scope: `global` ranks all matrices together, `uniform` prunes each by the same fraction.
            `n:m`, such as `2:4`, leaves n of m neighbours along a matrix's inputs, which hardware
            can use (Mishra et al. 2021, arXiv 2104.08378); at lower sparsity, the way there.
        axes: {name: dimension of the inputs}, for `n:m`; see `models.input_axes`.

    Returns:
        {name: bool tensor in the shape of the scores}, True = keep.

    Raises:
        ParameterError: the pattern does not fit the matrices, or allows no such sparsity.
    """
    if ":" in scope:
        scored = _keep_pattern(scored, scope, sparsity, axes)
    groups = [scored] if scope != "uniform" else [{name: s} for name, s in scored.items()]
    masks = {}
    for group in groups:
        flat = torch.cat([tensor.flatten() for tensor in group.values()])
        keep = ~_lowest(flat, round(sparsity * flat.numel()))
        parts = keep.split([tensor.numel() for tensor in group.values()])
        masks |= {name: part.view_as(group[name]) for name, part in zip(group, parts, strict=True)}
    return masks


def _keep_pattern(scored, pattern, sparsity, axes):
    """Scores in which the n highest of every m neighbours can no longer be the lowest."""
    n, m = map(int, pattern.split(":"))
    if sparsity > 1 - n / m:
        allowed = f"must be at most {1 - n / m:g} with {pattern}"
        raise ParameterError("sparsity", sparsity, allowed)
    kept = {}
    for name, tensor in scored.items():
        aside = tensor.movedim(axes[name], -1)
        if aside.shape[-1] % m:
            allowed = f"does not divide the {aside.shape[-1]} inputs of {name}"
            raise ParameterError("scope", pattern, allowed)
        groups = aside.unflatten(-1, (-1, m))
        best = groups.topk(n, dim=-1).indices
        groups = groups.scatter(-1, best, torch.inf)
        kept[name] = groups.flatten(-2).movedim(-1, axes[name])
    return kept


def _lowest(flat, k):
    """Bool tensor with exactly `k` True, at the lowest values; of equal ones the first go."""
    if k == 0:
        return torch.zeros_like(flat, dtype=torch.bool)
    if flat.is_cuda:
        threshold = flat.kthvalue(k).values
    else:  # introselect: twice as fast as torch.kthvalue on two cores
        threshold = torch.tensor(np.partition(flat.numpy(), k - 1)[k - 1])
    low = flat < threshold
    ties = (flat == threshold).nonzero().squeeze(1)
    low[ties[: k - int(low.sum())]] = True
    return low


def cubic_sparsity(progress, start, final):
    """Sparsity on the way (Zhu and Gupta 2017, arXiv 1710.01878, equation 1).

    s = final + (start - final) * (1 - progress)^3: fast while weights are plenty, then slower.

    Args:
        progress: fraction of the pruning phase that is over, clipped to [0, 1].
        start, final: sparsity at its beginning and end.
    """
    left = 1 - min(max(progress, 0.0), 1.0)
    return final + (start - final) * left**3


@torch.no_grad()
def apply_masks(model, masks):
    """Set the pruned weights to zero, in place."""
    weights = prunable(model)
    for name, mask in masks.items():
        weights[name].mul_(mask)


def measure(model):
    """Fractions of zeros, measured: {"prunable": of the block matrices, "model": of all}."""
    zeros = sum(int((weight == 0).sum()) for weight in prunable(model).values())
    every = sum(int((parameter == 0).sum()) for parameter in model.parameters())
    size = sum(weight.numel() for weight in prunable(model).values())
    total = sum(parameter.numel() for parameter in model.parameters())
    return {"prunable": zeros / size, "model": every / total}


def by_matrix(model):
    """Sparsity of each prunable matrix: {name: fraction of zeros}."""
    return {name: float((weight == 0).float().mean()) for name, weight in prunable(model).items()}
