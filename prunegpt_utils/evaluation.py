"""Score a text with a model: token losses, perplexity and what else a record says of them."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunegpt_utils.errors import ParameterError
from prunegpt_utils.forward import inference_mode, last_hidden_states, lm_head, logits
from prunegpt_utils.losses import token_losses
from prunegpt_utils.modeling import max_positions
from prunegpt_utils.protocols import PROTOCOLS, exp, rolling_windows, text_windows
from prunegpt_utils.tokenization import Tokens

_RESAMPLED = 1_000_000  # numbers of the bootstrap that stand in memory at a time


@dataclass(frozen=True)
class TokenLosses:
    """Negative log-likelihood of each scored token of a text, and how large the text is.

    Attributes:
        losses: float32 tensor of shape (scored tokens,), nats, in the order of the text.
        tokens, words, bytes: of the whole text, scored or not.
    """

    losses: torch.Tensor
    tokens: int
    words: int
    bytes: int


@dataclass(frozen=True)
class Reading:
    """A text as a model has read it: what all its predictions are made of.

    Attributes:
        model: that has read it.
        hidden_states: the last ones, shape (scored tokens, width), each that from which the token
            of `labels` is predicted; on the model's device, in the order of the text.
        labels: int64, shape (scored tokens,).
        scored: the losses of these predictions.
    """

    model: PreTrainedModel
    hidden_states: torch.Tensor
    labels: torch.Tensor
    scored: TokenLosses


def perplexity(
    model: PreTrainedModel, tokens: Tokens, split: str, block_size: int, protocol: str = "disjoint",
    stride: int | None = None, batch: int = 32,
) -> dict:  # fmt: skip
    """What `metrics` makes of `score_tokens`, which has the same arguments."""
    return metrics(score_tokens(model, tokens, split, block_size, protocol, stride, batch))


def metrics(scored: TokenLosses) -> dict:
    """What a record says of a scored text.

    Returns:
        dict: nll (mean, nats a token), tokens (scored), words and bytes (of the whole text),
        perplexity = exp(nll), word_perplexity, byte_perplexity and bits_per_byte (the mean nll,
        charged to every token of the text and divided by its words and bytes).
    """
    nll = float(scored.losses.double().mean())
    total = nll * scored.tokens
    return {
        "nll": nll, "tokens": len(scored.losses), "words": scored.words, "bytes": scored.bytes,
        "perplexity": exp(nll), "word_perplexity": exp(total / scored.words),
        "byte_perplexity": exp(total / scored.bytes),
        "bits_per_byte": total / scored.bytes / math.log(2),
    }  # fmt: skip


def score_tokens(
    model: PreTrainedModel, tokens: Tokens, split: str, block_size: int, protocol: str = "disjoint",
    stride: int | None = None, batch: int = 32,
) -> TokenLosses:  # fmt: skip
    """Score one split of a text.

    Args:
        split: validation or test.
        block_size: tokens the model reads at once.  protocol: a key of `protocols.PROTOCOLS`.
        stride: step of the strided protocol, in tokens; None means half a block.
        batch: windows at a time; changes the speed alone.

    Raises:
        ParameterError: unknown split, stride out of range, a text too short to score, or pages
            by a tokenizer that has no token to begin them with.
    """
    text, spans = _windows_of(tokens, split, block_size, protocol, stride)
    return _token_losses(token_nll(model, text.ids, spans, batch), text, protocol)


def read(
    model: PreTrainedModel, tokens: Tokens, split: str, block_size: int, protocol: str = "disjoint",
    stride: int | None = None, batch: int = 32,
) -> Reading:  # fmt: skip
    """What `score_tokens` does, keeping the hidden states: width numbers a scored token."""
    text, spans = _windows_of(tokens, split, block_size, protocol, stride)
    with inference_mode(model):
        parts = zip(*_predictions(model, text.ids, spans, batch), strict=True)
        hidden_states, labels = map(torch.cat, parts)
        losses = _nll(hidden_states, lm_head(model), labels)
    return Reading(model, hidden_states, labels, _token_losses(losses, text, protocol))


def _windows_of(tokens, split, block_size, protocol, stride):
    """(text, its `text_windows`)."""
    layouts = tokens.layouts[PROTOCOLS[protocol].layout]
    if not layouts:
        allowed = "begins each page with the bos or eos token, and this tokenizer has neither"
        raise ParameterError("protocol", protocol, allowed)
    if split not in layouts:
        raise ParameterError("split", split, f"must be one of {', '.join(layouts)}")
    text = layouts[split]
    return text, text_windows(protocol, text.lengths, block_size, stride)


def _token_losses(losses, text, protocol):
    # end-of-text tokens that only give context are no part of the text
    total = len(losses) if PROTOCOLS[protocol].overlap else text.tokens
    return TokenLosses(losses, total, text.words, text.bytes)


def score_splits(
    model: PreTrainedModel, tokens: Tokens, block_size: int, protocol: str = "disjoint"
) -> tuple[dict[str, dict], dict[str, list[float]] | None]:
    """What a record says of a finished model: validation and test text, each scored once.

    Returns:
        ({split: `metrics`}, {split: `nll_by_window`}); None instead of the latter unless windows
        are disjoint. A window is one that the model read, `block_size` - 1 scored tokens.
    """
    scored = {
        split: score_tokens(model, tokens, split, block_size, protocol)
        for split in ("validation", "test")
    }
    found = {split: metrics(each) for split, each in scored.items()}
    if protocol != "disjoint":
        return found, None
    windows = {split: nll_by_window(s.losses, block_size - 1) for split, s in scored.items()}
    return found, windows


def nll_by_window(losses: torch.Tensor, window: int) -> list[float]:
    """Mean loss of each window, in nats a token, to five decimals.

    Two records that hold it can be compared in pairs, see `paired_window_difference`.

    Args:
        losses: of `score_tokens`.  window: tokens, one after the other; the last may have fewer.
    """
    return [round(part.double().mean().item(), 5) for part in losses.split(window)]


def paired_difference(
    first: torch.Tensor, second: torch.Tensor, window: int, draws: int = 10_000, seed: int = 0
) -> dict:
    """Mean of first - second over the same text, and low and high of its 95 % interval, in nats.

    The interval is the percentile bootstrap (Efron and Tibshirani 1993, chapter 13) over windows
    of neighbouring tokens, whose losses hang together: what the mean would be on other text of the
    same kind. It says nothing of other seeds.

    Args:
        first, second: losses of `score_tokens`, the same tokens under two models.
        window: tokens that are drawn together; of a text shorter than eight such, an eighth.
        draws: resamples.  seed: of the resampling.
    """
    difference = (first - second).double()
    window = min(window, max(1, len(difference) // 8))
    means = torch.stack([part.mean() for part in difference.split(window)]).numpy()
    return _interval(means, len(difference), window, draws, seed)


def paired_window_difference(
    first: Sequence[float], second: Sequence[float], tokens: int, window: int,
    draws: int = 10_000, seed: int = 0,
) -> dict:  # fmt: skip
    """`paired_difference` of two records of the same text, from what they say of its windows.

    Args:
        first, second: of `nll_by_window`.  tokens: scored.  window: in tokens.

    Raises:
        ParameterError: the windows are not those of one text, or fewer than two are whole.
    """
    counts = {len(first), len(second), -(-tokens // window)}
    if len(counts) > 1 or tokens < 2 * window:
        shown = f"{len(first)} and {len(second)} windows"
        allowed = f"must be those of {tokens} tokens by {window}, two or more of them whole"
        raise ParameterError("nll_by_window", shown, allowed)
    return _interval(np.subtract(first, second), tokens, window, draws, seed)


def _interval(means, tokens, window, draws, seed):
    """Mean over all tokens, and its interval by the windows that are whole."""
    from scipy.stats import bootstrap  # half a second, for who needs an interval

    whole = tokens // window
    sizes = np.diff([*range(0, tokens, window), tokens])
    found = bootstrap(
        (means[:whole],), np.mean, n_resamples=draws, method="percentile",
        rng=np.random.default_rng(seed), batch=max(1, _RESAMPLED // whole),
    )  # fmt: skip
    low, high = map(float, found.confidence_interval)
    return {"mean": float(np.average(means, weights=sizes)), "low": low, "high": high}


@torch.no_grad()
def generate_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, tokens: int = 48
) -> str:
    """What follows `prompt`: at most `tokens`, each the likeliest, no run of three repeated.

    Of a prompt that is too long for the model its end is read.
    """
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"].to(model.device)
    limit = max_positions(model) or ids.shape[1] + tokens
    ids = ids[:, 1 - limit :]
    room = limit - ids.shape[1]
    written = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=min(tokens, room), use_cache=True,
        do_sample=False, no_repeat_ngram_size=3, pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return tokenizer.decode(written[0, ids.shape[1] :])


PROMPTS = ("Return a list of", "This function is used to", "If the file does not exist,")


def sample(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor,
    prompts: Sequence[str] = PROMPTS, begin: int = 1000, length: int = 96,
) -> dict:  # fmt: skip
    """What a reader can see of a model: what it writes, and where a text surprises it.

    Args:
        ids: int64, shape (tokens,), of which a passage is read.  prompts: see `generate_text`.
        begin, length: of the passage, in tokens; at most as many as the model reads at once.

    Returns:
        dict: "written" {prompt: continuation}; "read" [[text of a token, its loss in nats], ...],
        without the first token of the passage, which has no context.
    """
    length = min(length, max_positions(model) or length)
    begin = min(begin, max(len(ids) - length, 0))
    passage = ids[begin : begin + length]
    losses = token_nll(model, passage, rolling_windows(len(passage), length, length)).tolist()
    texts = [tokenizer.decode([token]) for token in passage[1:].tolist()]
    return {
        "written": {prompt: generate_text(model, tokenizer, prompt, 32) for prompt in prompts},
        "read": [[text, round(loss, 3)] for text, loss in zip(texts, losses, strict=True)],
    }


def token_nll(
    model: PreTrainedModel, ids: torch.Tensor, spans: list, batch: int = 32
) -> torch.Tensor:
    """Negative log-likelihood of each scored token, in the order of the text.

    Args:
        ids: int64, shape (tokens,).  spans: see `rolling_windows`.  batch: windows at a time.

    Returns:
        float32 tensor of shape (scored tokens,), nats, on the CPU.

    Raises:
        ParameterError: nothing to score.
    """
    with inference_mode(model):
        head, batches = lm_head(model), _predictions(model, ids, spans, batch)
        return torch.cat([_nll(states, head, labels) for states, labels in batches])


def _predictions(model, ids, spans, batch):
    """Of each batch of windows: (last hidden states, the tokens that are predicted from them)."""
    if not spans:
        raise ParameterError("data", f"{len(ids)} tokens", "is too little text to score")
    for first, rows in _window_batches(spans, batch):
        windows = torch.stack([ids[begin:end] for begin, end in rows]).to(model.device)
        states = last_hidden_states(model, windows[:, :-1])[:, first - 1 :].flatten(0, 1)
        yield states, windows[:, first:].flatten()


def _window_batches(spans: list, batch: int) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Consecutive windows of equal shape, at most `batch` of them: (first, [(begin, end), ...]).

    `spans` are those of `protocols.rolling_windows`.
    """
    for (first, _), same in itertools.groupby(spans, lambda span: (span[2], span[1] - span[0])):
        rows = [(begin, end) for begin, end, _ in same]
        for start in range(0, len(rows), batch):
            yield first, rows[start : start + batch]


def _nll(hidden, head, labels, chunk=512):
    """`chunk` tokens at a time, so that tokens x vocabulary logits never stand in memory."""
    parts = zip(hidden.split(chunk), labels.split(chunk), strict=True)
    return torch.cat([token_losses(logits(h, head), label).cpu() for h, label in parts])
