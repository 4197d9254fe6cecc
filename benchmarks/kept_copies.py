"""Would a training step be faster if bf16 copies of the matrices were kept between steps?

Autocast rounds every matrix to bf16 in each step and converts its gradient back to float32. Here
the products read copies that live beside the float32 weights and give bf16 gradients, which are
converted a few at a time where they meet the optimizer: to the same bits, by fewer passes over
memory. Training does it the plain way; the result says what it would gain.
"""

import contextlib

import torch
from transformers.pytorch_utils import Conv1D

from benchmarks.side_by_side import SIZES, batch_of, gpt2, options, ratio, row, training_step, write
from prunegpt_utils.efficiency import time_in_turns
from prunegpt_utils.forward import lm_head, sparse_lookup, training_attention
from prunegpt_utils.losses import batch_loss
from prunegpt_utils.training import make_optimizer

AT_ONCE = 1 << 22  # gradients converted before the optimizer takes them: some that fit a cache


class KeptCopies:
    """Copies of the matrices of a model's blocks, for the products of a step, and their gradients.

    Attributes:
        copies: {weight: its copy}.  gradients: {weight: gradient of its copy}.
    """

    def __init__(self, model, dtype):
        """Args: `dtype` of the copies."""
        lm_head(model)  # measured once, on the model as it is
        tied = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
        linear = (m for m in model.modules() if isinstance(m, (torch.nn.Linear, Conv1D)))
        self.layers = [layer for layer in linear if id(layer.weight) not in tied]
        self.copies = {
            layer.weight: torch.nn.Parameter(layer.weight.detach().to(dtype, copy=True))
            for layer in self.layers
        }
        self.gradients = {}

    @contextlib.contextmanager
    def in_use(self):
        """The model computes with the copies while the block runs, and leaves their gradients."""
        weights = [layer.weight for layer in self.layers]
        with torch.no_grad():
            for weight, copy in self.copies.items():
                copy.copy_(weight)
        for layer, weight in zip(self.layers, weights, strict=True):
            layer.weight = self.copies[weight]
        yield
        for layer, weight in zip(self.layers, weights, strict=True):
            layer.weight = weight
        self.gradients = {weight: copy.grad for weight, copy in self.copies.items()}
        for copy in self.copies.values():
            copy.grad = None

    def gradient(self, weight):
        """In float32."""
        kept = self.gradients.get(weight)
        return weight.grad if kept is None else kept.float()

    def parts(self):
        """Lists of weights whose gradients are converted at once."""
        part = []
        for weight in self.gradients:
            part.append(weight)
            if sum(each.numel() for each in part) >= AT_ONCE:
                yield part
                part = []
        yield part


def with_copies(model, rows, config):
    """`side_by_side.training_step` with kept copies."""
    optimizer = make_optimizer(model, config)
    kept = KeptCopies(model, torch.bfloat16 if config.precision == "bf16" else torch.float32)

    def step():
        with kept.in_use(), sparse_lookup(model):
            loss = batch_loss(model, rows, config)
            loss.backward()
        norms = [torch.linalg.vector_norm(kept.gradient(w)) for w in model.parameters()]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        rest = [weight for weight in model.parameters() if weight not in kept.gradients]
        for part in [rest, *kept.parts()]:
            for weight in part:
                weight.grad = kept.gradient(weight)
            torch.nn.utils.clip_grads_with_norm_(part, config.max_grad_norm, norm)
            optimizer.step()  # moves those that have a gradient
            optimizer.zero_grad()
        return float(loss.detach())

    return step


def measure(size, turns):
    """The row of one size."""
    *shape, block, batch = SIZES[size]
    config, rows = batch_of(shape[-1], block, batch)
    models = [gpt2(size), gpt2(size)]
    acts = {
        "converted": training_step(models[0].train(), rows, config),
        "kept": with_copies(models[1].train(), rows, config),
    }
    with training_attention(models[0], block), training_attention(models[1], block):
        seconds = time_in_turns(acts, turns)
    pairs = zip(*(model.parameters() for model in models), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs), "the two are not equal to the last bit"
    what = f"step, {size}, {batch} x {block} tokens, {config.precision}, copies of matrices kept"
    found = ratio(seconds, "converted", "kept")
    return row(what, "converted in each step", "times as fast", found, seconds=seconds)


def main(arguments=None):
    """Measure, print and write."""
    smoke, turns = options(__doc__, arguments)
    cases = {"tiny": 1} if smoke else {"2M": 12 * turns, "124M": 3 * turns}
    rows = [measure(size, count) for size, count in cases.items()]
    return write("kept_copies", "matrices kept in bf16", rows, smoke)


if __name__ == "__main__":
    main()
