"""How long does it take to cut the smallest of all weights, and how much memory?

Beside `torch.nn.utils.prune.global_unstructured`; the limit is three reads of the weights.
"""

import contextlib
import ctypes
import gc
import threading
import time
from functools import partial

import psutil
import torch
from torch.nn.utils import prune as torch_prune

from benchmarks.side_by_side import gpt2, options, ratio, row, time_prepared, write
from prunegpt_utils.criteria import scores
from prunegpt_utils.masks import make_masks, prune
from prunegpt_utils.modeling import prunable_layers, prunable_weights

SPARSITY = 0.9


def by_torch(model):
    """Cut as torch does, and leave ordinary weights behind."""
    modules = [(layer, "weight") for layer in prunable_layers(model).values()]
    torch_prune.global_unstructured(modules, torch_prune.L1Unstructured, amount=SPARSITY)
    for module, name in modules:
        torch_prune.remove(module, name)


def check(model, whole):
    """Exactly as many weights are gone as were asked for, and none larger than one that stayed.

    Raises:
        AssertionError: it is not so.
    """
    cut = torch.cat([weight.detach().flatten() for weight in prunable_weights(model).values()])
    sizes = torch.cat([weight.flatten() for weight in whole]).abs()
    gone = cut == 0
    assert int(gone.sum()) == round(SPARSITY * len(cut))
    assert sizes[gone].max() <= sizes[~gone].min()


def peak_memory(act, every=0.002):
    """Most bytes that the process holds during an act beyond what it held before."""
    _hand_back()
    process, done = psutil.Process(), threading.Event()
    before = most = process.memory_info().rss

    def watch():
        nonlocal most
        while not done.is_set():
            most = max(most, process.memory_info().rss)
            time.sleep(every)

    watcher = threading.Thread(target=watch)
    watcher.start()
    kept = act()
    done.set()
    watcher.join()
    del kept
    return most - before


def _hand_back():
    """Ask glibc for the memory it has freed, or an act takes that, unseen."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # of another C library
        ctypes.CDLL(None).malloc_trim(0)


def measure(size, turns, goals, **changes):
    """Rows of one size."""
    model = gpt2(size, **changes)
    weights = [weight.detach() for weight in prunable_weights(model).values()]
    whole = [weight.clone() for weight in weights]
    one_copy = sum(weight.nbytes for weight in weights)
    memory = {"make_masks": peak_memory(partial(make_masks, scores(model), SPARSITY))}
    acts = {
        "ours": lambda: prune(model, "magnitude", SPARSITY, "global"),
        "global_unstructured": lambda: by_torch(model),
        "limit": lambda: [weight.sum() for _ in range(3) for weight in weights],
    }

    def restore(_):
        for name, weight in enumerate(prunable_weights(model).values()):
            weight.data.copy_(whole[name])

    for name in ("ours", "global_unstructured"):
        restore(name)
        memory[name] = peak_memory(acts[name])
        check(model, whole)
    seconds = time_prepared(acts, restore, turns)
    count = one_copy // 4
    what, copies = f"cut {SPARSITY:.0%} of {count / 1e6:.3g}M weights", "copies of the weights"
    return [
        row(what, "global_unstructured", "times as fast",
            ratio(seconds, "global_unstructured", "ours"), goals and ">= 15",
            seconds=seconds, operations=count, bytes=3 * one_copy, peak_bytes=memory),
        row(what, "three reads of the weights", "times the time", ratio(seconds, "ours", "limit")),
        row("masks of known scores", "no memory beside them", copies,
            memory["make_masks"] / one_copy, goals and "<= 1.1"),
        row(f"{what}, memory", "global_unstructured", "times less",
            memory["global_unstructured"] / max(1, memory["ours"])),
    ]  # fmt: skip


def main(arguments=None):
    """Measure, print and write."""
    smoke, turns = options(__doc__, arguments)
    size, small = ("tiny", {}) if smoke else ("124M", {"vocab_size": 97})
    rows = measure(size, turns, goals=not smoke, **small)
    return write("global_threshold", "global threshold", rows, smoke)


if __name__ == "__main__":
    main()
