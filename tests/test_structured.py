import pytest
import torch
import transformers
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
