"""The one training loop: fine-tuning, pruning and distilling differ only in its arguments."""

import contextlib
import copy
import ctypes
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from prunegpt_utils import checkpoints
from prunegpt_utils.calibration import calibration_batches
from prunegpt_utils.config import TrainConfig
from prunegpt_utils.distributed import device_name, exclusive, make_accelerator, processor_name
from prunegpt_utils.errors import environment_number
from prunegpt_utils.evaluation import token_nll
from prunegpt_utils.flops import training_flops
from prunegpt_utils.forward import autocast, rounded_copy, sparse_lookup, training_attention
from prunegpt_utils.losses import batch_loss
from prunegpt_utils.modeling import prunable_weights
from prunegpt_utils.progress import ProgressBar
from prunegpt_utils.protocols import rolling_windows
from prunegpt_utils.pruner import Pruner
from prunegpt_utils.teacher_cache import cached_hidden_states
from prunegpt_utils.tokenization import batch_indices

SAVE_EVERY = 60.0  # seconds between checkpoints


def train(
    model: PreTrainedModel, windows: torch.Tensor, validation: torch.Tensor, folder: Path,
    config: TrainConfig, teacher: PreTrainedModel | None = None, *, cache: Path | None = None,
    save_every: float | None = None, compiled: bool = False, label: str = "training",
) -> dict:  # fmt: skip
    """Train `model` in place, prune it on the way if asked, and leave the best version in it.

    What was trained before with equal arguments (weights, text, configuration, teacher) is loaded
    instead; what was interrupted goes on where it stopped, to the same bits as an undisturbed run;
    what another process is training right now, such as one that outlived its start, is waited for.
    Started by `accelerate launch` or `notebook_launcher`, the processes share each batch; together
    they do what one of them would do alone, and the first one writes.

    Args:
        model: in float32.  teacher: frozen or None.  windows: int64, shape (n, block_size + 1).
        validation: int64 tensor of shape (tokens,), scored disjointly on the way; the weights with
            the lowest value are kept, of those that already have the final sparsity.
        folder: where checkpoints go, in a folder named by a hash of the arguments.
        cache: folder in which to cache the teacher's hidden states of the windows that are read,
            for all who read the same; None has it read every batch anew, with the same outcome.
        save_every: seconds between checkpoints; None takes those of PRUNEGPT_SAVE_EVERY, or 60.
        label: what the progress bar, and the outcome, say whose training this is.
        compiled: let torch.compile make the blocks faster, which takes it a minute or more.

    Returns:
        dict: "history", one row an evaluation; "steps", "tokens", "seconds", "best_step"; "flops",
            see `flops.training_flops`; "made_by", whose training it was, perhaps an earlier one.

    Raises:
        ParameterError: a checkpoint is damaged, or processes cannot share a batch evenly.
        FloatingPointError: the loss is not finite; the last good checkpoint stays.
    """
    if save_every is None:
        save_every = environment_number("PRUNEGPT_SAVE_EVERY", SAVE_EVERY, "seconds")
    identity = checkpoints.training_identity(model, windows, validation, config, teacher)
    folder = checkpoints.checkpoint_folder(folder, identity)
    accelerator = make_accelerator(config.batch, model.device.type == "cpu")
    keep_freed_memory()
    with exclusive(folder, accelerator):
        if not checkpoints.is_finished(folder):
            accelerator.wait_for_everyone()
            trainer = Trainer(model, windows, config, teacher, accelerator, folder)
            trainer.state.load(folder)
            if compiled:
                model.base_model.compile(dynamic=False)
            cached = _teacher_states(windows, config, teacher, cache, accelerator)
            trainer.loop(validation, cached, save_every, label)
            trainer.finish(identity, cached is not None, label)
        accelerator.wait_for_everyone()
        return checkpoints.load_finished(model, folder)


def _teacher_states(windows, config, teacher, cache, accelerator):
    """Function from windows' numbers to the teacher's cached hidden states, if they are cached.

    Cached are those of the windows that are read; one process computes them.
    """
    if cache is None or teacher is None or not config.alpha or config.kd_loss == "hidden_mse":
        return None
    read = _windows_read(windows, config)
    with accelerator.main_process_first():
        states = cached_hidden_states(teacher, windows[read], cache, config.precision)
    place = torch.empty(len(windows), dtype=torch.int64)
    place[read] = torch.arange(len(read))
    return None if states is None else lambda rows: states[place[rows]]


def _windows_read(windows, config):
    """Rising numbers of the windows that a training reads: all of them in a pass or more."""
    count = min(len(windows), config.steps * config.windows_per_step)
    numbers = batch_indices(len(windows), count, 0, config.seed)
    return torch.tensor(numbers, dtype=torch.int64).sort().values


class Trainer:
    """A model, the optimizer and the pruner that change it, and how far they are."""

    def __init__(
        self, model: PreTrainedModel, windows: torch.Tensor, config: TrainConfig,
        teacher: PreTrainedModel | None, accelerator: Accelerator, folder: Path,
    ):  # fmt: skip
        """Arguments as for `train`; `folder` is that of this training."""
        self.model, self.windows, self.config, self.folder = model, windows, config, folder
        self.accelerator, self.block_size = accelerator, windows.shape[1] - 1
        self.teacher, reader = teacher, teacher and rounded_copy(teacher, config.precision)
        self.wrapped_model = accelerator.prepare(_Objective(model, config, reader))
        self.optimizer = make_optimizer(model, config)
        batches = calibration_batches(windows, config.batch, config.seed)
        loss = functools.partial(batch_loss, model, config=config, teacher=reader)
        self.pruner = Pruner(model, config, self.optimizer, batches, loss)
        self.state = checkpoints.TrainState(model, self.optimizer, self.pruner)

    def loop(
        self, validation: torch.Tensor, cached: Callable | None, save_every: float, label: str
    ) -> None:
        """Train from the step of `state` to the last; arguments as for `train`.

        `cached` gives the teacher's hidden states of windows by their numbers.
        """
        state, steps, evaluations = self.state, self.config.steps, self.config.evaluations
        marks = {round(steps * (k + 1) / evaluations) for k in range(evaluations)}
        tokens = self.config.windows_per_step * self.block_size
        self.wrapped_model.train()
        with training_attention(self.model, self.block_size), self._progress_bar(label) as progress:
            while state.step < steps:
                # 1. the weights to train: masks follow the schedule
                self.pruner.before_step(state.step)
                # 2. the loss and its gradient, over micro-batches; processes meet at the last one
                self._set_step_seed()
                loss = self._accumulate_gradients(cached)
                # 3. the step, and the zeros kept
                self.update(self.config.lr_at(state.step))
                progress.advance(tokens, loss)
                # 4. how good is it on text it has not seen?
                if state.step in marks:
                    state.record_evaluation(loss, self._validation_nll(validation))
                # 5. lose little if anything breaks
                if state.step < steps and state.seconds_since_save() > save_every:
                    self._on_main_process(state.save, self.folder)

    def _accumulate_gradients(self, cached):
        """Mean loss of all micro-batches of a step, over all processes; gradients are added up."""
        accelerator, count, loss = self.accelerator, self.config.gradient_accumulation_steps, 0.0
        lookup = _lookup(count * accelerator.num_processes)
        for rows, apart in self._micro_batches():
            hidden = None if cached is None else cached(rows)
            with apart(self.wrapped_model), lookup(self.model):
                part = self.wrapped_model(self.windows[rows], hidden) / count
                part.backward()
            loss += part.detach()
        loss = accelerator.reduce(loss, "mean").item()
        if not math.isfinite(loss):
            step, kept = self.state.step + 1, self._last_checkpoint()
            raise FloatingPointError(f"loss: {loss} at step {step}; {kept}")
        return loss

    def _micro_batches(self) -> Iterator[tuple[list[int], Callable]]:
        """(windows of this process, context in which to read them) of each of the step."""
        config, accelerator = self.config, self.accelerator
        share = slice(accelerator.process_index, None, accelerator.num_processes)
        for micro in range(config.gradient_accumulation_steps):
            index = self.state.step * config.gradient_accumulation_steps + micro
            rows = batch_indices(len(self.windows), config.batch, index, config.seed)[share]
            last = micro == config.gradient_accumulation_steps - 1
            yield rows, contextlib.nullcontext if last else accelerator.no_sync

    def update(self, lr: float) -> None:
        """One step of the optimizer, between the pruner's hooks."""
        clip_gradients(self.model, self.config.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.pruner.before_optimizer(self.state.step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.pruner.after_optimizer()
        self.state.step += 1

    def finish(self, identity: dict, cached: bool, label: str) -> None:
        """Write the outcome; a run of no steps prunes here.

        `cached` says whether the teacher read each window once, `label` whose training it is.
        """
        self.pruner.before_step(self.state.step)
        tokens = self.state.step * self.config.windows_per_step * self.block_size
        teacher = self.teacher if self.config.alpha else None
        read = len(_windows_read(self.windows, self.config)) * self.block_size if cached else None
        with_head = self.config.kd_loss != "hidden_mse"
        cost = training_flops(self.model, tokens, self.block_size, teacher, read, with_head)
        place = {"device": device_name(), "processor": processor_name()}
        made_by = {"run": label, "torch": torch.__version__, **place}
        self._on_main_process(self.state.finish, self.folder, identity, tokens, cost, made_by)

    def _validation_nll(self, validation):
        spans = rolling_windows(len(validation), self.block_size, self.block_size)
        with autocast(self.model, self.config.precision):
            return float(token_nll(self.model, validation, spans).double().mean())

    def _set_step_seed(self):
        """Seed dropout by step and process, so that a resumed run needs no generator's state."""
        place = self.state.step * self.accelerator.num_processes + self.accelerator.process_index
        torch.manual_seed(self.config.seed * 1_000_003 + place)

    def _progress_bar(self, label):
        path, quiet = self.folder / "progress.txt", not self.accelerator.is_main_process
        return ProgressBar(self.config.steps, label, path, self.state.step, quiet)

    def _on_main_process(self, act, *arguments):
        if self.accelerator.is_main_process:
            act(*arguments)

    def _last_checkpoint(self):
        step, kept = self.state.saved_step, f"is kept in {self.folder.name!r}"
        return f"the checkpoint of step {step} {kept}" if step else "no checkpoint was written yet"


class _Objective(torch.nn.Module):
    """The loss as a module, for what wraps modules to see all parameters and one forward."""

    def __init__(self, model, config, teacher):
        super().__init__()
        self.model, self.config = model, config
        self.teacher = [teacher]  # in a list: no part of what is trained and shared

    def forward(self, rows, teacher_hidden_states):
        return batch_loss(self.model, rows, self.config, self.teacher[0], teacher_hidden_states)


def _lookup(parts):
    """How a batch of as many parts looks up its tokens; sums of several keep autograd's order."""
    return sparse_lookup if parts == 1 else contextlib.nullcontext


def clip_gradients(model: PreTrainedModel, most: float) -> None:
    """Scale all gradients so that their norm is at most `most`, as `clip_grad_norm_` does.

    That passes over them once more where their norm is smaller, to multiply them by 1.
    """
    weights = [weight for weight in model.parameters() if weight.grad is not None]
    norm = torch.nn.utils.get_total_norm([weight.grad for weight in weights])
    if not norm + 1e-6 <= most:  # which also holds for what is no number
        torch.nn.utils.clip_grads_with_norm_(weights, most, norm)


def make_optimizer(model: PreTrainedModel, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW, without decay of what is yet to be pruned: it would be pruned for its decay alone."""
    model.zero_grad(set_to_none=True)  # of what somebody did before
    cuts = config.pruning and not config.pruning.done_at_once(config.steps)
    pruned = {id(w) for w in prunable_weights(model).values()} if cuts else set()
    decays = [w for w in model.parameters() if w.ndim > 1 and id(w) not in pruned]
    rest = [w for w in model.parameters() if w.ndim <= 1 or id(w) in pruned]
    groups = [{"params": decays, "weight_decay": config.weight_decay}, {"params": rest}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)


def steps_within(
    minutes: float, model: PreTrainedModel, windows: torch.Tensor, config: TrainConfig,
    trials: int = 6,
) -> int:  # fmt: skip
    """Optimizer steps that fit into some minutes, at least 1; the weights stay as they are.

    As many `trials` are measured, of which the first, which warms up, does not count; the other
    arguments are those of `train`.
    """
    trial, seconds = copy.deepcopy(model).train(), []
    optimizer = make_optimizer(trial, config)
    keep_freed_memory()
    with training_attention(trial, windows.shape[1] - 1):
        for index in range(trials):
            begin = time.perf_counter()
            for micro in range(config.gradient_accumulation_steps):
                place = index * config.gradient_accumulation_steps + micro
                rows = batch_indices(len(windows), config.batch, place, config.seed)
                loss = batch_loss(trial, windows[rows], config)
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            float(loss)  # waits for the device
            seconds.append(time.perf_counter() - begin)
    return max(1, int(60 * minutes / statistics.median(seconds[1:])))


def keep_freed_memory() -> None:
    """Ask glibc not to hand freed memory back to the system; other C libraries are left alone.

    Otherwise every step gets its activations as fresh pages, which the kernel clears one by one:
    a tenth to a fifth of the time of a small model on a CPU.
    """
    trim_threshold, mmap_threshold, most = -1, -3, 1 << 30
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(trim_threshold, most)
        mallopt(mmap_threshold, most)
