"""Where does the time go? Profiles of the acts whose goals other benchmarks set.

Each operation of `torch.profiler` is charged with the time spent in itself and counted to one kind;
the shares say how near an act is to its limit, the matrix products, and what stands between.
"""

import re
import tempfile

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.side_by_side import SIZES, batch_of, gpt2, options, row, training_step, write
from prunegpt_utils.evaluation import token_nll
from prunegpt_utils.forward import rounded_copy
from prunegpt_utils.modeling import frozen_copy
from prunegpt_utils.protocols import rolling_windows
from prunegpt_utils.teacher_cache import cached_hidden_states

# kind -> names of operations; the first that fits counts
KINDS = {
    "matrix products": r"mm$|mm_$|linear|mkldnn|scaled_dot_product",
    "softmax and GELU": r"softmax|gelu|::exp$|::log$",
    "Adam": r"adam",
    "copies and conversions": r"copy_|clone|cat$|fill_|zero_",
    "sums and products by element": r"add|mul|div|sub|sum|norm|amax|vecdot|dot$",
}
REST = "the rest"


def kind_of(operation):
    """Kind to which an operation of the profiler counts."""
    name = operation.lower()
    return next((kind for kind, names in KINDS.items() if re.search(names, name)), REST)


def seconds_by_kind(act, repeats):
    """{kind: seconds} of an act that has warmed up, all repeats together."""
    act()
    on_gpu = torch.cuda.is_available()
    activities = {ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])}
    with profile(activities=activities) as found:
        for _ in range(repeats):
            act()
    seconds = dict.fromkeys([*KINDS, REST], 0.0)
    for event in found.key_averages():
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        seconds[kind_of(event.key)] += spent / 1e6
    return seconds


def acts(size, folder):
    """{what: act}: a step without a teacher, with a live or cached one, and a perplexity."""
    plain, rows = batch_of(*SIZES[size][3:])
    distilled, _ = batch_of(*SIZES[size][3:], alpha=0.67, temperature=2.0)
    model, teacher = gpt2(size).train(), frozen_copy(gpt2(size, initializer_range=0.05))
    cached = cached_hidden_states(teacher, rows, folder, plain.precision).clone()
    teacher = rounded_copy(teacher, plain.precision)  # as `train` has it read
    step, taught = (training_step(model, rows, config) for config in (plain, distilled))
    text = rows.flatten()
    spans = rolling_windows(len(text), SIZES[size][4], SIZES[size][4])
    return {
        f"step, {size}": step,
        f"step, {size}, a teacher reads along": lambda: taught(teacher),
        f"step, {size}, its hidden states are cached": lambda: taught(teacher, cached),
        f"perplexity, {size}": lambda: token_nll(model, text, spans),
    }


def main(arguments=None):
    """Measure, print and write."""
    smoke, turns = options(__doc__, arguments)
    rows = []
    for size in ["tiny"] if smoke else ["2M", "124M"]:
        with tempfile.TemporaryDirectory() as folder:
            for what, act in acts(size, folder).items():
                found = seconds_by_kind(act, turns)
                share = found["matrix products"] / sum(found.values())
                rows.append(row(what, "", "of the time in matrix products", share, seconds=found))
    return write("profiles", "where the time goes", rows, smoke)


if __name__ == "__main__":
    main()
