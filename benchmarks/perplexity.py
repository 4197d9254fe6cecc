"""How long does it take to measure perplexity?

Beside the loop that the guide of transformers shows, one window at a time with all its logits,
beside torchmetrics, and on real text beside lm-eval, where `[tasks]` is installed; the limit is the
matrix products of the forward passes.
"""

import importlib.util
import math

import torch
from torchmetrics.text import Perplexity

from benchmarks.side_by_side import (
    SIZES,
    gpt2,
    matrices,
    options,
    products,
    random_ids,
    ratio,
    row,
    write,
)
from prunegpt_utils.efficiency import time_in_turns
from prunegpt_utils.evaluation import token_nll
from prunegpt_utils.modeling import load_model, load_tokenizer
from prunegpt_utils.protocols import rolling_windows, text_windows
from prunegpt_utils.runs import paths

TOLERANCE = 1e-4  # between values of the perplexity, relative
# size -> (tokens of text, tokens the model reads at once, windows a batch)
CASES = {"2M": (8192, 128, 32), "124M": (1536, 1024, 1)}
GOALS = ">= 1", ">= 0.8"  # beside others; of the products, which are the same for all of them


def ours(model, ids, block, stride, batch):
    """Perplexity by this project."""
    windows = rolling_windows(len(ids), block, stride)
    return math.exp(token_nll(model, ids, windows, batch).double().mean())


@torch.no_grad()
def guide(model, ids, block, stride):
    """The same by the model's own loss, window after window."""
    total, scored, reached = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + block, len(ids))
        window = ids[None, begin:end].to(model.device)
        labels = window.clone()
        labels[:, : reached - begin] = -100  # context alone
        count = int((labels[:, 1:] != -100).sum())
        if count:
            total += float(model(window, labels=labels).loss) * count
        scored, reached = scored + count, end
        if end == len(ids):
            break
    return math.exp(total / scored)


@torch.no_grad()
def by_torchmetrics(model, ids, block, stride):
    """The same for windows that stand by themselves."""
    metric = Perplexity().to(model.device)
    for begin in range(0, len(ids) - 1, stride):
        window = ids[None, begin : begin + block].to(model.device)
        metric.update(model(window).logits[:, :-1], window[:, 1:])
    return float(metric.compute())


def check(values):
    """Raise AssertionError unless all values are the same."""
    first = values["ours"]
    for name, value in values.items():
        assert abs(value / first - 1) <= TOLERANCE, f"{name}: {value}, not {first}"


def measure(size, tokens, block, batch, turns, goal, goal_limit):
    """Rows of one size."""
    model = gpt2(size, n_positions=block)
    stock = gpt2(size, stock=True, n_positions=block)
    ids, rows = random_ids(tokens, vocabulary=SIZES[size][3]), []
    for name, stride in (("disjoint", block), (f"stride {block // 2}", block // 2)):
        values, spans = {}, rolling_windows(len(ids), block, stride)
        acts = {"ours": (ours, model, batch), "the guide's loop": (guide, stock)}
        if stride == block:
            acts["torchmetrics"] = (by_torchmetrics, stock)

        def run(name, act, who, *rest, stride=stride, values=values):
            values[name] = act(who, ids, block, stride, *rest)

        timed = {key: (lambda key=key, act=act: run(key, *act)) for key, act in acts.items()}
        read = sum(end - begin for begin, end, _ in spans)
        limit, operations = products(matrices(size), read, torch.float32, backward=False)
        seconds = time_in_turns(timed | {"limit": limit}, turns)
        check(values)
        what = f"perplexity, {size}, {name}, {tokens:,} tokens"
        for rival in list(acts)[1:]:
            evidence = {"seconds": seconds, "operations": operations, "values": values}
            evidence["bytes"] = len(spans) * sum(4 * i * o for i, o in matrices(size))
            pace = ratio(seconds, rival, "ours")
            rows.append(row(what, rival, "times as fast", pace, goal, **evidence))
        share = ratio(seconds, "limit", "ours")
        rows.append(row(what, "its matrix products alone", "of their speed", share, goal_limit))
    return rows


def beside_lm_eval(turns, goal, block=128, batch=32):
    """Row of the embedded model on this project's own pages, joined to one text."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    text = "\n".join(page.read_text("utf-8") for page in sorted((paths.ROOT / "docs").glob("*.md")))
    model, tokenizer = load_model("pydocs-base"), load_tokenizer("pydocs-base")
    harness = HFLM(pretrained=model, tokenizer=tokenizer, max_length=block, batch_size=batch)
    asked = [Instance("loglikelihood_rolling", {}, (text,), 0)]
    values, tokens = {}, len(tokenizer(text)["input_ids"])

    def lm_eval():
        values["lm-eval"] = math.exp(-harness.loglikelihood_rolling(asked, True)[0] / tokens)

    def own():
        ids = torch.tensor([tokenizer.eos_token_id, *tokenizer(text)["input_ids"]])
        spans = text_windows("word-level", [len(ids)], block)
        values["ours"] = math.exp(token_nll(model, ids, spans, batch).double().mean())

    seconds = time_in_turns({"ours": own, "lm-eval": lm_eval}, turns)
    check(values)
    what = f"perplexity, 2M, as lm-eval does, {tokens:,} tokens"
    pace = ratio(seconds, "lm-eval", "ours")
    return row(what, "lm-eval", "times as fast", pace, goal, seconds=seconds, values=values)


def main(arguments=None):
    """Measure, print and write."""
    smoke, turns = options(__doc__, arguments)
    cases, goals = ({"tiny": (70, 16, 3)}, ("", "")) if smoke else (CASES, GOALS)
    rows = [line for size, case in cases.items() for line in measure(size, *case, turns, *goals)]
    if importlib.util.find_spec("lm_eval"):
        rows.append(beside_lm_eval(turns, goals[0]))
    return write("perplexity", "perplexity", rows, smoke)


if __name__ == "__main__":
    main()
