"""What does a teacher cost?

The same step without one, with one that reads each batch, and with its last hidden states cached,
from which its head makes all its logits again: exact, unlike the largest k of its probabilities,
and of a size that is compared here.
"""

import tempfile

import torch

from benchmarks.side_by_side import SIZES, batch_of, gpt2, options, ratio, row, training_step, write
from prunegpt_utils.efficiency import time_in_turns
from prunegpt_utils.forward import lm_head, rounded_copy
from prunegpt_utils.losses import batch_loss
from prunegpt_utils.modeling import count_parameters, frozen_copy
from prunegpt_utils.teacher_cache import cached_hidden_states

TOLERANCE = {"float32": 1e-5, "bf16": 1e-2}  # of loss and gradients, relative to the largest
CACHED = {"2M": "<= 1.08", "124M": "<= 1.15"}  # goals: softmaxes over 50,257 tokens cost more
LARGEST = 64  # entries of a cut-off list, with an index of 2 bytes and a value of 2 bytes each


def check(model, rows, config, teacher, cached):
    """Loss and gradients with cached hidden states are those with a live teacher.

    Raises:
        AssertionError: they are not.
    """
    found = []
    for known in (None, cached):
        loss = batch_loss(model, rows, config, teacher, known)
        found.append([loss.detach(), *torch.autograd.grad(loss, [*model.parameters()])])
    gap = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*found, strict=True))
    assert gap <= TOLERANCE[config.precision], f"loss or gradients differ by {gap}"
    return gap


def measure(size, turns, goals):
    """Rows of one size."""
    *_, block, batch = SIZES[size]
    config, rows = batch_of(*SIZES[size][3:], alpha=0.67, temperature=2.0)
    precision = config.precision
    model, teacher = gpt2(size).train(), frozen_copy(gpt2(size, initializer_range=0.05))
    with tempfile.TemporaryDirectory() as folder:
        cached = cached_hidden_states(teacher, rows, folder, precision).clone()
    teacher = rounded_copy(teacher, precision)  # as `train` has it read
    gap = check(model, rows, config, teacher, cached)
    step = training_step(model, rows, config)
    acts = {"without": step, "live": lambda: step(teacher), "cached": lambda: step(teacher, cached)}
    seconds = time_in_turns(acts, turns)
    tokens, head = batch * block, lm_head(model).numel()
    weights = count_parameters(model)["prunable"] + head
    evidence = {
        "seconds": seconds, "largest_relative_difference": gap,
        "operations": {
            "without": 6 * weights * tokens, "live": 8 * weights * tokens,
            "cached": (6 * weights + 2 * head) * tokens,
        },
        "bytes_a_token": {"cached": cached[0, 0].nbytes, f"largest {LARGEST}": 4 * LARGEST},
    }  # fmt: skip
    least = evidence["operations"]["cached"] / evidence["operations"]["without"]
    what, above = f"step with a teacher, {size}, {precision}", "times the time"
    return [
        row(f"{what}, live", "no teacher", above, ratio(seconds, "live", "without"),
            goals and "<= 1.36", **evidence),
        row(f"{what}, cached", "no teacher", above, ratio(seconds, "cached", "without"),
            goals and CACHED[size], least_by_operations=least),
        row(f"{what}, cached", f"its largest {LARGEST} chances", "times the bytes",
            cached[0, 0].nbytes / (4 * LARGEST)),
    ]  # fmt: skip


def main(arguments=None):
    """Measure, print and write."""
    smoke, turns = options(__doc__, arguments)
    sizes = ["tiny"] if smoke else ["2M", "124M"]
    rows = [line for size in sizes for line in measure(size, turns, goals=not smoke)]
    return write("teacher_cost", "cost of a teacher", rows, smoke)


if __name__ == "__main__":
    main()
