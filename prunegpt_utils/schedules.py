"""Schedules: how sparse the model is and how fast it learns, as functions of the step."""

import math
from dataclasses import dataclass

LR_SCHEDULES = {  # name -> fraction of the peak, from the fraction of the decay that is over
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
}


def lr_factor(step: float, steps: float, warmup: float, lr_schedule: str, rounds: int = 0) -> float:
    """Fraction of the peak learning rate: linear warm-up, then decay to 0.

    Args:
        step: from 0 on.  steps: of the whole training.
        warmup: fraction of the steps.  lr_schedule: key of `LR_SCHEDULES`.
        rounds: of pruning, each of which starts again (see `PruningSchedule`); 0 for none.
    """
    rounds = rounds or 1
    step = step * rounds % steps / rounds  # whole numbers first: 10 % (20 / 6) is nearly 20 / 6
    steps = steps / rounds
    rise = warmup * steps
    if step < rise:
        return (step + 1) / (rise + 1)
    return LR_SCHEDULES[lr_schedule]((step - rise) / max(1.0, steps - rise))


def count_steps(steps: int, epochs: float, windows: int, batch: int) -> int:
    """Optimizer steps of `batch` windows: `steps`, or if not 0, `epochs` passes over `windows`."""
    return max(1, round(epochs * windows / batch)) if epochs else steps


def cubic_sparsity(progress: float, start: float, final: float) -> float:
    """Sparsity on the way (Zhu and Gupta 2017, arXiv 1710.01878, equation 1).

    s = final + (start - final) * (1 - progress)^3: fast while weights are plenty, then slower.
    `progress` is the fraction of the pruning phase that is over, clipped to [0, 1].
    """
    left = 1 - min(max(progress, 0.0), 1.0)
    return final + (start - final) * left**3


@dataclass(frozen=True)
class PruningSchedule:
    """When how much goes: cubic from `start` to `final` between two fractions of the steps.

    `prune_from == prune_until` prunes once, at that point.

    Attributes:
        scope, criterion: see `masks.prune`.
        updates: times the masks are computed anew on the way, at most.
        rounds: if not 0, cut in so many rounds instead, each of which removes the same fraction
            of what is left and trains with the learning rate rewound (Renda et al. 2020, arXiv
            2003.02389); the other times do not matter then.
        regrow_decay: if not 0, pruned weights go on learning beside the model and return when they
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
    regrow_decay: float = 0.0

    def sparsity(self, step: int, steps: int) -> float | None:
        """Sparsity that holds during `step` of `steps`; None before pruning begins."""
        if self.rounds:
            done = min(step * self.rounds // max(steps, 1) + 1, self.rounds)
            kept = (1 - self.final) ** (done / self.rounds)
            return self.final if done == self.rounds else 1 - kept  # the last to the last bit
        begin, end, every = self._times(steps)
        if step < begin:
            return None
        if step >= end:
            return self.final
        progress = (step - begin) // every * every / (end - begin)
        return cubic_sparsity(progress, self.start, self.final)

    def cuts(self, steps: int) -> list[float]:
        """The sparsities that hold during `steps` and after them, rising."""
        wanted = {self.sparsity(step, steps) for step in range(steps + 1)}
        return sorted(wanted - {None})

    def regrows(self, step: int, steps: int) -> bool:
        """Whether masks are computed anew at `step` although the sparsity may not change."""
        begin, end, every = self._times(steps)
        return bool(self.regrow_decay) and begin <= step <= end and (step - begin) % every == 0

    def done_at_once(self, steps: int) -> bool:
        """Whether what is to go goes before the first of `steps`, and stays away."""
        return self.sparsity(0, steps) == self.final and not self.regrow_decay

    def settled(self, step: int, steps: int) -> bool:
        """Whether what is pruned stays pruned."""
        return step > self._times(steps)[1]

    def decay(self, step: int, steps: int) -> float:
        """By how much pruned weights decay at `step`, as a factor on them in the gradient."""
        begin, end, _ = self._times(steps)
        return self.regrow_decay * min(1.0, (step - begin) / max(1, end - begin))

    def _times(self, steps):
        begin, end = round(self.prune_from * steps), round(self.prune_until * steps)
        return begin, end, max(1, -(-(end - begin) // self.updates))
