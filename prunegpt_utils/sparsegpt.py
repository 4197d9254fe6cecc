"""SparseGPT: prune layer by layer, and let the weights that stay make up for those that go."""

import contextlib
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from prunegpt_utils.calibration import Moments
from prunegpt_utils.modeling import input_axes, prunable_layers, transformer_blocks


@torch.no_grad()
def sparsegpt(
    model: PreTrainedModel, batches: Sequence[torch.Tensor], keep: Callable, columns: int = 128
) -> dict[str, torch.Tensor]:
    """Prune layer by layer, and update what is left (Frantar and Alistarh 2023, arXiv 2301.00774).

    Each block sees the outputs of the blocks pruned before it. What a removed weight contributed is
    made up for by the weights of the same output that are still to come, such that the layer's
    outputs on the calibration text change least.

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
        for name, mean in moments.means().items():
            weight = mine[name].weight
            rows = weight.detach().float().movedim(axes[name], 1)  # (outputs, inputs)
            updated, mask = sparsify_weight(rows, mean, keep, columns)
            weight.copy_(updated.movedim(1, axes[name]))
            masks[name] = mask.movedim(1, axes[name])
        inputs = [(_first(block(s, *a, **o)), a, o) for s, a, o in inputs]
    return masks


def sparsify_weight(
    weight: torch.Tensor, moment: torch.Tensor, keep: Callable, columns: int = 128,
    damping: float = 0.01,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Prune one matrix column by column, and let later columns make up for it.

    Args:
        weight: shape (outputs, inputs).  moment: E[x x^T] of its inputs, shape (inputs, inputs).
        keep, columns: as for `sparsegpt`.  damping: fraction of its mean added to the diagonal.

    Returns:
        (weight with zeros, bool mask), both of shape (outputs, inputs).
    """
    weight, hessian, total = weight.clone(), moment.clone(), weight.shape[1]
    dead = hessian.diagonal() == 0  # an input that is never there
    weight[:, dead] = 0
    hessian.diagonal()[dead] = 1
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
