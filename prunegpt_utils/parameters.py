"""The parameters of the notebooks: what each may be, and one-line errors for what it may not."""

import ast
import difflib
import math
import re
from typing import Any


class ParameterError(ValueError):
    """Wrong input: one line that names the parameter, its value and what is allowed."""

    def __init__(self, name, value=None, allowed=None):
        super().__init__(f"{name}: {value!r} {allowed}" if allowed else name)

    def _render_traceback_(self):
        """IPython shows this instead of a traceback: the reader's input is wrong, not the code."""
        return [f"{type(self).__name__}: {self}"]


# name -> (type, test, what is allowed). One table serves every notebook, recipe and study file.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PATTERN = re.compile(r"1:2|[1-3]:4|[1-7]:8")
_SCOPE = re.compile(rf"global|uniform|per-row|{_PATTERN.pattern}")
_SPARSITY = re.compile(r"0|0?\.\d+")
PARAMETERS: dict[str, tuple] = {
    "study": (str, _NAME.fullmatch, "must be letters, digits, '.', '_' or '-'"),
    "recipe": (str, _NAME.fullmatch, "must be letters, digits, '.', '_' or '-'"),
    "model": (str, bool, "must name a model: pydocs-base, a folder or a hub id"),
    "data": (
        str,
        bool,
        "must name a text: pydocs, a file, a folder, or owner/name[:config] on the hub",
    ),
    "start": (str, lambda v: True, "must name a recipe, or be empty for the pretrained model"),
    "teacher": (str, lambda v: True, "must name a recipe or a model, or be empty"),
    "seed": (int, lambda v: v >= 0, "must be a whole number, 0 or more"),
    "steps": (int, lambda v: v >= 0, "must be a whole number, 0 or more"),
    "epochs": (float, lambda v: v >= 0, "must be 0 or more (passes over the training text)"),
    "batch": (int, lambda v: v >= 1, "must be a whole number, 1 or more (windows a step)"),
    "accumulate": (int, lambda v: v >= 1, "must be a whole number, 1 or more (micro-batches)"),
    "block": (int, lambda v: v >= 2, "must be a whole number, 2 or more (tokens a window)"),
    "protocol": (
        str,
        lambda v: v in ("disjoint", "strided", "run_clm", "word-level"),
        "must be disjoint, strided, run_clm or word-level",
    ),
    "stride": (int, lambda v: v >= 1, "must be a whole number from 1 to the block length"),
    "lr": (float, lambda v: 0 < v < 1, "must lie between 0 and 1 (peak learning rate)"),
    "lr_scaling": (
        float,
        lambda v: 0 <= v <= 2,
        "must lie in [0, 2]; 0 for one rate at any sparsity",
    ),
    "warmup": (float, lambda v: 0 <= v < 1, "must lie in [0, 1) (fraction of the steps)"),
    "decay": (str, lambda v: v in ("cosine", "linear"), "must be cosine or linear"),
    "weight_decay": (float, lambda v: 0 <= v < 1, "must lie in [0, 1)"),
    "sparsity": (float, lambda v: 0 <= v < 1, "must lie in [0, 1), such as 0.9 for 90 %"),
    "sparsity_start": (float, lambda v: 0 <= v < 1, "must lie in [0, 1)"),
    "prune_from": (float, lambda v: 0 <= v <= 1, "must lie in [0, 1] (fraction of the steps)"),
    "prune_until": (float, lambda v: 0 <= v <= 1, "must lie in [0, 1] (fraction of the steps)"),
    "one_sparsity": (float, lambda v: 0 <= v < 1, "must lie in [0, 1), such as 0.8 for 80 %"),
    "sparsities": (
        str,
        lambda v: v and all(map(_SPARSITY.fullmatch, v.split())),
        "must list sparsities in [0, 1), separated by spaces, such as 0.5 0.9",
    ),
    "patterns": (
        str,
        lambda v: all(map(_PATTERN.fullmatch, v.split())),
        "must list patterns such as 2:4, separated by spaces, or be empty",
    ),
    "scope": (str, _SCOPE.fullmatch, "must be global, uniform, per-row or a pattern such as 2:4"),
    "criterion": (
        str,
        lambda v: _is_criterion(v),
        "must be magnitude, fisher, first-order, wanda, sparsegpt, random, or one of your own",
    ),
    "alpha": (float, lambda v: 0 <= v <= 1, "must lie in [0, 1] (weight of the teacher)"),
    "divergence": (
        str,
        lambda v: v in ("forward", "reverse", "hidden"),
        "must be forward, reverse or hidden",
    ),
    "neurons_gone": (float, lambda v: 0 <= v < 1, "must lie in [0, 1), such as 0.75 for 75 %"),
    "heads_gone": (float, lambda v: 0 <= v < 1, "must lie in [0, 1), such as 0.5 for half"),
    "importance": (
        str,
        lambda v: v in ("taylor", "magnitude", "random"),
        "must be taylor, magnitude or random",
    ),
    "rounds": (int, lambda v: v >= 0, "must be a whole number, 0 or more (0 for none)"),
    "regrow": (float, lambda v: 0 <= v <= 10, "must lie in [0, 10] (0 for none)"),
    "temperature": (float, lambda v: 0 < v <= 100, "must lie in (0, 100]"),
    "precision": (str, lambda v: v in ("auto", "bf16", "float32"), "must be auto, bf16 or float32"),
    "curve": (str, lambda v: True, "must name the recipe with the one-shot curve, or be empty"),
    "untaught": (str, lambda v: True, "must name the recipe of the same run without teacher"),
    "extra": (str, lambda v: True, "must name a file or folder of text, or be empty"),
    "vocabulary_from": (str, lambda v: True, "must name a folder with a tokenizer, or be empty"),
    "vocabulary": (int, lambda v: v >= 257, "must be a whole number above 256"),
    "layers": (int, lambda v: v >= 1, "must be a whole number, 1 or more"),
    "width": (int, lambda v: v >= 1, "must be a whole number, 1 or more"),
    "heads": (int, lambda v: v >= 1, "must be a whole number, 1 or more"),
    "minutes": (float, lambda v: v >= 0, "must be 0 or more (wall-clock time)"),
    "new_tokens": (int, lambda v: v >= 1, "must be a whole number, 1 or more"),
    "prompt_tokens": (int, lambda v: v >= 8, "must be a whole number, 8 or more (tokens)"),
    "repeats": (int, lambda v: v >= 1, "must be a whole number, 1 or more"),
    "packages": (str, str.split, "must name installed packages, separated by spaces, or be all"),
    "replace_base": (bool, lambda v: True, "must be True or False"),
}


def _is_criterion(value):
    from prunegpt_utils.criteria import CRITERIA

    return value in CRITERIA


def check(name: str, value: Any) -> Any:
    """Return `value` as the parameter's type, or raise `ParameterError`."""
    if name not in PARAMETERS:
        near = difflib.get_close_matches(name, PARAMETERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ParameterError(name, value, f"is not a parameter{hint}")
    kind, allowed, message = PARAMETERS[name]
    if kind is float and type(value) is int:
        value = float(value)
    bad_number = isinstance(value, float) and not math.isfinite(value)
    if type(value) is not kind or bad_number or not allowed(value):
        raise ParameterError(name, value, message)
    return value


def from_text(name: str, text: str) -> Any:
    """The value of parameter `name` that a command line writes as `text`; see `check`."""
    kind = PARAMETERS[name][0] if name in PARAMETERS else str
    try:
        value = text == "True" if kind is bool and text in ("True", "False") else kind(text)
    except ValueError:
        value = text
    return check(name, value)


def read(namespace: dict) -> dict:
    """The checked parameters of a running notebook.

    papermill accepts a misspelt parameter with a mere warning and writes it into a cell of its
    own, which the user would never notice. That cell is therefore compared with the tagged one.

    Args:
        namespace: `globals()` of the notebook, whose parameters cell begins with `study`. Other
            variables may have names that other notebooks' parameters have.

    Returns:
        {name: value} in the order of that cell.

    Raises:
        ParameterError: for an unknown name, a wrong type or a value out of range.
    """
    cells = namespace.get("In", [])
    first = next((cell for cell in cells if cell.startswith("study: ")), None)
    declared = assigned(first) if first else list(PARAMETERS)
    injected = next((cell for cell in cells if cell.startswith("# Parameters")), "")
    for name in assigned(injected):
        if name not in declared:
            near = difflib.get_close_matches(name, declared, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            known = f"is no parameter of this notebook; {hint}It has: {', '.join(declared)}"
            raise ParameterError(name, namespace[name], known)
    return {name: check(name, namespace[name]) for name in declared if name in namespace}


def assigned(source: str) -> list[str]:
    """Names that the top level of `source` assigns, in order."""
    targets: list = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            targets += node.targets
        elif isinstance(node, ast.AnnAssign):
            targets.append(node.target)
    return [target.id for target in targets]
