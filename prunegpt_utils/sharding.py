"""A model spread over processes, for one whose training state no single device can hold.

Weights, gradients and Adam's moments are cut into as many parts as there are processes, and a
block is put together only while it computes (ZeRO, Rajbhandari et al. 2020, arXiv 1910.02054;
FSDP, Zhao et al. 2023, arXiv 2304.11277). Masks are drawn and perplexity is measured on a whole
copy, which every process keeps: 4 bytes a parameter, beside 16 that are shared.
"""

import copy
import os

import torch
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from prunegpt_utils.models import blocks


def wanted() -> bool:
    """Whether `accelerate launch --use_fsdp` started this process."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1")


def sharded_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy whose blocks are sharded over all processes; the rest is by `shard_rest`."""
    from torch.distributed.fsdp import fully_shard

    spread = copy.deepcopy(model)
    for block in blocks(spread)[1]:
        fully_shard(block)
    return spread


def shard_rest(module: torch.nn.Module) -> torch.nn.Module:
    """Shard what is left of a module whose blocks are sharded already, in place; return it."""
    from torch.distributed.fsdp import fully_shard

    return fully_shard(module)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor of which each process may hold a part; all processes must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`tensor`, which every process has in full, cut as `weight` is."""
    if not isinstance(weight, DTensor) or tensor.shape != weight.shape:
        return tensor
    return distribute_tensor(tensor, weight.device_mesh, weight.placements, src_data_rank=None)


@torch.no_grad()
def copy_weights(source: torch.nn.Module, target: torch.nn.Module) -> None:
    """Make the weights of one model those of the other, either of which may be sharded."""
    if source is target:
        return
    for ours, theirs in zip(source.parameters(), target.parameters(), strict=True):
        theirs.copy_(like(whole(ours), theirs))
