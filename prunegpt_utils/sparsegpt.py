"""SparseGPT: prune layer by layer, and let the weights that stay make up for those that go."""

import contextlib
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from prunegpt_utils.calibration import Moments
from prunegpt_utils.modeling import autocast, input_axes, prunable_layers, transformer_blocks


@torch.no_grad()
def sparsegpt(
    model: PreTrainedModel, batches: Sequence[torch.Tensor], keep: Callable, columns: int = 128
) -> dict[str, torch.Tensor]:
    """Prune layer by layer, and update what is left (Frantar and Alistarh 2023, arXiv 2301.00774).

    Each block sees the outputs of the blocks pruned before it. What a removed weight contributed is
    made up for by the weights of the same output that are still to come, such that the layer's
    outputs on the calibration text change least. Under `modeling.autocast` the blocks run in bf16;
    what is solved stays float32.

    Args:
        model: changed in place.  batches: int64 tensors of shape (batch, block_size + 1).
        keep: function of scores, shape (outputs, some columns), and of how many columns came before
            these: bool tensor in the shape of the scores.
        columns: whose masks are chosen together; m for a pattern n:m, as in the paper.

    Returns:
        {name: bool tensor in the shape of the weight}, True = keep.
    """
    axes, every, masks = input_axes(model), prunable_layers(model), {}
    prefix, stack = transformer_blocks(model)
    inputs = _block_inputs(model, stack[0], batches)
    for index, block in enumerate(stack):
        mine = {n: m for n, m in every.items() if n.startswith(f"{prefix}.{index}.")}
        with Moments(mine) as moments:
            for state, arguments, options in inputs:
                block(state, *arguments, **options)
        with autocast(model, "float32"):
            for mean, names in moments.shared_means():
                factor = inverse_factor(mean)
                for name in names:
                    weight = mine[name].weight
                    rows = weight.detach().float().movedim(axes[name], 1)  # (outputs, inputs)
                    updated, mask = sparsify_weight(rows, mean, keep, columns, factor=factor)
                    weight.copy_(updated.movedim(1, axes[name]))
                    masks[name] = mask.movedim(1, axes[name])
        inputs = [(_first(block(s, *a, **o)), a, o) for s, a, o in inputs]
    return masks


def inverse_factor(moment: torch.Tensor, damping: float = 0.01) -> torch.Tensor:
    """Upper Cholesky factor of the inverse of E[x x^T]: row j says how column j's error spreads.

    Args:
        moment: shape (inputs, inputs), not changed.
        damping: fraction of its mean added to the diagonal.
    """
    hessian = moment.clone()
    hessian.diagonal()[hessian.diagonal() == 0] = 1  # an input that is never there
    hessian.diagonal().add_(damping * hessian.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    return torch.linalg.cholesky(inverse, upper=True)


def sparsify_weight(
    weight: torch.Tensor, moment: torch.Tensor, keep: Callable, columns: int = 128,
    damping: float = 0.01, factor: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Prune one matrix column by column, and let later columns make up for it.

    Args:
        weight: shape (outputs, inputs).  moment: E[x x^T] of its inputs, shape (inputs, inputs).
        keep, columns: as for `sparsegpt`.  damping: as for `inverse_factor`.
        factor: what `inverse_factor` gives, if matrices with the same inputs share it.

    Returns:
        (weight with zeros, bool mask), both of shape (outputs, inputs).
    """
    factor = inverse_factor(moment, damping) if factor is None else factor
    # inputs x outputs: a column lies in one piece, which makes the loop twice as fast
    weight, total = weight.T.clone(memory_format=torch.contiguous_format), len(factor)
    weight[moment.diagonal() == 0] = 0
    mask = torch.ones_like(weight, dtype=torch.bool)
    for begin in range(0, total, columns):
        end = min(begin + columns, total)
        part, root, kept = weight[begin:end], factor[begin:end, begin:end], mask[begin:end]
        scored = (part / root.diagonal()[:, None]).square()
        kept.copy_(keep(scored.T.contiguous(), begin).T)
        errors = torch.zeros_like(part)
        for j in range(end - begin):
            left = part[j] * kept[j]
            errors[j] = (part[j] - left) / root[j, j]
            part[j:] -= root[j, j:, None] * errors[j]
            part[j] = left
        weight[end:] -= (errors.T @ factor[begin:end, end:]).T
    return weight.T.contiguous(), mask.T.contiguous()


class _ReachedError(Exception):
    """Raised where a forward pass may stop."""


def _block_inputs(model, first, batches):
    """What the first block is called with for each batch: [(hidden states, arguments, options)]."""
    found = []

    def catch(_, arguments, options):
        found.append((arguments[0], arguments[1:], options))
        raise _ReachedError

    hook = first.register_forward_pre_hook(catch, with_kwargs=True)
    for rows in batches:
        with contextlib.suppress(_ReachedError):
            model(rows[:, :-1].to(model.device))
    hook.remove()
    return found


def _first(output):
    return output[0] if isinstance(output, tuple) else output
