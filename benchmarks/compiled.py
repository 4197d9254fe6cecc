"""Does `torch.compile` pay on a processor, where a run has some hundred steps?

A training step with its blocks compiled and as it is, and how long the first one takes: on a
machine that has never compiled this model, and on one that has. `train` compiles where it is told
to, which notebook 00 does on a GPU.
"""

import multiprocessing
import os
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor

import torch

from benchmarks.side_by_side import SIZES, gpt2, options, random_ids, ratio, row, write
from prunegpt_utils.config import TrainConfig
from prunegpt_utils.distributed import choose_precision
from prunegpt_utils.losses import batch_loss
from prunegpt_utils.training import keep_freed_memory

COMPILER = os.environ.get("CXX", "g++")
TOLERANCE = {"float32": 1e-4, "bf16": 2e-2}  # nats between the losses of a step


def train_steps(size, steps, backend, cache):
    """(loss of the first step, seconds of each), for a process of its own; no backend: eager."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    torch.set_num_threads(1)  # as a run of a study has it
    keep_freed_memory()
    *_, vocabulary, block, batch = SIZES[size]
    config = TrainConfig(1, 1e-4, batch=batch, precision=choose_precision())
    model, ids = gpt2(size).train(), random_ids(batch, block + 1, vocabulary=vocabulary)
    if backend:
        model.base_model.compile(dynamic=False, backend=backend)
    optimizer, seconds, losses = torch.optim.AdamW(model.parameters()), [], []
    for _ in range(steps):
        begin = time.perf_counter()
        loss = batch_loss(model, ids, config)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - begin)
        losses.append(loss.item())
    return losses[0], seconds


def measure(size, steps, turns, backend="inductor"):
    """Rows of one size."""
    found = {"eager": [], "compiled": []}
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(turns):
            for kind, each in found.items():
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                    chosen = backend if kind == "compiled" else None
                    each.append(process.submit(train_steps, size, steps, chosen, cache).result())
    precision = choose_precision()
    gap = abs(found["eager"][0][0] - found["compiled"][0][0])
    assert gap <= TOLERANCE[precision], f"the losses differ by {gap}"
    seconds = {kind: [s for _, run in runs for s in run[2:]] for kind, runs in found.items()}
    starts = {kind: [run[0] for _, run in runs] for kind, runs in found.items()}
    *_, block, batch = SIZES[size]
    what = f"step, {size}, {batch} x {block} tokens, {precision}, one thread, compiled"
    cold, *warm = starts["compiled"]
    return [
        row(what, "eager", "times as fast", ratio(seconds, "eager", "compiled"), seconds=seconds,
            difference_of_losses=gap),
        row(f"{what}, its first one ever", "", "seconds", cold),
        row(f"{what}, the first one of a process", "", "seconds", min(warm, default=cold),
            starts=starts),
    ]  # fmt: skip


def main(arguments=None):
    """Measure, print and write."""
    smoke, turns = options(__doc__, arguments)
    if not smoke and not shutil.which(COMPILER):
        return print(f"  left out: torch.compile needs a C++ compiler, and {COMPILER} is not here")
    rows = measure("tiny", 3, turns, "eager") if smoke else measure("2M", 40, turns)
    return write("compiled", "torch.compile", rows, smoke)


if __name__ == "__main__":
    main()
