"""What does a teacher cost?

The same step without one, with one that reads each batch, and with what it says kept on disk. Kept
are its last hidden states, from which its head makes all its logits again: exact, unlike the
largest k of its probabilities, and of a size that is compared here.
"""

import tempfile

import torch

from benchmarks.side_by_side import SIZES, gpt2, in_turns, options, random_ids, ratio, row, write
from prunegpt_utils.distillation import lesson
from prunegpt_utils.models import count, frozen_copy, head
from prunegpt_utils.training import Plan, batch_loss, choose_precision

TOLERANCE = {"float32": 1e-5, "bf16": 1e-2}  # of loss and gradients, relative to the largest
LARGEST = 64  # entries of a cut-off list, with an index of 2 bytes and a value of 2 bytes each


def check(model, rows, plan, teacher, said):
    """Loss and gradients with a kept lesson are those with a live teacher.

    Raises:
        AssertionError: they are not.
    """
    found = []
    for known in (None, said):
        loss = batch_loss(model, rows, plan, teacher, known)
        found.append([loss.detach(), *torch.autograd.grad(loss, [*model.parameters()])])
    gap = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*found, strict=True))
    assert gap <= TOLERANCE[plan.precision], f"loss or gradients differ by {gap}"
    return gap


def measure(size, turns, goals):
    """Rows of one size."""
    *_, vocabulary, block, batch = SIZES[size]
    precision = choose_precision()
    rows = random_ids(batch, block + 1, vocabulary=vocabulary)
    model, teacher = gpt2(size).train(), frozen_copy(gpt2(size, initializer_range=0.05))
    plan = Plan(1, 1e-4, batch=batch, precision=precision, alpha=0.67, temperature=2.0)
    with tempfile.TemporaryDirectory() as folder:
        said = lesson(teacher, rows, folder, precision).clone()
    gap = check(model, rows, plan, teacher, said)
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.lr, fused=True)

    def step(*taught_by):
        batch_loss(model, rows, plan, *taught_by).backward()
        optimizer.step()
        optimizer.zero_grad()

    acts = {"without": step, "live": lambda: step(teacher), "kept": lambda: step(teacher, said)}
    seconds = in_turns(acts, turns)
    tokens, weights = batch * block, count(model)["prunable"] + head(model).numel()
    evidence = {
        "seconds": seconds, "largest_relative_difference": gap,
        "operations": {
            "without": 6 * weights * tokens, "live": 8 * weights * tokens,
            "kept": (6 * weights + 2 * head(model).numel()) * tokens,
        },
        "bytes": {"kept, a token": said[0, 0].nbytes, f"largest {LARGEST}, a token": 4 * LARGEST},
    }  # fmt: skip
    least = evidence["operations"]["kept"] / evidence["operations"]["without"]
    what, above = f"step with a teacher, {size}, {precision}", "times the time"
    return [
        row(f"{what}, live", "no teacher", above, ratio(seconds, "live", "without"),
            goals and "<= 1.36", **evidence),
        row(f"{what}, kept on disk", "no teacher", above, ratio(seconds, "kept", "without"),
            goals and "<= 1.08", least_by_operations=least),
        row(f"{what}, kept on disk", f"its largest {LARGEST} chances", "times the bytes",
            said[0, 0].nbytes / (4 * LARGEST)),
    ]  # fmt: skip


def main(arguments=None):
    """Measure, print and write."""
    smoke, turns = options(__doc__, arguments)
    sizes = ["tiny"] if smoke else ["2M", "124M"]
    rows = [line for size in sizes for line in measure(size, turns, goals=not smoke)]
    return write("teacher_cost", "cost of a teacher", rows, smoke)


if __name__ == "__main__":
    main()
