"""Causal language models: load, save, copy, and name the weights that may be pruned."""

import contextlib
import copy
import hashlib
import math
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import dynamic_module_utils as code_of_models
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from prunegpt_utils.hub import available, fetch
from prunegpt_utils.parameters import ParameterError

code_of_models.TIME_OUT_REMOTE_CODE = 0  # never even ask whether to run what comes with a model
logging.disable_progress_bar()  # loading and saving take seconds; training has a bar of its own
BASE = Path(__file__).parent / "pydocs-base"  # the embedded pretrained model
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def processes() -> PartialState:
    """The processes that run this code together: one, unless Accelerate launched more."""
    return PartialState(cpu=not torch.cuda.is_available())


def device() -> torch.device:
    """The accelerator of this process if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", processes().local_process_index)
    return torch.device("cpu")


def load_model(name: str | Path, parameter: str = "model") -> PreTrainedModel:
    """A causal language model in float32, in eval mode, on `device()`.

    Args:
        name: `pydocs-base`, a folder written by `save_pretrained`, or a hub id.
        parameter: name of the notebook parameter that asks, for the error.

    Returns:
        A stock Hugging Face model.

    Raises:
        ParameterError: nothing by that name, no safetensors, weights that are damaged, incomplete,
            more than the configuration describes, not finite or larger than the memory.
    """
    folder = locate(name, parameter)
    _check_weights(folder, name, parameter)
    # On a CPU eager attention trains faster in bf16 than the fused kernel, which `reading` takes.
    attention = {} if torch.cuda.is_available() else {"attn_implementation": "eager"}
    try:
        config = AutoConfig.from_pretrained(folder)
        if getattr(config, "activation_function", None) == "gelu_new":
            config.activation_function = "gelu_pytorch_tanh"  # the same, in one operation
        load = _load_narrowed if hasattr(config, "heads_kept") else _load_stock
        model = load(folder, config, dtype=torch.float32, **attention)
    except (OSError, ValueError, KeyError, SafetensorError, RuntimeError) as error:
        raise ParameterError(parameter, str(name), _reason("does not load", error)) from error
    for key, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise ParameterError(parameter, str(name), f"has weights that are not finite: {key}")
    model.config.use_cache = False  # training and scoring read whole windows
    return model.to(device()).eval()


def _load_stock(folder, config, **options):
    model, told = AutoModelForCausalLM.from_pretrained(
        folder, config=config, use_safetensors=True, output_loading_info=True, **options
    )
    for kind, problem in (("missing", "lacks"), ("unexpected", "has no place for")):
        if told[f"{kind}_keys"]:
            raise ValueError(f"it {problem} {', '.join(sorted(told[f'{kind}_keys']))}")
    return model


def _load_narrowed(folder, config, **options):
    """GPT-2 with fewer heads than its width implies, which a stock configuration cannot say."""
    model = AutoModelForCausalLM.from_config(config, **options)
    keep_heads(model, [range(config.heads_kept)] * config.num_hidden_layers)
    for file in sorted(folder.glob("*.safetensors")):
        model.load_state_dict(load_file(file), strict=False)
    model.tie_weights()
    return model


@torch.no_grad()
def keep_heads(model: PreTrainedModel, chosen: Sequence[Iterable[int]]) -> None:
    """Remove all other attention heads of a GPT-2, in place.

    Args:
        model: GPT-2.  chosen: for each block the numbers of the heads to keep, as many in each.
    """
    for block, heads in zip(blocks(model)[1], chosen, strict=True):
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
        return AutoTokenizer.from_pretrained(folder, use_fast=True)
    except (OSError, ValueError, KeyError) as error:
        raise ParameterError("model", str(name), _reason("has no tokenizer", error)) from error


def _reason(problem, error):
    """A library's error on one line."""
    text = " ".join(str(error).split())[:160]
    own_code = "execute" in text and "code" in text
    return "asks to run code that comes with it; none is" if own_code else f"{problem}: {text}"


def locate(name: str | Path, parameter: str = "model") -> Path:
    """Folder of a model: in the package, on disk, in the hub's cache, or downloaded from it."""
    if name == BASE.name:
        return BASE
    if Path(name).is_dir():
        if not Path(name, "config.json").exists():
            raise ParameterError(parameter, str(name), "must hold a config.json and safetensors")
        return Path(name)
    if not _HUB_ID.fullmatch(str(name)):
        allowed = f"must be {BASE.name}, a folder, or a hub id; there is no such folder"
        raise ParameterError(parameter, str(name), allowed)
    return fetch(
        str(name), "model", parameter, "*.safetensors", ["*.json", "*.txt", "*.safetensors"]
    )


def at_hand(name: str) -> bool:
    """Whether `load_model(name)` would find weights: here, in the hub's cache or on the hub."""
    return name == BASE.name or Path(name).is_dir() or available(name, "model", "*.safetensors")


def describe(name: str, base: str | Path, model: PreTrainedModel) -> dict:
    """What a record says of a model: its name, the hub's commit or None, its parameters.

    Args:
        name: what the user asked for.  base: what that stands for, see `load_model`.
        model: whose parameters to count.
    """
    folder = locate(base)
    revision = folder.name if folder.parent.name == "snapshots" else None
    return {"name": str(name), "revision": revision, **count(model)}


def _check_weights(folder, name, parameter):
    """Refuse pickled weights, and weights that memory cannot hold, before reading them."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = next(iter([*folder.glob("*.bin"), *folder.glob("*.pt")]), None)
        allowed = "has no safetensors file"
        if pickled:
            allowed += (
                f", only {pickled.name}: a pickle runs code when it is read; convert it first"
            )
        raise ParameterError(parameter, str(name), allowed)
    try:
        needed = sum(_float32_bytes(file) for file in files)
    except (SafetensorError, OSError) as error:
        raise ParameterError(parameter, str(name), f"does not load: {error}") from error
    free = _free_memory()
    if needed > free:
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

    Every file is written beside its place and then into it. Of several processes one writes, and
    the others wait for it.
    """
    together = processes()
    if together.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent) as beside:
            model.save_pretrained(beside)
            tokenizer.save_pretrained(beside)
            for file in list(Path(beside).iterdir()):
                file.replace(folder / file.name)
    together.wait_for_everyone()


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that takes no gradient: the teacher, or a reference to compare with."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def blocks(model: PreTrainedModel) -> tuple[str, torch.nn.ModuleList]:
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


def prunable(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """The weight matrices of the transformer blocks, the only ones this study prunes.

    GPT-2 keeps them in `Conv1D` layers of shape (in, out), which filters for `nn.Linear` of shape
    (out, in) miss. Embeddings, the head tied to them, LayerNorms and biases stay dense, as in
    every published study of pruned language models.

    Returns:
        {state-dict name: parameter}, in the order of the blocks.
    """
    return {name: module.weight for name, module in layers(model).items()}


def layers(model: PreTrainedModel) -> dict[str, torch.nn.Module]:
    """The modules that hold the `prunable` weights, under the names of those.

    Raises:
        ParameterError: there are none.
    """
    prefix, modules = blocks(model)
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
    """{name: dimension of `prunable` weights along which inputs are summed}."""
    return {name: 0 if isinstance(m, Conv1D) else 1 for name, m in layers(model).items()}


def count(model: PreTrainedModel) -> dict[str, int]:
    """Parameters of the model, and of its prunable part; tied weights count once."""
    total = sum(parameter.numel() for parameter in model.parameters())
    return {
        "parameters": total,
        "prunable": sum(weight.numel() for weight in prunable(model).values()),
    }


def hidden_states(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Last hidden states, shape (batch, tokens, width): what the head turns into logits."""
    return model.base_model(input_ids=ids).last_hidden_state


@contextlib.contextmanager
def reading(model: PreTrainedModel) -> Iterator[None]:
    """The state in which a model only reads: no dropout, no gradients, attention as one kernel."""
    training, attention = model.training, model.config._attn_implementation
    model.eval()
    if model._supports_sdpa:
        model.set_attn_implementation("sdpa")
    try:
        with torch.no_grad():
            yield
    finally:
        model.set_attn_implementation(attention)
        model.train(training)


def autocast(model: PreTrainedModel, precision: str) -> torch.autocast:
    """The context in which matrix products run in `precision`."""
    return torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16")


def states(model: PreTrainedModel, ids: torch.Tensor) -> list[torch.Tensor]:
    """Hidden states after each block, and last what the head turns into logits.

    Returns:
        list of tensors of shape (batch, tokens, width).
    """
    found = model.base_model(input_ids=ids, output_hidden_states=True)
    return [*found.hidden_states[1:-1], found.last_hidden_state]


def head(model: PreTrainedModel) -> torch.Tensor:
    """Weight of the output layer, shape (vocabulary, width)."""
    return model.get_output_embeddings().weight


def check_same_vocabulary(student: PreTrainedModel, teacher: PreTrainedModel, name: str) -> None:
    """Raise `ParameterError` unless both models score the same tokens."""
    ours, theirs = head(student).shape[0], head(teacher).shape[0]
    if ours != theirs:
        allowed = f"has a vocabulary of {theirs}; the student has {ours}, and both must agree"
        raise ParameterError("teacher", name, allowed)


def check_same_states(student: PreTrainedModel, teacher: PreTrainedModel, name: str) -> None:
    """Raise `ParameterError` unless each block of one model has a counterpart in the other."""
    ours, theirs = (
        f"{m.config.num_hidden_layers} blocks of width {m.config.hidden_size}"
        for m in (student, teacher)
    )
    if ours != theirs:
        allowed = f"has {theirs}; to teach hidden states it must have the student's {ours}"
        raise ParameterError("teacher", name, allowed)


def check_input(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, block: int) -> None:
    """Raise `ParameterError` unless the model can read windows of `block` of these tokens."""
    known, made = model.get_input_embeddings().weight.shape[0], len(tokenizer)
    if made > known:
        allowed = f"knows {known} tokens; the tokenizer beside it makes {made} kinds"
        raise ParameterError("model", model.config.name_or_path, allowed)
    limit = getattr(model.config, "max_position_embeddings", block)
    if block > limit:
        raise ParameterError("block", block, f"is longer than the model's {limit} positions")


def fingerprint(model: PreTrainedModel) -> str:
    """sha256 over names and values of all weights; equal weights, equal fingerprint."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def digest(*tensors: torch.Tensor) -> str:
    """sha256 over the values of tensors on the CPU."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.contiguous().numpy())
    return found.hexdigest()


@torch.no_grad()
def write_on(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, tokens: int = 48
) -> str:
    """Continue `prompt` greedily, without repeating any run of three tokens.

    Args:
        model, tokenizer: as loaded.  prompt: str.  tokens: how many to add.

    Returns:
        str: the continuation alone.
    """
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"].to(model.device)
    mask = torch.ones_like(ids)
    pad = tokenizer.eos_token_id
    room = getattr(model.config, "max_position_embeddings", ids.shape[1] + tokens) - ids.shape[1]
    written = model.generate(
        ids, attention_mask=mask, max_new_tokens=min(tokens, room), do_sample=False,
        no_repeat_ngram_size=3, pad_token_id=pad, use_cache=True,
    )  # fmt: skip
    return tokenizer.decode(written[0, ids.shape[1] :])
