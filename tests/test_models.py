import ast
import json

import pytest
import torch
from conftest import ROOT, tiny_gpt2
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from prunegpt_utils import hub, modeling
from prunegpt_utils.errors import ParameterError


def test_gpt2_has_48_prunable_matrices():
    with torch.device("meta"):  # shapes without memory
        model = GPT2LMHeadModel(GPT2Config())
    assert len(modeling.prunable_weights(model)) == 48
    assert modeling.count_parameters(model) == {"parameters": 124_439_808, "prunable": 84_934_656}


def test_linear_blocks_are_found_too():
    from transformers import OPTConfig, OPTForCausalLM

    llama = LlamaForCausalLM(LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=2,
    ))  # fmt: skip
    assert len(modeling.prunable_weights(llama)) == 3 * 7
    opt = OPTForCausalLM(OPTConfig(
        vocab_size=50, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2,
        word_embed_proj_dim=16, max_position_embeddings=32,
    ))  # fmt: skip
    assert len(modeling.prunable_weights(opt)) == 2 * 6


def test_a_head_of_its_own_stays_one_whatever_the_configuration_says(tmp_path, ids):
    """transformers loads it as it is; who ties it afterwards, as lm-eval does, would lose it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text()) | {"tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(said))
    model = modeling.load_model(tmp_path)
    logits = model(ids[None, :8]).logits
    model.tie_weights()
    assert torch.equal(model(ids[None, :8]).logits, logits)
    model.save_pretrained(tmp_path / "again")
    again = modeling.load_model(tmp_path / "again")
    assert torch.equal(again(ids[None, :8]).logits, logits)
    config.tie_word_embeddings = True
    LlamaForCausalLM(config).save_pretrained(tmp_path / "tied")
    tied = modeling.load_model(tmp_path / "tied")
    assert tied.config.tie_word_embeddings and tied.lm_head.weight is tied.model.embed_tokens.weight


def test_a_model_without_blocks_is_refused():
    model = tiny_gpt2()
    model.transformer.h = torch.nn.ModuleList()
    with pytest.raises(ParameterError, match="has no list of transformer blocks"):
        modeling.prunable_weights(model)


def test_embedded_base_is_a_small_stock_checkpoint():
    model = AutoModelForCausalLM.from_pretrained(hub.BASE)
    tokenizer = AutoTokenizer.from_pretrained(hub.BASE)
    assert 1e6 <= sum(p.numel() for p in model.parameters()) <= 4e6
    assert 2048 <= len(tokenizer) <= 4096 and model.config.model_type == "gpt2"
    files = list(hub.BASE.iterdir())
    assert sum(file.stat().st_size for file in files) < 8e6
    assert {file.suffix for file in files} <= {".json", ".safetensors"}
    assert modeling.fingerprint(model) == modeling.fingerprint(modeling.load_model("pydocs-base"))


def test_weights_are_float32_whatever_the_checkpoint(tmp_path):
    tiny_gpt2().to(torch.bfloat16).save_pretrained(tmp_path)
    assert modeling.load_model(tmp_path).dtype == torch.float32


@pytest.mark.parametrize("damage", ["truncated", "missing", "pickle", "not JSON", "empty folder"])
def test_a_bad_checkpoint_is_one_line(tmp_path, damage):
    tiny_gpt2().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:500])
    elif damage == "not JSON":
        (tmp_path / "config.json").write_text("{")
    elif damage == "empty folder":
        (tmp_path / "config.json").unlink()
    else:
        weights.unlink()
    if damage == "pickle":
        torch.save(tiny_gpt2().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ParameterError) as caught:
        modeling.load_model(tmp_path)
    assert str(caught.value).startswith("model: ") and "\n" not in str(caught.value)


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("transformer.h.1.mlp.c_fc.weight"), "it lacks transformer.h.1.mlp.c_fc.weight"),
        (lambda w: w.update(more=torch.zeros(3)), "it has no place for more"),
        (lambda w: w.update({"transformer.wpe.weight": torch.zeros(3, 3)}), "does not load"),
        (lambda w: w["transformer.wpe.weight"].fill_(torch.nan), "has weights that are not finite"),
    ],
)  # fmt: skip
def test_weights_must_be_those_of_the_configuration(tmp_path, change, message):
    tiny_gpt2().save_pretrained(tmp_path)
    change_weights(tmp_path, change)
    with pytest.raises(ParameterError, match=message) as caught:
        modeling.load_model(tmp_path)
    assert str(caught.value).startswith("model: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("load", [modeling.load_model, modeling.load_tokenizer])
def test_code_that_comes_with_a_model_is_not_run(tmp_path, load):
    tiny_gpt2().save_pretrained(tmp_path)
    ran = tmp_path / "ran"
    (tmp_path / "mine.py").write_text(f"open({str(ran)!r}, 'w')")
    asked = {
        "AutoConfig": "mine.A",
        "AutoModelForCausalLM": "mine.B",
        "AutoTokenizer": ["mine.C", None],
    }
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": asked}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokenizer = {"tokenizer_class": "C", "auto_map": asked}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ParameterError, match="asks to run code that comes with it; none is"):
        load(tmp_path)
    assert not ran.exists()


def test_saving_replaces_whole_files(tmp_path, monkeypatch):
    tokenizer = modeling.load_tokenizer("pydocs-base")
    modeling.save_model(tiny_gpt2(seed=1), tokenizer, tmp_path / "model")
    before = modeling.fingerprint(modeling.load_model(tmp_path / "model"))
    monkeypatch.setattr(tokenizer, "save_pretrained", lambda folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        modeling.save_model(tiny_gpt2(seed=2), tokenizer, tmp_path / "model")
    assert modeling.fingerprint(modeling.load_model(tmp_path / "model")) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_name_that_cannot_be_a_model_is_told_at_once():
    with pytest.raises(
        ParameterError, match="model: 'no such/model' must be pydocs-base, a folder, or a hub id"
    ):
        modeling.load_model("no such/model")


def test_teacher_with_another_vocabulary():
    with pytest.raises(
        ParameterError, match="teacher: 'big' has a vocabulary of 98; the student has 97"
    ):
        modeling.check_same_vocabulary(tiny_gpt2(), tiny_gpt2(vocabulary=98), "big")


def with_tokens(folder, change=lambda words: None, seed=0, vocabulary=2048):
    """A model with the embedded tokenizer, whose words `change` may change; loaded again."""
    tokenizer = modeling.load_tokenizer("pydocs-base")
    modeling.save_model(tiny_gpt2(seed, vocabulary), tokenizer, folder)
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    change(content["model"]["vocab"])
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    return modeling.load_model(folder)


def exchange(words):
    first, second = list(words)[500:502]
    words[first], words[second] = words[second], words[first]


def test_teacher_with_as_many_tokens_but_others(tmp_path):
    student = with_tokens(tmp_path / "student")
    modeling.check_same_vocabulary(student, with_tokens(tmp_path / "same", seed=1), "same")
    modeling.check_same_vocabulary(student, modeling.load_model("pydocs-base"), "pydocs-base")
    teacher = with_tokens(tmp_path / "other", exchange)
    message = "teacher: 'other' has other tokens than the student, such as '"
    with pytest.raises(ParameterError, match=message):
        modeling.check_same_vocabulary(student, modeling.frozen_copy(teacher), "other")


def test_teacher_whose_embedding_is_padded_further(tmp_path):
    student = with_tokens(tmp_path / "student")
    teacher = with_tokens(tmp_path / "padded", vocabulary=2112)
    with pytest.raises(ParameterError, match="has a vocabulary of 2112; the student has 2048"):
        modeling.check_same_vocabulary(student, teacher, "padded")


def test_teacher_without_a_tokenizer_is_refused(tmp_path):
    student = with_tokens(tmp_path / "student")
    tiny_gpt2(vocabulary=2048).save_pretrained(tmp_path / "bare")
    with pytest.raises(ParameterError, match="^teacher: "):
        modeling.check_same_vocabulary(student, modeling.load_model(tmp_path / "bare"), "bare")


def test_hidden_states_are_compared_block_by_block():
    student = tiny_gpt2()
    modeling.check_same_hidden_states(student, tiny_gpt2(seed=1), "same")
    config = GPT2Config(**student.config.to_dict() | {"n_layer": 3, "n_embd": 24})
    message = "teacher: 'large' has 3 blocks of width 24; .* the student's 2 blocks of width 16"
    with pytest.raises(ParameterError, match=message):
        modeling.check_same_hidden_states(student, GPT2LMHeadModel(config), "large")


def test_block_longer_than_the_positions():
    with pytest.raises(
        ParameterError, match="block_size: 33 is longer than the model's 32 positions"
    ):
        modeling.check_input(tiny_gpt2(), range(97), 33)


def test_tokenizer_of_another_model():
    tokenizer = modeling.load_tokenizer("pydocs-base")
    with pytest.raises(ParameterError, match="knows 97 tokens; the tokenizer beside it makes 2048"):
        modeling.check_input(tiny_gpt2(), tokenizer, 32)


def test_files_classes_and_functions_stay_short():
    lines = 0
    for path in ROOT.glob("prunegpt_utils/**/*.py"):
        text = path.read_text("utf-8")
        lines += sum(bool(line.strip()) for line in text.splitlines())
        assert len(text.splitlines()) <= 350, path.name
        for node in ast.walk(ast.parse(text)):
            most = {ast.FunctionDef: 50, ast.ClassDef: 120}.get(type(node))
            assert most is None or node.end_lineno - node.lineno < most, (path.name, node.name)
    assert lines <= 10_200


def test_no_pickle_and_no_remote_code_in_the_sources():
    for path in [*ROOT.glob("prunegpt_utils/**/*.py"), *ROOT.glob("notebooks/*.ipynb")]:
        text = path.read_text("utf-8").replace("trust_remote" + "_code=False", "")
        for word in ("trust_remote" + "_code", "torch.load(", "import pickle", "eval("):
            assert word not in text.replace("model.eval(", "").replace(".eval()", ""), (path, word)


def test_gelu_in_one_operation_is_gelu_new(tmp_path, ids):
    original = tiny_gpt2()
    original.config.activation_function = "gelu_new"
    original = type(original)(original.config).eval()
    original.save_pretrained(tmp_path)
    loaded = modeling.load_model(tmp_path)
    assert "NewGELU" in type(original.transformer.h[0].mlp.act).__name__
    assert "NewGELU" not in type(loaded.transformer.h[0].mlp.act).__name__
    with torch.no_grad():
        assert torch.allclose(
            original(ids[None, :32]).logits, loaded(ids[None, :32]).logits, atol=1e-5
        )
