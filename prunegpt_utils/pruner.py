"""What a training step does to the masks: hooks that the loop calls around the optimizer."""

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from prunegpt_utils.calibration import CalibrationStats, calibrate, stats_from_adam
from prunegpt_utils.config import TrainConfig
from prunegpt_utils.criteria import CRITERIA
from prunegpt_utils.masks import apply_masks, check_cut, prune
from prunegpt_utils.modeling import prunable_weights


class Pruner:
    """Keeps the weights of a model as sparse as a schedule says; without one it does nothing.

    Attributes:
        sparsity: that now holds; None before the first cut.
        masks: {name: bool tensor in the shape of the weight}, True = keep.
        pruned_weights: {name: tensor}, what pruned weights that may return have become.
    """

    def __init__(
        self, model: PreTrainedModel, config: TrainConfig, optimizer: torch.optim.Optimizer,
        batches: Sequence[torch.Tensor], loss: Callable,
    ):  # fmt: skip
        """Args: as for `calibration.calibrate`; `optimizer` is the Adam that trains the model.

        Raises:
            ParameterError: one of the cuts to come cannot be made.
        """
        self.schedule, self.steps, self.seed = config.pruning, config.steps, config.seed
        self.model, self.optimizer, self.batches, self.loss = model, optimizer, batches, loss
        self.sparsity, self.masks, self.pruned_weights = None, {}, {}
        for sparsity in self.schedule.cuts(self.steps) if self.schedule else ():
            check_cut(model, self.schedule.criterion, sparsity, self.schedule.scope)

    @property
    def finished(self) -> bool:
        """Whether the model has its final sparsity."""
        return self.schedule is None or self.sparsity == self.schedule.final

    def before_step(self, step: int) -> None:
        """Compute new masks if the schedule asks for them at `step`."""
        wanted = self.schedule and self.schedule.sparsity(step, self.steps)
        if wanted is None:
            return
        if self.schedule.settled(step, self.steps):
            self.pruned_weights = {}
        if wanted != self.sparsity or self.schedule.regrows(step, self.steps):
            self._prune(wanted)

    def before_optimizer(self, step: int) -> None:
        """Let pruned weights that may return take part in the step: decayed, in their places."""
        if self.pruned_weights:
            weights, factor = prunable_weights(self.model), self.schedule.decay(step, self.steps)
            for name, values in self.pruned_weights.items():
                weights[name].grad.add_(values, alpha=factor)
            self._restore_pruned()

    def after_optimizer(self) -> None:
        """Make the model as sparse as before the step."""
        self._stash_pruned()
        # momentum moves pruned weights without gradient too
        apply_masks(self.model, self.masks)

    def _prune(self, sparsity):
        stats = self._stats()
        self._restore_pruned()
        regrowing = prunable_weights(self.model) if self.schedule.regrow_decay else {}
        before = {name: weight.detach().clone() for name, weight in regrowing.items()}
        criterion, scope = self.schedule.criterion, self.schedule.scope
        self.masks = prune(self.model, criterion, sparsity, scope, stats, self.batches)
        self.pruned_weights = {name: w * ~self.masks[name] for name, w in before.items()}
        self.sparsity = sparsity

    def _stats(self) -> dict[str, CalibrationStats]:
        """What the criterion needs: for Fisher Adam's second moments, once there are any."""
        name, moments = self.schedule.criterion, self.optimizer.state
        if name == "fisher" and moments:
            weights = prunable_weights(self.model)
            squares = {key: moments[weight]["exp_avg_sq"] for key, weight in weights.items()}
            return stats_from_adam(self.model, squares)
        return calibrate(self.model, CRITERIA[name].needs, self.batches, self.loss, self.seed)

    @torch.no_grad()
    def _restore_pruned(self):
        """Put the pruned weights back into the model, where the optimizer can move them."""
        weights = prunable_weights(self.model)
        for name, values in self.pruned_weights.items():
            weights[name].add_(values)

    @torch.no_grad()
    def _stash_pruned(self):
        """Take them out again."""
        weights = prunable_weights(self.model)
        for name in self.pruned_weights:
            self.pruned_weights[name] = weights[name] * ~self.masks[name]
