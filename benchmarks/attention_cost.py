"""Which attention trains faster on windows of a length, eager or fused?

A forward and a backward pass through three blocks, the same number of tokens in windows of several
lengths, with each. `forward.training_attention` chooses by what this finds on a CPU; a GPU is given
fused attention at every length.
"""

import torch

from benchmarks.side_by_side import SIZES, gpt2, options, random_ids, ratio, row, write
from prunegpt_utils.distributed import choose_precision
from prunegpt_utils.efficiency import time_in_turns
from prunegpt_utils.forward import autocast, last_hidden_states
from prunegpt_utils.training import keep_freed_memory

TOKENS, LENGTHS = 1024, (128, 256, 512, 1024)
TOLERANCE = {"float32": 1e-4, "bf16": 5e-2}  # of the hidden states, relative to the largest
KINDS = ("eager", "sdpa")


def check(model, ids, precision):
    """Raise AssertionError unless both kinds make the same hidden states, but for rounding."""
    found = []
    for kind in KINDS:
        model.set_attn_implementation(kind)
        with torch.no_grad(), autocast(model, precision):
            found.append(last_hidden_states(model, ids))
    gap = float((found[0] - found[1]).abs().max() / found[0].abs().max())
    assert gap <= TOLERANCE[precision], f"hidden states differ by {gap}"
    return gap


def measure(size, lengths, tokens, turns):
    """Rows of one width: a row a length."""
    keep_freed_memory()
    precision, rows = choose_precision(), []
    model = gpt2(size, n_layer=3, vocab_size=97, n_positions=max(lengths)).train()
    for length in lengths:
        ids = random_ids(tokens // length, length, vocabulary=97).to(model.device)

        def act(kind, ids=ids):
            model.set_attn_implementation(kind)
            with autocast(model, precision):
                hidden = last_hidden_states(model, ids)
            hidden.float().sum().backward()
            model.zero_grad()

        gap = check(model, ids, precision)
        seconds = time_in_turns({kind: (lambda kind=kind: act(kind)) for kind in KINDS}, turns)
        what = f"three blocks, width {SIZES[size][1]}, {len(ids)} x {length} tokens, {precision}"
        rows.append(
            row(f"{what}, eager attention", "fused attention", "times the time",
                ratio(seconds, "eager", "sdpa"), seconds=seconds, largest_relative_difference=gap)
        )  # fmt: skip
    return rows


def main(arguments=None):
    """Measure, print and write."""
    smoke, turns = options(__doc__, arguments)
    cases = {"tiny": ((8, 16), 32)} if smoke else dict.fromkeys(("2M", "124M"), (LENGTHS, TOKENS))
    rows = [line for size, case in cases.items() for line in measure(size, *case, turns)]
    return write("attention_cost", "attention by the length of a window", rows, smoke)


if __name__ == "__main__":
    main()
