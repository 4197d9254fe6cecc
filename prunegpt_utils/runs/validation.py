"""Can the records be trusted? What is wrong with those of a study, and a run made once more."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from prunegpt_utils.errors import ParameterError
from prunegpt_utils.runs import execution, expansion, parameters, paths, records, schema


def validate(study: str) -> Iterator[str]:
    """What is wrong with the records of a study, a line each.

    Looks at the outline, the numbers, the checksum, names and parameters, the sparsity of the
    model where it is still beside the record, and at runs that are there twice. The run's records
    are read if there are any, else the published ones.
    """
    seen: dict = {}
    for path in sorted(paths.records_folder(study).glob("*.json")):
        try:
            record = records.load(path)
        except ValueError as error:
            yield f"{path.name}: is not JSON: {error}"
            continue
        outline = list(schema.problems(record))
        yield from (f"{path.name}: {line}" for line in outline or _problems(record, path, study))
        key = path.name if outline else repr(sorted(record["parameters"].items()))
        if key in seen:
            yield f"{path.name}: has the parameters of {seen[key]}"
        seen[key] = path.name


def _problems(record, path, study):
    if record["checksum"] != records.checksum(record):
        yield "was changed after it was written: its checksum does not fit"
    if record["run"] != path.stem or record["study"] != study:
        yield f"is the record of {record['run']} of {record['study']}"
    for name, value in record["parameters"].items():
        try:
            parameters.check(name, value)
        except ParameterError as error:
            yield str(error)
    if record["environment"]["dirty"]:
        yield "was written by code that was not committed"
    model = path.parent.parent / "models" / path.stem
    if model.exists():
        yield from _model_problems(record, model)


def _model_problems(record, folder):
    from prunegpt_utils.masks import measure_sparsity
    from prunegpt_utils.modeling import load_model

    try:
        found = measure_sparsity(load_model(folder))["prunable"]
    except ParameterError as error:
        yield str(error)
        return
    recorded = record["sparsity"]["prunable"]
    if abs(found - recorded) > 1e-6:
        yield f"says {100 * recorded:.3f} % of zeros; its checkpoint has {100 * found:.3f} %"


def rerun(study: str, run: str) -> tuple[dict, dict]:
    """Make a recorded run once more, and all that it needs, in a folder that is thrown away.

    It is (old record, new record); the old one is the published one if there is no other.

    Raises:
        ParameterError: no such record.
    """
    path = paths.records_folder(study) / f"{run}.json"
    old = records.read(path)
    if old is None:
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.json")))
        raise ParameterError("run", run, f"has no record in {study}; there are: {known}")
    own = paths.study_folder(study) / "study.yaml"
    threads = str(old["environment"]["threads"])  # sums in another order differ in the last bits
    with tempfile.TemporaryDirectory() as folder, _environment(folder, threads):
        place = Path(folder, study)
        place.mkdir()
        if own.exists():  # what the run needs is made as this study makes it
            shutil.copy(own, place)
        execution.execute(expansion.RunSpec(run, old["notebook"], old["parameters"]), place)
        return old, records.read(place / "records" / f"{run}.json")


@contextlib.contextmanager
def _environment(folder, threads):
    """While the block runs, the kernels that it starts write to `folder` and use such threads."""
    before = dict(os.environ)
    os.environ.update(PRUNEGPT_RUNS=folder, OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
