"""The transformer blocks of a model, and the matrices in them: what this study prunes."""

import itertools
import weakref

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from prunegpt_utils.errors import ParameterError
from prunegpt_utils.forward import last_hidden_states, probe_ids

_CHECKED = weakref.WeakSet()  # models of which every matrix in the blocks is known


def transformer_blocks(model: PreTrainedModel) -> tuple[str, torch.nn.ModuleList]:
    """Name and ModuleList of the transformer blocks.

    Raises:
        ParameterError: the architecture has no such list.
    """
    wanted = model.config.num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == wanted:
            return name, module
    raise _refusal(model, "has no list of transformer blocks; it cannot be pruned")


def prunable_weights(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """{state-dict name: weight matrix} of the transformer blocks, the only ones this study prunes.

    GPT-2 keeps them in `Conv1D` layers of shape (in, out), which filters for `nn.Linear` of shape
    (out, in) miss; a mixture of experts has the matrices of all its experts in one tensor of shape
    (experts, out, in). Embeddings, the head tied to them, LayerNorms and biases stay dense, as in
    every published study of pruned language models.

    Raises:
        ParameterError: there are none, or more in the blocks than can be told.
    """
    return {name: weight for name, (weight, _) in _matrices(model).items()}


def prunable_layers(model: PreTrainedModel) -> dict[str, torch.nn.Module]:
    """The layers that hold the `prunable_weights`, under the names of those.

    Raises:
        ParameterError: there are none, or matrices of experts, which are no layers.
    """
    found = {name: model.get_submodule(name.rpartition(".")[0]) for name in prunable_weights(model)}
    for name, layer in found.items():
        if not isinstance(layer, (Conv1D, torch.nn.Linear)):
            why = "which is no linear layer; wanda, sparsegpt and sparse copies need layers"
            raise _refusal(model, f"has {name}, {why}")
    return found


def input_axes(model: PreTrainedModel) -> dict[str, int]:
    """{name: dimension of `prunable_weights` along which inputs are summed}."""
    return {name: axis for name, (_, axis) in _matrices(model).items()}


@torch.no_grad()
def check_prunable(model: PreTrainedModel) -> None:
    """Raise `ParameterError` unless reading text calls every module with `prunable_weights`.

    Attention to an encoder that is not there is not called, nor is what a model multiplies with
    behind its layers' backs, such as Mamba: its sparsity would not be that of what it computes, and
    its inputs could not be measured.
    """
    owners = {
        name: model.get_submodule(name.rpartition(".")[0]) for name in prunable_weights(model)
    }
    called = set()
    hooks = [m.register_forward_pre_hook(lambda m, _: called.add(m)) for m in owners.values()]
    try:
        last_hidden_states(model, probe_ids(model))
    finally:
        for hook in hooks:
            hook.remove()
    for name, module in owners.items():
        if module not in called:
            raise _refusal(model, f"does not call the layer of {name} when it reads text")


def _matrices(model):
    """{name: (weight, dimension of its inputs)}."""
    prefix, blocks = transformer_blocks(model)
    found = {}
    for path, module in blocks.named_modules():
        for key, axis in _matrices_of(module).items():
            found[f"{prefix}.{path}.{key}"] = getattr(module, key), axis
    if model not in _CHECKED:
        _check(model, prefix, blocks, found)
        _CHECKED.add(model)
    return found


def _matrices_of(module):
    """{attribute: dimension of the inputs} of the matrices that a module itself holds."""
    if isinstance(module, (Conv1D, torch.nn.Linear)):
        return {"weight": 0 if isinstance(module, Conv1D) else 1}
    if hasattr(module, "is_transposed"):  # experts of transformers, as it marks them
        stacks = module.named_parameters(recurse=False)
        return {key: 1 if module.is_transposed else 2 for key, p in stacks if p.ndim == 3}
    if type(module).__name__.endswith("Router") and isinstance(
        getattr(module, "weight", None), torch.nn.Parameter
    ):
        return {"weight": 1}
    return {}


def _check(model, prefix, blocks, found):
    """Refuse models whose sparsity would not be that of all the matrices in their blocks."""
    embedding = model.get_input_embeddings().weight
    if not found or any(weight is embedding for weight, _ in found.values()):
        raise _refusal(model, "has no block matrices to prune")
    every = blocks.named_parameters(prefix, remove_duplicate=False)
    for _, same in itertools.groupby(sorted(every, key=_identity), key=_identity):
        if len(names := [name for name, _ in same]) > 1:
            raise _refusal(model, f"uses one matrix several times: {' and '.join(names[:2])}")
    for name, parameter in blocks.named_parameters(prefix):
        owner = model.get_submodule(name.rpartition(".")[0])
        if name not in found and not _is_no_matrix(name, parameter, owner):
            raise _refusal(model, f"has {name}, which is no linear layer and cannot be pruned")
    for name, layer in model.base_model.named_modules(prefix=model.base_model_prefix):
        repeated = not name.startswith(prefix) and any(part.isdigit() for part in name.split("."))
        if repeated and _matrices_of(layer):
            raise _refusal(model, f"has layers outside of {prefix}: {name}")


def _identity(named):
    return id(named[1])


def _is_no_matrix(name, parameter, owner):
    """Whether a parameter multiplies no vector of hidden states, whatever its shape.

    Vectors and biases, those of experts side by side too; tables that are looked up; filters of a
    convolution that each see one channel; and the decay rates of a state space model, one a
    channel and state (`A_log`, Gu and Dao 2023, arXiv 2312.00752).
    """
    vector = parameter.numel() == max(parameter.shape, default=1)
    lookup = isinstance(owner, torch.nn.Embedding)
    filters = isinstance(owner, torch.nn.Conv1d) and owner.groups == owner.in_channels
    return vector or lookup or filters or name.endswith("bias") or name.endswith("A_log")


def _refusal(model, why):
    return ParameterError("model", type(model).__name__, why)
