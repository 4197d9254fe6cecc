"""How do time, memory and disk grow?

Slopes on log-log axes: 1 is linear. Time of a step against parameters, tokens, vocabulary and the
share of weights that a mask keeps, time of a threshold against weights, memory of a step against
the length of its windows and against parameters, and the size of a checkpoint. And what a model
would need that this machine cannot hold, of whose tensors only the shapes are made.
"""

import math
import statistics
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator
from transformers import GPT2Config

from benchmarks import mask_cost
from benchmarks.side_by_side import batch_of, gpt2, options, row, slope, training_step, write
from prunegpt_utils.config import TrainConfig
from prunegpt_utils.distributed import make_accelerator
from prunegpt_utils.efficiency import predicted_memory, time_in_turns, tracked_memory
from prunegpt_utils.losses import batch_loss
from prunegpt_utils.masks import make_masks, prune
from prunegpt_utils.modeling import count_parameters
from prunegpt_utils.report import figure_files
from prunegpt_utils.training import Trainer

# (blocks, width, heads, vocabulary): 0.4M to 124M parameters
MODELS = [(2, 96, 2, 2048), (3, 192, 3, 2048), (4, 384, 6, 8192), (8, 512, 8, 32768),
          (12, 768, 12, 50257)]  # fmt: skip
SMOKE = [(1, 16, 2, 97), (2, 32, 2, 97)]
# GPT-2's largest, and as many parameters as the usual large model
LARGE = {"1.6B": (48, 1600, 25, 50257), "6.7B": (32, 4096, 32, 50257)}


def settings(shape):
    """A shape as GPT-2's configuration has it."""
    return dict(zip(("n_layer", "n_embd", "n_head", "vocab_size"), shape, strict=True))


def stepper(shape, batch, block):
    """(parameters of a model, a training step of it)."""
    model = gpt2("tiny", n_positions=block, **settings(shape)).train()
    config, rows = batch_of(shape[-1], block, batch)
    return count_parameters(model)["parameters"], training_step(model, rows, config)


def masked_stepper(shape, batch, block, kept):
    """A training step under masks that keep this share of the block weights."""
    model = gpt2("tiny", n_positions=block, **settings(shape)).train()
    masks = prune(model, "magnitude", 1 - kept, "global")
    config, rows = batch_of(shape[-1], block, batch)
    return mask_cost.stepper(model, rows, config, masks)


def growth(act, over, acts, turns):
    """Row of the slope of an act's time over the numbers that `acts` are named by."""
    seconds = time_in_turns(acts, turns)
    middle = [statistics.median(times) for times in seconds.values()]
    exponent, axes = slope(list(acts), middle), [over, f"time of a {act}"]
    return row(f"time of a {act} against {over}", "", "slope", exponent, seconds=seconds, axes=axes)


def grown(what, over, found, goal=None, **evidence):
    """Row of the slope of some bytes over the numbers that they are named by."""
    exponent = slope(list(found), found.values())
    evidence |= {"bytes": found, "axes": [over, what]}
    return row(f"{what} against {over}", "", "slope", exponent, goal, **evidence)


def memory(shape, lengths):
    """Row of the slope of a step's memory, beyond that of one token, over the windows' length."""
    config = TrainConfig(1, 1e-4, batch=1, precision="bf16")
    one = tracked_memory(shape, config, 1)
    found = {length: tracked_memory(shape, config, length) - one for length in lengths}
    what = "memory of a step, beyond one token"
    return grown(what, "tokens a window", found, "<= 1.1", bytes_of_one_token=one)


def memory_by_parameters(shapes, block):
    """Row of the slope of a step's memory over the parameters of the model."""
    config, found = TrainConfig(1, 1e-4, batch=1, precision="bf16"), {}
    for shape in shapes:
        model = GPT2Config(n_positions=block, **settings(shape))
        size = count_parameters(gpt2("tiny", n_positions=block, **settings(shape)))["parameters"]
        found[size] = tracked_memory(model, config, block)
    return grown("memory of a step", "parameters", found)


def disk_by_parameters(shapes, block):
    """Row of the slope of a checkpoint's size over the parameters: weights, best ones, moments."""
    accelerator, found = make_accelerator(2, True), {}
    for shape in shapes:
        model = gpt2("tiny", n_positions=block, **settings(shape)).train()
        config, rows = batch_of(shape[-1], block, 2)
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(model, rows, config, None, accelerator, Path(folder))
            batch_loss(model, rows, config).backward()
            trainer.update(config.lr)
            trainer.state.record_evaluation(1.0, 1.0)
            trainer.state.save(Path(folder))
            written = sum(path.stat().st_size for path in Path(folder).iterdir())
        found[count_parameters(model)["parameters"]] = written
    return grown("disk of a checkpoint", "parameters", found)


def needed(name, shape, block):
    """Rows of the memory of a step that is distilled and masked, and what the model of it says."""
    config = TrainConfig(1, 1e-4, batch=1, precision="bf16", alpha=0.67, temperature=2.0)
    model = GPT2Config(n_positions=block, **settings(shape))
    found, parts = tracked_memory(model, config, block), predicted_memory(model, config, block)
    what = f"memory of a distilled step, {name}, 1 x {block:,} tokens"
    return [
        row(what, "", "GB", found / 1e9, bytes={"tracked": found}),
        row(what, "sum of its known parts", "times the bytes", found / sum(parts.values()),
            bytes=parts),
    ]  # fmt: skip


def draw(record):
    """The curves of a record on log-log axes, a panel a row, with its slope as the title."""
    figure_files.style()
    grown = [found for found in record["rows"] if "axes" in found]
    lines = math.ceil(len(grown) / 2)
    figure, panels = plt.subplots(lines, 2, figsize=(8.6, 3.3 * lines), squeeze=False)
    for panel in panels.flat[len(grown) :]:
        panel.remove()
    for found, panel in zip(grown, panels.flat, strict=False):
        unit = "B" if "bytes" in found else "s"
        points = found.get("bytes") or found["seconds"]
        points = sorted((float(x), statistics.median(_several(y))) for x, y in points.items())
        panel.loglog(*zip(*points, strict=True), "o-", color="#0072B2")
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xticks([x for x, _ in points])
        panel.xaxis.set_major_formatter(
            EngFormatter(places=0 if points[0][0] >= 1 else None, sep="")
        )
        low, high = panel.get_ylim()
        panel.set_ylim(min(low, high / 20), max(high, low * 4))  # what hardly grows looks like it
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_formatter(EngFormatter(unit, places=0))
        across, up = found["axes"]
        panel.set_title(f"{up}: slope {found['value']:.2f}", fontsize=10.5)
        panel.set_xlabel(across)
    figure.tight_layout()
    return figure


def _several(measured):
    return measured if isinstance(measured, list) else [measured]


def main(arguments=None):
    """Measure, print and write."""
    smoke, turns = options(__doc__, arguments)
    shapes = SMOKE if smoke else MODELS
    block, batches = (16, (1, 2)) if smoke else (128, (1, 2, 4, 8))
    sizes = (1000, 4000) if smoke else (10**6, 4 * 10**6, 16 * 10**6, 85 * 10**6)
    lengths = (8, 16) if smoke else (128, 256, 512, 1024)
    vocabularies = (97, 194) if smoke else (2048, 8192, 32768, 131072)
    by_size = dict(stepper(shape, 2, block) for shape in shapes)
    rows = [growth("step", "parameters", by_size, turns)]
    del by_size
    by_tokens = {batch * block: stepper(shapes[1], batch, block)[1] for batch in batches}
    rows.append(growth("step", "tokens", by_tokens, turns))
    by_vocabulary = {n: stepper((*shapes[1][:3], n), 2, block)[1] for n in vocabularies}
    rows.append(growth("step", "vocabulary", by_vocabulary, turns))
    by_kept = {kept: masked_stepper(shapes[1], 2, block, kept) for kept in (0.05, 0.2, 0.5, 1.0)}
    rows.append(growth("masked step", "share of block weights kept", by_kept, turns))
    generator = torch.Generator().manual_seed(0)
    scored = {n: {"w": torch.rand(n, generator=generator)} for n in sizes}
    cuts = {n: (lambda tensors=tensors: make_masks(tensors, 0.9)) for n, tensors in scored.items()}
    rows.append(growth("threshold", "weights", cuts, turns))
    rows.append(memory(gpt2("tiny" if smoke else "124M", n_positions=lengths[-1]).config, lengths))
    rows += [memory_by_parameters(shapes, block), disk_by_parameters(shapes, block)]
    for name, shape in {"tiny": SMOKE[1]}.items() if smoke else LARGE.items():
        rows += needed(name, shape, lengths[-1])
    return write("scaling", "how it grows", rows, smoke)


if __name__ == "__main__":
    main()
