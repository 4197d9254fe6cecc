"""The one training loop: fine-tuning, pruning and distilling differ only in its arguments."""

import contextlib
import copy
import ctypes
import hashlib
import json
import math
import os
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from prunegpt_utils import sharding
from prunegpt_utils.criteria import calibrate, known_gradients
from prunegpt_utils.distillation import lesson, mean_loss, state_loss
from prunegpt_utils.evaluation import slide, token_nll
from prunegpt_utils.locks import held
from prunegpt_utils.masks import apply_masks, cubic_sparsity, prune
from prunegpt_utils.models import (
    autocast,
    digest,
    fingerprint,
    head,
    hidden_states,
    prunable,
    states,
)
from prunegpt_utils.parameters import ParameterError
from prunegpt_utils.progress import bar

# seconds between checkpoints; a disk that is slow or a machine that is taken away may want others
SAVE_EVERY = float(os.environ.get("PRUNEGPT_SAVE_EVERY", 60))


@dataclass(frozen=True)
class Pruning:
    """When how much goes: cubic from `start` to `final` between two fractions of the steps.

    `prune_from == prune_until` prunes once, at that point.

    Attributes:
        scope, criterion: see `masks.prune`.
        updates: times the masks are drawn anew on the way.
        rounds: if not 0, cut in so many rounds instead, each of which removes the same fraction
            of what is left and trains with the learning rate rewound (Renda et al. 2020, arXiv
            2003.02389); the other times do not matter then.
        regrow: if not 0, removed weights go on learning beside the model and return when they
            score well, until pruning ends; they decay by this factor, which rises from 0 on the
            way (SR-STE, Zhou et al. 2021, arXiv 2102.04010; annealed by Huang et al. 2024, arXiv
            2407.20584).
    """

    final: float
    start: float = 0.0
    prune_from: float = 0.0
    prune_until: float = 0.6
    scope: str = "global"
    criterion: str = "magnitude"
    updates: int = 40
    rounds: int = 0
    regrow: float = 0.0

    def sparsity(self, step: int, steps: int) -> float | None:
        """Sparsity that holds during `step` of `steps`; None before pruning begins."""
        if self.rounds:
            done = min(step * self.rounds // max(steps, 1) + 1, self.rounds)
            return 1 - (1 - self.final) ** (done / self.rounds)
        begin, end, every = self._times(steps)
        if step < begin:
            return None
        if step >= end:
            return self.final
        progress = (step - begin) // every * every / (end - begin)
        return cubic_sparsity(progress, self.start, self.final)

    def redraws(self, step: int, steps: int) -> bool:
        """Whether masks change at `step` although the sparsity may not."""
        begin, end, every = self._times(steps)
        return bool(self.regrow) and begin <= step <= end and (step - begin) % every == 0

    def settled(self, step: int, steps: int) -> bool:
        """Whether what is removed stays removed."""
        return step > self._times(steps)[1]

    def _times(self, steps):
        begin, end = round(self.prune_from * steps), round(self.prune_until * steps)
        return begin, end, max(1, (end - begin) // self.updates)

    def decay(self, step: int, steps: int) -> float:
        """By how much removed weights decay at `step`, as a factor on them in the gradient."""
        begin, end, _ = self._times(steps)
        return self.regrow * min(1.0, (step - begin) / max(1, end - begin))


@dataclass(frozen=True)
class Plan:
    """How to train.

    Attributes:
        steps: optimizer steps, each over batch * accumulate windows.
        lr: peak learning rate, reached after `warmup` * steps, then decays to 0.
        batch: windows a micro-batch.  accumulate: micro-batches a step.
        decay: cosine or linear.  weight_decay: on matrices that are not being pruned.
        clip: largest norm of the gradient.  seed: of the order of the windows, and of dropout.
        precision: float32 or bf16 (autocast; the weights stay float32).
        alpha, temperature: of the teacher, see `distillation.token_losses`.
        divergence: what is compared with the teacher: `forward` or `reverse` for the divergence of
            its outputs, `hidden` for its states, see `distillation.state_loss`.
        evaluations: times the validation text is scored on the way.
        pruning: Pruning, or None to leave the weights alone.
    """

    steps: int
    lr: float
    batch: int = 16
    accumulate: int = 1
    warmup: float = 0.05
    decay: str = "cosine"
    weight_decay: float = 0.0
    clip: float = 1.0
    seed: int = 0
    precision: str = "float32"
    alpha: float = 0.0
    temperature: float = 1.0
    divergence: str = "forward"
    evaluations: int = 6
    pruning: Pruning | None = None


def train(
    model: PreTrainedModel, windows: torch.Tensor, validation: torch.Tensor, folder: Path,
    plan: Plan, teacher: PreTrainedModel | None = None, *, cache: Path | None = None,
    save_every: float = SAVE_EVERY, compiled: bool = False, label: str = "training",
) -> dict:  # fmt: skip
    """Train `model` in place, prune it on the way if asked, and leave the best version in it.

    What was trained before with equal arguments (weights, text, plan, teacher) is loaded instead;
    what was interrupted goes on where it stopped, to the same bits as an undisturbed run; what
    another process is training right now, such as one that outlived its start, is waited for.
    Started by `accelerate launch` or `notebook_launcher`, the processes share each batch; together
    they do what one of them would do alone, and the first one writes.

    Args:
        model: causal language model, float32.
        windows: int64 tensor of shape (n, block + 1), see `data.windows`.
        validation: int64 tensor of shape (tokens,), scored disjointly on the way; the weights with
            the lowest value are kept, of those that already hold the final sparsity.
        folder: where checkpoints go, in a folder named by a hash of the arguments.
        plan: Plan.  teacher: frozen model or None.
        cache: folder in which to keep what the teacher says of the windows, for this run and all
            others that it teaches; None has it read every batch anew. The outcome is the same.
        save_every: seconds between checkpoints.
        compiled: let torch.compile make the blocks faster, which takes it a minute or more.
        label: what the progress bar says.

    Returns:
        dict: "history", one row an evaluation; "steps", "tokens", "seconds", "best_step".

    Raises:
        ParameterError: a checkpoint is damaged, or the processes cannot share a batch evenly.
        FloatingPointError: the loss is not finite; the last good checkpoint stays.
    """
    arguments = _identity(model, windows, validation, plan, teacher)
    folder = Path(folder, hashlib.sha256(json.dumps(arguments).encode()).hexdigest()[:16])
    together = _processes_sharing(plan.batch, model)
    _keep_freed_memory()
    with _alone(folder, together):
        if not (folder / "training.json").exists():
            together.wait_for_everyone()
            run = _Run(model, windows, folder, plan, arguments, together, teacher)
            run.resume()
            if compiled:
                run.live.base_model.compile(dynamic=False)
            said = _said(windows, plan, teacher, cache, together)
            _loop(run, windows, validation, said, save_every, label)
            run.finish()
        together.wait_for_everyone()
    return _load_finished(model, folder)


def _identity(model, windows, validation, plan, teacher):
    """All that the outcome of a training depends on."""
    return asdict(plan) | {
        "block": windows.shape[1] - 1,
        "model": fingerprint(model),
        "teacher": teacher and fingerprint(teacher),
        "data": digest(windows, validation),
    }


@contextlib.contextmanager
def _alone(folder, together):
    """No other start trains in this folder meanwhile; the first process sees to that."""
    with held(folder / "lock") if together.is_main_process else contextlib.nullcontext():
        together.wait_for_everyone()
        yield


def _processes_sharing(batch, model):
    """The Accelerator of this training: one process, unless a launcher started more."""
    # Accelerate remembers the precision of whoever used it first in this process, such as a
    # Trainer's bf16, and would run our forward pass in it; here the plan says which it is.
    AcceleratorState._reset_state()
    together = Accelerator(cpu=model.device.type == "cpu", mixed_precision="no")
    if batch % together.num_processes:
        allowed = f"must be a multiple of the {together.num_processes} processes that share it"
        raise ParameterError("batch", batch, allowed)
    return together


def _said(windows, plan, teacher, cache, together):
    """What the teacher says of each window, if that is to be kept; one process writes it."""
    if cache is None or teacher is None or not plan.alpha or plan.divergence == "hidden":
        return None
    with together.main_process_first():
        return lesson(teacher, windows, cache, plan.precision)


def _loop(run, windows, validation, said, save_every, label):
    plan, together, block = run.plan, run.together, windows.shape[1] - 1
    marks = {round(plan.steps * (k + 1) / plan.evaluations) for k in range(plan.evaluations)}
    objective = run.objective.train()
    share = slice(together.process_index, None, together.num_processes)
    quiet, live = not together.is_main_process, run.folder / "progress.txt"
    with bar(plan.steps, label, live, run.step, quiet) as progress:
        while run.step < plan.steps:
            # 1. the weights to train: masks follow the schedule
            run.prune()
            # 2. the loss and its gradient, over micro-batches; processes meet at the last one
            run.roll_dice()
            loss = 0.0
            for micro in range(plan.accumulate):
                index = run.step * plan.accumulate + micro
                rows = batch_rows(len(windows), plan.batch, index, plan.seed)[share]
                last = micro == plan.accumulate - 1
                with run.apart(last):
                    known = None if said is None else said[rows]
                    part = objective(windows[rows], known) / plan.accumulate
                    part.backward()
                loss += part.detach()
            loss = together.reduce(loss, "mean").item()
            if not math.isfinite(loss):
                raise FloatingPointError(f"loss: {loss} at step {run.step + 1}; {run.kept()}")
            # 3. the step, and the zeros held
            run.update(plan.lr * lr_factor(run.step, plan))
            progress.advance(plan.batch * plan.accumulate * block, loss)
            # 4. how good is it on text it has not seen?
            if run.step in marks:
                run.evaluate(validation, block, loss)
            # 5. lose little if anything breaks
            if run.step < plan.steps and run.due(save_every):
                run.save()


class _Objective(torch.nn.Module):
    """The loss as a module, for what wraps modules to see all parameters and one forward."""

    def __init__(self, model, plan, teacher):
        super().__init__()
        self.model, self.plan = model, plan
        self.teacher = [teacher]  # in a list: no part of what is trained and shared

    def forward(self, rows, said):
        return batch_loss(self.model, rows, self.plan, self.teacher[0], said)


def batch_loss(
    model: PreTrainedModel, rows: torch.Tensor, plan: Plan, teacher: PreTrainedModel | None = None,
    said: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Mean training loss of some windows.

    Args:
        model: the student.  rows: int64 tensor of shape (batch, block + 1).
        plan: Plan, for precision, alpha and temperature.  teacher: frozen model or None.
        said: the teacher's `distillation.lesson` on these windows, shape (batch, block, width);
            None has it read them now.

    Returns:
        float32 scalar with gradient.
    """
    rows = rows.to(model.device)
    inputs, labels = rows[:, :-1], rows[:, 1:]
    if teacher is not None and plan.alpha and plan.divergence == "hidden":
        return _loss_of_states(model, inputs, labels, plan, teacher)
    taught = None
    with autocast(model, plan.precision):
        hidden = hidden_states(model, inputs)
        if teacher is not None and plan.alpha > 0:
            with torch.no_grad():
                heard = hidden_states(teacher, inputs) if said is None else said
                taught = (heard.to(model.device), head(teacher))
    reverse = plan.divergence == "reverse"
    hidden = _rounded(hidden, plan)
    return mean_loss(hidden, head(model), labels, taught, plan.alpha, plan.temperature, reverse)


def _loss_of_states(model, inputs, labels, plan, teacher):
    with autocast(model, plan.precision):
        ours = states(model, inputs)
        with torch.no_grad():
            theirs = states(teacher, inputs)
    plain = mean_loss(_rounded(ours[-1], plan), head(model), labels)
    return (1 - plan.alpha) * plain + plan.alpha * state_loss(ours, theirs)


def _rounded(hidden, plan):
    """LayerNorms give float32 even where the matrix products are asked for in bf16."""
    return hidden.to(torch.bfloat16) if plan.precision == "bf16" else hidden


def calibration_batches(windows: torch.Tensor, plan: Plan, batches: int = 16) -> list[torch.Tensor]:
    """The first batches of training text, on which a criterion looks at the model at rest.

    Args:
        windows, plan: as for `train`.  batches: how many.

    Returns:
        list of int64 tensors of shape (batch, block + 1).
    """
    rows = (batch_rows(len(windows), plan.batch, index, plan.seed) for index in range(batches))
    return [windows[row] for row in rows]


def steps_within(
    minutes: float, model: PreTrainedModel, windows: torch.Tensor, plan: Plan, trials: int = 6
) -> int:
    """Optimizer steps that fit into a time, from the measured length of a few of them.

    Args:
        minutes: float.  model, windows, plan: as for `train`; the weights stay as they are.
        trials: steps to measure; the first, which warms up, does not count.

    Returns:
        int, at least 1.
    """
    trial, seconds = copy.deepcopy(model).train(), []
    optimizer = torch.optim.AdamW(trial.parameters(), lr=plan.lr, fused=True)
    for index in range(trials):
        begin = time.perf_counter()
        for micro in range(plan.accumulate):
            rows = batch_rows(len(windows), plan.batch, index * plan.accumulate + micro, plan.seed)
            loss = batch_loss(trial, windows[rows], plan)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        float(loss)  # waits for the device
        seconds.append(time.perf_counter() - begin)
    return max(1, int(60 * minutes / statistics.median(seconds[1:])))


def choose_precision(wanted: str = "auto") -> str:
    """`auto` is bf16 where the processor multiplies it natively, else float32."""
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "float32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "float32"


def count_steps(steps: int, epochs: float, windows: torch.Tensor, batch: int) -> int:
    """Optimizer steps: `steps`, or if `epochs` is not 0 those of so many passes over the windows.

    Args:
        steps: int.  epochs: float.
        windows: the training windows.  batch: windows a step.
    """
    return max(1, round(epochs * len(windows) / batch)) if epochs else steps


def lr_factor(step: float, plan: Plan) -> float:
    """Fraction of the peak learning rate: linear warm-up, then cosine or linear decay to 0."""
    rounds = (plan.pruning and plan.pruning.rounds) or 1
    steps = plan.steps / rounds  # each round starts again
    step, rise = step % steps, plan.warmup * steps
    if step < rise:
        return (step + 1) / (rise + 1)
    progress = (step - rise) / max(1.0, steps - rise)
    return 1 - progress if plan.decay == "linear" else 0.5 * (1 + math.cos(math.pi * progress))


def batch_rows(n: int, batch: int, index: int, seed: int) -> list[int]:
    """Rows of micro-batch `index`: consecutive slices of one permutation an epoch.

    A function of its arguments alone, so that a resumed run needs no sampler state.
    """
    rows, place = [], index * batch
    while len(rows) < batch:
        epoch, offset = divmod(place + len(rows), n)
        dice = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        rows += torch.randperm(n, generator=dice)[offset : offset + batch - len(rows)].tolist()
    return rows


def _load_finished(model, folder):
    """Load the outcome of a finished training into `model`."""
    _load_weights(model, folder / "model.safetensors")
    model.eval()
    return json.loads((folder / "training.json").read_text("utf-8"))["result"]


def _load_weights(model, path):
    try:
        weights = load_file(path, device=str(model.device))
    except (SafetensorError, OSError) as error:
        raise ParameterError("checkpoint", path.name, "is missing or damaged") from error
    model.load_state_dict(weights, strict=False)
    model.tie_weights()


class _Run:
    """What a training must not lose: step, weights, optimizer moments, masks, best, history.

    `live` is the model that learns: `model` itself, or where the processes share one model between
    them its sharded copy, from which `collect` fills `model` when it is to be looked at.
    """

    def __init__(self, model, windows, folder, plan, arguments, together, teacher):
        self.batches = calibration_batches(windows, plan)
        self.loss = lambda rows: batch_loss(model, rows, plan, teacher)
        self.sharded = sharding.wanted() and together.num_processes > 1
        self.live = sharding.sharded_copy(model) if self.sharded else model
        objective = _Objective(self.live, plan, teacher)
        join = sharding.shard_rest if self.sharded else together.prepare
        self.objective = join(objective)
        self.model, self.folder, self.plan, self.arguments = model, folder, plan, arguments
        self.together = together
        self.step, self.saved_step, self.seconds, self.clock = 0, 0, 0.0, time.monotonic()
        self.saved_clock = self.clock
        self.sparsity, self.masks, self.aside, self.history = None, {}, {}, []
        self.best, self.best_nll, self.best_step = None, math.inf, None
        # A weight that decays while the threshold still rises would be pruned for that alone.
        held = {id(weight) for weight in prunable(self.live).values()} if plan.pruning else set()
        decays = [p for p in self.live.parameters() if p.ndim > 1 and id(p) not in held]
        rest = [p for p in self.live.parameters() if p.ndim <= 1 or id(p) in held]
        groups = [{"params": decays, "weight_decay": plan.weight_decay}, {"params": rest}]
        self.optimizer = torch.optim.AdamW(
            groups, lr=plan.lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True
        )

    def apart(self, last):
        """The context of a micro-batch: only in the last one do processes add up gradients."""
        if last or self.sharded:
            return contextlib.nullcontext()
        return self.together.no_sync(self.objective)

    def roll_dice(self):
        """Seed dropout by step and process, so that a resumed run needs no generator's state."""
        place = self.step * self.together.num_processes + self.together.process_index
        torch.manual_seed(self.plan.seed * 1_000_003 + place)

    def prune(self):
        pruning = self.plan.pruning
        wanted = pruning and pruning.sparsity(self.step, self.plan.steps)
        if wanted is None:
            return
        if pruning.settled(self.step, self.plan.steps):
            self.aside = {}
        if wanted != self.sparsity or pruning.redraws(self.step, self.plan.steps):
            name, scope = pruning.criterion, pruning.scope
            self.collect()
            facts = self.facts(name)
            self.bring_back()
            self.collect()
            before = {key: w.detach().clone() for key, w in self.regrowing().items()}
            masks = prune(self.model, name, wanted, scope, facts, self.batches)
            self.hold(masks, {key: w * ~masks[key] for key, w in before.items()})
            sharding.copy_weights(self.model, self.live)
            self.sparsity = wanted

    def collect(self):
        """Put together in `model` what the processes hold in parts."""
        sharding.copy_weights(self.live, self.model)

    def hold(self, masks, aside):
        """Keep masks, and removed weights that may return, cut as the weights are."""
        weights = prunable(self.live)
        self.masks = {key: sharding.like(mask, weights[key]) for key, mask in masks.items()}
        self.aside = {key: sharding.like(rest, weights[key]) for key, rest in aside.items()}

    def regrowing(self):
        """{name: weight} of the matrices whose removed weights may return."""
        return prunable(self.model) if self.plan.pruning.regrow else {}

    @torch.no_grad()
    def bring_back(self):
        """Put the removed weights back into the model, where the optimizer can move them."""
        weights = prunable(self.live)
        for name, values in self.aside.items():
            weights[name].add_(values)

    @torch.no_grad()
    def put_aside(self):
        """Take them out again; the model is as sparse as before."""
        weights = prunable(self.live)
        for name in self.aside:
            self.aside[name] = weights[name] * ~self.masks[name]

    def facts(self, name):
        """What the criterion needs: for Fisher Adam's second moments, once there are any."""
        moments = self.optimizer.state
        if name == "fisher" and moments:
            weights = prunable(self.live)
            squares = {k: sharding.whole(moments[w]["exp_avg_sq"]) for k, w in weights.items()}
            return known_gradients(self.model, squares)
        return calibrate(self.model, name, self.batches, self.loss, self.plan.seed)

    def update(self, lr):
        torch.nn.utils.clip_grad_norm_(self.live.parameters(), self.plan.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.aside:
            self.decay_aside()
            self.bring_back()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.put_aside()
        apply_masks(self.live, self.masks)  # momentum moves pruned weights without gradient too
        self.step += 1

    def decay_aside(self):
        """Add the pull towards zero of removed weights to their gradients."""
        weights, factor = prunable(self.live), self.plan.pruning.decay(self.step, self.plan.steps)
        for name, values in self.aside.items():
            weights[name].grad.add_(values, alpha=factor)

    def evaluate(self, validation, block, loss):
        self.collect()
        with autocast(self.model, self.plan.precision):
            spans = slide(len(validation), block, block)
            nll = float(token_nll(self.model, validation, spans).double().mean())
        row = {"step": self.step, "loss": loss, "nll": nll, "sparsity": self.sparsity or 0.0}
        self.history.append(row)
        final = self.plan.pruning is None or self.sparsity == self.plan.pruning.final
        if final and nll < self.best_nll:
            self.best_nll, self.best_step = nll, self.step
            self.best = {name: t.clone() for name, t in self.model.state_dict().items()}

    def kept(self):
        if self.saved_step:
            return f"the checkpoint of step {self.saved_step} is kept in {self.folder.name!r}"
        return "no checkpoint was written yet"

    # -- checkpoints: safetensors and JSON alone, each written beside and then put in place

    def _elapsed(self):
        now = time.monotonic()
        self.seconds, self.clock = self.seconds + now - self.clock, now
        return self.seconds

    def due(self, save_every):
        """Whether to save now; where all must take part, as the first process finds."""
        late = [time.monotonic() - self.saved_clock > save_every]
        return (broadcast_object_list(late) if self.sharded else late)[0]

    def save(self):
        self.collect()
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"mask.{k}": v for k, v in self.masks.items()}
        tensors |= {f"aside.{k}": v for k, v in self.aside.items()}
        tensors |= {f"best.{k}": v for k, v in (self.best or {}).items()}
        moments = self.optimizer.state_dict()["state"]
        tensors |= {f"moment.{i}.{k}": v for i, row in moments.items() for k, v in row.items()}
        tensors = {k: sharding.whole(v.detach()).clone().contiguous() for k, v in tensors.items()}
        if not self.together.is_main_process:
            return
        if not all(v.isfinite().all() for v in tensors.values()):
            return  # the next loss will say so; the last good checkpoint stays
        note = {
            "arguments": self.arguments, "step": self.step, "seconds": self._elapsed(),
            "sparsity": self.sparsity, "history": self.history,
            "best_nll": self.best_nll if self.best else None, "best_step": self.best_step,
        }  # fmt: skip
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / "resume.part"
        save_file(tensors, part, metadata={"state": json.dumps(note)})
        part.replace(self.folder / "resume.safetensors")
        self.saved_step, self.saved_clock = self.step, time.monotonic()

    def resume(self):
        path = self.folder / "resume.safetensors"
        if not path.exists():
            return
        try:
            with safe_open(path, "pt", device=str(self.model.device)) as file:
                note = json.loads(file.metadata()["state"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            allowed = "is damaged; delete it to start this run again"
            raise ParameterError(
                "checkpoint", f"{self.folder.name}/{path.name}", allowed
            ) from error

        def under(prefix):
            start = len(prefix) + 1
            return {k[start:]: v for k, v in tensors.items() if k.startswith(prefix + ".")}

        self.model.load_state_dict(under("model"))
        sharding.copy_weights(self.model, self.live)
        state = self.optimizer.state_dict()
        weights = [p for group in self.optimizer.param_groups for p in group["params"]]
        for key, value in under("moment").items():
            index, name = key.split(".", 1)
            part = sharding.like(value, weights[int(index)])
            state["state"].setdefault(int(index), {})[name] = part
        self.optimizer.load_state_dict(state)
        self.hold(under("mask"), under("aside"))
        self.best = under("best") or None
        self.step, self.saved_step, self.seconds = note["step"], note["step"], note["seconds"]
        self.sparsity, self.history = note["sparsity"], note["history"]
        self.best_step, self.best_nll = note["best_step"], note["best_nll"] or math.inf

    def finish(self):
        """Put the best weights in place, write a stock checkpoint, then note that it is done."""
        self.prune()  # a run of no steps prunes here
        self.collect()
        if not self.together.is_main_process:
            return
        if self.best:
            self.model.load_state_dict(self.best)
        seconds, windows = self._elapsed(), self.step * self.plan.batch * self.plan.accumulate
        result = {
            "steps": self.step, "seconds": seconds, "best_step": self.best_step,
            "tokens": windows * self.arguments["block"], "history": self.history,
        }  # fmt: skip
        self.model.save_pretrained(self.folder)
        note = json.dumps({"arguments": self.arguments, "result": result}, indent=1)
        part = self.folder / "training.part"
        part.write_text(note, "utf-8")
        part.replace(self.folder / "training.json")
        (self.folder / "resume.safetensors").unlink(missing_ok=True)


def _keep_freed_memory():
    """Ask glibc not to hand freed memory back to the system; other C libraries are left alone.

    Otherwise every step gets its activations as fresh pages, which the kernel clears one by one:
    a tenth to a fifth of the time of a small model on a CPU.
    """
    trim_threshold, mmap_threshold, most = -1, -3, 1 << 30
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(trim_threshold, most)
        mallopt(mmap_threshold, most)
