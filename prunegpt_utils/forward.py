"""Run a model: its modes and precision, its hidden states, and the logits it makes of them."""

import contextlib
import copy
import functools
import weakref
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from prunegpt_utils.errors import ParameterError, one_line

EAGER_UP_TO = 256  # tokens a window
_OWN_HEADS = weakref.WeakKeyDictionary()  # model -> what `_own_head` found


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
def fused_attention(model: PreTrainedModel) -> Iterator[None]:
    """Attention as one kernel while the block runs, if the model has it."""
    attention = model.config._attn_implementation
    if model._supports_sdpa and not caps_attention(model.config):
        model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(attention)


@contextlib.contextmanager
def inference_mode(model: PreTrainedModel) -> Iterator[None]:
    """The state in which a model only reads: no dropout, no gradients, attention as one kernel."""
    with fused_attention(model), eval_mode(model), torch.no_grad():
        yield


def training_attention(
    model: PreTrainedModel, block_size: int
) -> contextlib.AbstractContextManager[None]:
    """The attention that trains faster on windows of `block_size` tokens.

    On a CPU that is eager attention up to `EAGER_UP_TO` tokens, and at any length with dropout, of
    which there is no fused kernel there; `benchmarks/attention_cost.py` measures it. A model is
    loaded with eager attention on a CPU, and with the fused one elsewhere.
    """
    config = model.config
    dropout = getattr(config, "attn_pdrop", 0) or getattr(config, "attention_dropout", 0)
    long = block_size > EAGER_UP_TO and not dropout
    return fused_attention(model) if long else contextlib.nullcontext()


@contextlib.contextmanager
def sparse_lookup(model: PreTrainedModel) -> Iterator[None]:
    """One backward pass in which the lookup of a tied embedding has the gradient of its rows alone.

    Autograd would make it a matrix of the embedding's size, zero but for the tokens of the batch,
    and add that to the head's gradient. Here the lookup reads another parameter in the same memory,
    whose gradient is sparse; at the end the rows that it has are added, to the same bits. On a CPU,
    where passes over memory are dear; elsewhere, and of other models, nothing is changed.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    weight, tied = embedding.weight, getattr(head, "weight", None) is embedding.weight
    compiled = model.base_model._compiled_call_impl  # another parameter would be compiled anew
    if weight.device.type != "cpu" or not tied or compiled:
        yield
        return
    rows = torch.nn.Parameter(weight.detach())
    embedding.weight, embedding.sparse = rows, True
    try:
        yield
    finally:
        embedding.weight, embedding.sparse = weight, False
    if rows.grad is not None and not rows.grad.is_sparse:  # of a lookup of the model's own
        weight.grad.add_(rows.grad)
    elif rows.grad is not None:
        tokens, place = rows.grad._indices()[0].unique(return_inverse=True)
        # what repeats is summed first, in the order that the dense gradient has
        sums = torch.ops.aten.embedding_dense_backward(
            rows.grad._values(), place, len(tokens), -1, False
        )
        weight.grad.index_add_(0, tokens, sums)


def caps_attention(config: PretrainedConfig) -> bool:
    """Whether the logits of the attention have a soft cap, which no fused kernel of torch has."""
    return getattr(config, "attn_logit_softcapping", None) is not None


def autocast(model: PreTrainedModel, precision: str) -> torch.autocast:
    """The context in which matrix products run in `precision`.

    Rounded weights are not kept in it: it would go on with those from before a cut.
    """
    kind, on = model.device.type, precision == "bf16"
    return torch.autocast(kind, torch.bfloat16, enabled=on, cache_enabled=False)


def rounded_copy(model: PreTrainedModel, precision: str) -> PreTrainedModel:
    """A frozen model that reads as `model` does in bf16, without a conversion at every product.

    The matrices of its linear layers are rounded once; all else is shared with `model`. It is
    `model` itself in another `precision`, and if the two do not read alike, as where a model
    computes in the precision of a matrix what it would not have rounded.
    """
    if precision != "bf16":
        return model
    shared = [*model.parameters(), *model.buffers()]
    rounded = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    for module in rounded.modules():
        if isinstance(module, (torch.nn.Linear, Conv1D)):  # a tied embedding stays as it is
            module.weight = torch.nn.Parameter(module.weight.bfloat16(), requires_grad=False)
    lm_head(model, "teacher")
    _OWN_HEADS[rounded] = _OWN_HEADS[model]
    ids = probe_ids(model)
    with autocast(model, "bf16"), eval_mode(model), torch.no_grad():
        alike = torch.equal(last_hidden_states(model, ids), last_hidden_states(rounded, ids))
    return rounded if alike else model


def last_hidden_states(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Last hidden states, shape (batch, tokens, width): what the head turns into logits."""
    return model.base_model(input_ids=ids, use_cache=False).last_hidden_state


def all_hidden_states(model: PreTrainedModel, ids: torch.Tensor) -> list[torch.Tensor]:
    """Hidden states after each block, the last ones normalised: each (batch, tokens, width)."""
    found = model.base_model(input_ids=ids, output_hidden_states=True, use_cache=False)
    return [*found.hidden_states[1:-1], found.last_hidden_state]


def lm_head(model: PreTrainedModel, parameter: str = "model") -> torch.Tensor | Callable:
    """What turns last hidden states h into logits, for `logits`.

    The matrix W of shape (vocabulary, width) where the logits are h W^T and no more, as in GPT-2.
    Where a model adds a bias, scales or caps them, a function of h, shape (tokens, width), that
    runs the model's own code and has its gradient. Which it is is measured, once a model.

    Raises:
        ParameterError: the logits are not made of the last hidden states alone.
    """
    if model not in _OWN_HEADS:
        _OWN_HEADS[model] = _own_head(model, parameter)
    own = _OWN_HEADS[model]
    if own is None:
        return model.get_output_embeddings().weight
    return functools.partial(_run_own_head, model, *own)


def logits(hidden: torch.Tensor, head: torch.Tensor | Callable) -> torch.Tensor:
    """Logits of shape (tokens, vocabulary), from hidden states (tokens, width) and `lm_head`."""
    if isinstance(head, torch.Tensor):
        return F.linear(hidden, head.to(hidden.dtype))
    return head(hidden)


def _run_own_head(model, body, output, hidden):
    """The model's forward pass, in which `body` hands over `hidden` instead of computing it."""
    module, ids = model.get_submodule(body), torch.zeros(1, len(hidden), dtype=torch.long)
    module.forward = lambda *_, **__: output(last_hidden_state=hidden[None])
    half = hidden.dtype == torch.bfloat16 and model.dtype != torch.bfloat16
    try:
        with autocast(model, "bf16") if half else contextlib.nullcontext():
            return model(input_ids=ids.to(hidden.device)).logits[0]
    finally:
        del module.forward  # that of its class is there again


def _own_head(model, parameter="model"):
    """None if a product with the output matrix is all; else (name of the body, type it returns).

    Hidden states are made so large for it that a soft cap shows, whatever the weights. Parameters
    between the body and the logits, such as a bias, may be zero and yet learn.
    """
    weight = getattr(model.get_output_embeddings(), "weight", None)
    if isinstance(weight, FakeTensor):  # sizes without values, of a GPT-2: nothing to compare
        return None
    with eval_mode(model), torch.no_grad():
        body, output = _find_body(model, parameter)
        within = {id(parameter) for parameter in model.get_submodule(body).parameters()}
        if {id(p) for p in model.parameters()} - within - {id(weight)}:
            return body, output
        noise = torch.randn(8, weight.shape[1], generator=torch.Generator().manual_seed(0))
        product = F.linear(noise := noise.to(weight), weight)
        scale = 1000 / product.abs().max()
        plain = _close(_run_own_head(model, body, output, noise * scale), product * scale)
    return None if plain else (body, output)


def _find_body(model, parameter):
    """(name, type of the output) of the module whose last hidden states become the logits."""
    found, base = [], model.base_model
    names = {module: name for name, module in model.named_modules()}
    hooks = [
        module.register_forward_hook(lambda module, _, output: found.append((module, output)))
        for module in (base, *base.children())
    ]
    refusal = "does not make its logits of last hidden states as other causal models do"
    try:
        ids = probe_ids(model)
        stock = model(input_ids=ids).logits[0]
        module, output = [pair for pair in found if hasattr(pair[1], "last_hidden_state")][-1]
        body = names[module], type(output)
        same = _close(_run_own_head(model, *body, last_hidden_states(model, ids)[0]), stock)
    except Exception as error:  # whatever an architecture does that has no such parts
        allowed = f"{refusal}: {one_line(error)}"
        raise ParameterError(parameter, type(model).__name__, allowed) from error
    finally:
        for hook in hooks:
            hook.remove()
    if not same:
        raise ParameterError(parameter, type(model).__name__, refusal)
    return body


def _close(ours, theirs):
    """Equal up to rounding; false for numbers that are not finite."""
    if ours.shape != theirs.shape:
        return False
    return bool((ours - theirs).abs().max() <= 1e-3 * theirs.abs().max())


def probe_ids(model: PreTrainedModel, tokens: int = 8) -> torch.Tensor:
    """A few tokens that the model knows, always the same ones: int64, shape (1, tokens)."""
    known, generator = model.get_input_embeddings().weight.shape[0], torch.Generator()
    return torch.randint(known, (1, tokens), generator=generator.manual_seed(0)).to(model.device)


@torch.no_grad()
def check_causal(model: PreTrainedModel, parameter: str, name: str) -> None:
    """Raise `ParameterError` unless hidden states depend on nothing but the tokens up to theirs."""
    ids, before = probe_ids(model), _version(model)
    other = ids.clone()
    other[:, -1] = (ids[:, -1] + 1) % model.get_input_embeddings().weight.shape[0]
    try:
        first, second = (last_hidden_states(model, each)[:, :-1] for each in (ids, other))
    except Exception as error:  # whatever an architecture asks for besides tokens
        allowed = f"cannot read tokens alone: {one_line(error)}"
        raise ParameterError(parameter, name, allowed) from error
    # rounding aside, a causal model changes by nothing at all
    if not (first - second).abs().max() <= 1e-5 * first.abs().max():
        allowed = "is no causal model: it sees the token that it is to predict"
        raise ParameterError(parameter, name, allowed)
    if _version(model) != before:  # RWKV rescales its weights in eval mode
        raise ParameterError(parameter, name, "changes its own weights as it reads")


def _version(model):
    """A number that grows when weights are changed in place."""
    return sum(parameter._version for parameter in model.parameters())
