import pytest
import torch
from conftest import tiny_gpt2
from transformers import GPT2Config, GPT2LMHeadModel

from prunegpt_utils import calibration, criteria, masks, modeling, schedules
from prunegpt_utils.errors import ParameterError


@pytest.mark.parametrize("scope", ["global", "uniform"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_exact_count_in_any_precision(scope, dtype, sparsity):
    model = tiny_gpt2().to(dtype)  # bfloat16 has few values, so there are many ties
    kept = masks.make_masks(criteria.scores(model), sparsity, scope)
    if scope == "uniform":
        for mask in kept.values():
            assert int((~mask).sum()) == round(sparsity * mask.numel())
    pruned = sum(int((~mask).sum()) for mask in kept.values())
    total = sum(mask.numel() for mask in kept.values())
    assert scope == "uniform" or pruned == round(sparsity * total)


def test_ties_are_broken_to_the_exact_number():
    equal = {"a": torch.ones(7, 3), "b": torch.ones(4)}
    kept = masks.make_masks(equal, 0.5)
    assert sum(int((~mask).sum()) for mask in kept.values()) == round(0.5 * 25)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.97])
def test_masks_are_those_of_a_full_sort(sparsity):
    """Across matrices, ties and transposed scores, whose memory is in another order."""
    generator = torch.Generator().manual_seed(0)
    scored = {
        name: torch.randint(0, 9, (8, n), generator=generator).float()
        for name, n in (("a", 5), ("b", 70))
    }
    scored["c"] = scored["b"].clone().T
    before = {name: tensor.clone() for name, tensor in scored.items()}
    kept = masks.make_masks(scored, sparsity)
    order = torch.cat([tensor.flatten() for tensor in scored.values()]).argsort(stable=True)
    wanted = torch.ones(len(order), dtype=torch.bool)
    wanted[order[: round(sparsity * len(order))]] = False
    assert torch.equal(torch.cat([kept[name].flatten() for name in scored]), wanted)
    assert all(torch.equal(scored[name], before[name]) for name in scored)


def test_the_smallest_go_whatever_matrix_they_are_in():
    scored = {"a": torch.tensor([[1.0, 9.0], [8.0, 7.0]]), "b": torch.tensor([[2.0, 3.0]])}
    kept = masks.make_masks(scored, 0.5)
    assert kept["a"].tolist() == [[False, True], [True, True]]
    assert kept["b"].tolist() == [[False, False]]
    each = masks.make_masks(scored, 0.5, "uniform")
    assert each["a"].tolist() == [[False, True], [True, False]]
    assert each["b"].tolist() == [[False, True]]


def test_masks_nest_and_pruned_weights_stay_pruned(model):
    half = masks.make_masks(criteria.scores(model), 0.5)
    masks.apply_masks(model, half)
    more = masks.make_masks(criteria.scores(model), 0.7)
    assert all((half[name] | ~more[name]).all() for name in half)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masking_is_the_product_to_the_last_bit_but_for_the_sign_of_a_zero(dtype):
    model = tiny_gpt2().to(dtype)
    generator = torch.Generator().manual_seed(0)
    kept = {
        k: torch.rand(w.shape, generator=generator) > 0.9
        for k, w in modeling.prunable_weights(model).items()
    }
    wanted = {k: w.detach() * kept[k] + 0 for k, w in modeling.prunable_weights(model).items()}
    masks.apply_masks(model, kept)
    for name, weight in modeling.prunable_weights(model).items():
        bits = [tensor.detach().view(torch.uint8) for tensor in (weight, wanted[name])]
        assert weight.dtype == dtype and torch.equal(*bits)
        assert not weight[weight == 0].signbit().any()


def test_cubic_schedule_matches_its_formula():
    points = [schedules.cubic_sparsity(p, 0.5, 0.9) for p in (-1, 0, 0.25, 0.5, 1, 2)]
    assert points[0] == points[1] == 0.5 and points[4] == points[5] == 0.9
    assert points[2] == pytest.approx(0.9 - 0.4 * 0.75**3)
    assert points == sorted(points)


def test_random_scores_depend_on_the_seed_alone(model):
    first, again, other = (criteria.scores(model, "random", seed=seed) for seed in (1, 1, 2))
    name = next(iter(first))
    assert torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name])


def test_fisher_scores_order_weights_by_the_rise_of_the_loss(model):
    weights = modeling.prunable_weights(model)
    slopes = {name: torch.rand_like(weight) for name, weight in weights.items()}
    scored = criteria.scores(model, "fisher", calibration.stats_from_adam(model, slopes))
    for name, weight in weights.items():
        rise = weight.detach() ** 2 * slopes[name]
        assert torch.equal(scored[name].flatten().argsort(), rise.flatten().argsort())


def test_tied_embedding_is_never_prunable(model):
    names = modeling.prunable_weights(model)
    assert not any("wte" in name or "wpe" in name or "lm_head" in name for name in names)
    before = model.transformer.wte.weight.clone()
    masks.apply_masks(model, masks.make_masks(criteria.scores(model), 0.99))
    assert torch.equal(model.transformer.wte.weight, before)
    assert model.lm_head.weight is model.transformer.wte.weight


def test_zeros_survive_a_stock_save_and_reload(model, tmp_path):
    from transformers import AutoModelForCausalLM

    masks.apply_masks(model, masks.make_masks(criteria.scores(model), 0.9))
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert masks.measure_sparsity(again) == masks.measure_sparsity(model)
    assert masks.measure_sparsity(model)["prunable"] == pytest.approx(0.9, abs=1e-3)
    assert modeling.fingerprint(again) == modeling.fingerprint(model)


def test_two_of_four_along_the_inputs_of_either_layer_type():
    column = torch.tensor([[3.0], [1.0], [2.0], [4.0], [8.0], [7.0], [6.0], [5.0]])
    scored, axes = {"conv1d": column, "linear": column.T}, {"conv1d": 0, "linear": 1}
    wanted = [True, False, False, True, True, True, False, False]
    kept = masks.make_masks(scored, 0.5, "2:4", axes)
    assert kept["conv1d"][:, 0].tolist() == kept["linear"][0].tolist() == wanted
    way = masks.make_masks(scored, 0.25, "2:4", axes)  # half of the way goes by the lowest scores
    assert way["conv1d"][:, 0].tolist() == [True, False, False, True, True, True, True, True]


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:4"])
def test_a_pattern_is_exact_in_a_model(model, pattern):
    n, m = map(int, pattern.split(":"))
    axes, equal = (
        modeling.input_axes(model),
        {k: torch.zeros_like(w) for k, w in modeling.prunable_weights(model).items()},
    )
    for scored in (criteria.scores(model), equal):
        kept = masks.make_masks(scored, 1 - n / m, pattern, axes)
        for name, mask in kept.items():
            groups = mask.movedim(axes[name], -1).unflatten(-1, (-1, m))
            assert (groups.sum(-1) == n).all()


@pytest.mark.parametrize(
    ("sparsity", "shape", "message"),
    [
        (0.9, (8, 8), "sparsity: 0.9 must be at most 0.5 with 2:4"),
        (0.5, (8, 6), "scope: '2:4' does not divide the 6 inputs of a"),
    ],
)
def test_a_pattern_that_does_not_fit(sparsity, shape, message):
    with pytest.raises(ParameterError, match=message):
        masks.make_masks({"a": torch.ones(shape)}, sparsity, "2:4", {"a": 1})


@pytest.mark.parametrize("criterion", sorted(criteria.CRITERIA))
def test_a_pattern_that_does_not_fit_a_model_is_told_before_any_work(criterion):
    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=30, n_layer=1, n_head=2)
    model = GPT2LMHeadModel(config)
    for act in (masks.check_cut, masks.prune):
        with pytest.raises(ParameterError, match="scope: '2:4' does not divide the 30 inputs of"):
            act(model, criterion, 0.5, "2:4")


def test_uniform_cuts_each_matrix_of_a_stack_alike():
    stack = torch.cat([torch.rand(1, 6, 8), 1 + torch.rand(2, 6, 8)])
    kept = masks.make_masks({"experts": stack}, 0.25, "uniform")["experts"]
    assert kept.sum((1, 2)).tolist() == [36, 36, 36]
    assert masks.make_masks({"experts": stack}, 0.25)["experts"].sum((1, 2)).tolist() == [
        12,
        48,
        48,
    ]


@pytest.mark.parametrize("scope", ["global", "uniform", "per-row"])
@pytest.mark.parametrize("sparsity", [0.31, 0.5, 0.67, 0.9])
def test_a_cut_ends_within_its_rounding(model, scope, sparsity):
    axes = modeling.input_axes(model) if scope == "per-row" else None
    kept = masks.make_masks(criteria.scores(model), sparsity, scope, axes)
    masks.apply_masks(model, kept)
    gone = sum(int((~mask).sum()) for mask in kept.values())
    reached = gone / sum(mask.numel() for mask in kept.values())
    assert abs(reached - sparsity) <= masks.sparsity_tolerance(model, scope) + 1e-12
    assert masks.sparsity_tolerance(model, "per-row") == pytest.approx(0.5 / model.config.n_embd)
