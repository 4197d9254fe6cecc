"""Other architectures than GPT-2, randomly initialised and tiny, through the same notebooks."""

import pytest
import torch
import transformers
from conftest import ROOT, papermill
from transformers import AutoModelForCausalLM

from prunegpt_utils import modeling
from prunegpt_utils.corpora import SPLITS
from prunegpt_utils.runs import records

SMALL = {"vocab_size": 2048, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
WINDOW = {"intermediate_size": 64, "num_key_value_heads": 1, "use_sliding_window": True,
          "sliding_window": 16, "max_window_layers": 1}  # fmt: skip
FAMILIES = {  # name -> (configuration, matrices a block)
    "OPT": ({"ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 64}, 6),
    "GPTNeoX": ({"intermediate_size": 64, "max_position_embeddings": 64}, 4),
    "Llama": ({"intermediate_size": 64, "num_key_value_heads": 1}, 7),
    "Qwen2": (WINDOW, 7),  # whose second block looks back at 16 tokens
    "GPTJ": ({"rotary_dim": 8, "bos_token_id": 0, "eos_token_id": 0}, 6),  # a bias in its head
    "Gemma2": ({"intermediate_size": 64, "num_key_value_heads": 1, "head_dim": 16}, 7),  # soft caps
    "Mixtral": ({"intermediate_size": 64, "num_key_value_heads": 1, "num_local_experts": 4}, 7),
}


@pytest.fixture(params=FAMILIES)
def family(request, tmp_path):
    """(folder of a stock checkpoint with the embedded tokenizer, its matrices)."""
    options, matrices = FAMILIES[request.param]
    config = getattr(transformers, f"{request.param}Config")(**SMALL, **options)
    torch.manual_seed(0)
    folder = tmp_path / request.param
    model = getattr(transformers, f"{request.param}ForCausalLM")(config)
    modeling.save_model(model, modeling.load_tokenizer("pydocs-base"), folder)
    return folder, 2 * matrices


def test_the_block_matrices_are_found(family):
    folder, matrices = family
    weights = modeling.prunable_weights(modeling.load_model(folder))
    assert len(weights) == matrices
    stacks = sum(weight.ndim == 3 for weight in weights.values())
    assert stacks == (2 * 2 if folder.name == "Mixtral" else 0)


@pytest.mark.system
def test_fine_tuned_pruned_and_distilled(family, tmp_path):
    folder, _ = family
    texts = tmp_path / "texts"
    texts.mkdir()
    prose = (ROOT / "docs" / "faq.md").read_text("utf-8")
    for number, split in enumerate(SPLITS, 1):
        (texts / f"{split}.txt").write_text(prose.replace("the", f"the {number}"), "utf-8")
    parameters = {
        "study": "other", "model": str(folder), "data": str(texts), "steps": 2, "batch": 2, "block_size": 64,
    }  # fmt: skip
    done = papermill("03_distillation", tmp_path, parameters)
    assert done.returncode == 0, done.stderr[-2000:]
    names = {path.stem for path in (tmp_path / "other" / "records").glob("*.json")}
    assert names == {
        "dense-seed0", "control-seed0", "one-shot-s90-seed0", "gradual-s90-seed0",
        "gradual-distilled-s90-seed0",
    }  # fmt: skip
    record = records.read(tmp_path / "other" / "records" / "gradual-distilled-s90-seed0.json")
    assert record["sparsity"]["prunable"] == pytest.approx(0.9, abs=1e-3)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "other" / "models" / record["run"])
    assert type(reloaded).__name__.startswith(folder.name)
