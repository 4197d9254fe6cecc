"""Structured pruning: whole neurons and attention heads of GPT-2 go, and the model shrinks."""

import copy
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from prunegpt_utils.models import blocks, keep_heads
from prunegpt_utils.parameters import ParameterError

IMPORTANCES = ("magnitude", "taylor", "random")


def narrow(
    model: PreTrainedModel, neurons: float = 0.0, heads: float = 0.0, importance: str = "taylor",
    batches: Sequence[torch.Tensor] = (), loss: Callable | None = None,
) -> PreTrainedModel:  # fmt: skip
    """A smaller copy, without the least important neurons of each MLP and heads of each attention.

    Every block loses the same number, so that one number in the configuration describes them all.
    Neurons are chosen and removed by torch-pruning, with its group importances: `magnitude` is the
    norm of all weights that belong to a neuron, `taylor` the sum of |w g| over them (Molchanov et
    al. 2019, arXiv 1906.10771). Heads are scored in the same ways.

    Args:
        model: GPT-2; stays as it is.
        neurons, heads: fractions to remove, in [0, 1). Neurons are rounded to a multiple of 8.
        importance: one of `IMPORTANCES`.
        batches, loss: list of batches, and a function of a model and a batch that returns a
            scalar; for `taylor`.

    Returns:
        GPT-2 with fewer parameters, in eval mode.

    Raises:
        ParameterError: another architecture, or nothing would be left.
    """
    small = copy.deepcopy(model).requires_grad_(True)
    _, stack = blocks(small)
    if any(not isinstance(getattr(block.mlp, "c_fc", None), Conv1D) for block in stack):
        kind = type(model).__name__
        raise ParameterError("model", kind, "must be a GPT-2 to lose neurons or heads")
    if importance == "taylor":
        for rows in batches:
            loss(small, rows).backward()
    if heads:
        _drop_heads(small, stack, heads, importance)
    if neurons:
        for block in stack:
            _narrow_mlp(block.mlp, neurons, importance)
        small.config.n_inner = stack[0].mlp.c_fc.nf
    small.zero_grad(set_to_none=True)
    return small.eval()


def _narrow_mlp(mlp, fraction, importance):
    """Remove neurons of one MLP: torch-pruning knows nn.Linear, so it sees the layers as that."""
    import torch_pruning as tp

    scores = {
        "magnitude": tp.importance.GroupMagnitudeImportance,
        "taylor": tp.importance.GroupTaylorImportance,
        "random": tp.importance.RandomImportance,
    }
    layers = torch.nn.Sequential(_linear(mlp.c_fc), torch.nn.GELU(), _linear(mlp.c_proj))
    pruner = tp.pruner.BasePruner(
        layers, torch.zeros(1, mlp.c_fc.nx, device=mlp.c_fc.weight.device),
        importance=scores[importance](), pruning_ratio=fraction, round_to=8,
        ignored_layers=[layers[2]],  # its outputs are the residual stream; its inputs follow
    )  # fmt: skip
    pruner.step()
    mlp.c_fc, mlp.c_proj = _conv1d(layers[0]), _conv1d(layers[2])


def _drop_heads(model, stack, fraction, importance):
    total = stack[0].attn.num_heads
    kept = total - round(fraction * total)
    if not kept:
        raise ParameterError("heads_gone", fraction, f"leaves none of {total} heads")
    chosen = []
    for block in stack:
        scores = _head_scores(block.attn, importance)
        chosen.append(scores.topk(kept).indices.sort().values.tolist())
    keep_heads(model, chosen)
    model.config.heads_kept = kept


def _head_scores(attn, importance):
    """Importance of each head of a GPT-2 attention: all weights that only it uses."""
    if importance == "random":
        return torch.rand(attn.num_heads)
    # (inputs, 3, heads, width of a head) and (heads, width of a head, outputs)
    into = attn.c_attn.weight.unflatten(1, (3, attn.num_heads, -1))
    out = attn.c_proj.weight.unflatten(0, (attn.num_heads, -1))
    if importance == "magnitude":
        return into.square().sum((0, 1, 3)) + out.square().sum((1, 2))
    slopes = attn.c_attn.weight.grad.view_as(into), attn.c_proj.weight.grad.view_as(out)
    return (into * slopes[0]).abs().sum((0, 1, 3)) + (out * slopes[1]).abs().sum((1, 2))


def _linear(conv):
    """Conv1D as nn.Linear, gradients included."""
    linear = torch.nn.Linear(conv.nx, conv.nf, device=conv.weight.device)
    linear.weight.data, linear.bias.data = (
        conv.weight.detach().T.clone(),
        conv.bias.detach().clone(),
    )
    if conv.weight.grad is not None:
        linear.weight.grad, linear.bias.grad = conv.weight.grad.T.clone(), conv.bias.grad.clone()
    return linear


def _conv1d(linear):
    conv = Conv1D(linear.out_features, linear.in_features).to(linear.weight.device)
    conv.weight.data = linear.weight.detach().T.contiguous()
    conv.bias.data = linear.bias.detach().clone()
    return conv
