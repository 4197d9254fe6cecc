import pytest
import torch
from conftest import tiny_gpt2
from transformers import LlamaConfig, LlamaForCausalLM

from prunegpt_utils import (
    calibration,
    criteria,
    forward,
    losses,
    masks,
    modeling,
    sparsegpt,
    tokenization,
)
from prunegpt_utils.config import TrainConfig
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.tokenization import windows

PLAN = TrainConfig(1, 1e-3, batch=2)


def tiny_llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, use_cache=False, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


MODELS = {"Conv1D": tiny_gpt2, "Linear": tiny_llama}


def stats_of(model, ids, name, batches=3):
    texts = calibration.calibration_batches(windows(ids, 16), 2, 0, batches)
    needs = criteria.CRITERIA[name].needs
    return calibration.calibrate(model, needs, texts, lambda r: losses.batch_loss(model, r, PLAN))


@pytest.mark.parametrize("kind", MODELS)
def test_gradients_are_means_over_single_batches(ids, kind):
    model, text = MODELS[kind](), windows(ids, 16)
    before = modeling.fingerprint(model)
    losses.batch_loss(model, text[:2], PLAN).backward()  # of which nothing is to be left
    ours = stats_of(model, ids, "fisher")
    name, weight = next(iter(modeling.prunable_weights(model).items()))
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    for index in range(3):
        rows = text[tokenization.batch_indices(len(text), PLAN.batch, index, PLAN.seed)]
        loss = model(input_ids=rows[:, :-1]).logits.flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(loss, rows[:, 1:].flatten())
        gradient = torch.autograd.grad(loss, weight)[0]
        mean, square = mean + gradient / 3, square + gradient**2 / 3
    torch.testing.assert_close(ours[name].gradient, mean, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(ours[name].squared_gradient, square, rtol=1e-3, atol=1e-9)
    assert modeling.fingerprint(model) == before and weight.grad is None


@pytest.mark.parametrize("axis", [0, 1])
def test_each_criterion_by_hand(axis):
    """Two outputs (rows) of two inputs, in the shape of Linear or transposed as in Conv1D."""

    def turned(rows):
        return torch.tensor(rows) if axis else torch.tensor(rows).T

    stats = calibration.CalibrationStats(axis, torch.Generator())
    stats.gradient = turned([[1.0, -1.0], [0.5, 0.0]])
    stats.squared_gradient = turned([[4.0, 1.0], [0.25, 0.0]])
    stats.squared_inputs = torch.tensor([9.0, 16.0])  # norms 3 and 4
    weight = turned([[1.0, -2.0], [3.0, 4.0]])
    for name, wanted in {
        "magnitude": [[1.0, 2.0], [3.0, 4.0]],
        "first-order": [[1.0, 2.0], [1.5, 0.0]],
        "fisher": [[2.0, 2.0], [1.5, 0.0]],
        "wanda": [[3.0, 8.0], [9.0, 16.0]],
    }.items():
        torch.testing.assert_close(criteria.CRITERIA[name].score(weight, stats), turned(wanted))


@pytest.mark.parametrize("kind", MODELS)
def test_inputs_are_those_the_layers_get(ids, kind):
    model = MODELS[kind]()
    name, layer = list(modeling.prunable_layers(model).items())[-1]
    seen = []
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(0, 1)))
    texts = calibration.calibration_batches(windows(ids, 16), 2, 0, 3)
    moments = calibration.input_moments(model, texts)[name]
    x = torch.cat(seen)
    torch.testing.assert_close(moments, x.T @ x / len(x))
    assert len(x) == 3 * PLAN.batch * 16
    squares = stats_of(model, ids, "wanda")[name].squared_inputs
    torch.testing.assert_close(squares, moments.diagonal())


def test_layers_with_the_same_inputs_share_one_moment(ids):
    """Queries, keys and values; gate and up: by the tensor they are handed, whatever their names."""
    model, computed = tiny_llama(), []
    texts = calibration.calibration_batches(windows(ids, 16), 2, 0, 3)

    def moment(x):
        computed.append(x)
        return x.T @ x

    layers = modeling.prunable_layers(model)
    with torch.no_grad(), calibration.Moments(layers, moment) as moments:
        for rows in texts:
            model(rows[:, :-1])
    groups = [[name.split(".")[-2] for name in names] for _, names in moments.shared_means()]
    assert groups == 2 * [
        ["q_proj", "k_proj", "v_proj"],
        ["o_proj"],
        ["gate_proj", "up_proj"],
        ["down_proj"],
    ]
    assert len(computed) == 3 * len(groups)
    for name, mean in moments.means().items():  # each layer by itself, as if there were no others
        with torch.no_grad(), calibration.Moments({name: layers[name]}) as alone:
            for rows in texts:
                model(rows[:, :-1])
        assert torch.equal(alone.means()[name], mean)


def test_a_tensor_that_was_changed_in_between_is_another_input():
    first, second = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    x = torch.ones(4, 3)
    with torch.no_grad(), calibration.Moments({"first": first, "second": second}) as moments:
        first(x)
        second(x.mul_(2))
        first(x)  # one input more than the other had
    assert [names for _, names in moments.shared_means()] == [["first"], ["second"]]
    assert (
        float(moments.means()["first"][0, 0]) == 2.5 and float(moments.means()["second"][0, 0]) == 4
    )


@pytest.mark.parametrize("kind", MODELS)
def test_in_bf16_the_blocks_run_faster_and_the_solver_does_not_notice(ids, kind, monkeypatch):
    """Autocast reaches the forward passes and neither the moments nor the solver."""
    model, seen = MODELS[kind](), []
    texts = calibration.calibration_batches(windows(ids, 16), 2, 0, 3)
    solve = sparsegpt.sparsify_weight

    def watched(weight, moment, *rest, **options):
        seen.extend(
            [torch.is_autocast_enabled("cpu"), weight.dtype, moment.dtype, options["factor"].dtype]
        )
        return solve(weight, moment, *rest, **options)

    monkeypatch.setattr(sparsegpt, "sparsify_weight", watched)
    outputs = set()
    layer = list(modeling.prunable_layers(model).values())[-1]
    layer.register_forward_hook(lambda _, __, output: outputs.add(output.dtype))
    with forward.autocast(model, "bf16"):
        masks.prune(model, "sparsegpt", 0.5, "uniform", batches=texts)
    assert outputs == {torch.bfloat16}
    assert set(seen) == {False, torch.float32}
    with forward.autocast(model, "bf16"):
        moments = calibration.input_moments(MODELS[kind](), texts)
    for mean in moments.values():
        assert mean.dtype == torch.float32
        assert not torch.equal(mean, mean.bfloat16().float())


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("scope", ["global", "uniform", "per-row", "2:4"])
@pytest.mark.parametrize("name", sorted(criteria.CRITERIA))
def test_every_criterion_prunes_exactly(ids, kind, scope, name):
    model = MODELS[kind]()
    if name == "sparsegpt" and scope in ("global", "per-row"):
        with pytest.raises(ParameterError, match="must be uniform or a pattern"):
            masks.prune(model, name, 0.5, scope)
        return
    texts = calibration.calibration_batches(windows(ids, 16), 2, 0, 3)
    kept = masks.prune(model, name, 0.5, scope, stats_of(model, ids, name), texts)
    axes, weights = modeling.input_axes(model), modeling.prunable_weights(model)
    for key, mask in kept.items():
        rows = mask.movedim(axes[key], 1)  # (outputs, inputs)
        assert (weights[key][~mask] == 0).all()
        if scope == "uniform":
            assert int(mask.sum()) == mask.numel() // 2
        elif scope == "per-row":
            assert (rows.sum(1) == rows.shape[1] // 2).all()
        elif scope == "2:4":
            assert (rows.unflatten(1, (-1, 4)).sum(-1) == 2).all()
    total = sum(mask.numel() for mask in kept.values())
    assert sum(int(mask.sum()) for mask in kept.values()) == total // 2


def problem(outputs=6, inputs=20):
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(200, inputs, generator=generator) @ torch.randn(
        inputs, inputs, generator=generator
    )
    return torch.randn(outputs, inputs, generator=generator), mixed.T @ mixed / len(mixed)


@pytest.mark.parametrize("columns", [4, 7, 128])
def test_sparsegpt_mends_as_least_squares_would(columns):
    """Removing column after column, the later ones solve what is left directly, row by row."""
    weight, hessian = problem()
    rule, _ = masks._column_rule(0.5, "uniform")
    ours, mask = sparsegpt.sparsify_weight(weight, hessian, rule, columns, damping=0.0)
    assert int((~mask).sum()) == weight.numel() // 2 and (ours[~mask] == 0).all()
    wanted = weight.double().clone()
    hessian = hessian.double()
    for row, keeps in zip(wanted, mask, strict=True):
        for j in range(len(row)):
            if not keeps[j]:
                rest = slice(j + 1, None)
                row[rest] += torch.linalg.solve(hessian[rest, rest], hessian[rest, j]) * row[j]
                row[j] = 0.0
    torch.testing.assert_close(ours, wanted.float(), rtol=1e-3, atol=1e-3)


def test_sparsegpt_changes_the_outputs_less_than_a_plain_cut():
    weight, hessian = problem(outputs=24, inputs=64)
    rule, _ = masks._column_rule(0.5, "uniform")
    ours, mask = sparsegpt.sparsify_weight(weight, hessian, rule)

    def error(other):
        gap = other - weight
        return float(((gap @ hessian) * gap).sum())

    assert error(ours) < 0.75 * error(weight * mask)


@pytest.mark.parametrize("columns", [4, 128])
def test_sparsegpt_gives_the_same_bits_for_every_layout_of_the_weight(columns):
    """Conv1D's transposed weights and Linear's; and as the paper's loop, which works on columns."""
    weight, hessian = problem(outputs=48, inputs=160)
    rule, _ = masks._column_rule(0.5, "uniform")
    ours, mask = sparsegpt.sparsify_weight(weight, hessian, rule, columns)
    other, same = sparsegpt.sparsify_weight(weight.T.contiguous().T, hessian, rule, columns)
    assert torch.equal(ours, other) and torch.equal(mask, same)
    factor, wanted = sparsegpt.inverse_factor(hessian), weight.clone()
    for begin in range(0, 160, columns):
        part, root = wanted[:, begin : begin + columns], factor[begin:, begin:]
        kept = rule((part / root.diagonal()[: part.shape[1]]).square(), begin)
        for j in range(part.shape[1]):
            error = part[:, j] * ~kept[:, j] / root[j, j]
            wanted[:, begin + j :] -= error[:, None] * root[j, j:]
            part[:, j] *= kept[:, j]
    torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-4)


def test_sparsegpt_leaves_inputs_that_never_come():
    weight, hessian = problem()
    hessian[3], hessian[:, 3] = 0, 0
    rule, _ = masks._column_rule(0.2, "uniform")
    ours, mask = sparsegpt.sparsify_weight(weight, hessian, rule)
    assert ours.isfinite().all() and (ours[:, 3] == 0).all()
    assert torch.equal(ours != 0, mask)


@pytest.mark.parametrize("dead", [[], [0, 1, 2], range(20)])
def test_sparsegpt_cuts_no_more_for_inputs_that_never_come(dead):
    """They go first, but exactly two of four go, of whatever four."""
    weight, hessian = problem()
    hessian[list(dead)], hessian[:, list(dead)] = 0, 0
    rule, columns = masks._column_rule(0.5, "2:4")
    ours, mask = sparsegpt.sparsify_weight(weight, hessian, rule, columns)
    assert ours.isfinite().all() and torch.equal(ours != 0, mask)
    assert (mask.unflatten(1, (-1, 4)).sum(-1) == 2).all()
    if dead:
        assert (mask[:, 3] | ~mask[:, :3].any(1)).all()  # what comes is kept before what does not
        assert torch.equal(ours[:, :3], weight[:, :3] * mask[:, :3])


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_sparsegpt_damps_as_if_inputs_that_never_come_were_not_there(scale):
    """However small the others are: a diagonal of 1 beside theirs would damp all of them away."""
    _, hessian = problem()
    hessian, live = hessian * scale, torch.arange(20) % 4 > 0
    wanted = sparsegpt.inverse_factor(hessian[live][:, live])
    hessian[~live], hessian[:, ~live] = 0, 0
    found = sparsegpt.inverse_factor(hessian)
    torch.testing.assert_close(found[live][:, live], wanted, rtol=1e-3, atol=1e-3 * wanted.max())
    assert (found[live][:, ~live] == 0).all() and found.isfinite().all()


def test_sparsegpt_sees_what_it_has_cut_under_autocast_too(ids):
    """Also of a model whose weights ask for gradients, whose rounded copies autocast would keep."""
    texts = calibration.calibration_batches(windows(ids, 16), 2, 0, 3)
    found = []
    for model in (tiny_llama(), modeling.frozen_copy(tiny_llama())):
        with forward.autocast(model, "bf16"):
            found.append(masks.prune(model, "sparsegpt", 0.5, "uniform", batches=texts))
    assert all(torch.equal(mask, found[1][name]) for name, mask in found[0].items())


def test_sparsegpt_survives_inputs_that_are_all_alike():
    """Of a Hessian of rank one, which has no inverse, the damped one has."""
    weight, x = torch.randn(6, 20), torch.ones(1, 20) * 1e3
    rule, _ = masks._column_rule(0.5, "uniform")
    ours, mask = sparsegpt.sparsify_weight(weight, x.T @ x, rule)
    assert ours.isfinite().all() and int(mask.sum()) == 60


def test_zeros_that_are_there_go_first_by_every_criterion(ids):
    model = tiny_gpt2()
    masks.prune(model, "magnitude", 0.4, "global")
    for name in set(criteria.CRITERIA) - {"sparsegpt"}:
        cut = modeling.frozen_copy(model).requires_grad_(True)
        masks.prune(cut, name, 0.6, "global", stats_of(cut, ids, name))
        assert masks.measure_sparsity(cut)["prunable"] == pytest.approx(0.6, abs=1e-3), name


def test_a_layer_that_calibration_never_calls_is_one_line(ids):
    model = tiny_gpt2()
    unused = torch.nn.Linear(4, 4)
    model.transformer.h[0].unused = unused
    for name in ("wanda", "fisher"):
        with pytest.raises(
            ParameterError, match="criterion: 'transformer.h.0.unused.weight' is never"
        ):
            stats_of(model, ids, name)
    with pytest.raises(ParameterError, match="unused.weight' is never called"):
        masks.check_cut(model, "sparsegpt", 0.5, "uniform")


def test_a_criterion_of_ones_own(ids, monkeypatch):
    monkeypatch.setattr(criteria, "CRITERIA", dict(criteria.CRITERIA))

    @criteria.criterion("largest")
    def largest(weight, stats):
        return -weight.abs()

    model = tiny_gpt2()
    kept = masks.prune(model, "largest", 0.5, "uniform")
    for name, mask in kept.items():
        dense = modeling.prunable_weights(tiny_gpt2())[name].abs()
        assert dense[mask].max() <= dense[~mask].min()
