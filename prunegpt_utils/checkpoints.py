"""What a training must not lose, and how it comes back: safetensors and JSON alone."""

import json
import math
import time
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from prunegpt_utils.config import TrainConfig
from prunegpt_utils.criteria import CRITERIA, OWN, magnitude
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.files import apply_umask, atomic_path
from prunegpt_utils.modeling import digest, model_identity
from prunegpt_utils.provenance import module_hashes
from prunegpt_utils.pruner import Pruner


def training_identity(
    model: PreTrainedModel, windows: torch.Tensor, validation: torch.Tensor, config: TrainConfig,
    teacher: PreTrainedModel | None,
) -> dict:  # fmt: skip
    """All that the outcome of a training depends on; arguments as for `training.train`.

    Of the code, these are the modules that the training uses (see `provenance`) and the reader's
    own criterion, if it prunes by one; not what reads the text, which counts as it came out.
    """
    code = module_hashes("from prunegpt_utils.training import train", without=["corpora"])
    score = config.pruning and CRITERIA[config.pruning.criterion].score
    if getattr(score, "__module__", magnitude.__module__) != magnitude.__module__:
        code |= OWN
    return asdict(config) | {
        "block_size": windows.shape[1] - 1, "model": model_identity(model),
        "teacher": teacher and model_identity(teacher), "data": digest(windows, validation),
        "device": model.device.type, "code": code,
    }  # fmt: skip


def checkpoint_folder(parent: Path, identity: dict) -> Path:
    """The folder of a training below `parent`, named by a hash of its identity."""
    return Path(parent, digest(json.dumps(identity))[:16])


class TrainState:
    """How far a training is: step, seconds, history, the best weights so far.

    With it the checkpoint holds the weights, the optimizer's moments, masks and pruned weights.
    """

    def __init__(self, model: PreTrainedModel, optimizer: torch.optim.Optimizer, pruner: Pruner):
        self.model, self.optimizer, self.pruner = model, optimizer, pruner
        self.step, self.saved_step, self.history = 0, 0, []
        self.best, self.best_nll, self.seconds = {}, math.inf, 0.0
        self.best_step: int | None = None
        self.clock = self.saved_clock = time.monotonic()

    def record_evaluation(self, loss: float, nll: float) -> None:
        """Add a row to the history; keep the weights if they are the best at full sparsity."""
        sparsity = self.pruner.sparsity or 0.0
        self.history.append({"step": self.step, "loss": loss, "nll": nll, "sparsity": sparsity})
        if self.pruner.finished and nll < self.best_nll:
            self.best_nll, self.best_step = nll, self.step
            self.best = {name: w.detach().clone() for name, w in self.model.named_parameters()}

    def seconds_since_save(self) -> float:
        """Wall-clock seconds since the last checkpoint, or since the start."""
        return time.monotonic() - self.saved_clock

    def _elapsed(self):
        now = time.monotonic()
        self.seconds, self.clock = self.seconds + now - self.clock, now
        return self.seconds

    def save(self, folder: Path) -> None:
        """Write a checkpoint; not of weights that are not finite, of which the next loss tells."""
        # tied weights are one parameter, and stand in the file once
        tensors = {f"model.{name}": w.detach() for name, w in self.model.named_parameters()}
        tensors |= {f"mask.{name}": mask for name, mask in self.pruner.masks.items()}
        tensors |= {f"pruned.{name}": w.detach() for name, w in self.pruner.pruned_weights.items()}
        tensors |= {f"best.{name}": weight for name, weight in self.best.items()}
        moments = self.optimizer.state_dict()["state"]
        tensors |= {f"moment.{i}.{key}": v for i, row in moments.items() for key, v in row.items()}
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            return
        note = {
            "step": self.step, "seconds": self._elapsed(), "sparsity": self.pruner.sparsity,
            "history": self.history, "best_step": self.best_step,
            "best_nll": self.best_nll if self.best else None,
        }  # fmt: skip
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        with atomic_path(folder / "resume.safetensors") as part:
            save_file(tensors, part, metadata={"state": json.dumps(note)})
        self.saved_step, self.saved_clock = self.step, time.monotonic()

    def load(self, folder: Path) -> None:
        """Go on from a folder's checkpoint, if there is one; ParameterError if it is damaged."""
        path = folder / "resume.safetensors"
        if not path.exists():
            return
        note, tensors = _read(path, str(self.model.device))

        def under(prefix):
            start = len(prefix) + 1
            return {k[start:]: v for k, v in tensors.items() if k.startswith(prefix + ".")}

        self.model.load_state_dict(under("model"), strict=False)
        state = self.optimizer.state_dict()
        for key, value in under("moment").items():
            index, name = key.split(".", 1)
            state["state"].setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict(state)
        self.pruner.masks, self.pruner.pruned_weights = under("mask"), under("pruned")
        self.pruner.sparsity, self.best = note["sparsity"], under("best")
        self.step, self.saved_step, self.seconds = note["step"], note["step"], note["seconds"]
        self.history, self.best_step = note["history"], note["best_step"]
        self.best_nll = note["best_nll"] or math.inf

    def finish(
        self, folder: Path, identity: dict, tokens: int, flops: dict, made_by: dict
    ) -> None:  # fmt: skip
        """Put the best weights in place, write a stock checkpoint, then note that it is done."""
        if self.best:
            self.model.load_state_dict(self.best, strict=False)
        result = {
            "steps": self.step, "seconds": self._elapsed(), "best_step": self.best_step,
            "tokens": tokens, "flops": flops, "made_by": made_by, "history": self.history,
        }  # fmt: skip
        # names as the model has them, by which `load_finished` finds each weight again
        self.model.save_pretrained(folder, save_original_format=False)
        apply_umask(folder)
        with atomic_path(folder / "training.json") as part:
            part.write_text(json.dumps({"arguments": identity, "result": result}, indent=1))
        (folder / "resume.safetensors").unlink(missing_ok=True)


def is_finished(folder: Path) -> bool:
    """Whether the training of this folder has ended."""
    return (folder / "training.json").exists()


def load_finished(model: PreTrainedModel, folder: Path) -> dict:
    """Load a finished training into `model`; its result.

    Raises:
        ParameterError: it is damaged, or lacks a weight of the model.
    """
    path = folder / "model.safetensors"
    try:
        weights = load_file(path, device=str(model.device))
    except (SafetensorError, OSError) as error:
        raise ParameterError("checkpoint", path.name, "is missing or damaged") from error
    if missing := [name for name, _ in model.named_parameters() if name not in weights]:
        raise ParameterError("checkpoint", path.name, f"lacks {missing[0]}; delete its folder")
    model.load_state_dict(weights, strict=False)
    model.eval()
    return json.loads((folder / "training.json").read_text("utf-8"))["result"]


def _read(path, device):
    try:
        with safe_open(path, "pt", device=device) as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return json.loads(file.metadata()["state"]), tensors
    except (SafetensorError, OSError) as error:
        place, allowed = "/".join(path.parts[-2:]), "is damaged; delete it to start this run again"
        raise ParameterError("checkpoint", place, allowed) from error
