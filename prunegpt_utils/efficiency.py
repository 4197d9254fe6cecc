"""What a model costs: seconds, and the memory of a training step, predicted and tracked."""

import copy
import statistics
import time
import weakref
from collections.abc import Callable

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import AutoModelForCausalLM, PretrainedConfig

from prunegpt_utils.masks import apply_masks
from prunegpt_utils.models import count, prunable
from prunegpt_utils.training import Plan, batch_loss


def side_by_side(act: Callable, models: dict, repeats: int) -> dict[str, float]:
    """Median seconds of an act with each of several models, in turns, so that all fare alike.

    Args:
        act: function of a model.  models: {name: model}.
        repeats: turns, after one to warm up.

    Returns:
        {name: seconds}.
    """
    seconds = {name: [] for name in models}
    for turn in range(repeats + 1):
        for name, model in models.items():
            begin = time.perf_counter()
            act(model)
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()  # a GPU is asked to work, and the call returns at once
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times) for name, times in seconds.items()}


def predicted_memory(config: PretrainedConfig, plan: Plan, block: int, taught: bool = True) -> dict:
    """Bytes that a distilled, masked training step needs, from the sizes alone.

    With N parameters, M of them prunable, L blocks of width d, vocabulary V and T tokens a
    micro-batch: weights, gradients and the best weights so far are 4 N each, Adam's moments 8 N,
    the teacher 4 N; a mask is 1 byte a prunable weight. bf16 keeps copies of the matrices while
    they are in use, 2 M + 2 V d. A block stores about 24 T d numbers for its backward pass
    (Korthikanti et al. 2022, arXiv 2205.05198, without the attention matrix, which a fused kernel
    never stores), and the loss holds five logit-sized float32 arrays of `chunk` tokens.

    Args:
        config: of a GPT-2.  plan: training.Plan.  block: tokens a window.
        taught: whether a teacher of the same size is read along.

    Returns:
        {part: bytes}.
    """
    with FakeTensorMode():
        size = count(AutoModelForCausalLM.from_config(config))
    n, m, d, tokens = size["parameters"], size["prunable"], config.n_embd, plan.batch * block
    number, chunk = (2 if plan.precision == "bf16" else 4), 128
    half = 2 * m + 2 * config.vocab_size * d if number == 2 else 0
    return {
        "weights": 4 * n,
        "gradients": 4 * n,
        "Adam's moments": 8 * n,
        "masks": m,
        "best weights so far": 4 * n,
        "teacher": (4 * n + half if taught else 0),
        "copies in bf16": half,
        "activations": config.n_layer * 24 * tokens * d * number,
        "logits of a chunk": 5 * min(chunk, tokens) * config.vocab_size * 4,
    }


def tracked_memory(config: PretrainedConfig, plan: Plan, block: int, taught: bool = True) -> int:
    """Peak bytes of all tensors alive during such a step, none of which is computed.

    The step runs on fake tensors, which have shapes and lifetimes but no values, so that a model
    larger than this machine can be measured. What an operation needs inside is not seen, nor is
    what an allocator wastes.

    Args:
        config, plan, block, taught: as for `predicted_memory`.

    Returns:
        int.
    """
    # Fused attention never stores its matrix; with dropout only a GPU's kernel is fused.
    config = copy.deepcopy(config)
    config.attn_pdrop, config._attn_implementation = 0.0, "sdpa"
    with FakeTensorMode(), _Peak() as peak:
        model = AutoModelForCausalLM.from_config(config).train()
        teacher = AutoModelForCausalLM.from_config(config).eval() if taught else None
        best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        masks = {name: w.new_ones(w.shape, dtype=torch.bool) for name, w in prunable(model).items()}
        optimizer = torch.optim.AdamW(model.parameters(), lr=plan.lr, fused=True)
        rows = torch.zeros(plan.batch, block + 1, dtype=torch.long)
        for _ in range(2):  # the moments exist from the second step on
            peak.most = peak.now
            batch_loss(model, rows, plan, teacher).backward()
            optimizer.step()
            optimizer.zero_grad()
            apply_masks(model, masks)
        del best
    return peak.most


class _Peak(TorchDispatchMode):
    """Bytes of the storages that operations have made and that are still alive."""

    def __init__(self):
        super().__init__()
        self.now, self.most, self.seen = 0, 0, weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._count, out)
        return out

    def _count(self, tensor):
        storage = tensor.untyped_storage()
        if storage not in self.seen:
            self.seen.add(storage)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._freed, storage.nbytes())

    def _freed(self, size):
        self.now -= size
