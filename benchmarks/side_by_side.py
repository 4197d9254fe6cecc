"""What the benchmarks share: the limit, models, one JSON record a question.

Each benchmark answers one question: `python -m benchmarks.<name>`. It times ours, what people
would use instead and the limit on the same work in the same process, and its result is a ratio.
"""

import argparse
import json
import math
import multiprocessing
import operator
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from unittest.mock import patch

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from prunegpt_utils.config import TrainConfig
from prunegpt_utils.distributed import choose_precision, device
from prunegpt_utils.efficiency import time_in_turns
from prunegpt_utils.forward import sparse_lookup
from prunegpt_utils.losses import batch_loss
from prunegpt_utils.runs import paths, records
from prunegpt_utils.training import clip_gradients, keep_freed_memory, make_optimizer

SIZES = {  # name -> (layers, width, heads, vocabulary, tokens a window, windows a step)
    "tiny": (2, 32, 2, 97, 16, 2),
    "2M": (3, 192, 3, 2048, 128, 8),
    "124M": (12, 768, 12, 50257, 256, 1),
    "135M": (30, 576, 9, 49152, 256, 4),  # SmolLM2's; the others are GPT-2's
}
SMOLLM2 = {"num_key_value_heads": 3, "intermediate_size": 1536}


def options(about, arguments):
    """The command line that all benchmarks have in common.

    Args:
        about: docstring of the benchmark.  arguments: list of str, or None for the shell's.

    Returns:
        smoke: whether to prove only that it runs; turns: how often each act is timed.
    """
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: proves that it runs")
    parser.add_argument("--turns", type=int, default=5, help="how often each act is timed")
    chosen = parser.parse_args(arguments)
    if chosen.turns < 1:
        parser.error(f"--turns: {chosen.turns} must be at least 1")
    return chosen.smoke, 1 if chosen.smoke else chosen.turns


def gpt2(size, stock=False, **changes):
    """A GPT-2 with random weights, the same at each call; no dropout, so that losses compare.

    If `stock` it is as transformers makes it, else as `modeling.load_model` would load it.

    Args:
        size: key of `SIZES`.  changes: of its configuration.
    """
    layers, width, heads, vocabulary, block, _ = SIZES[size]
    eager = not stock and device().type == "cpu"
    settings = {
        "vocab_size": vocabulary, "n_positions": block + 1, "n_embd": width, "n_layer": layers,
        "n_head": heads, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        "use_cache": False, "bos_token_id": 0, "eos_token_id": 0,
        "activation_function": "gelu_new" if stock else "gelu_pytorch_tanh",
        "attn_implementation": "eager" if eager else "sdpa",
    }  # fmt: skip
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**settings | changes)).eval().to(device())


def model_of(size, stock=False, **changes):
    """`gpt2`, or of the size 135M a Llama of SmolLM2's shape; `stock` as transformers makes it."""
    if size != "135M":
        return gpt2(size, stock, **changes)
    layers, width, heads, vocabulary, block, _ = SIZES[size]
    eager = not stock and device().type == "cpu"
    settings = {
        "vocab_size": vocabulary, "max_position_embeddings": block + 1, "hidden_size": width,
        "num_hidden_layers": layers, "num_attention_heads": heads, "tie_word_embeddings": True,
        "use_cache": False, "attn_implementation": "eager" if eager else "sdpa", **SMOLLM2,
    }  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**settings | changes)).eval().to(device())


def random_ids(*shape, vocabulary):
    """Token ids, the same at each call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocabulary, shape, generator=generator)


def in_new_process(act, *arguments, **environment):
    """What a function returns in a process that is begun for it, with these variables set."""
    begun = multiprocessing.get_context("spawn")
    with patch.dict(os.environ, environment), ProcessPoolExecutor(1, begun) as process:
        return process.submit(act, *arguments).result()


def batch_of(vocabulary, block, batch, **options):
    """(configuration of a step, windows that it reads), see `SIZES`; options of `TrainConfig`."""
    config = TrainConfig(1, 1e-4, batch=batch, **{"precision": choose_precision()} | options)
    return config, random_ids(batch, block + 1, vocabulary=vocabulary)


def training_step(model, rows, config):
    """A function that takes one step as `training.Trainer` does, and returns its loss.

    Its arguments are a teacher and its cached hidden states, if it has them.
    """
    keep_freed_memory()
    optimizer = make_optimizer(model, config)

    def step(*teaching):
        with sparse_lookup(model):
            loss = batch_loss(model, rows, config, *teaching)
            loss.backward()
        clip_gradients(model, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def train_steps(size, steps, precision="float32", backend=None):
    """(loss of the first of some training steps, seconds of each).

    Args:
        size: key of `SIZES`.  precision: float32 or bf16.
        backend: of `torch.compile`, which is given the blocks; None leaves them as they are.
    """
    config, rows = batch_of(*SIZES[size][3:], precision=precision)
    model = gpt2(size).train()
    if backend:
        model.base_model.compile(dynamic=False, backend=backend)
    step, seconds, losses = training_step(model, rows, config), [], []
    for _ in range(steps):
        begin = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - begin)
    return losses[0], seconds


def time_prepared(acts, prepare, turns):
    """Seconds of acts that each need something made ready, in turns; its time does not count.

    Args:
        acts: {name: function without arguments}.
        prepare: function of a name, called before its act.  turns: measurements of each.

    Returns:
        {name: list of seconds}.
    """
    both = {}
    for name, act in acts.items():
        both |= {("prepare", name): partial(prepare, name), name: act}
    seconds = time_in_turns(both, turns)
    return {name: seconds[name] for name in acts}


def ratio(seconds, above, below):
    """Median of one act's times over that of another's."""
    return statistics.median(seconds[above]) / statistics.median(seconds[below])


def matrices(size):
    """[(inputs, outputs)] of the matrix products of `model_of`: those of a block, and the head."""
    layers, width, heads, vocabulary, *_ = SIZES[size]
    block = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    if size == "135M":
        few, inner = width // heads * SMOLLM2["num_key_value_heads"], SMOLLM2["intermediate_size"]
        block = [(width, width)] * 2 + [(width, few), (width, inner)] * 2 + [(inner, width)]
    return [*block * layers, (width, vocabulary)]


def products(shapes, tokens, dtype, backward=True):
    """The limit: an act that multiplies matrices of these shapes, and does nothing else.

    Args:
        shapes: of `matrices`.  tokens: rows they are multiplied with.
        dtype: of both.  backward: also the two products that give the gradients.

    Returns:
        (function without arguments, floating-point operations it takes).
    """
    weights = [torch.randn(shape, device=device()).to(dtype) for shape in shapes]
    rows = {i: torch.randn(tokens, i, device=device()).to(dtype) for i, _ in shapes}

    def act():
        for weight in weights:
            x = rows[len(weight)]
            y = x @ weight
            if backward:
                torch.mm(y, weight.T)
                torch.mm(x.T, y)

    passes = 3 if backward else 1
    return act, 2 * passes * tokens * sum(map(math.prod, shapes))


def slope(xs, ys):
    """Exponent b of y = a x^b, by least squares on the logarithms."""
    return statistics.linear_regression([*map(math.log, xs)], [*map(math.log, ys)]).slope


def number(value):
    """Three significant digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


_COMPARE = {">=": operator.ge, "<=": operator.le}


def row(case, against, measure, value, goal=None, **evidence):
    """One line of the table, with what stands behind it.

    Args:
        case: what was done.  against: what it is compared with.
        measure: what the value means, such as `times as fast`.  value: float.
        goal: such as `>= 1.3`, or nothing.
        evidence: seconds, operations, bytes, ...

    Returns:
        dict: the same, and whether the goal is met.
    """
    found = {"case": case, "against": against, "measure": measure, "value": value}
    found["goal"] = goal or ""
    if goal:
        sign, limit = goal.split()
        found["met"] = _COMPARE[sign](value, float(limit))
    return found | evidence


def write(name, question, rows, smoke=False):
    """Write the record of a benchmark below the runs folder, and print its results.

    Args:
        name: of the benchmark.  question: what it answers.  rows: of `row`.
        smoke: whether its numbers mean nothing; such a record goes to a folder of its own.

    Returns:
        Path of the record.
    """
    folder = paths.study_folder("benchmarks-smoke" if smoke else "benchmarks")
    path = folder / f"{name}-{device().type}.json"
    content = {"benchmark": name, "question": question, "rows": rows}
    content = json.loads(json.dumps(content))  # numbers that name things become text
    records.put(path, content | {"environment": records.environment()})
    for found in rows:
        goal = f"   (goal {found['goal']})" if found["goal"] else ""
        case = f"{found['case']}, against {found['against']}" if found["against"] else found["case"]
        print(f"  {case}: {number(found['value'])} {found['measure']}{goal}", flush=True)
    return path
