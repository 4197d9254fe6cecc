"""Structured pruning: whole blocks, or neurons and heads of GPT-2, go, and the model shrinks."""

import copy
from collections.abc import Callable, Sequence

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from prunegpt_utils.errors import ParameterError, one_line
from prunegpt_utils.forward import probe_ids
from prunegpt_utils.modeling import frozen_copy, keep_heads, transformer_blocks

IMPORTANCES = ("magnitude", "taylor", "random")


def prune_structured(
    model: PreTrainedModel, neuron_sparsity: float = 0.0, head_sparsity: float = 0.0,
    importance: str = "taylor", batches: Sequence[torch.Tensor] = (), loss: Callable | None = None,
) -> PreTrainedModel:  # fmt: skip
    """A smaller copy, without the least important neurons of each MLP and heads of each attention.

    Every block loses the same number, so that one number in the configuration describes them all.
    Neurons are chosen and removed by torch-pruning, with its group importances: `magnitude` is the
    norm of all weights that belong to a neuron, `taylor` the sum of |w g| over them (Molchanov et
    al. 2019, arXiv 1906.10771). Heads are scored in the same ways. The copy is in eval mode.

    Args:
        model: GPT-2; stays as it is.  importance: one of `IMPORTANCES`.
        neuron_sparsity, head_sparsity: fractions, in [0, 1); a multiple of 8 neurons stays.
        batches, loss: for `taylor`; the loss is a function of a model and a batch, a scalar.

    Raises:
        ParameterError: another architecture, or nothing would be left, or nothing would go.
    """
    if model.config.model_type != "gpt2":
        kind = type(model).__name__
        raise ParameterError("model", kind, "must be a GPT-2 to lose neurons or heads")
    small = copy.deepcopy(model).requires_grad_(True)
    _, stack = transformer_blocks(small)
    if importance == "taylor":
        for rows in batches:
            loss(small, rows).backward()
    if head_sparsity:
        _drop_heads(small, stack, head_sparsity, importance)
    if neuron_sparsity:
        for block in stack:
            _prune_neurons(block.mlp, neuron_sparsity, importance)
        small.config.n_inner = stack[0].mlp.c_fc.nf
    small.zero_grad(set_to_none=True)
    return small.eval()


def drop_blocks(model: PreTrainedModel, block_sparsity: float) -> PreTrainedModel:
    """A copy with fewer blocks: evenly spaced ones stay, the first and the last among them.

    DistilBERT kept every second (Sanh et al. 2019, arXiv 1910.01108): of 12 blocks at 0.5 those
    with the indices 0, 2, 4, 7, 9 and 11. Of a single one that stays it is the first.

    Args:
        model: of any architecture with a list of blocks; stays as it is.
        block_sparsity: fraction of the blocks that goes, in [0, 1), rounded to whole ones.

    Raises:
        ParameterError: none would stay, or none would go; see also `keep_blocks`.
    """
    total = len(transformer_blocks(model)[1])
    count = total - round(block_sparsity * total)
    if not count or count == total:
        verb = "removes" if count else "leaves"
        raise ParameterError("block_sparsity", block_sparsity, f"{verb} none of {total} blocks")
    return keep_blocks(model, [round(i * (total - 1) / max(1, count - 1)) for i in range(count)])


@torch.no_grad()
def keep_blocks(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """A copy with the blocks `kept` alone, in eval mode: a stock model that saves and loads.

    It is made anew from its configuration, so that what depends on the place of a block, such as
    its part of an attention cache, is that of the shorter model; then the weights are copied.

    Args:
        model: stays as it is.  kept: rising indices of blocks, one or more.

    Raises:
        ParameterError: no such configuration, or the shorter model is not what the blocks kept
            compute one after the other, such as where they are scaled by their place.
    """
    prefix, _ = transformer_blocks(model)
    config, chained = model.config, frozen_copy(model)  # its blocks, whatever place they know of
    blocks = transformer_blocks(chained)[1]
    chained.set_submodule(prefix, torch.nn.ModuleList(blocks[i] for i in kept))
    changes = _shorter(config, kept)
    try:
        chained.config.update(changes)
        short = type(config).from_dict(config.to_dict() | changes)
        short.name_or_path = config.name_or_path
        attention = config._attn_implementation
        small = AutoModelForCausalLM.from_config(short, attn_implementation=attention)
        small.load_state_dict(chained.state_dict())
        small = small.to(model.device, model.dtype).eval()
        small.generation_config = copy.deepcopy(model.generation_config)
        ids = probe_ids(model)
        wanted = chained(ids, use_cache=False).logits
        difference = (small(ids, use_cache=False).logits - wanted).abs().max()
    except Exception as error:  # whatever an architecture asks of its configuration
        raise _no_fewer_blocks(model, one_line(error)) from error
    if not difference <= 1e-5 * wanted.abs().max():
        raise _no_fewer_blocks(model, "what a block computes depends on its place")
    return small


def _shorter(config, kept):
    """{attribute: value} of a configuration that change if only the blocks `kept` stay."""
    count = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    lists = {
        key: [value[i] for i in kept]
        for key, value in vars(config).items()
        if "layer" in key and isinstance(value, list) and len(value) == config.num_hidden_layers
    }
    return lists | {count: len(kept)}


def _no_fewer_blocks(model, why):
    return ParameterError("model", type(model).__name__, f"cannot lose blocks: {why}")


def _prune_neurons(mlp, fraction, importance):
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
    if layers[0].out_features == mlp.c_fc.nf:  # a name that says 99 % of it would be wrong
        allowed = f"leaves less than 8 of {mlp.c_fc.nf} neurons, and so none would go"
        raise ParameterError("neuron_sparsity", fraction, allowed)
    mlp.c_fc, mlp.c_proj = _conv1d(layers[0]), _conv1d(layers[2])


def _drop_heads(model, stack, fraction, importance):
    total = stack[0].attn.num_heads
    kept = total - round(fraction * total)
    if not kept:
        raise ParameterError("head_sparsity", fraction, f"leaves none of {total} heads")
    if kept == total:
        raise ParameterError("head_sparsity", fraction, f"removes none of {total} heads")
    scores = [_head_scores(block.attn, importance) for block in stack]
    keep_heads(model, [each.topk(kept).indices.sort().values.tolist() for each in scores])
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
    linear.weight.data, linear.bias.data = conv.weight.data.T.clone(), conv.bias.data.clone()
    if conv.weight.grad is not None:
        linear.weight.grad, linear.bias.grad = conv.weight.grad.T.clone(), conv.bias.grad.clone()
    return linear


def _conv1d(linear):
    conv = Conv1D(linear.out_features, linear.in_features).to(linear.weight.device)
    conv.weight.data, conv.bias.data = linear.weight.data.T.contiguous(), linear.bias.data.clone()
    return conv
