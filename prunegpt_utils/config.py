"""How to train: one object that notebooks make from their parameters and the loop reads."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from prunegpt_utils.distributed import choose_precision
from prunegpt_utils.schedules import PruningSchedule, count_steps, lr_factor


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        steps: optimizer steps, each over batch * gradient_accumulation_steps windows.
        lr: peak learning rate, reached after `warmup` * steps, then decays to 0.
        batch: windows a micro-batch.  gradient_accumulation_steps: micro-batches a step.
        lr_schedule: cosine or linear.  weight_decay: on matrices that are not being pruned.
        max_grad_norm: largest norm of the gradient.  seed: of the windows' order and of dropout.
        precision: float32 or bf16 (autocast; the weights stay float32).
        alpha, temperature, kd_loss: of the teacher, see `losses.token_losses` and `batch_loss`.
        evaluations: times the validation text is scored on the way.
        pruning: PruningSchedule, or None to leave the weights alone.
    """

    steps: int
    lr: float
    batch: int = 16
    gradient_accumulation_steps: int = 1
    warmup: float = 0.05
    lr_schedule: str = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 0
    precision: str = "float32"
    alpha: float = 0.0
    temperature: float = 1.0
    kd_loss: str = "forward_kl"
    evaluations: int = 6
    pruning: PruningSchedule | None = None

    @classmethod
    def from_parameters(
        cls, p: Mapping, windows: torch.Tensor, **overrides: object
    ) -> "TrainConfig":
        """From the parameters of a notebook, which may lack those that it does not use.

        Cosine decay follows a warm-up over 5 % of the steps, linear decay has none.

        Args:
            p: {name: value}, checked.  windows: training windows, to count the steps of an epoch.
            overrides: attributes that are not what the parameters say.
        """
        sparsity, schedule = p.get("sparsity", 0.0), p.get("lr_schedule", "cosine")
        batch = p["batch"] * p.get("gradient_accumulation_steps", 1)
        values = {
            "steps": count_steps(p["steps"], p.get("epochs", 0.0), len(windows), batch),
            "lr": peak_lr(p),
            "warmup": p.get("warmup", 0.05 if schedule == "cosine" else 0.0),
            "precision": choose_precision(p.get("precision", "auto")),
            "pruning": pruning_schedule(p) if sparsity else None,
        }
        same = {name: p[name] for name in cls.__dataclass_fields__ if name in p}
        return cls(**same | values | overrides)

    @property
    def windows_per_step(self) -> int:
        """Training windows that one optimizer step reads."""
        return self.batch * self.gradient_accumulation_steps

    def lr_at(self, step: int) -> float:
        """Learning rate of a step."""
        rounds = self.pruning.rounds if self.pruning else 0
        return self.lr * lr_factor(step, self.steps, self.warmup, self.lr_schedule, rounds)


def peak_lr(p: Mapping) -> float:
    """Peak learning rate, lr / (1 - sparsity)^lr_scaling: a sparse model wants a larger one.

    Args:
        p: parameters of a notebook or record, which may lack those that it does not use.
    """
    return p["lr"] / (1 - p.get("sparsity", 0.0)) ** p.get("lr_scaling", 0.0)


# what a notebook without the parameter does
_ABSENT = {
    "epochs": 0.0, "gradient_accumulation_steps": 1, "lr_schedule": "cosine", "weight_decay": 0.0,
    "neuron_sparsity": 0.0, "head_sparsity": 0.0, "block_sparsity": 0.0, "sparsity": 0.0,
}  # fmt: skip
_ABSENT_IF_PRUNED = {"sparsity_start": 0.0, "lr_scaling": 0.0, "rounds": 0, "regrow_decay": 0.0}
_TRAINING = ("model", "data", "block_size", "init_from", "seed", "batch", "steps", "lr", "warmup")
_IF_PRUNED = ("prune_from", "prune_until", "scope", "criterion")


def training_parameters(p: Mapping) -> dict:
    """All that a training depends on but its teacher: {name: value}.

    Runs of which this is equal differ by their teacher alone, whatever notebooks made them. What
    says how to prune counts only if something is pruned, and steps only if epochs do not.

    Args:
        p: parameters of a notebook or record, which may lack those that it does not use.
    """
    known = {name: p.get(name) for name in _TRAINING} | {k: p.get(k, v) for k, v in _ABSENT.items()}
    if known["epochs"]:
        del known["steps"]
    if known["sparsity"]:
        known |= {name: p.get(name) for name in _IF_PRUNED}
        known |= {name: p.get(name, absent) for name, absent in _ABSENT_IF_PRUNED.items()}
        known["sparsity_start"] = min(known["sparsity_start"], known["sparsity"])
    if known["neuron_sparsity"] or known["head_sparsity"]:
        known["importance"] = p.get("importance")
    return known


def pruning_schedule(p: Mapping) -> PruningSchedule:
    """From the parameters of a notebook; the first cut takes no more than the last."""
    given = {name: p[name] for name in PruningSchedule.__dataclass_fields__ if name in p}
    start = min(p.get("sparsity_start", 0.0), p["sparsity"])
    return PruningSchedule(final=p["sparsity"], start=start, **given)
