"""Training speed side by side with `transformers.Trainer`: same model, text, order and optimizer.

Both are timed by the same hook, from one forward pass to the next, in turns. Prints the median
tokens a second of each, the ratio, and how far apart the losses of equal steps lie.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from prunegpt_utils.models import device
from prunegpt_utils.training import Plan, batch_rows, choose_precision, train

SIZES = {  # name -> (layers, width, heads, vocabulary, tokens a window, windows a step)
    "2M": (3, 192, 3, 2048, 128, 8),
    "124M": (12, 768, 12, 50257, 256, 1),
}


def new_model(size, activation):
    """GPT-2 with random weights, the same at each call; dropout off, so that losses compare."""
    layers, width, heads, vocabulary, block, _ = SIZES[size]
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=block + 1, n_embd=width, n_layer=layers, n_head=heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
        activation_function=activation,
    )  # fmt: skip
    if activation != "gelu_new" and device().type == "cpu":
        config._attn_implementation = "eager"  # as `models.load_model` chooses
    return GPT2LMHeadModel(config).to(device())


def timed(model):
    """List that gets the time of each forward pass as it begins."""
    times = []
    model.base_model.register_forward_pre_hook(lambda *_: times.append(time.perf_counter()))
    return times


def ours(size, text, plan):
    """(loss of each step, seconds of each step) of this project's loop."""
    model = new_model(size, "gelu_pytorch_tanh")
    times = timed(model)
    with tempfile.TemporaryDirectory() as folder:
        result = train(model, text, text[0], folder, plan, label="ours")
    train_only = times[: plan.steps]  # evaluations come between, once a step when losses are asked
    return [row["loss"] for row in result["history"]], _gaps(train_only)


def peer(size, text, plan, bf16=False):
    """The same of Trainer at its defaults."""

    class Fixed(Trainer):  # our order instead of its own
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    rows = [row for k in range(plan.steps) for row in batch_rows(len(text), plan.batch, k, 0)]
    labels = text.clone()
    labels[:, 0] = -100  # nothing predicts the first token, yet Trainer would divide by it
    data = [{"input_ids": text[row], "labels": labels[row]} for row in rows]
    model = new_model(size, "gelu_new")
    times = timed(model)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=plan.steps, per_device_train_batch_size=plan.batch, bf16=bf16,
            learning_rate=plan.lr, lr_scheduler_type="linear", adam_beta2=0.98, weight_decay=0.0,
            max_grad_norm=plan.clip, logging_steps=1, save_strategy="no", report_to=[],
            disable_tqdm=True, use_cpu=device().type == "cpu", dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = Fixed(model, arguments, train_dataset=data)
        trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row], _gaps(times)


def _gaps(times):
    return [after - before for before, after in itertools.pairwise(times)]


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="124M")
    parser.add_argument("--steps", type=int, default=6, help="steps a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--loss-steps", type=int, default=20, help="steps whose losses to compare")
    chosen = parser.parse_args()
    *_, vocabulary, block, batch = SIZES[chosen.size]
    dice = torch.Generator().manual_seed(0)
    text = torch.randint(0, vocabulary, (256, block + 1), generator=dice)
    text[:, 1::2] = text[:, :1]  # half of it can be learnt
    base = {"lr": 1e-4, "batch": batch, "warmup": 0.0, "decay": "linear"}
    plan = Plan(chosen.steps, evaluations=1, precision=choose_precision(), **base)

    arms = {"ours": lambda p: ours(chosen.size, text, p)}
    arms["Trainer, float32"] = lambda p: peer(chosen.size, text, p)
    arms["Trainer, bf16"] = lambda p: peer(chosen.size, text, p, bf16=True)
    seconds = {name: [] for name in arms}
    for _ in range(chosen.turns):
        for name, arm in arms.items():
            seconds[name] += arm(plan)[1][1:]  # the first step warms up
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    long = Plan(chosen.loss_steps, evaluations=chosen.loss_steps, **base)
    curves = {name: arms[name](long)[0] for name in ("ours", "Trainer, float32")}
    gap = max(abs(a - b) for a, b in zip(*curves.values(), strict=True))
    print(json.dumps({
        "size": chosen.size, "device": str(device()), "precision": plan.precision,
        "tokens per second": {k: round(batch * block / s) for k, s in medians.items()},
        "ours / Trainer": {k: round(s / medians["ours"], 2) for k, s in medians.items()},
        "largest difference of losses, both in float32": gap,
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
