"""Perplexity protocols: how text becomes windows, and which of their tokens are scored.

- `disjoint`: the first token of a window goes unscored, the others have the context in it.
- `strided`: each token once, with at least a block minus the stride of context (the Hugging Face
  guide on perplexity).
- `run_clm`: what the example script of that name reports: no separators, what is left over of
  every 1,000 rows is dropped.
- `word-level`: as in the GPT-2 paper and in lm-eval: WikiText's artificial spaces undone, every
  token of a page scored, charged to the words of the original.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from prunegpt_utils.corpora import JOINER
from prunegpt_utils.errors import ParameterError


@dataclass(frozen=True)
class Protocol:
    """How text becomes windows.

    Attributes:
        layout: how documents become token sequences, see `tokenization.Tokens`.
        about: one line for readers.
        overlap: tokens of a window that only give context to the first token it scores; the last
            window of a sequence then begins early enough to be as long as the others.
        strided: the window moves by the stride; else by what it scores.
        whole: an incomplete last window is dropped.
    """

    layout: str
    about: str
    overlap: int = 0
    strided: bool = False
    whole: bool = False

    def step(self, block_size: int, stride: int | None = None) -> int:
        """Tokens by which the window moves; half a block where a stride is not given."""
        return (stride or max(block_size // 2, 1)) if self.strided else block_size


PROTOCOLS = {
    "disjoint": Protocol("joined", "rows joined by a blank line, windows scored by themselves"),
    "strided": Protocol("joined", "the same; the window moves on by the stride", strided=True),
    "run_clm": Protocol("rows", "rows run together, whole windows of every 1,000 rows", whole=True),
    "word-level": Protocol("pages", "de-tokenised pages, each after bos or else eos", overlap=1),
}


def text_windows(
    protocol: str, lengths: Sequence[int], block_size: int, stride: int | None = None
) -> list[tuple[int, int, int]]:
    """`rolling_windows` over all sequences of a text, which stand one after the other.

    Args:
        protocol: key of `PROTOCOLS`.  lengths: of the sequences, in tokens.
        block_size: tokens the model reads at once.  stride: of the strided protocol.
    """
    rules, found, offset = PROTOCOLS[protocol], [], 0
    step = rules.step(block_size, stride)
    for length in lengths:
        usable = length // block_size * block_size if rules.whole else length
        mine = rolling_windows(usable, block_size + rules.overlap, step, bool(rules.overlap))
        found += [(offset + begin, offset + end, first) for begin, end, first in mine]
        offset += length
    return found


def rolling_windows(
    length: int, window: int, step: int, full: bool = False
) -> list[tuple[int, int, int]]:
    """Windows over a sequence, each token but the first scored once; lengths are in tokens.

    With `full` the last window begins earlier, so that it is as long as the others.

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
        begin = max(0, end - window) if full else begin
        first = max(scored - begin, 1)  # a window's own first token has no context in it
        if first < end - begin:
            spans.append((begin, end, first))
        scored = end
        if end == length:
            break
    return spans


def describe_protocol(protocol: str, block_size: int) -> dict:
    """What a record says of how its perplexities were measured."""
    rules = PROTOCOLS[protocol]
    joiner, step = JOINER if rules.layout == "joined" else "", rules.step(block_size)
    return {"name": protocol, "block_size": block_size, "stride": step, "joiner": joiner}


def exp(nats: float) -> float:
    """The exponential of a loss in nats, such as a perplexity; infinity where it overflows."""
    return math.exp(nats) if nats < 700 else math.inf
