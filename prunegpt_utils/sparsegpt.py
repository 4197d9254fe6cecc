"""SparseGPT: prune layer by layer, and let the weights that stay make up for those that go."""

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from prunegpt_utils.calibration import Moments
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.forward import autocast, eval_mode, last_hidden_states, probe_ids
from prunegpt_utils.modeling import input_axes, prunable_layers, transformer_blocks


@torch.no_grad()
def sparsegpt(
    model: PreTrainedModel, batches: Sequence[torch.Tensor], keep: Callable, columns: int = 128
) -> dict[str, torch.Tensor]:
    """Prune layer by layer, and update what is left (Frantar and Alistarh 2023, arXiv 2301.00774).

    Each block sees the outputs of the blocks pruned before it. What a removed weight contributed is
    made up for by the weights of the same output that are still to come, such that the layer's
    outputs on the calibration text change least. Under `forward.autocast` the blocks run in bf16;
    what is solved stays float32.

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
        with autocast(model, "float32"):
            for mean, names in moments.shared_means():
                factor = inverse_factor(mean)
                for name in names:
                    weight = mine[name].weight
                    rows = weight.detach().float().movedim(axes[name], 1)  # (outputs, inputs)
                    updated, mask = sparsify_weight(rows, mean, keep, columns, factor=factor)
                    weight.copy_(updated.movedim(1, axes[name]))
                    masks[name] = mask.movedim(1, axes[name])
        pairs = zip(states, calls, strict=True)
        states = [_run(block, state, call[index]) for state, call in pairs]
    return masks


def inverse_factor(moment: torch.Tensor, damping: float = 0.01) -> torch.Tensor:
    """Upper Cholesky factor of the inverse of E[x x^T]: row j says how column j's error spreads.

    Args:
        moment: shape (inputs, inputs), not changed.
        damping: fraction added to the diagonal, of the mean of what is not zero there. An input
            that is never there gets that mean, which the authors' code sets to 1: beside moments
            that are far smaller, as those of an MLP, that would damp them all away.
    """
    hessian, diagonal = moment.clone(), moment.diagonal()
    dead = diagonal == 0
    mean = diagonal.sum() / (~dead).sum() if not dead.all() else diagonal.new_ones(())
    hessian.diagonal()[dead] = mean
    hessian.diagonal().add_(damping * mean)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    return torch.linalg.cholesky(inverse, upper=True)


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
    dead = moment.diagonal() == 0  # an input that is never there: its weights go first
    # inputs x outputs: a column lies in one piece, which makes the loop twice as fast
    original, total = weight.T, len(factor)
    weight = original.clone(memory_format=torch.contiguous_format)
    weight[dead] = 0
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
    weight[dead] = original[dead] * mask[dead]  # those that need not go stay as they are
    return weight.T.contiguous(), mask.T.contiguous()


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
