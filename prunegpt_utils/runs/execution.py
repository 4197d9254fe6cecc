"""Make a run: its notebook in a kernel of its own; and find the runs that others need."""

from pathlib import Path

from prunegpt_utils import corpora, hub
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.runs import expansion, paths, records, staleness, status, study_files


def require(ref: str, p: dict) -> dict | None:
    """Record of the run that parameter `ref` names; a notebook makes it if it is not there yet.

    `ref` is one of `expansion.RUN_REFS`, `p` are the checked parameters of the run that asks. None
    if the parameter names no run. The run's model is models/<run> in the study's folder.

    Raises:
        ParameterError: the run was made with another model, text, block size or protocol, or it is
            the one that asks. The model of a teacher or a reference may be another one, if its
            tokens are the same.
    """
    if study_files.exists(p["study"]):
        content = study_files.load(p["study"])
    else:  # a study of the reader's own: made like the default one
        content = study_files.load("pydocs") | {"study": p["study"]}
        shared = (*expansion.SHARED, "batch", "gradient_accumulation_steps")
        content["parameters"] = {key: p[key] for key in shared if key in p}
    spec = expansion.resolver(content)(ref, p)
    if spec is None:
        return None
    if spec.name == expansion.run_name(p):
        raise ParameterError(ref, p[ref], "is this run; it must name another")
    folder = paths.study_folder(p["study"])
    path = folder / "records" / f"{spec.name}.json"
    if not path.exists():
        execute(spec, folder)
    record = records.read(path)
    _check_shared(ref, p, record)
    if changes := staleness.code_changes(record.get("code"), study_files.code_of(spec.notebook)):
        print(f"{spec.name} is out of date: {changes} since; `make study` makes it again")
    return record


def _check_shared(ref, p, record):
    """Raise unless a run, and the one that it names, agree in what they must."""
    for key in expansion.SHARED:
        theirs, ours = record["parameters"].get(key), p.get(key)
        if ours == theirs or None in (ours, theirs):
            continue
        if ref in ("teacher", "reference") and key == "model":  # in the same vocabulary
            from prunegpt_utils.modeling import check_same_tokens

            check_same_tokens(model_of(key, p), model_of(key, record["parameters"]), p[ref], ref)
        else:
            allowed = f"differs from {theirs!r} of {record['run']}, which this run needs"
            raise ParameterError(key, ours, f"{allowed}; choose another study name")


def record_of(ref: str, p: dict, part: str = "metrics") -> dict:
    """As `require`, of a parameter that must name a run, whose record must hold a `part`.

    Raises:
        ParameterError: as for `require`; or it names no run, or one without this part.
    """
    record = require(ref, p)
    if record is None:
        raise ParameterError(ref, p[ref], "names no recipe that this study makes")
    if not record.get(part):
        raise ParameterError(ref, p[ref], f"names {record['run']}, whose record has no {part}")
    return record


def model_of(ref: str, p: dict) -> str | Path:
    """The model that a parameter names, or `model` if it is empty: a folder, or a name to load."""
    ref = ref if p[ref] else "model"
    record = require(ref, p)
    folder = paths.study_folder(p["study"]) / "models" / record["run"] if record else None
    if folder and not folder.exists():
        allowed = f"names {record['run']}, of which only the record is here; `make adopt` once more"
        raise ParameterError(ref, p[ref], f"{allowed} sees to it that the model is made")
    return folder or p[ref]


def download(study: str) -> None:
    """Get all models and texts of the hub that the runs still to be made read, before any of them.

    So they can be made where there is no network, and what cannot be had is said at once.

    Raises:
        ParameterError: a model or text that is not to be had.
    """
    resolve, planned = expansion.resolver(study_files.load(study)), expansion.plan(study)
    todo = status.unfinished(study) | staleness.outdated(study)
    for p in [planned[name].parameters for name in todo]:
        for ref in ("model", "init_from", "teacher"):
            if p.get(ref) and resolve(ref, p) is None:
                hub.locate(p[ref], ref)
        corpora.download(p.get("data", ""))


def execute(spec: expansion.RunSpec, folder: Path) -> None:
    """Run a notebook in a kernel of its own, exactly as a study would."""
    import papermill

    from prunegpt_utils.distributed import processes

    if processes().num_processes > 1:
        allowed = "must be there before a run on several processes that needs it"
        raise ParameterError("run", spec.name, allowed)
    print(f"{spec.name} is not there yet; {spec.notebook} makes it, once")
    target = folder / "notebooks" / f"{spec.name}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    ends = map(paths.as_template, (study_files.path_of(spec.notebook), target))
    try:
        papermill.execute_notebook(
            *ends, spec.parameters, kernel_name="python3", progress_bar=False,
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
        )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        if error.ename == "ParameterError":
            raise ParameterError(error.evalue) from error
        raise ParameterError(f"{spec.name} failed: {error.ename}: {error.evalue}") from error
    except RuntimeError as error:  # of nbclient, whose kernel was killed
        raise ParameterError(f"{spec.name} failed: {error}") from error
