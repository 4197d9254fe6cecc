"""Perplexity under a stated protocol: plain cross-entropy, whatever the training loss."""

import math

import torch

from prunegpt_utils.distillation import token_losses
from prunegpt_utils.models import head, hidden_states
from prunegpt_utils.parameters import ParameterError


def perplexity(model, tokens, split, block, stride=None, batch=32):
    """Score one split of a text.

    A window of `block` tokens moves by `stride`; each position scores the next token once, given
    what the window holds before it. `stride == block` is the disjoint protocol, where the first
    token of every window goes unscored; a smaller stride gives each token more context.

    Args:
        model: causal language model.
        tokens: data.Tokens.
        split: train, validation or test.
        block: window, in tokens.
        stride: step of the window, in tokens; None means `block`.
        batch: windows at a time; changes the speed alone.

    Returns:
        dict: nll (mean, nats a token), tokens (scored), words and bytes (of the whole text),
        perplexity = exp(nll), word_perplexity and bits_per_byte (the mean nll, charged to every
        token of the text and divided by its words and bytes).

    Raises:
        ParameterError: stride out of range, or a text shorter than two tokens.
    """
    losses = token_nll(model, tokens.ids[split], block, stride or block, batch)
    nll, counts = float(losses.double().mean()), tokens.counts[split]
    total = nll * counts["tokens"]
    return {
        "nll": nll,
        "tokens": len(losses),
        "words": counts["words"],
        "bytes": counts["bytes"],
        "perplexity": _exp(nll),
        "word_perplexity": _exp(total / counts["words"]),
        "bits_per_byte": total / counts["bytes"] / math.log(2),
    }


@torch.no_grad()
def token_nll(model, ids, block, stride, batch=32):
    """Negative log-likelihood of each scored token, in the order of the text.

    Args:
        model, block, stride, batch: see `perplexity`.
        ids: int64 tensor of shape (tokens,).

    Returns:
        float32 tensor of shape (scored tokens,), nats, on the CPU.
    """
    if not 1 <= stride <= block:
        raise ParameterError("stride", stride, f"must lie between 1 and the block length, {block}")
    if len(ids) < 2:
        raise ParameterError("data", f"{len(ids)} tokens", "is too little text to score")
    training = model.training
    model.eval()
    losses = []
    for rows, first in _batches(len(ids), block, stride, batch):
        inputs = torch.stack([ids[begin:end] for begin, end in rows]).to(model.device)
        hidden = hidden_states(model, inputs)[:, first - 1 : -1]
        losses.append(_nll(hidden.flatten(0, 1), head(model), inputs[:, first:].flatten()))
    model.train(training)
    return torch.cat(losses)


def _batches(length, block, stride, batch):
    """Runs of equal windows: ([(begin, end), ...], offset of the first token each scores)."""
    rows, offset, previous_end = [], None, 0
    for begin in range(0, length, stride):
        end = min(begin + block, length)
        first = max(previous_end - begin, 1)  # a window's first token has no context to score it
        previous_end = end
        if first < end - begin:
            fits = rows and (first, end - begin) == (offset, rows[-1][1] - rows[-1][0])
            if rows and (not fits or len(rows) == batch):
                yield rows, offset
                rows = []
            rows, offset = [*rows, (begin, end)], first
        if end == length:
            break
    if rows:
        yield rows, offset


def _nll(hidden, weight, labels, chunk=512):
    """`chunk` tokens at a time, so that tokens x vocabulary logits never stand in memory."""
    weight = weight.to(hidden.dtype)
    parts = zip(hidden.split(chunk), labels.split(chunk), strict=True)
    return torch.cat([token_losses(h @ weight.T, label).cpu() for h, label in parts])


def _exp(nll):
    return math.exp(nll) if nll < 700 else math.inf
