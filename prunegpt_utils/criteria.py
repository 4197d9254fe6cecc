"""How much each weight matters: one function a criterion, registered by its name.

A criterion gets a weight matrix in float32 and its `CalibrationStats`, and returns scores in the
shape of the matrix; the lowest go first. What it `needs` says which calibration it costs.

A file of the reader's own, named by the environment variable PRUNEGPT_CRITERIA, adds to them: see
docs/bring-your-own.md.
"""

import hashlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from prunegpt_utils.calibration import CalibrationStats, blank_stats
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.modeling import prunable_weights

CRITERIA = {}  # name -> Criterion


@dataclass(frozen=True)
class Criterion:
    """A scoring function, and what it needs: nothing, `gradients` or `inputs`."""

    score: Callable
    needs: str = ""


def criterion(name: str, needs: str = "") -> Callable:
    """Register a scoring function under `name`, as the parameter `criterion` calls it.

    `needs` is "" if the weights alone tell; `gradients` or `inputs` for the statistics so named;
    anything else raises a ParameterError.
    """
    if needs not in ("", "gradients", "inputs"):
        raise ParameterError("needs", needs, "must be gradients, inputs or empty")

    def register(score):
        CRITERIA[name] = Criterion(score, needs)
        return score

    return register


@criterion("magnitude")
def magnitude(weight: torch.Tensor, stats: CalibrationStats) -> torch.Tensor:
    """|w| (Han et al. 2015, arXiv 1506.02626)."""
    return weight.abs()


@criterion("random")
def random(weight: torch.Tensor, stats: CalibrationStats) -> torch.Tensor:
    """The control: what any criterion must beat. Weights that are zero already go first."""
    return torch.rand(weight.shape, generator=stats.generator).to(weight.device) * (weight != 0)


@criterion("first-order", needs="gradients")
def first_order(weight: torch.Tensor, stats: CalibrationStats) -> torch.Tensor:
    """|w E[g]|, the change of the loss to first order (Molchanov et al. 2017, arXiv 1611.06440)."""
    return (weight * stats.gradient).abs()


@criterion("fisher", needs="gradients")
def fisher(weight: torch.Tensor, stats: CalibrationStats) -> torch.Tensor:
    """w^2 E[g^2], the rise of the loss to second order with g^2 in place of the curvature.

    LeCun et al. 1990; Theis et al. 2018, arXiv 1801.05787. As its square root, which ranks the
    same and cannot underflow.
    """
    return weight.abs() * stats.squared_gradient.sqrt()


@criterion("wanda", needs="inputs")
def wanda(weight: torch.Tensor, stats: CalibrationStats) -> torch.Tensor:
    """|w| ||x||, the weight times the norm of its input (Sun et al. 2024, arXiv 2306.11695).

    The paper compares the weights of one output with one another: scope `per-row`.
    """
    norm = stats.squared_inputs.sqrt()
    return weight.abs() * (norm[:, None] if stats.axis == 0 else norm)


def scores(
    model: PreTrainedModel, name: str = "magnitude",
    stats: dict[str, CalibrationStats] | None = None, seed: int = 0,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Scores of every prunable weight: {name: float32 tensor in the shape of the weight}.

    Args:
        name: key of `CRITERIA`.  seed: of the random scores.
        stats: of `calibration.calibrate`; criteria that need none do without.

    Raises:
        ParameterError: the criterion does not score every weight.
    """
    stats, found = stats or blank_stats(model, seed), {}
    for key, weight in prunable_weights(model).items():
        found[key] = CRITERIA[name].score(weight.detach().float(), stats[key])
        if found[key].shape != weight.shape or found[key].isnan().any():
            raise ParameterError("criterion", name, f"must give each weight of {key} a score")
    return found


CRITERIA["sparsegpt"] = Criterion(None)  # no scores: it prunes as it goes


def _load_own():
    """Register what the file PRUNEGPT_CRITERIA holds; {its name: sha256}, for the records."""
    name, known = os.environ.get("PRUNEGPT_CRITERIA"), dict(CRITERIA)
    if not name:
        return {}
    path = Path(__file__).parent.parent / Path(name).expanduser()
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        spec = importlib.util.spec_from_file_location(path.stem, path)
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    except Exception as error:  # the reader's code may raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ParameterError("PRUNEGPT_CRITERIA", name, f"does not load: {reason}") from error
    for taken in known:
        if CRITERIA[taken] is not known[taken]:
            allowed = f"registers {taken!r}, a name that is taken; choose another"
            raise ParameterError("PRUNEGPT_CRITERIA", name, allowed)
    return {path.name: digest}


OWN = _load_own()
