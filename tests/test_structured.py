import pytest
import torch
import transformers
from conftest import tiny_gpt2
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from prunegpt_utils import modeling, structured
from prunegpt_utils.errors import ParameterError


def loss(model, rows):
    return model(rows, labels=rows).loss


@pytest.mark.parametrize("importance", structured.IMPORTANCES)
def test_every_block_loses_the_same_neurons(model, ids, importance):
    before = modeling.fingerprint(model)
    small = structured.prune_structured(model, 0.5, 0.0, importance, [ids[None, :32]], loss)
    assert {block.mlp.c_fc.nf for block in small.transformer.h} == {32} == {small.config.n_inner}
    per_block = 32 * (16 + 1 + 16)  # a neuron's inputs, bias and outputs
    assert (
        modeling.count_parameters(small)["parameters"]
        == modeling.count_parameters(model)["parameters"] - 2 * per_block
    )
    assert modeling.fingerprint(model) == before


def test_without_neurons_a_stock_checkpoint_reloads_exactly(model, ids, tmp_path):
    small = structured.prune_structured(model, 0.5, 0.0, "magnitude")
    small.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert torch.equal(again(ids[None, :32]).logits, small(ids[None, :32]).logits)


def test_a_weight_that_is_missing_is_no_random_one(model, tmp_path):
    structured.prune_structured(model, 0.0, 0.5, "magnitude").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    gone = tensors.pop("transformer.h.1.mlp.c_proj.weight")
    for changed, problem in (
        (tensors, "lacks transformer.h.1.mlp.c_proj.weight"),
        (
            tensors | {"transformer.h.1.mlp.c_proj.weight": gone, "more": gone.clone()},
            "has no place for more",
        ),
    ):
        save_file(changed, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(ParameterError, match=problem):
            modeling.load_model(tmp_path)


@pytest.mark.parametrize("importance", structured.IMPORTANCES)
def test_without_heads_the_checkpoint_reloads_exactly(model, ids, tmp_path, importance):
    small = structured.prune_structured(model, 0.5, 0.5, importance, [ids[None, :32]], loss)
    assert {block.attn.num_heads for block in small.transformer.h} == {1}
    small.save_pretrained(tmp_path)
    again = modeling.load_model(tmp_path)
    assert modeling.fingerprint(again) == modeling.fingerprint(small)
    torch.testing.assert_close(again(ids[None, :32]).logits, small(ids[None, :32]).logits)
    assert again.generate(ids[None, :8], max_new_tokens=4, pad_token_id=0).shape == (1, 12)


def test_a_head_that_adds_nothing_goes_first_and_unnoticed(model, ids):
    for block in model.transformer.h:
        block.attn.c_proj.weight.data[8:] = 0  # what the second head would add
        block.attn.c_attn.weight.data[:, 40:48] = 0  # its values
    small = structured.prune_structured(model, 0.0, 0.5, "magnitude")
    torch.testing.assert_close(small(ids[None, :32]).logits, model(ids[None, :32]).logits)


def test_silent_neurons_go_first_and_unnoticed(model, ids):
    for block in model.transformer.h:
        block.mlp.c_proj.weight.data[::2] = 0
        block.mlp.c_fc.weight.data[:, ::2] = 0
    small = structured.prune_structured(model, 0.5, 0.0, "magnitude")
    torch.testing.assert_close(small(ids[None, :32]).logits, model(ids[None, :32]).logits)


SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
OTHERS = {
    "Llama": SMALL | {"intermediate_size": 32},
    "OPT": SMALL | {"ffn_dim": 32, "word_embed_proj_dim": 16},
    "GPTNeo": {"vocab_size": 50, "hidden_size": 16, "num_layers": 1, "num_heads": 2,
               "attention_types": [[["global"], 1]]},
    "OpenAIGPT": {"vocab_size": 50, "n_embd": 16, "n_layer": 1, "n_head": 2},  # Conv1D, c_fc and all
}  # fmt: skip


@pytest.mark.parametrize("family", OTHERS)
@pytest.mark.parametrize("sparsities", [(0.5, 0.0), (0.0, 0.5)])
def test_other_architectures_are_refused(family, sparsities):
    config = getattr(transformers, f"{family}Config")(**OTHERS[family])
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ParameterError, match=f"model: '{family}.*' must be a GPT-2"):
        structured.prune_structured(model, *sparsities)


def test_one_head_must_stay(model):
    with pytest.raises(ParameterError, match="head_sparsity: 0.9 leaves none of 2 heads"):
        structured.prune_structured(model, 0.0, 0.9, "magnitude")


@pytest.mark.parametrize("share", [0.9, 0.99])
def test_a_share_of_neurons_that_removes_nothing_is_refused(model, share):
    message = f"neuron_sparsity: {share} leaves less than 8 of 64 neurons, and so none would go"
    with pytest.raises(ParameterError, match=message):
        structured.prune_structured(model, share, 0.0, "magnitude")


def test_a_share_of_heads_that_removes_nothing_is_refused(model):
    with pytest.raises(ParameterError, match="head_sparsity: 0.2 removes none of 2 heads"):
        structured.prune_structured(model, 0.0, 0.2, "magnitude")


def build(family, **options):
    """A random model whose blocks, and the order of them, show in its logits."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**options)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)
    return model


FOUR = {"vocab_size": 97, "num_hidden_layers": 4, "num_attention_heads": 2, "hidden_size": 16}
IN_FOUR_BLOCKS = {
    "GPT2": {"vocab_size": 97, "n_layer": 4, "n_head": 2, "n_embd": 16},
    "Llama": FOUR | {"intermediate_size": 24},
    "Gemma3Text": FOUR | {  # one that says of each block what it does
        "intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 4,
        "layer_types": ["full_attention", *["sliding_attention"] * 2, "full_attention"],
    },
}  # fmt: skip


@pytest.mark.parametrize("family", IN_FOUR_BLOCKS)
def test_what_is_left_of_the_blocks_is_a_stock_model(family, ids, tmp_path):
    model = build(family, **IN_FOUR_BLOCKS[family])
    before, ids = modeling.fingerprint(model), ids[None, :12]
    small = structured.drop_blocks(model, 0.5)  # the first and the last stay
    _, all_blocks = modeling.transformer_blocks(model)
    _, blocks = modeling.transformer_blocks(small)
    pairs = zip(blocks, (all_blocks[0], all_blocks[3]), strict=True)
    for ours, theirs in pairs:
        assert all(map(torch.equal, ours.parameters(), theirs.parameters()))
    sizes = [modeling.count_parameters(each)["prunable"] for each in (small, model)]
    assert sizes[0] * 2 == sizes[1] and modeling.fingerprint(model) == before
    small.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert torch.equal(again(ids).logits, small(ids).logits)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    cached, plain = (again.generate(ids, use_cache=use, **options) for use in (True, False))
    assert torch.equal(cached, plain)


def test_blocks_that_stay_are_evenly_spaced(monkeypatch):
    monkeypatch.setattr(structured, "keep_blocks", lambda model, kept: kept)
    kept = {
        (layers, share): structured.drop_blocks(tiny_gpt2(layers=layers), share)
        for layers, share in ((12, 0.5), (12, 0.25), (3, 0.33), (3, 0.67), (2, 0.5))
    }
    assert kept == {
        (12, 0.5): [0, 2, 4, 7, 9, 11],  # those of DistilGPT-2
        (12, 0.25): [0, 1, 3, 4, 6, 7, 8, 10, 11],
        (3, 0.33): [0, 2], (3, 0.67): [0], (2, 0.5): [0],
    }  # fmt: skip


@pytest.mark.parametrize(("share", "what"), [(0.9, "leaves"), (0.2, "removes")])
def test_some_block_stays_and_some_goes(model, share, what):
    with pytest.raises(ParameterError, match=f"block_sparsity: {share} {what} none of 2 blocks"):
        structured.drop_blocks(model, share)


def test_blocks_that_depend_on_their_place_cannot_go():
    scaled = build("GPT2", **IN_FOUR_BLOCKS["GPT2"], scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(
        ParameterError, match="'GPT2LMHeadModel' cannot lose blocks: .* on its place"
    ):
        structured.drop_blocks(scaled, 0.5)


def test_a_model_that_lost_heads_loses_no_blocks(model):
    small = structured.prune_structured(model, 0.0, 0.5, "magnitude")
    with pytest.raises(ParameterError, match="'GPT2LMHeadModel' cannot lose blocks"):
        structured.drop_blocks(small, 0.5)
