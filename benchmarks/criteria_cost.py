"""How long do Wanda and SparseGPT take?

Beside the algorithms as the papers write them, on a block of GPT-2 124M's shape and one of SmolLM2
135M's, with little calibration text; and how the time grows with blocks and text.
"""

import copy

import torch

from benchmarks.side_by_side import (
    SIZES,
    gpt2,
    model_of,
    options,
    random_ids,
    ratio,
    row,
    slope,
    time_prepared,
    write,
)
from prunegpt_utils.calibration import calibrate
from prunegpt_utils.criteria import CRITERIA
from prunegpt_utils.masks import prune
from prunegpt_utils.modeling import input_axes, prunable_layers, prunable_weights

SPARSITY, COLUMNS, DAMPING = 0.5, 128, 0.01
AGREEMENT = 0.995  # share of the masks' entries: rounding turns near ties, and their error spreads


def wanda(model, batches):
    """|w| ||x||, the lower half of each output's weights goes."""
    stats = calibrate(model, CRITERIA["wanda"].needs, batches, None)
    prune(model, "wanda", SPARSITY, "per-row", stats)


def sparsegpt(model, batches):
    """Block by block, in columns of 128."""
    prune(model, "sparsegpt", SPARSITY, "uniform", batches=batches)


@torch.no_grad()
def plain_wanda(model, batches):
    """Algorithm 1 of Sun et al. 2024: norms of the inputs, a sort a row, a scatter."""
    norms = dict.fromkeys(prunable_layers(model), 0.0)

    def add(name, x):
        norms[name] = norms[name] + x.flatten(0, -2).T.norm(dim=1) ** 2

    _read(model, batches, add)
    for name, layer in prunable_layers(model).items():
        weight = layer.weight.T if input_axes(model)[name] == 0 else layer.weight
        score = weight.abs() * norms[name].sqrt()
        order = score.sort(dim=-1, stable=True)[1][:, : int(weight.shape[1] * SPARSITY)]
        gone = torch.zeros_like(score, dtype=torch.bool).scatter(1, order, True)
        weight.data[gone] = 0


@torch.no_grad()
def plain_sparsegpt(model, batches):
    """Algorithm 1 of Frantar and Alistarh 2023, for a model of one block."""
    hessians = dict.fromkeys(prunable_layers(model), 0.0)

    def add(name, x):
        x = x.flatten(0, -2).T
        hessians[name] = hessians[name] + 2 * (x @ x.T)

    _read(model, batches, add)
    for name, layer in prunable_layers(model).items():
        weight = layer.weight.T if input_axes(model)[name] == 0 else layer.weight
        weight.data.copy_(_plain_update(weight.clone(), hessians[name]))
    _read(model, batches, lambda name, x: None)  # what the next block would see


def _plain_update(weight, hessian):
    damp = DAMPING * hessian.diagonal().mean()
    hessian.diagonal().add_(damp)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    inverse = torch.linalg.cholesky(inverse, upper=True)
    for start in range(0, weight.shape[1], COLUMNS):
        end = min(start + COLUMNS, weight.shape[1])
        part, kept = weight[:, start:end].clone(), weight[:, start:end].clone()
        errors, local = torch.zeros_like(part), inverse[start:end, start:end]
        score = part**2 / local.diagonal() ** 2
        threshold = score.flatten().sort()[0][int(score.numel() * SPARSITY) - 1]
        mask = score <= threshold
        for i in range(end - start):
            w, d = part[:, i], local[i, i]
            q = w.clone()
            q[mask[:, i]] = 0
            kept[:, i] = q
            error = (w - q) / d
            part[:, i:] -= error.unsqueeze(1).matmul(local[i, i:].unsqueeze(0))
            errors[:, i] = error
        weight[:, start:end] = kept
        weight[:, end:] -= errors.matmul(inverse[start:end, end:])
    return weight


def _read(model, batches, add):
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: add(name, inputs[0]))
        for name, layer in prunable_layers(model).items()
    ]
    for rows in batches:
        model.base_model(rows[:, :-1])
    for hook in hooks:
        hook.remove()


PAIRS = {"Wanda": (wanda, plain_wanda), "SparseGPT": (sparsegpt, plain_sparsegpt)}


def check(model, batches):
    """Share of mask entries in which ours and the plain algorithm agree.

    Raises:
        AssertionError: they agree too little, or do not cut half.
    """
    found = {}
    for name, pair in PAIRS.items():
        masks = []
        for act in pair:
            other = copy.deepcopy(model)
            act(other, batches)
            masks.append(torch.cat([(w != 0).flatten() for w in prunable_weights(other).values()]))
            assert abs(float(masks[-1].float().mean()) - SPARSITY) < 1e-3
        found[name] = float((masks[0] == masks[1]).float().mean())
        assert found[name] >= AGREEMENT, f"{name}: masks agree in {found[name]}"
    return found


def measure(size, windows, block, depths, turns, goals):
    """Rows of all comparisons. `depths`: numbers of blocks to try; `windows`: of text, twice."""
    vocabulary = SIZES[size][3] if size == "tiny" else 97

    def model(depth):
        return gpt2(size, vocab_size=vocabulary, n_layer=depth, n_positions=block)

    def text(count):
        return list(random_ids(count, 1, block + 1, vocabulary=vocabulary))

    few, many = map(text, windows)
    rows = beside_papers("", lambda: model(1), few, block, turns, goals)
    return rows + _growth(model, few, many, depths, block, turns, goals)


def smollm2_block(windows, block, turns, goals):
    """Rows of one block of SmolLM2-135M's shape: three keys for nine heads, a gate beside `up`."""

    def model():
        changes = {"vocab_size": 97, "num_hidden_layers": 1, "max_position_embeddings": block}
        return model_of("135M", **changes)

    few = list(random_ids(windows, 1, block + 1, vocabulary=97))
    return beside_papers("SmolLM2's shape, ", model, few, block, turns, goals)


def beside_papers(shape, model, few, block, turns, goals):
    """Rows of both criteria on a block that `model` makes anew, beside the papers' algorithms."""
    agreement, rows, fresh = check(model(), few), [], {}

    def prepare(_):
        fresh["one"] = model()

    for name, pair in PAIRS.items():
        acts = {
            key: (lambda act=act: act(fresh["one"], few))
            for key, act in zip(("ours", "plain"), pair, strict=True)
        }
        seconds = time_prepared(acts, prepare, turns)
        operations, size_of = _work(model(), len(few) * block, name)
        what = f"{name}, {shape}one block, {len(few) * block:,} tokens"
        rows.append(row(what, "the paper's algorithm", "times as fast",
            ratio(seconds, "plain", "ours"), goals and ">= 1", seconds=seconds,
            agreement=agreement[name], operations=operations, bytes=size_of))  # fmt: skip
    return rows


def _work(model, tokens, name):
    """(operations, bytes of the weights) of one block."""
    parts = list(prunable_weights(model).values())
    inputs = [w.shape[axis] for w, axis in zip(parts, input_axes(model).values(), strict=True)]
    weights = sum(weight.numel() for weight in parts)
    looks = 2 * tokens * weights
    if name == "Wanda":
        return looks, 4 * weights
    moments = 2 * tokens * sum(n * n for n in inputs)
    updates = sum(w.numel() * n for w, n in zip(parts, inputs, strict=True))
    return 2 * looks + moments + updates + 2 * sum(n**3 for n in inputs), 4 * weights


def _growth(model, few, many, depths, block, turns, goals):
    """How the time of SparseGPT grows with blocks and text, and what that makes of 124M."""
    cases = {depth: (depth, few) for depth in depths} | {"many": (depths[0], many)}
    fresh = {}

    def prepare(key):
        fresh["model"] = model(cases[key][0])

    acts = {
        key: (lambda text=text: sparsegpt(fresh["model"], text)) for key, (_, text) in cases.items()
    }
    seconds = time_prepared(acts, prepare, turns)
    middle = {key: sorted(times)[len(times) // 2] for key, times in seconds.items()}
    first = depths[0]
    a_token = (middle["many"] - middle[first]) / (len(many) - len(few)) / block / first
    a_block = middle[first] / first - a_token * len(few) * block
    minutes = 12 * (a_block + a_token * 128 * 512) / 60
    growth = slope(depths, [middle[depth] for depth in depths])
    return [
        row("SparseGPT, time against blocks", "", "slope", growth, goals and "<= 1.1",
            seconds=seconds),
        row("SparseGPT, 12 blocks, 128 x 512 tokens", "", "minutes, extrapolated", minutes,
            goals and "<= 8", seconds_a_token_and_block=a_token, seconds_a_block=a_block),
    ]  # fmt: skip


def main(arguments=None):
    """Measure, print and write."""
    smoke, turns = options(__doc__, arguments)
    case = ("tiny", (2, 4), 16, (1, 2)) if smoke else ("124M", (2, 8), 256, (1, 2, 3))
    rows = measure(*case, turns, goals=not smoke)
    rows += smollm2_block(2, 16 if smoke else 256, turns, goals=not smoke)
    return write("criteria_cost", "criteria on the shapes of two models", rows, smoke)


if __name__ == "__main__":
    main()
