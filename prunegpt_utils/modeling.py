"""Causal language models: load, save, copy, and name the weights that may be pruned."""

import contextlib
import copy
import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import logging

from prunegpt_utils.distributed import device, processes
from prunegpt_utils.errors import ParameterError, one_line
from prunegpt_utils.files import atomic_path
from prunegpt_utils.hub import locate

logging.disable_progress_bar()  # loading and saving take seconds; training has a bar of its own


def load_model(name: str | Path, parameter: str = "model") -> PreTrainedModel:
    """A causal language model in float32, in eval mode, on `device()`; see `hub.locate`.

    Raises:
        ParameterError: nothing by that name, no safetensors, weights that are damaged, incomplete,
            more than the configuration describes, not finite or larger than the memory.
    """
    folder = locate(name, parameter)
    _check_weights(folder, name, parameter)
    # On a CPU eager attention trains faster in bf16 than the fused kernel of `inference_mode`.
    attention = {} if torch.cuda.is_available() else {"attn_implementation": "eager"}
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
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
    return model.to(device()).eval()


def load_stock(folder: Path, **options: object) -> PreTrainedModel:
    """The model of a folder as transformers alone loads it, with `options` of its own.

    Raises:
        ValueError: weights are missing, unexpected, or of another shape than the configuration's.
    """
    model, found = AutoModelForCausalLM.from_pretrained(
        folder, use_safetensors=True, output_loading_info=True, trust_remote_code=False, **options
    )
    problems = {"missing": "lacks", "unexpected": "has no place for", "mismatched": "does not fit"}
    for kind, problem in problems.items():
        if found[f"{kind}_keys"]:
            raise ValueError(f"it {problem} {', '.join(sorted(map(str, found[f'{kind}_keys'])))}")
    return model


def _load_fewer_heads(folder, config, **options):
    """GPT-2 with fewer heads than its width implies, which a stock configuration cannot say."""
    model = AutoModelForCausalLM.from_config(config, **options)
    keep_heads(model, [range(config.heads_kept)] * config.num_hidden_layers)
    for file in sorted(folder.glob("*.safetensors")):
        model.load_state_dict(load_file(file), strict=False)
    model.tie_weights()
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


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside the model `name` (see `load_model`)."""
    folder = locate(name, "model")
    try:
        return AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ParameterError("model", str(name), _reason("has no tokenizer", error)) from error


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


def transformer_blocks(model: PreTrainedModel) -> tuple[str, torch.nn.ModuleList]:
    """Name and ModuleList of the transformer blocks.

    Raises:
        ParameterError: the architecture has no such list.
    """
    wanted = model.config.num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == wanted:
            return name, module
    kind = type(model).__name__
    raise ParameterError("model", kind, "has no list of transformer blocks; it cannot be pruned")


def prunable_weights(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """{state-dict name: weight matrix} of the transformer blocks, the only ones this study prunes.

    GPT-2 keeps them in `Conv1D` layers of shape (in, out), which filters for `nn.Linear` of shape
    (out, in) miss. Embeddings, the head tied to them, LayerNorms and biases stay dense, as in
    every published study of pruned language models.
    """
    return {name: module.weight for name, module in prunable_layers(model).items()}


def prunable_layers(model: PreTrainedModel) -> dict[str, torch.nn.Module]:
    """The modules that hold the `prunable_weights`, under the names of those.

    Raises:
        ParameterError: there are none.
    """
    prefix, modules = transformer_blocks(model)
    found = {
        f"{prefix}.{name}.weight": module
        for name, module in modules.named_modules()
        if isinstance(module, (Conv1D, torch.nn.Linear))
    }
    embedding = model.get_input_embeddings().weight
    if not found or any(module.weight is embedding for module in found.values()):
        raise ParameterError("model", type(model).__name__, "has no block matrices to prune")
    return found


def input_axes(model: PreTrainedModel) -> dict[str, int]:
    """{name: dimension of `prunable_weights` along which inputs are summed}."""
    return {name: 0 if isinstance(m, Conv1D) else 1 for name, m in prunable_layers(model).items()}


def count_parameters(model: PreTrainedModel) -> dict[str, int]:
    """Parameters of the model, and of its prunable part; tied weights count once."""
    total = sum(parameter.numel() for parameter in model.parameters())
    prunable = sum(weight.numel() for weight in prunable_weights(model).values())
    return {"parameters": total, "prunable": prunable}


def last_hidden_states(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Last hidden states, shape (batch, tokens, width): what the head turns into logits."""
    return model.base_model(input_ids=ids).last_hidden_state


@contextlib.contextmanager
def eval_mode(model: PreTrainedModel) -> Iterator[None]:
    """No dropout while the block runs, whatever the mode before and after."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextlib.contextmanager
def inference_mode(model: PreTrainedModel) -> Iterator[None]:
    """The state in which a model only reads: no dropout, no gradients, attention as one kernel."""
    attention = model.config._attn_implementation
    if model._supports_sdpa:
        model.set_attn_implementation("sdpa")
    try:
        with eval_mode(model), torch.no_grad():
            yield
    finally:
        model.set_attn_implementation(attention)


def autocast(model: PreTrainedModel, precision: str) -> torch.autocast:
    """The context in which matrix products run in `precision`."""
    return torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16")


def all_hidden_states(model: PreTrainedModel, ids: torch.Tensor) -> list[torch.Tensor]:
    """Hidden states after each block, the last ones normalised: each (batch, tokens, width)."""
    found = model.base_model(input_ids=ids, output_hidden_states=True)
    return [*found.hidden_states[1:-1], found.last_hidden_state]


def lm_head_weight(model: PreTrainedModel) -> torch.Tensor:
    """Weight of the output layer, shape (vocabulary, width)."""
    return model.get_output_embeddings().weight


def check_same_vocabulary(student: PreTrainedModel, teacher: PreTrainedModel, name: str) -> None:
    """Raise `ParameterError` unless both models score the same tokens."""
    ours, theirs = (lm_head_weight(each).shape[0] for each in (student, teacher))
    if ours != theirs:
        allowed = f"has a vocabulary of {theirs}; the student has {ours}, and both must agree"
        raise ParameterError("teacher", name, allowed)


def check_same_hidden_states(student: PreTrainedModel, teacher: PreTrainedModel, name: str) -> None:
    """Raise `ParameterError` unless each block of one model has a counterpart in the other."""
    configs = student.config, teacher.config
    ours, theirs = (f"{c.num_hidden_layers} blocks of width {c.hidden_size}" for c in configs)
    if ours != theirs:
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
    limit = getattr(model.config, "max_position_embeddings", block_size)
    if block_size > limit:
        allowed = f"is longer than the model's {limit} positions"
        raise ParameterError("block_size", block_size, allowed)


def fingerprint(model: PreTrainedModel) -> str:
    """sha256 over names and values of all weights; equal weights, equal fingerprint."""
    return digest(*itertools.chain(*sorted(model.state_dict().items())))


def digest(*parts: torch.Tensor | str) -> str:
    """sha256 over the bytes of tensors and texts, one after the other."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            found.update(part.encode())
        else:
            found.update(part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()
