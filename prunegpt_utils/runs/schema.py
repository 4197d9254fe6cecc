"""What a record holds: schema 2, checked when a record is written and when it is read."""

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WrapValidator

SCHEMA = 2
# A perplexity may overflow, and JSON has no infinity.
_OrInf = WrapValidator(lambda value, check: value if value == "inf" else check(value))
Perplexity = Annotated[float, _OrInf]
_Share = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    """A part of a record: known fields only, numbers finite, nothing converted."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Metrics(_Part):
    """How well a model predicts a text, see `evaluation.metrics`."""

    nll: float
    tokens: int
    words: int
    bytes: int
    perplexity: Perplexity
    word_perplexity: Perplexity
    bits_per_byte: float
    byte_perplexity: Perplexity | None = None


class _Accuracy(_Part):  # of the items of one group
    metrics: dict[str, float]
    samples: int


class TaskScores(_Part):
    """What a model did on one task, see `tasks.scoring.score_tasks`."""

    metrics: dict[str, Perplexity]
    samples: int
    sha256: str
    chance: float | None = None
    correct: str | None = None
    by: dict[str, _Accuracy] | None = None


class _Interval(_Part):  # a difference in nats a token, and its 95 %
    mean: float
    low: float
    high: float


class Fidelity(_Part):
    """How much of a dense model is left, see `fidelity.compare`."""

    tokens: Annotated[int, Field(ge=1)]
    kl: Annotated[float, Field(ge=-1e-6)]  # below zero by rounding alone
    same_top: _Share
    flips_to_wrong: _Share
    flips_to_right: _Share
    ece: _Share
    reference_ece: _Share


class _RunFidelity(Fidelity):
    reference: str  # name of the run that it is compared with


class _Point(_Part):  # one cut without retraining
    sparsity: float
    scope: str
    criterion: str
    validation: Metrics
    also: dict[str, Metrics] | None = None  # of other texts, by their names
    fidelity: Fidelity | None = None  # to the model before the cut
    tasks: dict[str, TaskScores] | None = None


class _OtherText(_Part):  # a text of the parameter `also_score`
    sha256: str
    revision: str | None = None
    metrics: Metrics


class _Model(_Part):
    name: str
    revision: str | None = None
    origin: dict[str, str] | None = None  # of weights that were converted: what from, which files
    parameters: int
    prunable: int


class _Data(_Part):
    name: str
    revision: str | None = None
    sha256: str
    train_tokens: int


class _Sparsity(_Part):  # as asked for, then as counted on the saved model
    requested: float
    prunable: float
    model: float


class _Protocol(_Part):  # see `protocols.describe_protocol`
    name: str
    block_size: int
    stride: int
    joiner: str


class _Maker(_Part):  # of a training, which other runs with an equal one are given as well
    run: str  # study/run
    torch: str
    device: str
    processor: str


class _Training(_Part):
    steps: int
    tokens: int
    seconds: float
    best_step: int | None = None
    peak_lr: float | None = None  # that the optimizer saw, see `config.peak_lr`
    flops: dict[str, int] | None = None  # of the student, and of the teacher as it read for it
    history: list[dict] | None = None
    made_by: _Maker | None = None


class _Environment(BaseModel):  # and the versions of packages
    model_config = ConfigDict(strict=True, extra="allow")

    commit: str | None
    dirty: bool
    python: str
    device: str
    threads: int
    processes: int


class Record(_Part):
    """What one executed notebook measured, and all that made it what it is."""

    version: Literal[2] = Field(alias="schema")
    study: str
    run: str
    recipe: str
    base_recipe: str
    axes: dict
    seed: int
    notebook: str
    parameters: dict
    environment: _Environment
    started: str
    seconds: float
    model: _Model
    data: _Data
    sparsity: _Sparsity
    metrics: dict[str, Metrics]
    protocol: _Protocol
    training: _Training
    checksum: str
    code: dict[str, str] | None = None  # {module: hash}, see `study_files.code_of`
    migrated_from: str | None = None
    sample: dict | None = None
    sparsity_by_matrix: dict[str, float] | None = None
    also_scored: dict[str, _OtherText] | None = None  # those that were to be had
    fidelity: _RunFidelity | None = None  # 01, 02, 03 and 09, on the validation text
    nll_by_window: dict[str, list[float]] | None = None  # by split, `block_size` - 1 tokens each
    one_shot_curve: list[_Point] | None = None  # notebooks 02, 06 and 13
    tasks: dict[str, TaskScores] | None = None  # 13, of the model before the cut
    nll_gain_over_baseline: _Interval | None = None  # 03
    nll_gap_to_teacher: _Interval | None = None
    calibration: dict | None = None  # 06 and 12
    nll_gaps: list[dict] | None = None  # 06
    sensitivity: dict[str, float] | None = None
    removed_share: float | None = None  # 09 and 14
    one_shot: dict[str, Metrics] | None = None
    bytes: dict[str, int] | None = None  # 04
    bits: list[dict[str, float]] | None = None
    seconds_by_share: list[dict] | None = None
    seconds_of_products: list[dict] | None = None
    seconds_on_gpu: list[dict] | None = None
    memory_share: dict[str, float] | None = None


class TaskRecord(_Part):
    """What a model did on tasks, and all that made it what it is."""

    version: Literal[1] = Field(alias="task_schema")
    study: str  # empty of a model that is of no study
    run: str
    weights: str  # sha256, see `modeling.fingerprint`
    record: str | None  # checksum of the run's record
    samples: int
    seed: int
    batch: int
    tasks: dict[str, TaskScores]
    environment: _Environment
    code: dict[str, str]
    started: str
    seconds: float
    checksum: str


_KINDS = {"model": "dict", "string": "str", "finite": "float"}


def problems(record: Any) -> Iterator[str]:
    """What keeps a value read from JSON from being a record, a line each."""
    if not isinstance(record, dict) or not isinstance(record.get("parameters"), dict):
        yield "is no record"
    elif record.get("schema") != SCHEMA:
        advice = "make the run again, under another study name"
        yield f"has schema {record.get('schema', 1)!r}, which this version does not read; {advice}"
    else:
        yield from _differences(Record, record)


def task_problems(record: Any) -> Iterator[str]:
    """What keeps a value read from JSON from being a record of task scores, a line each."""
    if not isinstance(record, dict):
        yield "is no record of task scores"
    else:
        yield from _differences(TaskRecord, record)


def _differences(outline, record):
    required = [f.alias or name for name, f in outline.model_fields.items() if f.is_required()]
    try:
        outline.model_validate_json(json.dumps({**dict.fromkeys(required), **record}))
    except ValidationError as error:
        yield from map(_line, error.errors())
    except RecursionError:
        yield "is nested too deeply"


def _line(error):
    if not error["loc"]:  # pydantic does not read it as JSON
        return f"does not read: {error['msg']}"
    place, kind = ".".join(map(str, error["loc"])), error["type"].split("_")[0]
    if error["type"] == "extra_forbidden":
        return f"{place} is no part of a record"
    if error["type"] == "missing":
        return f"{place} is missing"
    shown = repr(error["input"])[:200]
    if len(error["loc"]) == 1:
        return f"{place}: {shown} must be a {_KINDS.get(kind, kind)}"
    return f"{place} is {shown}"
