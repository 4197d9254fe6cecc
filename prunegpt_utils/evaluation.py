"""Perplexity under a named protocol: plain cross-entropy, whatever the training loss."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunegpt_utils.data import JOINER, Tokens
from prunegpt_utils.distillation import token_losses
from prunegpt_utils.models import head, hidden_states, reading, write_on
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


@dataclass(frozen=True)
class Scored:
    """Negative log-likelihood of each scored token of a text, and how large the text is.

    Attributes:
        losses: float32 tensor of shape (scored tokens,), nats, in the order of the text.
        tokens, words, bytes: of the whole text, scored or not.
    """

    losses: torch.Tensor
    tokens: int
    words: int
    bytes: int


def perplexity(
    model: PreTrainedModel, tokens: Tokens, split: str, block: int, protocol: str = "disjoint",
    stride: int | None = None, batch: int = 32,
) -> dict:  # fmt: skip
    """What `measures` makes of `scored_tokens`, which has the same arguments."""
    return measures(scored_tokens(model, tokens, split, block, protocol, stride, batch))


def measures(scored: Scored) -> dict:
    """What a record says of a scored text.

    Args:
        scored: Scored.

    Returns:
        dict: nll (mean, nats a token), tokens (scored), words and bytes (of the whole text),
        perplexity = exp(nll), word_perplexity and bits_per_byte (the mean nll, charged to every
        token of the text and divided by its words and bytes).
    """
    nll = float(scored.losses.double().mean())
    total = nll * scored.tokens
    return {
        "nll": nll,
        "tokens": len(scored.losses),
        "words": scored.words,
        "bytes": scored.bytes,
        "perplexity": _exp(nll),
        "word_perplexity": _exp(total / scored.words),
        "bits_per_byte": total / scored.bytes / math.log(2),
    }


def scored_tokens(
    model: PreTrainedModel, tokens: Tokens, split: str, block: int, protocol: str = "disjoint",
    stride: int | None = None, batch: int = 32,
) -> Scored:  # fmt: skip
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
        Scored.

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
    # end-of-text tokens that only give context are no part of the text
    total = len(losses) if rules.overlap else text.tokens
    return Scored(losses, total, text.words, text.bytes)


def paired_difference(
    first: torch.Tensor, second: torch.Tensor, window: int, draws: int = 10_000, seed: int = 0
) -> dict:
    """Mean of first - second over the same text, with a 95 % interval.

    The interval is the percentile bootstrap (Efron and Tibshirani 1993, chapter 13) over windows
    of neighbouring tokens, whose losses hang together: what the mean would be on other text of the
    same kind. It says nothing of other seeds.

    Args:
        first, second: losses of `scored_tokens`, the same tokens under two models.
        window: tokens that are drawn together; of a text shorter than eight such, an eighth.
        draws: resamples.  seed: of the resampling.

    Returns:
        dict: mean, low, high, in nats a token.
    """
    difference = (first - second).double()
    window = min(window, max(1, len(difference) // 8))
    whole = len(difference) // window * window
    means = difference[:whole].view(-1, window).mean(1)
    dice = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(means), (draws, len(means)), generator=dice)
    low, high = means[rows].mean(1).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    return {"mean": difference.mean().item(), "low": low, "high": high}


PROMPTS = ("Return a list of", "This function is used to", "If the file does not exist,")


def sample(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor,
    prompts: Sequence[str] = PROMPTS, begin: int = 1000, length: int = 96,
) -> dict:  # fmt: skip
    """What a reader can see of a model: what it writes, and where a text surprises it.

    Args:
        model, tokenizer: as loaded.
        ids: int64 tensor of shape (tokens,), of which a passage is read.
        prompts: beginnings to continue, see `models.write_on`.
        begin, length: where the passage begins and how many tokens it has, at most as many as the
            model reads at once.

    Returns:
        dict: "written" {prompt: continuation}; "read" [[text of a token, its loss in nats], ...],
        without the first token of the passage, which has no context.
    """
    length = min(length, getattr(model.config, "max_position_embeddings", length))
    begin = min(begin, max(len(ids) - length, 0))
    passage = ids[begin : begin + length]
    losses = token_nll(model, passage, slide(len(passage), length, length)).tolist()
    texts = [tokenizer.decode([token]) for token in passage[1:].tolist()]
    return {
        "written": {prompt: write_on(model, tokenizer, prompt, 32) for prompt in prompts},
        "read": [[text, round(loss, 3)] for text, loss in zip(texts, losses, strict=True)],
    }


def protocol_record(protocol: str, block: int) -> dict:
    """What a record says of how its perplexities were measured."""
    joiner = JOINER if PROTOCOLS[protocol].layout == "joined" else ""
    step = max(block // 2, 1) if PROTOCOLS[protocol].strided else block
    return {"name": protocol, "block": block, "stride": step, "joiner": joiner}


def slide(length: int, window: int, step: int) -> list[tuple[int, int, int]]:
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


def token_nll(
    model: PreTrainedModel, ids: torch.Tensor, spans: list, batch: int = 32
) -> torch.Tensor:
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
    losses = []
    with reading(model):
        for first, rows in _batches(spans, batch):
            windows = torch.stack([ids[begin:end] for begin, end in rows]).to(model.device)
            hidden = hidden_states(model, windows[:, :-1])[:, first - 1 :]
            losses.append(_nll(hidden.flatten(0, 1), head(model), windows[:, first:].flatten()))
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
