"""Does `torch.compile` pay on a processor, where a run has some hundred or thousand steps?

A training step with its blocks compiled and as it is, and how long the first one takes: on a
machine that has never compiled this model, and on one that has. `train` compiles where it is told
to, which notebook 00 does on a GPU.
"""

import os
import shutil
import tempfile

from benchmarks.side_by_side import SIZES, in_new_process, options, ratio, row, train_steps, write
from prunegpt_utils.distributed import choose_precision

ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # as a run of a study has it
COMPILER = os.environ.get("CXX", "g++")
TOLERANCE = {"float32": 1e-4, "bf16": 2e-2}  # nats between the losses of a step


def measure(size, steps, turns, backend="inductor"):
    """Rows of one size."""
    precision, found = choose_precision(), {"eager": [], "compiled": []}
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(turns):
            for kind, each in found.items():
                chosen = backend if kind == "compiled" else None
                case = (train_steps, size, steps, precision, chosen)
                each.append(in_new_process(*case, **ONE_THREAD, TORCHINDUCTOR_CACHE_DIR=cache))
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
        print(f"  left out: torch.compile needs a C++ compiler, and {COMPILER} is not here")
        return None
    rows = measure("tiny", 3, turns, "eager") if smoke else measure("2M", 40, turns)
    return write("compiled", "torch.compile", rows, smoke)


if __name__ == "__main__":
    main()
