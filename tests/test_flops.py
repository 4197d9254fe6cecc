"""The formula for operations against torch's counter of what really ran."""

import pytest
import torch
from conftest import tiny_gpt2
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from prunegpt_utils import flops, forward, masks, structured
from prunegpt_utils.config import TrainConfig
from prunegpt_utils.losses import batch_loss

BLOCK, BATCH = 24, 3


def tiny_llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=16, num_hidden_layers=3, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, intermediate_size=40, attn_implementation="eager", use_cache=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def known(model):
    forward.lm_head(model)  # looked at once, which is no part of a step
    return model


def eager(teacher):
    """It would read with the fused kernel, which torch's counter does not know on a CPU."""
    teacher._supports_sdpa = False
    return teacher


def counted(act):
    with FlopCounterMode(display=False) as counter:
        act()
    return counter.get_total_flops()


def tiny_opt():
    """Between embeddings and blocks there are projections, outside of what is pruned."""
    config = OPTConfig(
        vocab_size=97, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2,
        word_embed_proj_dim=8, max_position_embeddings=32, attn_implementation="eager", dropout=0.0,
        use_cache=False,
    )  # fmt: skip
    return OPTForCausalLM(config)


def tiny_deepseek():
    """Its values have another size than its queries and keys, and `head_dim` is of neither."""
    config = DeepseekV3Config(
        vocab_size=97, hidden_size=16, intermediate_size=40, num_hidden_layers=2, n_group=1,
        num_attention_heads=4, num_key_value_heads=4, q_lora_rank=8, kv_lora_rank=8, topk_group=1,
        qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=6, first_k_dense_replace=2,
        n_routed_experts=2, num_experts_per_tok=1, attn_implementation="eager", use_cache=False,
    )  # fmt: skip
    return DeepseekV3ForCausalLM(config)


@pytest.fixture(
    params=[tiny_gpt2, tiny_llama, tiny_opt, tiny_deepseek],
    ids=["GPT-2", "Llama", "OPT", "DeepSeek"],
)
def model(request):
    return known(request.param())


@pytest.fixture
def rows():
    return torch.randint(0, 97, (BATCH, BLOCK + 1), generator=torch.Generator().manual_seed(1))


def test_a_step_costs_what_it_costs(model, rows):
    found = flops.training_flops(model, rows[:, 1:].numel(), BLOCK)
    step = counted(lambda: batch_loss(model, rows, TrainConfig(1, 1e-3)).backward())
    assert found == {"student": step, "teacher": 0}


def test_zeros_save_nothing(model, rows):
    before = flops.training_flops(model, 72, BLOCK)
    masks.prune(model, "magnitude", 0.9, "global")
    assert flops.training_flops(model, 72, BLOCK) == before


def test_heads_that_went_cost_nothing(rows):
    small = known(structured.prune_structured(tiny_gpt2(), 0.0, 0.5, "magnitude").train())
    step = counted(lambda: batch_loss(small, rows, TrainConfig(1, 1e-3)).backward())
    assert flops.training_flops(small, rows[:, 1:].numel(), BLOCK)["student"] == step


def test_a_teacher_of_hidden_states_makes_no_logits(rows):
    student, teacher = known(tiny_gpt2()), known(tiny_gpt2(1))
    config = TrainConfig(1, 1e-3, alpha=0.5, kd_loss="hidden_mse")
    both = counted(lambda: batch_loss(student, rows, config, teacher).backward())
    both -= counted(lambda: batch_loss(student, rows, TrainConfig(1, 1e-3)).backward())
    found = flops.training_flops(
        student, rows[:, 1:].numel(), BLOCK, teacher, teacher_head=False
    )  # fmt: skip
    assert found["teacher"] == both


@pytest.mark.parametrize("cached", [False, True])
def test_a_teacher_reads_and_makes_logits(model, rows, cached):
    teacher, config = eager(known(tiny_gpt2(1))), TrainConfig(1, 1e-3, alpha=0.5, temperature=2.0)
    tokens = rows[:, 1:].numel()
    with torch.no_grad():
        hidden = forward.last_hidden_states(teacher, rows[:, :-1]) if cached else None
    alone = TrainConfig(1, 1e-3)
    both = counted(lambda: batch_loss(model, rows, config, teacher, hidden).backward())
    both -= counted(lambda: batch_loss(model, rows, alone).backward())
    found = flops.training_flops(model, tokens, BLOCK, teacher, 0 if cached else None)
    assert found["teacher"] == both
