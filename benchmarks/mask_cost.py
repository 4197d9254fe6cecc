"""What does it cost to hold a mask during training?

The same step without a mask, with ours, and with `torch.nn.utils.prune`, which multiplies by the
mask in every forward pass; the limit is one pass over the weights.
"""

import copy

import torch
from torch.nn.utils import prune as torch_prune

from benchmarks.side_by_side import SIZES, batch_of, gpt2, options, ratio, row, training_step, write
from prunegpt_utils.efficiency import time_in_turns
from prunegpt_utils.masks import apply_masks, prune
from prunegpt_utils.modeling import prunable_layers, prunable_weights

TOLERANCE = 1e-3  # nats between the losses of the two ways to hold a mask


def stepper(model, rows, config, masks=None):
    """A function that takes one training step, holds the masks and returns its loss."""
    step = training_step(model, rows, config)

    def masked():
        loss = step()
        apply_masks(model, masks)
        return loss

    return masked if masks else step


def under_torch_prune(model, masks):
    """A copy of the model whose layers multiply their weights by the masks."""
    other = copy.deepcopy(model)
    for name, layer in prunable_layers(other).items():
        torch_prune.custom_from_mask(layer, "weight", masks[name])
    return other


def check(dense, masks, rows, config):
    """Ours and torch's way take the same steps, and the zeros hold.

    Raises:
        AssertionError: they do not.
    """
    model = copy.deepcopy(dense)
    by_torch = under_torch_prune(dense, masks)
    arms = stepper(model, rows, config, masks), stepper(by_torch, rows, config)
    gap = max(abs(a - b) for a, b in [[step() for step in arms] for _ in range(3)])
    assert gap <= TOLERANCE, f"the losses differ by {gap}"
    assert all((w[~masks[name]] == 0).all() for name, w in prunable_weights(model).items())
    return gap


def measure(size, turns, goals):
    """Rows of one size."""
    config, rows = batch_of(*SIZES[size][3:])
    dense = gpt2(size).train()
    masks = prune(dense, "magnitude", 0.9, "global")
    gap = check(dense, masks, rows, config)
    sparse, weights = copy.deepcopy(dense), list(prunable_weights(dense).values())
    numbers = [torch.ones_like(weight) for weight in weights]
    acts = {
        "without": stepper(dense, rows, config),
        "ours": stepper(sparse, rows, config, masks),
        "torch.nn.utils.prune": stepper(under_torch_prune(dense, masks), rows, config),
        "mask alone": lambda: apply_masks(sparse, masks),
        "limit": lambda: torch._foreach_mul_([w.detach() for w in weights], numbers),
    }
    seconds = time_in_turns(acts, turns)
    count = sum(weight.numel() for weight in weights)
    what, above = f"step under a mask, {size}", "times the time"
    return [
        row(what, "no mask", above, ratio(seconds, "ours", "without"), goals and "<= 1.03",
            seconds=seconds, operations=count, bytes=9 * count, largest_difference=gap),
        row(what, "torch.nn.utils.prune", "times as fast",
            ratio(seconds, "torch.nn.utils.prune", "ours"), goals and ">= 1"),
        row(f"mask alone, {size}", "one pass over the weights", above,
            ratio(seconds, "mask alone", "limit")),
    ]  # fmt: skip


def main(arguments=None):
    """Measure, print and write."""
    smoke, turns = options(__doc__, arguments)
    sizes = ["tiny"] if smoke else ["2M", "124M"]
    rows = [line for size in sizes for line in measure(size, turns, goals=not smoke)]
    return write("mask_cost", "cost of holding a mask", rows, smoke)


if __name__ == "__main__":
    main()
