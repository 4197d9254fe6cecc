"""How fast is a training step, beside `transformers.Trainer` and the processor's limit?

Same model, text, order and optimizer, timed by the same hook, from one forward pass to the next;
without a teacher, and with one whose logits Trainer's loss compares with all of its own. Each turn
has a process of its own: what a training asks of the memory allocator, and of torch for its large
pages, holds for all of a process, and would serve Trainer too.
"""

import itertools
import statistics
import tempfile
import time

import torch
import torch.nn.functional as F
from transformers import PrinterCallback, Trainer, TrainingArguments

from benchmarks.side_by_side import (
    SIZES,
    in_new_process,
    matrices,
    model_of,
    options,
    products,
    random_ids,
    ratio,
    row,
    write,
)
from prunegpt_utils.config import TrainConfig
from prunegpt_utils.distributed import choose_precision, device
from prunegpt_utils.efficiency import time_in_turns
from prunegpt_utils.modeling import frozen_copy
from prunegpt_utils.tokenization import batch_indices
from prunegpt_utils.training import train

# size -> (steps a turn, steps whose losses are compared, goals: Trainer, Trainer in bf16, peak)
CASES = {
    "2M": (12, 20, ">= 1.3", ">= 1.15", ""),
    "124M": (6, 3, ">= 1.7", ">= 1.15", ">= 0.7"),
    "135M": (4, 2, "", ">= 1.15", ">= 0.7"),
}
WITH_TEACHER = ("tiny", "2M", "124M")
TAUGHT = {"alpha": 0.67, "temperature": 2.0}
TOLERANCE = 1e-3  # nats between the losses of equal steps, both in float32


def ours(size, text, config):
    """(loss of each evaluated step, seconds of each step) of this project's loop."""
    model = model_of(size)
    times = _timed(model)
    with tempfile.TemporaryDirectory() as folder:
        result = train(model, text, text[0], folder, config, _teacher(size, config), label="ours")
    return [line["loss"] for line in result["history"]], _gaps(times)


def peer(size, text, config, bf16=False):
    """The same of Trainer at its defaults."""

    class Fixed(Trainer):  # our order instead of its own
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def compute_loss(self, model, inputs, return_outputs=False, **options):
            loss, own = super().compute_loss(model, inputs, return_outputs=True, **options)
            if teacher is None:
                return loss
            with torch.no_grad(), torch.autocast(device().type, torch.bfloat16, enabled=bf16):
                known = teacher(inputs["input_ids"]).logits[:, :-1]
            theirs, ours = (
                (x.float() / config.temperature).log_softmax(-1).flatten(0, 1)
                for x in (known, own.logits[:, :-1])
            )
            gap = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
            return (1 - config.alpha) * loss + config.alpha * config.temperature**2 * gap

    steps, batch = range(config.steps), config.batch
    rows = [line for k in steps for line in batch_indices(len(text), batch, k, 0)]
    labels = text.clone()
    labels[:, 0] = -100  # nothing predicts the first token, yet Trainer would divide by it
    data = [{"input_ids": text[line], "labels": labels[line]} for line in rows]
    model, teacher = model_of(size, stock=True), _teacher(size, config, stock=True)
    times = _timed(model)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=config.steps, per_device_train_batch_size=batch, bf16=bf16,
            learning_rate=config.lr, lr_scheduler_type="linear", adam_beta2=0.98, weight_decay=0.0,
            max_grad_norm=config.max_grad_norm, logging_steps=1, save_strategy="no", report_to=[],
            disable_tqdm=True, use_cpu=device().type == "cpu", dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = Fixed(model, arguments, train_dataset=data)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line], _gaps(times)


def _teacher(size, config, stock=False):
    if not config.alpha:
        return None
    return frozen_copy(model_of(size, stock, initializer_range=0.05))


def _timed(model):
    """List that gets the time of each forward pass of training as it begins.

    Those without a gradient are no steps: evaluations, and how the loop gets to know a model.
    """
    times = []

    def note(*_):
        if torch.is_grad_enabled():
            times.append(time.perf_counter())

    model.base_model.register_forward_pre_hook(note)
    return times


def _gaps(times):
    return [after - before for before, after in itertools.pairwise(times)]


def check(size, text, base, steps):
    """Largest difference of the losses of equal steps.

    Raises:
        AssertionError: it is beyond the tolerance.
    """
    config = TrainConfig(steps, evaluations=steps, **base)
    curves = [arm(size, text, config)[0] for arm in (ours, peer)]
    gap = max(abs(a - b) for a, b in zip(*curves, strict=True))
    assert gap <= TOLERANCE, f"the losses differ by {gap}"
    return gap


def measure(size, case, turns, **taught):
    """Rows of one size; `taught` is how a teacher's loss is weighed, if there is one."""
    steps, compared, goal, goal_bf16, goal_peak = case
    *_, vocabulary, block, batch = SIZES[size]
    text = random_ids(256, block + 1, vocabulary=vocabulary)
    text[:, 1::2] = text[:, :1]  # half of it can be learnt
    base = {"lr": 1e-4, "batch": batch, "warmup": 0.0, "lr_schedule": "linear", **taught}
    config = TrainConfig(steps, evaluations=1, precision=choose_precision(), **base)
    gap = check(size, text, base, compared)
    seconds = {"ours": [], "Trainer, float32": [], "Trainer, bf16": [], "limit": []}
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    student, operations = products(matrices(size), batch * block, dtype)
    reading, more = products(matrices(size), batch * block, dtype, backward=False)

    def limit():
        student()
        if taught:
            reading()

    arms = {"ours": (ours,), "Trainer, float32": (peer,), "Trainer, bf16": (peer, True)}
    for _ in range(turns):
        for name, (arm, *bf16) in arms.items():
            # one that waits for its turn may find its memory taken: each turn has a new one
            large_pages = {} if arm is ours else {"THP_MEM_ALLOC_ENABLE": "0"}  # torch's default
            found = in_new_process(arm, size, text, config, *bf16, **large_pages)
            seconds[name] += found[1][2:]  # two steps warm up: the first makes Adam's moments
        seconds["limit"] += time_in_turns({"limit": limit}, 1)["limit"]
    kind = "step with a teacher, live" if taught else "step"
    what = f"{kind}, {size}, {batch} x {block} tokens, {config.precision}"
    evidence = {
        "seconds": seconds, "operations": operations + more * bool(taught),
        "largest_difference_of_losses": gap,
        "bytes": 28 * sum(i * o for i, o in matrices(size)),  # Adam reads 4 numbers, writes 3
        "tokens_per_second": batch * block / statistics.median(seconds["ours"]),
    }  # fmt: skip
    pace = "times as fast"
    return [
        row(what, "Trainer, float32", pace, ratio(seconds, "Trainer, float32", "ours"), goal,
            **evidence),
        row(what, "Trainer, bf16", pace, ratio(seconds, "Trainer, bf16", "ours"), goal_bf16),
        row(what, "its matrix products alone", "of their speed", ratio(seconds, "limit", "ours"),
            goal_peak),
    ]  # fmt: skip


def main(arguments=None):
    """Measure, print and write."""
    smoke, turns = options(__doc__, arguments)
    cases = {"tiny": (4, 3, "", "", "")} if smoke else CASES
    rows = [line for size, case in cases.items() for line in measure(size, case, turns)]
    for size, (steps, compared, *_) in cases.items():
        if size in WITH_TEACHER:
            rows += measure(size, (steps, compared, "", "", ""), turns, **TAUGHT)
    return write("training_step", "training step", rows, smoke)


if __name__ == "__main__":
    main()
