"""The parameters of the notebooks: what each may be, and one-line errors for what it may not."""

import ast
import difflib
import math
import re
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from prunegpt_utils.errors import ParameterError
from prunegpt_utils.files import expand_home
from prunegpt_utils.protocols import PROTOCOLS
from prunegpt_utils.schedules import LR_SCHEDULES

_CRITERIA = ("magnitude", "fisher", "first-order", "wanda", "sparsegpt", "random")
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,159}$"  # file systems allow 255, with what is added
_PATTERN = r"(1:2|[1-3]:4|[1-7]:8)"
_PATTERNS = rf"^\s*({_PATTERN}(\s+{_PATTERN})*)?\s*$"
_TEXTS = r"^\s*(\w[\w.-]*(/\w[\w.-]*)?(:\w[\w.-]*)?(\s+|$))*$"
_TASK = r"(blimp|lambada|wikitext|(capitals|elements)(_chosen|_produced)?)"
_TASKS = rf"^\s*({_TASK}(\s+{_TASK})*)?\s*$"
_SPARSITIES = r"^\s*(0|0?\.\d+)(\s+(0|0?\.\d+))*\s*$"


def _known_criterion(value):
    if value not in _CRITERIA:
        from prunegpt_utils.criteria import CRITERIA  # imports torch and the reader's own criteria

        if value not in CRITERIA:
            raise ValueError(value)
    return value


_Criterion = Annotated[str, AfterValidator(_known_criterion)]


def _text(allowed, pattern=None, least=None):
    return Field(description=allowed, pattern=pattern, min_length=least)


def _whole(least, note=""):
    return Field(ge=least, description=f"must be a whole number, {least} or more{note}")


def _share(note=""):
    return Field(ge=0, lt=1, description=f"must lie in [0, 1){note}")


def _up_to(most, note=""):
    return Field(ge=0, le=most, description=f"must lie in [0, {most}]{note}")


def _one_of(*names):
    listed = f"{', '.join(names[:-1])} or {names[-1]}"
    return Field(pattern=f"^({'|'.join(names)})$", description=f"must be {listed}")


class Parameters(BaseModel):
    """What every parameter of every notebook, recipe and study file may be, in one table."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    study: str = _text("must be letters, digits, '.', '_' or '-', at most 160", _NAME)
    trained_study: str = _text("must be letters, digits, '.', '_' or '-', at most 160", _NAME)
    dense_study: str = _text("must be letters, digits, '.', '_' or '-', at most 160", _NAME)
    recipe: str = _text("must be letters, digits, '.', '_' or '-', at most 160", _NAME)
    model: str = _text(
        "must name a model: pydocs-base, smollm2-135m, a folder or a hub id", least=1
    )
    data: str = _text(
        "must name a text: pydocs, a file, a folder, or owner/name[:config] on the hub", least=1
    )
    also_score: str = _text(
        "must list texts as pydocs or owner/name[:config], separated by spaces, or be empty; a "
        "copy on this machine is found by its name in the folder PRUNEGPT_TEXTS",
        _TEXTS,
    )
    also_block_size: int = _whole(2, " (tokens a window)")
    also_tokens: int = _whole(0, " (of each text; 0 for all)")
    tasks: str = _text(
        "must list tasks, separated by spaces, or be empty: blimp, lambada, capitals, elements, "
        "wikitext",
        _TASKS,
    )
    task_samples: int = _whole(0, " (pairs of each paradigm of BLiMP; 0 for all)")
    init_from: str = _text("must name a recipe, or be empty for the pretrained model")
    mask_from: str = _text("must name the recipe of a sparse run, or be empty")
    teacher: str = _text("must name a recipe or a model, or be empty")
    baseline: str = _text("must name the recipe of the same run without teacher")
    one_shot_run: str = _text("must name the recipe with the one-shot curve, or be empty")
    reference: str = _text("must name a run, such as control or control-seed0, or be empty")
    seed: int = Field(ge=0, lt=2**31, description="must be a whole number, 0 or more, below 2**31")
    steps: int = _whole(0)
    epochs: float = Field(ge=0, description="must be 0 or more (passes over the training text)")
    batch: int = _whole(1, " (windows a step)")
    gradient_accumulation_steps: int = _whole(1, " (micro-batches)")
    block_size: int = _whole(2, " (tokens a window)")
    protocol: str = _one_of(*PROTOCOLS)
    stride: int = Field(ge=1, description="must be a whole number from 1 to the block length")
    lr: float = Field(gt=0, lt=1, description="must lie between 0 and 1 (peak learning rate)")
    lr_scaling: float = _up_to(2, "; 0 for one rate at any sparsity")
    lr_schedule: str = _one_of(*LR_SCHEDULES)
    warmup: float = _share(" (fraction of the steps)")
    weight_decay: float = _share()
    sparsity: float = _share(", such as 0.9 for 90 %")
    sparsity_start: float = _share()
    layer_sparsity: float = _share(", such as 0.8 for 80 %")
    neuron_sparsity: float = _share(", such as 0.75 for 75 %")
    head_sparsity: float = _share(", such as 0.5 for half")
    block_sparsity: float = _share(", such as 0.5 for every second block")
    prune_from: float = _up_to(1, " (fraction of the steps)")
    prune_until: float = _up_to(1, " (fraction of the steps)")
    sparsities: str = _text(
        "must list sparsities in [0, 1), separated by spaces, such as 0.5 0.9", _SPARSITIES
    )
    patterns: str = _text(
        "must list patterns such as 2:4, separated by spaces, or be empty", _PATTERNS
    )
    scope: str = _text(
        "must be global, uniform, per-row or a pattern such as 2:4",
        rf"^(global|uniform|per-row|{_PATTERN})$",
    )
    criterion: _Criterion = _text(f"must be {', '.join(_CRITERIA)}, or one of your own")
    importance: str = _one_of("taylor", "magnitude", "random")
    rounds: int = _whole(0, " (0 for none)")
    regrow_decay: float = _up_to(10, " (0 for none)")
    alpha: float = _up_to(1, " (weight of the teacher)")
    temperature: float = Field(gt=0, le=100, description="must lie in (0, 100]")
    kd_loss: str = _one_of("forward_kl", "reverse_kl", "hidden_mse")
    precision: str = _one_of("auto", "bf16", "float32")
    extra: str = _text("must name a file or folder of text, or be empty")
    vocabulary_from: str = _text(
        "must name pydocs-base or a folder with a tokenizer, or be empty for a new one"
    )
    vocabulary: int = Field(ge=257, description="must be a whole number above 256")
    layers: int = _whole(1)
    width: int = _whole(1)
    heads: int = _whole(1)
    minutes: float = Field(ge=0, description="must be 0 or more (wall-clock time)")
    new_tokens: int = _whole(1)
    prompt_tokens: int = _whole(8, " (tokens)")
    repeats: int = _whole(1)
    packages: str = _text("must name installed packages, separated by spaces, or be all", r"\S")
    replace_base: bool = _text("must be True or False")


PARAMETERS = tuple(Parameters.model_fields)
_PATHS = ("model", "data", "teacher", "init_from", "extra", "vocabulary_from")  # may name a folder
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
RENAMED = {  # what study files, recipes and commands of the first release may still say
    "untaught": "baseline", "curve": "one_shot_run", "start": "init_from", "block": "block_size",
    "accumulate": "gradient_accumulation_steps", "decay": "lr_schedule", "divergence": "kd_loss",
    "regrow": "regrow_decay", "one_sparsity": "layer_sparsity",
    "neurons_gone": "neuron_sparsity", "heads_gone": "head_sparsity",
}  # fmt: skip


def check(name: str, value: Any) -> Any:
    """Return `value` as the parameter's type, or raise `ParameterError`."""
    if name not in PARAMETERS:
        raise ParameterError(name, value, unknown(name, PARAMETERS, "is not a parameter"))
    wanted = Parameters.model_fields[name]
    if wanted.annotation is float and type(value) is int:
        value = float(value) if abs(value) < 1e308 else math.inf
    try:
        validator = Parameters.__pydantic_validator__
        checked = validator.validate_assignment(Parameters.model_construct(), name, value)
    except ValidationError as error:
        cause = error.errors()[0].get("ctx", {}).get("error")
        if isinstance(cause, ParameterError):  # the reader's own criteria do not load
            raise cause from None
        raise ParameterError(name, value, wanted.description) from error
    return getattr(checked, name)


def as_meant(name: str, value: Any) -> Any:
    """A parameter's value as the reader meant it, of what YAML 1.1 or papermill made of it.

    `1e-3` is a text for YAML 1.1, and `2:4` is 124, a number in base 60; papermill takes a study
    called 2024 for a number. `~` is the home folder. What is none of these stays as it is, for
    `check` to judge.
    """
    kind = Parameters.model_fields[name].annotation if name in PARAMETERS else None
    if kind in (int, float) and isinstance(value, str) and _EXPONENT.fullmatch(value):
        value = float(value)
    if kind is int and isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if kind not in (int, float, bool, None) and type(value) is int and value >= 0:
        base_60 = name in ("scope", "patterns") and value >= 60
        return f"{value // 60}:{value % 60}" if base_60 else str(value)
    if name == "sparsities" and isinstance(value, float):
        return str(value)
    is_home = name in _PATHS and isinstance(value, str) and value.startswith("~")
    return str(expand_home(value)) if is_home else value


def unknown(name: str, known: Iterable[str], complaint: str) -> str:
    """Why `name` is refused: it is called something else now, or it is none of the known ones."""
    if name in RENAMED:
        values = f", and {Parameters.model_fields['kd_loss'].description}"
        return f"is called {RENAMED[name]} now" + (values if name == "divergence" else "")
    return complaint + hint(name, known)


def hint(name: str, known: Iterable[str]) -> str:
    """The nearest of the known names, as the end of an error; '' if none is near."""
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def from_text(name: str, text: str) -> Any:
    """The value of parameter `name` that a command line writes as `text`; see `check`."""
    kind = Parameters.model_fields[name].annotation if name in PARAMETERS else str
    try:
        value = text == "True" if kind is bool and text in ("True", "False") else kind(text)
    except ValueError:
        value = text
    return check(name, as_meant(name, value))


def read(namespace: dict) -> dict:
    """The checked parameters of a running notebook.

    papermill accepts a misspelt parameter with a mere warning and writes it into a cell of its
    own, which the user would never notice. That cell is therefore compared with the tagged one.

    Args:
        namespace: `globals()` of the notebook, whose parameters cell begins with `study`; each
            value is replaced by what was meant by it, see `as_meant`. Other variables may have
            names that other notebooks' parameters have.

    Raises:
        ParameterError: an unknown name, a wrong type or a value out of range.
    """
    cells = namespace.get("In", [])
    first = next((cell for cell in cells if cell.startswith("study: ")), None)
    declared = list(assigned(first)) if first else list(PARAMETERS)
    for name in assigned(next((cell for cell in cells if cell.startswith("# Parameters")), "")):
        if name not in declared:
            allowed = unknown(name, declared, "is no parameter of this notebook")
            has = "" if name in RENAMED else f" (it has {', '.join(declared)})"
            raise ParameterError(name, namespace[name], allowed + has)
    for name in set(declared) & set(namespace):
        namespace[name] = as_meant(name, namespace[name])
    return {name: check(name, namespace[name]) for name in declared if name in namespace}


def assigned(source: str) -> dict[str, Any]:
    """What the top level of `source` assigns, in order; None for what is no constant."""
    found: dict = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            value = node.value.value if isinstance(node.value, ast.Constant) else None
            found |= {target.id: value for target in targets if isinstance(target, ast.Name)}
    return found
