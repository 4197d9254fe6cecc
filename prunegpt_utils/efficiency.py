"""What a model costs: seconds, and the memory of a training step, predicted and tracked."""

import copy
import inspect
import time
import weakref
from collections.abc import Callable

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import AutoModelForCausalLM, PretrainedConfig

from prunegpt_utils.config import TrainConfig
from prunegpt_utils.losses import LOGITS_AT_ONCE, batch_loss, mean_loss
from prunegpt_utils.masks import apply_masks
from prunegpt_utils.modeling import count_parameters, prunable_weights


def time_in_turns(acts: dict[str, Callable], repeats: int) -> dict[str, list[float]]:
    """Seconds of several acts, measured in turns, so that what slows the machine slows all alike.

    After one turn to warm up come `repeats` that count; their median is what to report.
    """
    seconds = {name: [] for name in acts}
    for turn in range(repeats + 1):
        for name, act in acts.items():
            begin = time.perf_counter()
            act()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()  # a GPU is asked to work, and the call returns at once
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def predicted_memory(
    shape: PretrainedConfig, config: TrainConfig, block_size: int, distilled: bool = True
) -> dict:
    """{part: bytes} that a distilled, masked training step needs, from the sizes alone.

    With N parameters, M of them prunable, L blocks of width d, vocabulary V and T tokens a
    micro-batch: weights, gradients and the best weights so far are 4 N each, Adam's moments 8 N,
    the teacher 4 N; a mask is 1 byte a prunable weight. bf16 keeps copies of the matrices while
    they are in use, 2 M + 2 V d. A block stores about 24 T d numbers for its backward pass
    (Korthikanti et al. 2022, arXiv 2205.05198, without the attention matrix, which a fused kernel
    never stores). The loss holds the logits of both models for as many tokens as
    `losses.mean_loss` takes at a time, and five float32 arrays of `losses.LOGITS_AT_ONCE`.

    Args:
        shape: configuration of a GPT-2.  config: of the training.  block_size: tokens a window.
        distilled: whether a teacher of the same size is read along.
    """
    with FakeTensorMode():
        size = count_parameters(AutoModelForCausalLM.from_config(shape))
    n, m, d, tokens = size["parameters"], size["prunable"], shape.n_embd, config.batch * block_size
    number = 2 if config.precision == "bf16" else 4
    chunk = inspect.signature(mean_loss).parameters["chunk"].default
    logits = min(chunk, tokens) * shape.vocab_size
    at_once = min(LOGITS_AT_ONCE, logits)
    half = 2 * m + 2 * shape.vocab_size * d if number == 2 else 0
    return {
        "weights": 4 * n, "gradients": 4 * n, "Adam's moments": 8 * n, "masks": m,
        "best weights so far": 4 * n, "teacher": (4 * n + half if distilled else 0),
        "copies in bf16": half, "activations": shape.n_layer * 24 * tokens * d * number,
        "logits of a chunk": number * (1 + distilled) * logits + 5 * 4 * at_once,
    }  # fmt: skip


def tracked_memory(
    shape: PretrainedConfig, config: TrainConfig, block_size: int, distilled: bool = True
) -> int:
    """Peak bytes of all tensors alive during a step as of `predicted_memory`, none of it computed.

    The step runs on fake tensors, which have shapes and lifetimes but no values, so that a model
    larger than this machine can be measured. What an operation needs inside is not seen, nor is
    what an allocator wastes.
    """
    # Fused attention never stores its matrix; with dropout only a GPU's kernel is fused.
    shape = copy.deepcopy(shape)
    shape.attn_pdrop, shape._attn_implementation = 0.0, "sdpa"
    with FakeTensorMode(), _Peak() as peak:
        model = AutoModelForCausalLM.from_config(shape).train()
        teacher = AutoModelForCausalLM.from_config(shape).eval() if distilled else None
        best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        weights = prunable_weights(model)
        masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()}
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, fused=True)
        rows = torch.zeros(config.batch, block_size + 1, dtype=torch.long)
        for _ in range(2):  # the moments exist from the second step on
            peak.most = peak.now
            batch_loss(model, rows, config, teacher).backward()
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
