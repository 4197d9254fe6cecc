"""SparseGPT: prune layer by layer, and let the weights that stay make up for those that go."""

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from prunegpt_utils.calibration import Moments
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.forward import eval_mode, last_hidden_states, probe_ids
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

    Raises:
        ParameterError: layers that are not called; see `check_blocks` for other models.
    """
    axes, every, masks = input_axes(model), prunable_layers(model), {}
    prefix, stack = transformer_blocks(model)
    found = [_block_calls(model, stack, rows[:, :-1]) for rows in batches]
    states, calls = [state for state, _ in found], [call for _, call in found]
    for index, block in enumerate(stack):
        mine = {n: m for n, m in every.items() if n.startswith(f"{prefix}.{index}.")}
        with Moments(mine) as moments:
            for state, call in zip(states, calls, strict=True):
                _run(block, state, call[index])
        for name, mean in moments.means().items():
            weight = mine[name].weight
            rows = weight.detach().float().movedim(axes[name], 1)  # (outputs, inputs)
            updated, mask = sparsify_weight(rows, mean, keep, columns)
            weight.copy_(updated.movedim(1, axes[name]))
            masks[name] = mask.movedim(1, axes[name])
        pairs = zip(states, calls, strict=True)
        states = [_run(block, state, call[index]) for state, call in pairs]
    return masks


@torch.no_grad()
def check_blocks(model: PreTrainedModel) -> None:
    """Raise `ParameterError` if hidden states are not all that blocks take from one another.

    If the first block says something else, then the last block must say the same in a forward pass
    of the model as after the blocks one by one, each with the arguments that it had before.
    """
    _, stack = transformer_blocks(model)
    with eval_mode(model), Moments(prunable_layers(model), len) as inputs:
        state, calls = _block_calls(model, stack, probe_ids(model))
        inputs.means()  # refuses layers that are not called
        said = _louder(model, stack)
        if len(calls) == len(stack):
            state = _run(stack[0], state, calls[0]) * 1.5
            for block, call in zip(stack[1:], calls[1:], strict=True):
                state = _run(block, state, call)
    if len(calls) != len(stack) or not (said - state).norm() <= 1e-3 * said.norm():
        allowed = f"cannot prune {type(model).__name__}: its blocks share more than hidden states"
        raise ParameterError("criterion", "sparsegpt", allowed)


def _louder(model, stack):
    """Hidden states after the last block of a forward pass, those after the first times 1.5."""
    said = []

    def scale(_, __, output):
        if torch.is_tensor(output):
            return output * 1.5
        return type(output)([output[0] * 1.5, *output[1:]])

    hooks = [
        stack[0].register_forward_hook(scale),
        stack[-1].register_forward_hook(lambda _, __, output: said.append(_first(output))),
    ]
    try:
        last_hidden_states(model, probe_ids(model))
    finally:
        for hook in hooks:
            hook.remove()
    return said[-1]


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
    original, weight, hessian, total = weight, weight.clone(), moment.clone(), weight.shape[1]
    dead = hessian.diagonal() == 0  # an input that is never there: its weights go first
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
    weight[:, dead] = original[:, dead] * mask[:, dead]  # those that need not go stay as they are
    return weight, mask


def _block_calls(model, stack, ids):
    """(hidden states that enter the first block, [(arguments, options)] of all blocks beside them).

    A block's own mask and rotary embedding are among them: those of a block that looks at a window
    are others than those of one that looks at everything.
    """
    first, calls = [], []

    def note(_, arguments, options):
        options = dict(options)
        hidden, *arguments = arguments or [options.pop("hidden_states")]
        first.append(hidden if not first else None)
        calls.append((arguments, options))

    hooks = [block.register_forward_pre_hook(note, with_kwargs=True) for block in stack]
    try:
        last_hidden_states(model, ids.to(model.device))
    finally:
        for hook in hooks:
            hook.remove()
    return first[0], calls


def _run(block, state, call):
    """Hidden states after a block."""
    return _first(block(state, *call[0], **call[1]))


def _first(output):
    return output if torch.is_tensor(output) else output[0]
