"""Perplexity under a named protocol: plain cross-entropy, whatever the training loss."""

import math
from dataclasses import dataclass

import torch

from prunegpt_utils.data import JOINER
from prunegpt_utils.distillation import token_losses
from prunegpt_utils.models import head, hidden_states
from prunegpt_utils.parameters import ParameterError


@dataclass(frozen=True)
class Protocol:
    """How text becomes windows.

    Attributes:
        layout: how documents become token sequences, see `data.Laid`.
        overlap: tokens of a window that only give context to the first token it scores.
        strided: the window moves by the stride; else by what it scores.
        whole: an incomplete last window is dropped.
        about: one line for readers.
    """

    layout: str
    about: str
    overlap: int = 0
    strided: bool = False
    whole: bool = False


PROTOCOLS = {
    "disjoint": Protocol("joined", "rows joined by a blank line, windows scored by themselves"),
    "strided": Protocol("joined", "the same; the window moves on by the stride", strided=True),
    "run_clm": Protocol("rows", "rows run together, whole windows of every 1,000 rows", whole=True),
    "word-level": Protocol("pages", "de-tokenised pages, each after an end-of-text", overlap=1),
}


def perplexity(model, tokens, split, block, protocol="disjoint", stride=None, batch=32):
    """Score one split of a text.

    Args:
        model: causal language model.
        tokens: data.Tokens.  split: validation or test.  block: tokens the model reads at once.
        protocol: a key of `PROTOCOLS`.

            `disjoint`: the first token of every window goes unscored, the others have whatever
            context their window holds. `strided`: each token once, with at least block - stride
            tokens of context (the Hugging Face guide on perplexity). `run_clm`: what the example
            script of that name reports: no separators, what is left over of every 1,000 rows is
            dropped. `word-level`: as in the GPT-2 paper and in lm-eval: WikiText's artificial
            spaces undone, every token of a page scored, charged to the words of the original.
        stride: step of the strided protocol, in tokens; None means half a block.
        batch: windows at a time; changes the speed alone.

    Returns:
        dict: nll (mean, nats a token), tokens (scored), words and bytes (of the whole text),
        perplexity = exp(nll), word_perplexity and bits_per_byte (the mean nll, charged to every
        token of the text and divided by its words and bytes).

    Raises:
        ParameterError: unknown split, stride out of range, or a text too short to score.
    """
    rules = PROTOCOLS[protocol]
    if split not in tokens.laid[rules.layout]:
        allowed = f"must be one of {', '.join(tokens.laid[rules.layout])}"
        raise ParameterError("split", split, allowed)
    text = tokens.laid[rules.layout][split]
    step = (stride or max(block // 2, 1)) if rules.strided else block
    spans, offset = [], 0
    for length in text.lengths:
        usable = length // block * block if rules.whole else length
        steps = slide(usable, block + rules.overlap, step)
        spans += [(offset + begin, offset + end, first) for begin, end, first in steps]
        offset += length
    losses = token_nll(model, text.ids, spans, batch)
    nll = float(losses.double().mean())
    # end-of-text tokens that only give context are no part of the text
    total = nll * (len(losses) if rules.overlap else text.tokens)
    return {
        "nll": nll,
        "tokens": len(losses),
        "words": text.words,
        "bytes": text.bytes,
        "perplexity": _exp(nll),
        "word_perplexity": _exp(total / text.words),
        "bits_per_byte": total / text.bytes / math.log(2),
    }


def protocol_record(protocol, block):
    """What a record says of how its perplexities were measured."""
    joiner = JOINER if PROTOCOLS[protocol].layout == "joined" else ""
    step = max(block // 2, 1) if PROTOCOLS[protocol].strided else block
    return {"name": protocol, "block": block, "stride": step, "joiner": joiner}


def slide(length, window, step):
    """Windows over a sequence, each token but the first scored once.

    Args:
        length: of the sequence.  window, step: in tokens.

    Returns:
        list of (begin, end, first): tokens begin + first ... end - 1 are scored, given those
        before them from `begin` on.

    Raises:
        ParameterError: the step leaves a gap.
    """
    if not 1 <= step <= window:
        raise ParameterError("stride", step, f"must lie between 1 and the block length, {window}")
    spans, scored = [], 1  # nothing comes before the first token
    for begin in range(0, length, step):
        end = min(begin + window, length)
        # a window's own first token has no context in it
        first = max(scored - begin, 1)
        if first < end - begin:
            spans.append((begin, end, first))
        scored = end
        if end == length:
            break
    return spans


@torch.no_grad()
def token_nll(model, ids, spans, batch=32):
    """Negative log-likelihood of each scored token, in the order of the text.

    Args:
        model: causal language model.
        ids: int64 tensor of shape (tokens,).
        spans: of `slide`.
        batch: windows at a time.

    Returns:
        float32 tensor of shape (scored tokens,), nats, on the CPU.

    Raises:
        ParameterError: nothing to score.
    """
    if not spans:
        raise ParameterError("data", f"{len(ids)} tokens", "is too little text to score")
    training = model.training
    model.eval()
    losses = []
    for first, rows in _batches(spans, batch):
        windows = torch.stack([ids[begin:end] for begin, end in rows]).to(model.device)
        hidden = hidden_states(model, windows[:, :-1])[:, first - 1 :]
        losses.append(_nll(hidden.flatten(0, 1), head(model), windows[:, first:].flatten()))
    model.train(training)
    return torch.cat(losses)


def _batches(spans, batch):
    """Consecutive windows of equal shape, at most `batch` of them: (first, [(begin, end), ...])."""
    rows, shape = [], None
    for begin, end, first in spans:
        if rows and (len(rows) == batch or shape != (first, end - begin)):
            yield shape[0], rows
            rows = []
        shape, rows = (first, end - begin), [*rows, (begin, end)]
    yield shape[0], rows


def _nll(hidden, weight, labels, chunk=512):
    """`chunk` tokens at a time, so that tokens x vocabulary logits never stand in memory."""
    weight = weight.to(hidden.dtype)
    parts = zip(hidden.split(chunk), labels.split(chunk), strict=True)
    return torch.cat([token_losses(h @ weight.T, label).cpu() for h, label in parts])


def _exp(nll):
    return math.exp(nll) if nll < 700 else math.inf
