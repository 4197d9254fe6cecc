"""What zeros are worth: fewer bytes on disk, and sparse matrices that skip them."""

import copy
import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save, save_file
from torch.sparse import to_sparse_semi_structured
from transformers import PreTrainedModel

from prunegpt_utils.modeling import input_axes, prunable_layers, prunable_weights


def unique_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, tied ones once: {name: tensor on the CPU}."""
    return {name: w.detach().cpu().contiguous() for name, w in model.named_parameters()}


def bitmask(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """A matrix as one bit a weight, set where it is not zero, and the values of those."""
    kept = tensor.flatten() != 0
    return {"bits": torch.from_numpy(np.packbits(kept.numpy())), "values": tensor.flatten()[kept]}


def from_bitmask(parts: dict[str, torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
    """The matrix of `bitmask`, value for value."""
    kept = torch.from_numpy(np.unpackbits(parts["bits"].numpy(), count=math.prod(shape))).bool()
    dense = torch.zeros(kept.shape, dtype=parts["values"].dtype)
    return dense.masked_scatter_(kept, parts["values"]).view(shape)


def csr(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """A matrix in compressed sparse rows: where each row begins, the columns, the values.

    Of a stack of matrices, such as those of experts, the rows follow one another.
    """
    sparse = tensor.flatten(0, -2).to_sparse_csr()
    narrow = torch.int16 if tensor.shape[-1] < 2**15 else torch.int32
    places = {"rows": sparse.crow_indices().int(), "columns": sparse.col_indices().to(narrow)}
    return places | {"values": sparse.values()}


def from_csr(parts: dict[str, torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
    """The matrix of `csr`, value for value."""
    rows, columns = parts["rows"].long(), parts["columns"].long()
    size = len(rows) - 1, shape[-1]
    return torch.sparse_csr_tensor(rows, columns, parts["values"], size).to_dense().view(shape)


ENCODINGS = {"bitmask": (bitmask, from_bitmask), "csr": (csr, from_csr)}


def save_encoded(model: PreTrainedModel, path: Path, encoding: str) -> None:
    """Write a safetensors file with the pruned matrices in an encoding, a key of `ENCODINGS`."""
    encode, _ = ENCODINGS[encoding]
    pruned, tensors, shapes = prunable_weights(model), {}, {}
    for name, tensor in unique_tensors(model).items():
        if name in pruned:
            tensors |= {f"{name}:{part}": value for part, value in encode(tensor).items()}
            shapes[name] = list(tensor.shape)
        else:
            tensors[name] = tensor
    save_file(tensors, path, {"encoding": encoding, "shapes": json.dumps(shapes)})


def load_encoded(path: Path, model: PreTrainedModel) -> None:
    """Put the weights of `save_encoded` into a model of the same architecture, in place."""
    with safe_open(path, "pt") as file:
        note, tensors, parts = file.metadata(), {}, {}
        for key in file.keys():  # noqa: SIM118
            name, _, part = key.partition(":")
            place = parts.setdefault(name, {}) if part else tensors
            place[part or name] = file.get_tensor(key)
    _, decode = ENCODINGS[note["encoding"]]
    for name, shape in json.loads(note["shapes"]).items():
        tensors[name] = decode(parts[name], shape)
    model.load_state_dict(tensors, strict=False)


def encoded_sizes(model: PreTrainedModel, folder: Path) -> dict[str, float]:
    """{form: bytes} of the whole checkpoint, written into an existing folder.

    Forms: `safetensors`, `safetensors, zlib`, `bitmask`, `csr`; `entropy bound` is the least that
    any could take that writes its values in full.
    """
    plain = save(unique_tensors(model))
    found = {"safetensors": len(plain), "safetensors, zlib": len(zlib.compress(plain, 6))}
    for encoding in ENCODINGS:
        path = Path(folder, f"{encoding}.safetensors")
        save_encoded(model, path, encoding)
        found[encoding] = path.stat().st_size
    pruned = prunable_weights(model)
    rest = sum(t.nbytes for name, t in unique_tensors(model).items() if name not in pruned)
    return found | {"entropy bound": rest + math.ceil(sum(map(entropy_bound, pruned.values())))}


def entropy_bound(weight: torch.Tensor) -> float:
    """Bytes that a matrix needs: its non-zero values, and log2 of the number of such masks.

    log2 of n choose k, if any k of n places are as likely as any others.
    """
    n, k = weight.numel(), int((weight != 0).sum())
    masks = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return k * weight.element_size() + masks / math.log(2) / 8


class SparseLinear(torch.nn.Module):
    """A linear layer whose matrix is stored and multiplied in compressed sparse rows."""

    def __init__(self, weight, bias):
        """`weight` (outputs, inputs) with zeros, `bias` (outputs) or None."""
        super().__init__()
        sparse = weight.to_sparse_csr()
        index = sparse.crow_indices().int(), sparse.col_indices().int()
        self.matrix = torch.sparse_csr_tensor(*index, sparse.values(), weight.shape)
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From shape (..., inputs) to (..., outputs)."""
        rows, bias = x.flatten(0, -2), self.bias
        if len(rows) == 1:  # MKL is far faster with a vector than with one column
            y = self.matrix.mv(rows[0]) if bias is None else bias.addmv(self.matrix, rows[0])
            return y.view(*x.shape[:-1], -1)
        # and faster with rows of numbers that lie side by side in memory
        y = (self.matrix @ rows.T.contiguous()).T
        return (y if bias is None else y + bias).unflatten(0, x.shape[:-1])


def memory_bytes(model: PreTrainedModel) -> int:
    """Bytes of all weights in memory, those of a `SparseLinear` with their indices."""
    layers = [layer for layer in model.modules() if isinstance(layer, SparseLinear)]
    matrices = [layer.matrix for layer in layers]
    parts = [part for m in matrices for part in (m.crow_indices(), m.col_indices(), m.values())]
    parts += [layer.bias for layer in layers if layer.bias is not None]
    return sum(tensor.nbytes for tensor in (*model.parameters(), *parts))


@torch.no_grad()
def sparse_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The same model for inference on a CPU, its pruned matrices as `SparseLinear`.

    It is a stock Hugging Face model but for these layers: `generate` works on it.
    """
    return _with_layers(copy.deepcopy(model).eval(), SparseLinear)


@torch.no_grad()
def two_four_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The same model in half precision on an NVIDIA GPU that skips the zeros of its 2:4 matrices.

    The matrices are PyTorch's semi-structured tensors: the weights that are left, and two bits for
    the place of each (Mishra et al. 2021, arXiv 2104.08378). The rest is a stock model. Of every
    four weights along a matrix's inputs two must be zero, as `masks.prune` leaves them for "2:4".

    Raises:
        ValueError: without a GPU that has sparse tensor cores, or for a matrix that is not 2:4.
    """
    if not has_two_four():
        raise ValueError("2:4 tensors need an NVIDIA GPU of compute capability 8.0 or newer")
    return _with_layers(copy.deepcopy(model).to("cuda", torch.float16).eval(), _two_four_linear)


def has_two_four() -> bool:
    """Whether there is a GPU with sparse tensor cores: NVIDIA's Ampere or newer."""
    nvidia = torch.cuda.is_available() and not torch.version.hip
    return nvidia and torch.cuda.get_device_capability() >= (8, 0)


def check_two_four(weight: torch.Tensor) -> None:
    """ValueError unless two of every four neighbours in a row of (outputs, inputs) are zero."""
    if weight.shape[1] % 4 or (weight.unflatten(1, (-1, 4)) != 0).sum(-1).max() > 2:
        raise ValueError(f"a matrix of {tuple(weight.shape)} outputs and inputs is not 2:4")


def _two_four_linear(weight, bias):
    """A linear layer of a 2:4 `weight` (outputs, inputs)."""
    check_two_four(weight)
    layer = torch.nn.Linear(*weight.shape[::-1], bias=bias is not None, device="meta")
    packed = to_sparse_semi_structured(weight.contiguous())
    layer.weight = torch.nn.Parameter(packed, requires_grad=False)
    layer.bias = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)
    return layer


def _with_layers(model, make):
    """Put make(weight (outputs, inputs), bias) in the place of each layer that can be pruned."""
    axes = input_axes(model)
    for name, layer in prunable_layers(model).items():
        path, _, child = name.removesuffix(".weight").rpartition(".")
        weight = layer.weight.detach().movedim(axes[name], 1)
        bias = None if layer.bias is None else layer.bias.detach()
        setattr(model.get_submodule(path), child, make(weight, bias))
    return model
