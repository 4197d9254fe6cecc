"""How fast do all cores train, alone and beside a busy process, by how their threads wait?

A thread of GNU's OpenMP that has no work left looks for more, some hundred thousand times, before
it sleeps. Beside a busy process one thread then waits for a core on which another one only looks.
`make lab` and `make notebooks` let it sleep at once, by OpenMP's own setting.
"""

import json
import os
import subprocess
import sys
import time

import torch

from benchmarks.side_by_side import SIZES, gpt2, options, random_ids, ratio, row, write
from prunegpt_utils.config import TrainConfig
from prunegpt_utils.losses import batch_loss

POLICY = "passive"  # that of the Makefile
BUSY = "while True: pass"  # what a neighbour does
CORES = str(os.cpu_count())
WAYS = {
    "as OpenMP has it": {"OMP_NUM_THREADS": CORES},
    "few spins": {"OMP_NUM_THREADS": CORES, "GOMP_SPINCOUNT": "3000"},
    "no spins": {"OMP_NUM_THREADS": CORES, "OMP_WAIT_POLICY": POLICY},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def train_steps(size, steps):
    """Print the seconds of each step, after two that warm up; for a process of its own."""
    *_, vocabulary, block, batch = SIZES[size]
    model, ids = gpt2(size).train(), random_ids(batch, block + 1, vocabulary=vocabulary)
    optimizer, config = torch.optim.AdamW(model.parameters()), TrainConfig(1, 1e-4, batch=batch)
    seconds = []
    for _ in range(steps + 2):
        begin = time.perf_counter()
        batch_loss(model, ids, config).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - begin)
    print(json.dumps(seconds[2:]))


def seconds_of(way, size, steps):
    """What `train_steps` prints in a new process with the settings of a way to wait."""
    unset = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "MKL_NUM_THREADS")
    clean = {name: value for name, value in os.environ.items() if name not in unset}
    code = f"from benchmarks.threads import train_steps; train_steps({size!r}, {steps})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=clean | WAYS[way], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def measure(size, steps, turns, neighbours, ways=tuple(WAYS)):
    """Rows with some busy processes beside the one that trains; the last way is one thread."""
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(neighbours)]
    seconds = {way: [] for way in ways}
    try:
        for _ in range(turns):
            for way in ways:
                seconds[way] += seconds_of(way, size, steps)
    finally:
        for process in busy:
            process.kill()
    *all_cores, one = ways
    beside = f"beside {neighbours} busy" if neighbours else "alone"
    return [
        row(f"step, {size}, {CORES} cores, {beside}, {way}", one, "times as fast",
            ratio(seconds, one, way), seconds=seconds, environment=WAYS[way])
        for way in all_cores
    ]  # fmt: skip


def main(arguments=None):
    """Measure, print and write."""
    smoke, turns = options(__doc__, arguments)
    if smoke:
        rows = measure("tiny", 1, turns, 1, ("no spins", "one thread"))
    else:
        rows = [line for busy in (0, 1) for line in measure("2M", 8, turns, busy)]
    return write("threads", "threads that wait", rows, smoke)


if __name__ == "__main__":
    main()
