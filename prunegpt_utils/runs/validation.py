"""Can the records be trusted? What is wrong with those of a study, and a run made once more."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from prunegpt_utils.errors import ParameterError
from prunegpt_utils.runs import (
    execution,
    expansion,
    parameters,
    paths,
    records,
    schema,
    staleness,
    study_files,
    task_records,
)  # fmt: skip


def validate(study: str) -> Iterator[str]:
    """What is wrong with the records of a study, a line each.

    Looks at the outline, the numbers, the checksum, names and parameters, the sparsity of the
    model where it is still beside the record, at runs that are there twice, and at the task scores
    beside the records. The run's records are read if there are any, else the published ones.
    """
    seen: dict = {}
    folder = paths.records_folder(study)
    for path in sorted(folder.glob("*.json")):
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
    yield from task_records.problems(folder, study)


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
    yield from _measurement_problems(record)
    if record["environment"]["dirty"]:
        yield "was written by code that was not committed"
    model = path.parent.parent / "models" / path.stem
    if model.exists():
        yield from _model_problems(record, model)


def _measurement_problems(record):
    """What was measured twice must agree, and parts must not be more than the whole."""
    found = record.get("fidelity")
    if found and found["reference"] == record["run"]:
        yield "is compared with itself"
    points = [point.get("fidelity") for point in record.get("one_shot_curve") or ()]
    for each in filter(None, [found, *points]):
        shares = each["same_top"] + each["flips_to_wrong"] + each["flips_to_right"]
        if shares > 1 + 1e-9:  # where an answer flips, the top choices differ
            yield f"fidelity: {shares:.4f} is the sum of shares of tokens that exclude one another"
    window = record["protocol"]["block_size"] - 1
    for split, losses in (record.get("nll_by_window") or {}).items():
        scored = record["metrics"].get(split) or {"tokens": 0, "nll": 0.0}
        sizes = [min(window, scored["tokens"] - at) for at in range(0, scored["tokens"], window)]
        total = sum(size * loss for size, loss in zip(sizes, losses, strict=False))
        if not sizes or len(sizes) != len(losses) or abs(total / sum(sizes) - scored["nll"]) > 1e-4:
            yield f"nll_by_window: {split}: its mean is not the nll of the metrics"


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
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.dict(
            os.environ, PRUNEGPT_RUNS=folder, OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads
        ),
    ):
        place = Path(folder, study)
        place.mkdir()
        if own.exists():  # what the run needs is made as this study makes it
            shutil.copy(own, place)
        p = old["parameters"]
        if "reference" in study_files.declared_parameters(old["notebook"]):
            p = {"reference": ""} | p  # records of before there was one name none
        execution.execute(expansion.RunSpec(run, old["notebook"], p), place)
        return old, records.read(place / "records" / f"{run}.json")


def comparison(old: dict, new: dict) -> tuple[bool, list[str]]:
    """Whether two records of one run measured the same bits, and in words what differs."""
    equal, lines = True, []
    for split in old["metrics"]:
        before, now = (float(record["metrics"][split]["nll"]) for record in (old, new))
        equal &= before == now
        lines.append(f"{split:<11} nll {before:.6f} then, {now:.6f} now, {now - before:+.6f}")
    cuts, again = (
        [float(point["validation"]["nll"]) for point in record.get("one_shot_curve") or ()]
        for record in (old, new)
    )
    if cuts:
        equal &= cuts == again
        lines.append(f"{sum(map(float.__eq__, cuts, again))} of {len(cuts)} cuts equal")
    for key, now in new["environment"].items():
        then = old["environment"].get(key, "not recorded")
        lines += [f"{key}: {then} then, {now} now"] * (then != now)
    makers = [record["training"].get("made_by") or {} for record in (old, new)]
    for key in makers[1].keys() & makers[0].keys() - {"run"}:
        then, now = (maker[key] for maker in makers)
        lines += [f"training: {key}: {then} then, {now} now"] * (then != now)
    if changes := staleness.code_changes(old.get("code"), new.get("code")):
        lines.append(f"{changes} since")
    return equal, lines
