"""Causal language models: load, save, copy, and name the weights that may be pruned."""

import copy
import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import logging

from prunegpt_utils.blocks import check_prunable, prunable_weights, transformer_blocks
from prunegpt_utils.blocks import input_axes as input_axes  # where readers look for them
from prunegpt_utils.blocks import prunable_layers as prunable_layers
from prunegpt_utils.distributed import device, processes
from prunegpt_utils.errors import ParameterError, one_line
from prunegpt_utils.files import atomic_path
from prunegpt_utils.forward import (
    all_hidden_states,
    caps_attention,
    check_causal,
    lm_head,
    probe_ids,
)
from prunegpt_utils.hub import locate

logging.disable_progress_bar()  # loading and saving take seconds; training has a bar of its own


def load_model(name: str | Path, parameter: str = "model") -> PreTrainedModel:
    """A causal language model in float32, in eval mode, on `device()`; see `hub.locate`.

    Raises:
        ParameterError: nothing by that name, no safetensors, weights that are damaged, incomplete,
            more than the configuration describes, quantized, not finite or larger than the memory;
            or a model that is no causal language model of text alone.
    """
    folder = locate(name, parameter)
    _check_weights(folder, name, parameter)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        _check_config(config)
        # On a CPU eager attention trains faster in bf16 than the fused kernel of `inference_mode`.
        eager = caps_attention(config) or not torch.cuda.is_available()
        attention = {"attn_implementation": "eager"} if eager else {}
        if getattr(config, "activation_function", None) == "gelu_new":
            config.activation_function = "gelu_pytorch_tanh"  # the same, in one operation
        load = _load_fewer_heads if hasattr(config, "heads_kept") else load_stock
        model = load(folder, config=config, dtype=torch.float32, **attention)
    except (OSError, ValueError, KeyError, SafetensorError, RuntimeError) as error:
        raise ParameterError(parameter, str(name), _reason("does not load", error)) from error
    for key, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise ParameterError(parameter, str(name), f"has weights that are not finite: {key}")
    model.config.use_cache = False  # training and scoring read whole windows
    # A head of its own stays one, whatever the configuration says: who ties it later, as lm-eval
    # does, would throw it away.
    own = model.get_output_embeddings(), model.get_input_embeddings()
    if None not in own:
        model.config.tie_word_embeddings = own[0].weight is own[1].weight
    model = model.to(device()).eval()
    check_causal(model, parameter, str(name))
    lm_head(model, parameter)  # refuses what has none
    if parameter != "teacher":
        check_prunable(model)
    return model


def _check_config(config):
    """ValueError for what AutoModelForCausalLM would load, and this study cannot use."""
    if method := getattr(config, "quantization_config", None):
        kind = method.get("quant_method") if isinstance(method, dict) else method.quant_method
        raise ValueError(f"it is quantized ({kind}), and pruning needs weights in full precision")
    if config.is_encoder_decoder:
        raise ValueError("it has an encoder, and only decoders are supported")
    if config.get_text_config() is not config:
        raise ValueError(f"it reads more than text alone ({type(config).__name__})")


def load_stock(folder: Path, **options: object) -> PreTrainedModel:
    """The model of a folder as transformers alone loads it, with `options` of its own.

    Raises:
        ValueError: weights are missing, unexpected, or of another shape than the configuration's.
    """
    model, found = AutoModelForCausalLM.from_pretrained(
        folder, use_safetensors=True, output_loading_info=True, trust_remote_code=False, **options
    )
    _check_keys(*(found[f"{kind}_keys"] for kind in ("missing", "unexpected", "mismatched")))
    return model


def _check_keys(missing, unexpected, mismatched=()):
    problems = {"lacks": missing, "has no place for": unexpected, "does not fit": mismatched}
    for problem, keys in problems.items():
        if keys:
            raise ValueError(f"it {problem} {', '.join(sorted(map(str, keys)))}")


def _load_fewer_heads(folder, config, **options):
    """GPT-2 with fewer heads than its width implies, which a stock configuration cannot say."""
    model = AutoModelForCausalLM.from_config(config, **options)
    keep_heads(model, [range(config.heads_kept)] * config.num_hidden_layers)
    files = sorted(folder.glob("*.safetensors"))
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    missing = {name for name, _ in model.named_parameters()} - tensors.keys()
    _check_keys(missing, model.load_state_dict(tensors, strict=False).unexpected_keys)
    return model


@torch.no_grad()
def keep_heads(model: PreTrainedModel, chosen: Sequence[Iterable[int]]) -> None:
    """Keep only the `chosen` heads of each block of a GPT-2, as many in each, in place."""
    for block, heads in zip(transformer_blocks(model)[1], chosen, strict=True):
        attn, heads = block.attn, list(heads)
        into = attn.c_attn.weight.unflatten(1, (3, attn.num_heads, -1))[:, :, heads]
        bias = attn.c_attn.bias.unflatten(0, (3, attn.num_heads, -1))[:, heads]
        out = attn.c_proj.weight.unflatten(0, (attn.num_heads, -1))[heads]
        attn.c_attn.weight = torch.nn.Parameter(into.flatten(1).clone())
        attn.c_attn.bias = torch.nn.Parameter(bias.flatten().clone())
        attn.c_proj.weight = torch.nn.Parameter(out.flatten(0, 1).clone())
        attn.c_attn.nf, attn.c_proj.nx = into.flatten(1).shape[1], out.flatten(0, 1).shape[0]
        attn.num_heads, attn.split_size = len(heads), attn.c_proj.nx


def load_tokenizer(name: str | Path, parameter: str = "model") -> PreTrainedTokenizerBase:
    """The tokenizer beside the model `name` (see `load_model`).

    Raises:
        ParameterError: none that transformers can read, or one without a vocabulary.
    """
    folder = locate(name, parameter)
    try:
        found = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False)
        # Without its files, transformers makes a tokenizer of nothing but special tokens.
        if not set(found.get_vocab()).difference(found.get_added_vocab(), found.all_special_tokens):
            raise ValueError("no file with a vocabulary is beside the model")
    except Exception as error:  # a TypeError, ImportError or bare Exception, as the case may be
        raise ParameterError(parameter, str(name), _reason("has no tokenizer", error)) from error
    return found


def _reason(problem, error):
    text = one_line(error)
    own_code = "execute" in text and "code" in text
    return "asks to run code that comes with it; none is" if own_code else f"{problem}: {text}"


def describe(name: str, base: str | Path, model: PreTrainedModel) -> dict:
    """What a record says of a model: its name, the hub's commit or None, its parameters.

    Of weights that were converted, such as those of `smollm2-135m`, also what they were. `name` is
    what the user asked for, `base` what that stands for, see `load_model`.
    """
    folder = locate(base)
    revision = folder.name if folder.parent.name == "snapshots" else None
    origin = getattr(model.config, "origin", None)
    made_from = {"origin": origin} if origin else {}
    return {"name": str(name), "revision": revision, **made_from, **count_parameters(model)}


def _check_weights(folder, name, parameter):
    """Refuse pickled weights, and weights that memory cannot hold, before reading them."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = [*folder.glob("*.bin"), *folder.glob("*.pt")]
        why = "a pickle runs code when it is read; convert it first"
        rest = f", only {pickled[0].name}: {why}" if pickled else ""
        raise ParameterError(parameter, str(name), f"has no safetensors file{rest}")
    try:
        needed = sum(map(_float32_bytes, files))
    except (SafetensorError, OSError) as error:
        raise ParameterError(parameter, str(name), f"does not load: {error}") from error
    if needed > (free := _free_memory()):
        allowed = f"needs {needed / 2**30:.1f} GiB in float32; {free / 2**30:.1f} GiB is free"
        raise ParameterError(parameter, str(name), allowed)


def _float32_bytes(file):
    with safe_open(file, "pt") as tensors:
        shapes = [tensors.get_slice(key).get_shape() for key in tensors.keys()]  # noqa: SIM118
    return 4 * sum(math.prod(shape) for shape in shapes)


def _free_memory():
    """Bytes that a model may take: of the accelerator, else of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    import psutil

    return psutil.virtual_memory().available


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a stock checkpoint that `AutoModelForCausalLM.from_pretrained(folder)` loads.

    The folder is put in place whole. Of several processes one writes, and the others wait for it.
    """
    if processes().is_main_process:
        with atomic_path(folder) as part:
            model.save_pretrained(part)
            tokenizer.save_pretrained(part)
    processes().wait_for_everyone()


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that takes no gradient: the teacher, or a reference to compare with."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def count_parameters(model: PreTrainedModel) -> dict[str, int]:
    """Parameters of the model, and of its prunable part; tied weights count once."""
    total = sum(parameter.numel() for parameter in model.parameters())
    prunable = sum(weight.numel() for weight in prunable_weights(model).values())
    return {"parameters": total, "prunable": prunable}


def check_same_vocabulary(
    student: PreTrainedModel, teacher: PreTrainedModel, name: str, parameter: str = "teacher"
) -> None:
    """Raise `ParameterError` unless both models score the same tokens, under the same numbers.

    As many tokens are not enough: the tokenizers beside the two models are compared too, if they
    come from a folder or the hub.
    """
    with torch.no_grad():
        sizes = [each(probe_ids(each)).logits.shape[-1] for each in (student, teacher)]
    ours, theirs = sizes
    if ours != theirs:
        allowed = f"has a vocabulary of {theirs}; the student has {ours}, and both must agree"
        raise ParameterError(parameter, name, allowed)
    ours, theirs = (each.config.name_or_path for each in (student, teacher))
    if ours and theirs:
        check_same_tokens(ours, theirs, name, parameter)


def check_same_tokens(
    student: str | Path, teacher: str | Path, name: str, parameter: str = "teacher"
) -> None:
    """Raise `ParameterError` unless the tokenizers beside two models have the same tokens."""
    ours, theirs = (load_tokenizer(each, parameter).get_vocab() for each in (student, teacher))
    if other := sorted(token for token, _ in ours.items() ^ theirs.items()):
        allowed = f"has other tokens than the student, such as {other[0]!r}"
        raise ParameterError(parameter, name, allowed)


def check_same_hidden_states(student: PreTrainedModel, teacher: PreTrainedModel, name: str) -> None:
    """Raise `ParameterError` unless each block of one model has a counterpart in the other."""
    with torch.no_grad():
        found = [all_hidden_states(each, probe_ids(each)) for each in (student, teacher)]
    widths = [[hidden.shape[-1] for hidden in each] for each in found]
    if widths[0] != widths[1]:
        ours, theirs = (f"{len(each)} blocks of width {each[0]}" for each in widths)
        allowed = f"has {theirs}; to teach hidden states it must have the student's {ours}"
        raise ParameterError("teacher", name, allowed)


def check_input(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, block_size: int
) -> None:
    """Raise `ParameterError` unless the model can read windows of `block_size` of these tokens."""
    known, made = model.get_input_embeddings().weight.shape[0], len(tokenizer)
    if made > known:
        allowed = f"knows {known} tokens; the tokenizer beside it makes {made} kinds"
        raise ParameterError("model", model.config.name_or_path, allowed)
    limit = max_positions(model)
    if limit is not None and block_size > limit:
        allowed = f"is longer than the model's {limit} positions"
        raise ParameterError("block_size", block_size, allowed)


def max_positions(model: PreTrainedModel) -> int | None:
    """Tokens that a model can read at once; None if its configuration sets no limit."""
    names = "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length"
    return next((size for name in names if (size := getattr(model.config, name, None))), None)


def fingerprint(model: PreTrainedModel) -> str:
    """sha256 over names and values of all weights; equal weights, equal fingerprint."""
    return digest(*itertools.chain(*sorted(model.state_dict().items())))


# of a configuration, what changes no number
_NO_NUMBER = (
    "transformers_version", "dtype", "architectures", "use_cache", "id2label", "label2id",
    "problem_type", "task_specific_params", "return_dict", "output_hidden_states",
    "output_attentions", "chunk_size_feed_forward", "is_encoder_decoder",
)  # fmt: skip


def model_identity(model: PreTrainedModel) -> str:
    """sha256 over all that a model computes with: its weights, and its configuration.

    Dropout, or the base of rotary positions, stand in the latter alone.
    """
    settings = model.config.to_dict().items()
    kept = {k: v for k, v in settings if k not in _NO_NUMBER and not k.startswith("_")}
    return digest(fingerprint(model), json.dumps(kept, sort_keys=True, default=str))


def digest(*parts: torch.Tensor | str) -> str:
    """sha256 over the bytes of tensors and texts, one after the other."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            found.update(part.encode())
        else:
            found.update(part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()
