"""Every architecture that the README names, tiny and random: right numbers, or one line."""

import contextlib
import json

import pytest
import torch
import torch.nn.functional as F
import transformers
from conftest import tokens_of
from transformers.modeling_outputs import BaseModelOutput

from prunegpt_utils import (
    calibration,
    criteria,
    encodings,
    evaluation,
    fidelity,
    losses,
    masks,
    modeling,
    sparsegpt,
)
from prunegpt_utils.config import TrainConfig
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.forward import last_hidden_states, lm_head, rounded_copy, sparse_lookup
from prunegpt_utils.protocols import rolling_windows
from prunegpt_utils.schedules import PruningSchedule
from prunegpt_utils.teacher_cache import cached_hidden_states
from prunegpt_utils.training import train

VOCABULARY, BLOCK = 96, 24
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 0,
    "eos_token_id": 0,
}  # fmt: skip
GPT2_SIZES = {
    "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
    "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
ONE_KEY = SIZES | {"num_key_value_heads": 1, "head_dim": 16}
OPT = SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32}
GPT_NEO = {"intermediate_size": 48, "num_layers": 2, "num_heads": 2, "window_size": 8,
           "attention_types": [[["global", "local"], 1]]}  # fmt: skip
MPT = {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": 64}
FALCON_H1 = ONE_KEY | {
    "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1,
    "mamba_chunk_size": 8, "lm_head_multiplier": 0.3,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
ARCHITECTURES = {  # name of the test -> (family in transformers, configuration)
    "BLOOM": ("Bloom", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 2}),
    "CodeGen": ("CodeGen", GPT2_SIZES | {"rotary_dim": 4}),
    "Cohere": ("Cohere", ONE_KEY),
    "Cohere2": ("Cohere2", ONE_KEY | {"sliding_window": 8, "sliding_window_pattern": 2}),
    "Falcon": ("Falcon", SIZES),
    "Falcon, ALiBi": ("Falcon", SIZES | {"alibi": True, "parallel_attn": False, "bias": True, "multi_query": False}),
    "Falcon-H1": ("FalconH1", FALCON_H1),
    "Gemma": ("Gemma", ONE_KEY),
    "Gemma 2": ("Gemma2", ONE_KEY | {"sliding_window": 8, "query_pre_attn_scalar": 16}),
    "Gemma 3": ("Gemma3Text", ONE_KEY | {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}),
    "GPT": ("OpenAIGPT", GPT2_SIZES),
    "GPT-2": ("GPT2", GPT2_SIZES),
    "GPT-J": ("GPTJ", GPT2_SIZES | {"rotary_dim": 4}),
    "GPT-Neo": ("GPTNeo", SIZES | GPT_NEO),
    "GPT-NeoX": ("GPTNeoX", SIZES),
    "gpt-oss": ("GptOss", ONE_KEY | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}),
    "Granite": ("Granite", ONE_KEY | {"logits_scaling": 8.0}),
    "Llama": ("Llama", ONE_KEY),
    "Mistral": ("Mistral", ONE_KEY | {"sliding_window": 8}),
    "Mixtral": ("Mixtral", ONE_KEY | {"num_local_experts": 4}),
    "MPT": ("Mpt", MPT),
    "OLMo": ("Olmo", SIZES),
    "OLMo 2": ("Olmo2", SIZES),
    "OLMo 3": ("Olmo3", ONE_KEY | {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}),
    "OPT": ("OPT", OPT),
    "OPT-350m": ("OPT", OPT | {"word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "Phi": ("Phi", SIZES),
    "Phi-3": ("Phi3", SIZES),
    "Qwen 2": ("Qwen2", ONE_KEY | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "Qwen 3": ("Qwen3", ONE_KEY),
    "Qwen 3 MoE": ("Qwen3Moe", ONE_KEY | EXPERTS),
    "SmolLM3": ("SmolLM3", ONE_KEY),
    "StableLM": ("StableLm", SIZES | {"num_key_value_heads": 2}),
    "StarCoder2": ("Starcoder2", ONE_KEY | {"sliding_window": 8}),
}  # fmt: skip
MIXTURES = ("gpt-oss", "Mixtral", "Qwen 3 MoE")


def build(family, options, seed=0):
    """A random model whose weights and logits are large enough for all that it does to show."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(**options)
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
            elif parameter.ndim > 1:
                parameter.normal_(std=0.2)
        model.get_output_embeddings().weight.mul_(4)
    return model


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request, tmp_path_factory):
    """(name, the model as the study loads it, as transformers does, ids)."""
    family, options = ARCHITECTURES[request.param]
    folder = tmp_path_factory.mktemp("model")
    build(family, options).save_pretrained(folder)
    stock = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    stock.config.use_cache = False
    ids = torch.randint(1, VOCABULARY, (8, BLOCK + 1), generator=torch.Generator().manual_seed(1))
    return request.param, modeling.load_model(folder), stock.eval(), ids


def copy_of(model):
    return modeling.frozen_copy(model).requires_grad_(True)


def test_a_teacher_whose_matrices_are_rounded_once_teaches_the_same(architecture):
    name, model, _, ids = architecture
    teacher = modeling.frozen_copy(model)
    rounded = rounded_copy(teacher, "bf16")
    config = TrainConfig(1, 1e-3, precision="bf16", alpha=1.0, temperature=2.0)
    student = copy_of(model)
    with torch.no_grad():
        for weight in student.parameters():
            weight.mul_(0.9)
    once, again = (
        float(losses.batch_loss(student, ids, config, each)) for each in (rounded, teacher)
    )
    assert once == again > 0, f"{name}: {once} of a rounded teacher, {again} of itself"
    assert rounded_copy(teacher, "float32") is teacher, "there is nothing to round"
    assert {w.dtype for w in teacher.parameters()} == {torch.float32}, "the teacher itself changed"
    if name in ("GPT-2", "Llama"):
        assert rounded is not teacher, f"{name}: nothing was rounded"


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_lookup_of_few_rows_has_the_same_gradients(architecture, precision):
    name, model, _, ids = architecture
    config, found = TrainConfig(1, 1e-3, precision=precision), []
    for lookup in (sparse_lookup, contextlib.nullcontext):
        student = copy_of(model)
        with lookup(student):
            losses.batch_loss(student, ids % 5, config).backward()
        found.append(dict(student.named_parameters()))
    for key, parameter in found[0].items():
        theirs = found[1][key].grad
        same = parameter.grad is theirs is None or torch.equal(parameter.grad, theirs)
        assert same, f"{name}: {key}"


def test_perplexity_is_that_of_the_models_own_logits(architecture):
    _, model, stock, ids = architecture
    text = ids.flatten()
    with torch.no_grad():
        windows = text[: len(text) // BLOCK * BLOCK].view(-1, BLOCK)
        scores = stock(windows).logits[:, :-1].flatten(0, 1)
    wanted = F.cross_entropy(scores, windows[:, 1:].flatten(), reduction="none")
    spans = rolling_windows(windows.numel(), BLOCK, BLOCK)
    found = evaluation.token_nll(model, text, spans, batch=3)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_fidelity_is_that_of_the_models_own_logits(architecture):
    name, model, stock, ids = architecture
    dense, windows = build(*ARCHITECTURES[name], seed=1).eval(), ids.flatten()[: 5 * BLOCK]
    with torch.no_grad():
        rows = windows.view(-1, BLOCK)[:, :-1]
        ours, theirs = (each(rows).logits.double().log_softmax(-1) for each in (stock, dense))
    wanted = F.kl_div(ours, theirs, log_target=True, reduction="none").sum(-1).mean().item()
    text = tokens_of(windows)
    readings = [evaluation.read(each, text, "test", BLOCK, batch=3) for each in (model, dense)]
    found = fidelity.compare(*readings, chunk=50)
    assert found["kl"] == pytest.approx(wanted, rel=1e-3)
    same = (ours.argmax(-1) == theirs.argmax(-1)).double().mean().item()
    assert found["same_top"] == pytest.approx(same, abs=0.02)  # a tie may fall to either side


@pytest.mark.parametrize("kd_loss", ["", "forward_kl", "reverse_kl"])
def test_gradients_are_those_through_the_models_own_logits(architecture, kd_loss):
    name, model, stock, ids = architecture
    teacher = build(*ARCHITECTURES[name], seed=1) if kd_loss else None
    alpha, temperature = (0.6, 2.0) if kd_loss else (0.0, 1.0)
    options = {"alpha": alpha, "temperature": temperature, "kd_loss": kd_loss or "forward_kl"}
    student = copy_of(model)
    loss = losses.batch_loss(student, ids[:4], TrainConfig(1, 1e-3, **options), teacher)
    loss.backward()
    said = teacher(ids[:4, :-1]).logits.detach().flatten(0, 1) if teacher else None
    scores, labels = stock(ids[:4, :-1]).logits.flatten(0, 1), ids[:4, 1:].flatten()
    reverse = kd_loss == "reverse_kl"
    wanted = losses.token_losses(scores, labels, said, alpha, temperature, reverse).mean()
    stock.zero_grad()
    wanted.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-4)
    ours, theirs = dict(student.named_parameters()), dict(stock.named_parameters())
    scale = max(p.grad.abs().max() for p in theirs.values() if p.grad is not None)
    for key, parameter in theirs.items():
        if parameter.grad is not None:
            torch.testing.assert_close(
                ours[key].grad, parameter.grad, rtol=1e-3, atol=1e-5 * float(scale)
            )


@pytest.mark.parametrize("name", ["Gemma 2", "GPT-J", "Granite", "Phi", "OPT-350m"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_cached_teacher_teaches_the_same(name, precision, tmp_path):
    model, teacher = build(*ARCHITECTURES[name]), build(*ARCHITECTURES[name], seed=1)
    ids = torch.randint(1, VOCABULARY, (8, BLOCK + 1), generator=torch.Generator().manual_seed(1))
    config = TrainConfig(1, 1e-3, precision=precision, alpha=0.6, temperature=2.0)
    cached = cached_hidden_states(modeling.frozen_copy(teacher), ids, tmp_path, precision)
    live = losses.batch_loss(model, ids, config, teacher)
    assert float(losses.batch_loss(model, ids, config, teacher, cached)) == pytest.approx(
        float(live)
    )
    exact = losses.batch_loss(model, ids, TrainConfig(1, 1e-3, alpha=0.6, temperature=2.0), teacher)
    assert float(live) == pytest.approx(float(exact), rel=3e-2 if precision == "bf16" else 1e-6)


def test_a_training_that_has_ended_comes_back_whole(architecture, tmp_path):
    """Some families are stored under other names than their weights have."""
    _, model, _, ids = architecture
    schedule = PruningSchedule(final=0.5, prune_until=0.5)
    config = TrainConfig(3, 1e-2, batch=4, evaluations=1, pruning=schedule)
    first, second = copy_of(model), copy_of(model)
    found = [train(each, ids, ids.flatten()[:60], tmp_path, config) for each in (first, second)]
    assert found[0] == found[1] and found[0]["history"]
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    stock = transformers.AutoModelForCausalLM.from_pretrained(next(tmp_path.glob("*/")))
    assert all(map(torch.equal, first.parameters(), stock.parameters()))


def share_of_zeros(model):
    """Of all matrices in the blocks, by their shapes alone."""
    _, blocks = modeling.transformer_blocks(model)
    matrices = [
        parameter
        for name, parameter in blocks.named_parameters()
        if parameter.ndim > 1 and not name.endswith("bias") and "conv1d" not in name
    ]
    zeros = sum(int((matrix == 0).sum()) for matrix in matrices)
    return zeros / sum(matrix.numel() for matrix in matrices)


@pytest.mark.parametrize("criterion", sorted(criteria.CRITERIA))
def test_every_criterion_prunes_all_matrices_exactly(architecture, criterion):
    name, model, _, ids = architecture
    cut, batches = copy_of(model), [ids[:4], ids[4:]]
    needs, still = criteria.CRITERIA[criterion].needs, TrainConfig(1, 1e-3)

    def prune():
        stats = calibration.calibrate(
            cut, needs, batches, lambda rows: losses.batch_loss(cut, rows, still)
        )
        return masks.prune(cut, criterion, 0.5, "uniform", stats, batches)

    if name in MIXTURES and criterion in ("wanda", "sparsegpt"):
        with pytest.raises(ParameterError, match="which is no linear layer; wanda"):
            prune()
        return
    kept = prune()
    assert kept.keys() == modeling.prunable_weights(cut).keys()
    for key, mask in kept.items():
        assert all(int(part.sum()) == part.numel() // 2 for part in mask.view(-1, *mask.shape[-2:]))
        assert (modeling.prunable_weights(cut)[key][~mask] == 0).all()
    assert share_of_zeros(cut) == masks.measure_sparsity(cut)["prunable"] == 0.5


def test_sparsegpt_sees_what_the_layers_get(architecture, monkeypatch):
    """If nothing is cut, the inputs of all layers are those of a forward pass of the model."""
    name, model, _, ids = architecture
    if name in MIXTURES:
        pytest.skip("refused")
    seen, right, batches = [], sparsegpt.sparsify_weight, [ids[:4], ids[4:]]

    def spy(weight, moment, *rest, **options):
        seen.append(moment)
        return right(weight, moment, *rest, **options)

    monkeypatch.setattr(sparsegpt, "sparsify_weight", spy)
    sparsegpt.sparsegpt(copy_of(model), batches, lambda scored, _: torch.ones_like(scored).bool())
    wanted = calibration.input_moments(model, batches)
    assert len(seen) == len(wanted)
    for ours in seen:  # in the order in which a block calls its layers
        assert any(
            ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-3, atol=1e-5)
            for theirs in wanted.values()
        )


def test_each_expert_is_a_matrix():
    model = build(*ARCHITECTURES["gpt-oss"])
    axes = modeling.input_axes(model)
    stacks = {name: w for name, w in modeling.prunable_weights(model).items() if w.ndim == 3}
    assert {w.shape[axes[name]] for name, w in stacks.items()} == {32, 48}
    assert all(axes[name] == (1 if "gate_up" in name or "down" in name else 2) for name in stacks)
    for scope in ("per-row", "2:4"):
        cut = copy_of(model)
        for name, mask in masks.prune(cut, "magnitude", 0.5, scope).items():
            rows = mask.movedim(axes[name], -1)
            groups = rows if scope == "per-row" else rows.unflatten(-1, (-1, 4))
            assert (groups.sum(-1) == groups.shape[-1] // 2).all()


@pytest.mark.parametrize("encoding", encodings.ENCODINGS)
def test_experts_come_back_from_an_encoding(tmp_path, encoding):
    model = build(*ARCHITECTURES["Mixtral"])
    masks.prune(model, "magnitude", 0.7, "global")
    encodings.save_encoded(model, tmp_path / "file", encoding)
    other = build(*ARCHITECTURES["Mixtral"], seed=1)
    encodings.load_encoded(tmp_path / "file", other)
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
    with pytest.raises(ParameterError, match="sparse copies need layers"):
        encodings.sparse_copy(model)


POSITIONS = {"MPT": 64, "GPT-2": 64, "CodeGen": 64, "Llama": 64, "BLOOM": None}


@pytest.mark.parametrize("name", POSITIONS)
def test_a_block_may_be_as_long_as_the_positions(name):
    model, limit = build(*ARCHITECTURES[name]), POSITIONS[name]
    assert modeling.max_positions(model) == limit
    modeling.check_input(model, range(VOCABULARY), limit or 512)
    if limit:
        with pytest.raises(ParameterError, match="block_size: 65 is longer than the model's 64"):
            modeling.check_input(model, range(VOCABULARY), 65)


@pytest.mark.parametrize("name", ["MPT", "OPT"])
def test_nothing_is_written_or_read_beyond_the_positions(name):
    model, tokenizer = build(*ARCHITECTURES[name]), FewTokens()
    assert len(evaluation.generate_text(model, tokenizer, "x" * 60, 48).split()) <= 4
    ids = torch.randint(1, VOCABULARY, (200,), generator=torch.Generator().manual_seed(1))
    found = evaluation.sample(model, tokenizer, ids, ["x" * 70], begin=0, length=96)
    assert len(found["read"]) == 63


class FewTokens:
    """A tokenizer of one token a character."""

    eos_token_id = 0

    def __call__(self, text, **_):
        return {"input_ids": torch.tensor([[1 + ord(letter) % 90 for letter in text]])}

    def decode(self, ids):
        return " ".join(map(str, ids))


ENCODERS = {
    "Bert": SIZES, "Roberta": SIZES, "Electra": SIZES | {"embedding_size": 32},
    "XLNet": {"vocab_size": VOCABULARY, "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 48},
}  # fmt: skip


@pytest.mark.parametrize("scale", [0.2, 1, 5])
@pytest.mark.parametrize("family", ENCODERS)
def test_encoders_are_refused(tmp_path, family, scale):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**ENCODERS[family])
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale if parameter.ndim > 1 else 1)
    model.save_pretrained(tmp_path)
    with pytest.raises(ParameterError, match="is no causal model: it sees the token"):
        modeling.load_model(tmp_path)


@pytest.mark.parametrize("family", ["Bert", "Roberta"])
def test_encoders_made_decoders_are_causal(tmp_path, family):
    build(family, ENCODERS[family] | {"is_decoder": True}).save_pretrained(tmp_path)
    model = modeling.load_model(tmp_path)
    ids = torch.randint(1, VOCABULARY, (60,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = F.cross_entropy(model(ids[None]).logits[0, :-1], ids[1:])
    found = evaluation.token_nll(model, ids, [(0, len(ids), 1)]).mean()
    assert float(found) == pytest.approx(float(wanted), abs=1e-4)


VISION = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
          "intermediate_size": 16, "image_size": 28, "patch_size": 14}  # fmt: skip
REFUSED = {
    "Mamba": ({"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
              "does not call the layer of backbone.layers.0.mixer.dt_proj.weight"),
    "JetMoe": (ONE_KEY | {"num_experts_per_tok": 1, "num_local_experts": 4, "kv_channels": 16},
               "which is no linear layer and cannot be pruned"),
    "Bart": (SIZES | {"d_model": 32, "decoder_layers": 2, "decoder_ffn_dim": 48, "decoder_attention_heads": 2,
                      "encoder_layers": 2, "is_decoder": True, "is_encoder_decoder": False},
             "does not call the layer of model.decoder.layers.0.encoder_attn"),
    "Rwkv": ({"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32},
             "changes its own weights as it reads"),
    "Gemma3": ({"text_config": ONE_KEY, "vision_config": VISION, "mm_tokens_per_image": 4},
               r"reads more than text alone \(Gemma3Config\)"),
}  # fmt: skip


@pytest.mark.parametrize("family", REFUSED)
def test_what_cannot_be_right_is_one_line(tmp_path, family):
    options, message = REFUSED[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**options)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ParameterError, match=message) as caught:
        modeling.load_model(tmp_path)
    assert str(caught.value).startswith("model: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "compressed-tensors", "fp8"])
def test_quantized_models_are_refused(tmp_path, method):
    build(*ARCHITECTURES["GPT-2"]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4, "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ParameterError, match=f"it is quantized .{method}."):
        modeling.load_model(tmp_path)


def test_blocks_that_share_more_than_hidden_states_are_refused():
    """A block that is handed what another one computed cannot be run by itself."""
    model = build(*ARCHITECTURES["Llama"])
    base, (first, second) = model.model, model.model.layers
    plain = second.forward
    second.forward = lambda hidden, extra, **options: plain(hidden + extra, **options)

    def forward(input_ids, **_):
        hidden = base.embed_tokens(input_ids)
        places = base.rotary_emb(hidden, torch.arange(input_ids.shape[1])[None])
        said = first(hidden, position_embeddings=places)
        hidden = base.norm(second(said, said * 2, position_embeddings=places))
        return BaseModelOutput(last_hidden_state=hidden)

    base.forward = forward
    rows = torch.randint(1, VOCABULARY, (2, BLOCK + 1))
    with pytest.raises(ParameterError, match="sparsegpt.* share more than hidden states"):
        masks.prune(model, "sparsegpt", 0.5, "uniform", None, [rows])


def test_a_layer_in_two_blocks_is_refused():
    model = build(*ARCHITECTURES["Llama"])
    model.model.layers[1].mlp = model.model.layers[0].mlp
    with pytest.raises(ParameterError, match="uses one matrix several times"):
        modeling.prunable_weights(model)


def test_layers_in_another_list_are_refused():
    model = build(*ARCHITECTURES["Llama"])
    model.model.more = torch.nn.ModuleList([torch.nn.Linear(4, 4)] * 3)
    with pytest.raises(ParameterError, match="has layers outside of model.layers: model.more.0"):
        modeling.prunable_weights(model)


def test_logits_of_more_than_hidden_states_are_refused():
    """A head that also looks at the tokens cannot be given hidden states alone."""
    model, asked = build(*ARCHITECTURES["Llama"]), []
    model.register_forward_pre_hook(
        lambda _, __, options: asked.append(options["input_ids"]), with_kwargs=True
    )
    model.lm_head.register_forward_hook(lambda _, __, scores: scores + asked[-1][..., None])
    with pytest.raises(ParameterError, match="does not make its logits of last hidden states"):
        lm_head(model)


def test_a_projection_after_the_blocks_is_part_of_the_hidden_states():
    model = build(*ARCHITECTURES["OPT-350m"])
    ids = torch.randint(1, VOCABULARY, (2, BLOCK))
    assert last_hidden_states(model, ids).shape == (2, BLOCK, 16)
