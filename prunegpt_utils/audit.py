"""Can the records be trusted? What is wrong with those of a study, and a run made once more."""

import contextlib
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from prunegpt_utils import parameters, records, studies
from prunegpt_utils.parameters import ParameterError

FIELDS = {
    "study": str, "run": str, "recipe": str, "seed": int, "notebook": str, "parameters": dict,
    "environment": dict, "started": str, "seconds": float, "model": dict, "data": dict,
    "sparsity": dict, "metrics": dict, "protocol": dict, "training": dict, "checksum": str,
}  # fmt: skip


def problems(study: str) -> Iterator[str]:
    """What is wrong with the records of a study, a line each.

    Looks at the outline, the numbers, the checksum, names and parameters, the sparsity of the
    model where it still lies beside the record, and at runs that are there twice.

    Args:
        study: name; the run's records are read if there are any, else the published ones.

    Yields:
        str: file and what is wrong with it.
    """
    folder, seen = records.records_folder(study), {}
    for path in sorted(folder.glob("*.json")):
        try:
            record = records.read(path)
        except ValueError as error:
            yield f"{path.name}: is not JSON: {error}"
            continue
        yield from (f"{path.name}: {line}" for line in _wrong(record, path, study))
        key = repr(sorted((record.get("parameters") or {}).items())) if _is(record) else path.name
        if key in seen:
            yield f"{path.name}: has the parameters of {seen[key]}"
        seen[key] = path.name


def _is(record):
    return isinstance(record, dict) and isinstance(record.get("parameters"), dict)


def _wrong(record, path, study):
    if not _is(record):
        yield "is no record"
        return
    for field, kind in FIELDS.items():
        if not isinstance(record.get(field), kind):
            yield f"{field}: {record.get(field)!r} must be a {kind.__name__}"
            return
    if record["checksum"] != records.checksum(record):
        yield "was changed after it was written: its checksum does not fit"
    if record["run"] != path.stem or record["study"] != study:
        yield f"is the record of {record['run']} of {record['study']}"
    for name, value in record["parameters"].items():
        try:
            parameters.check(name, value)
        except ParameterError as error:
            yield str(error)
    yield from (f"{place} is {value!r}" for place, value in _not_finite(record["metrics"]))
    if record["environment"].get("dirty"):
        yield "was written by code that was not committed"
    model = path.parent.parent / "models" / path.stem
    if model.exists():
        yield from _wrong_model(record, model)


def _not_finite(item, place="metrics"):
    """(place, value) of every number that is none; a perplexity may overflow to `inf`."""
    if isinstance(item, dict):
        for key, value in item.items():
            yield from _not_finite(value, f"{place}.{key}")
        return
    overflowed = item == "inf" and place.endswith("perplexity")
    if not overflowed and not (isinstance(item, int | float) and math.isfinite(item)):
        yield place, item


def _wrong_model(record, folder):
    from prunegpt_utils.masks import measure
    from prunegpt_utils.models import load_model

    try:
        found = measure(load_model(folder))["prunable"]
    except ParameterError as error:
        yield str(error)
        return
    if abs(found - record["sparsity"]["prunable"]) > 1e-6:
        said = 100 * record["sparsity"]["prunable"]
        yield f"says {said:.3f} % of zeros; its checkpoint has {100 * found:.3f} %"


def rerun(study: str, run: str) -> tuple[dict, dict]:
    """Make a recorded run once more, and all it stands on, in a folder that is thrown away.

    Args:
        study, run: names; the run's own record is read if there is one, else the published one.

    Returns:
        (old record, new record).

    Raises:
        ParameterError: no such record.
    """
    path = records.records_folder(study) / f"{run}.json"
    old = records.read(path)
    if old is None:
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.json")))
        raise ParameterError("run", run, f"has no record in {study}; there are: {known}")
    own = records.study_folder(study) / "study.yaml"
    threads = str(old["environment"]["threads"])  # sums in another order differ in the last bits
    with (
        tempfile.TemporaryDirectory() as folder,
        _environment(PRUNEGPT_RUNS=folder, OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads),
    ):
        Path(folder, study).mkdir()
        if own.exists():  # what the run stands on is made as this study makes it
            shutil.copy(own, Path(folder, study))
        planned = studies.Planned(run, old["notebook"], old["parameters"], ())
        studies.execute(planned, Path(folder, study))
        return old, records.read(Path(folder, study, "records", f"{run}.json"))


@contextlib.contextmanager
def _environment(**changes):
    """Other environment variables while the block runs, for the kernels that it starts."""
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
