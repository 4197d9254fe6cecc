"""How fast do all cores train, alone and beside a busy process, by how their threads wait?

A thread of GNU's OpenMP that has no work left looks for more, some hundred thousand times, before
it sleeps. Beside a busy process one thread then waits for a core on which another one only looks.
`make lab` and `make notebooks` let it sleep at once, by OpenMP's own setting.
"""

import os
import subprocess
import sys

from benchmarks.side_by_side import in_new_process, options, ratio, row, train_steps, write

POLICY = "passive"  # that of the Makefile
BUSY = "while True: pass"  # what a neighbour does
CORES = str(os.cpu_count())
WAYS = {
    "as OpenMP has it": {"OMP_NUM_THREADS": CORES},
    "few spins": {"OMP_NUM_THREADS": CORES, "GOMP_SPINCOUNT": "3000"},
    "no spins": {"OMP_NUM_THREADS": CORES, "OMP_WAIT_POLICY": POLICY},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def measure(size, steps, turns, neighbours, ways=tuple(WAYS)):
    """Rows with some busy processes beside the one that trains; the last way is one thread."""
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(neighbours)]
    seconds = {way: [] for way in ways}
    try:
        for _ in range(turns):
            for way in ways:
                _, found = in_new_process(train_steps, size, steps + 2, **WAYS[way])
                seconds[way] += found[2:]  # two warm up
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
