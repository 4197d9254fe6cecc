"""Go on from a study's published records on a machine that has not made them."""

import graphlib
import shutil

from prunegpt_utils.errors import ParameterError
from prunegpt_utils.files import atomic_path
from prunegpt_utils.runs import expansion, paths, records, staleness, task_records


def adopt(study: str) -> dict[str, str]:
    """Copy published records, and task scores, to where the study's runs are made.

    Left out are those that would be made again at once, because their code or parameters changed or
    because they stand on a run that is to be made or was made here; and those on which such a run
    stands, as what it needs is their model, which is not published. What is there already stays.

    Returns:
        {run: why it is to be made}, in the order of the plan; '' of one that is not published.

    Raises:
        ParameterError: the study has no published records.
    """
    plan = expansion.plan(study)
    source, target = paths.ROOT / "results" / study, paths.study_folder(study) / "records"
    published = {run: records.read(source / f"{run}.json") for run in plan}
    if not any(published.values()):
        raise ParameterError("study", study, "has no published records to go on from")
    there = {run for run in plan if (target / f"{run}.json").exists()}
    own = {run for run in there if not _same(source / f"{run}.json", target / f"{run}.json")}
    known = {run: record for run, record in published.items() if record}
    missing = _to_be_made(plan, known, there, own)
    # what stands on others is written after them: Snakemake goes by the times of files
    needs = {run: spec.depends_on for run, spec in plan.items()}
    for run in graphlib.TopologicalSorter(needs).static_order():
        if run in there or run in missing or run not in plan:
            continue
        scores = task_records.beside(source), task_records.beside(target)
        for old, new in ((source, target), scores):
            if (old / f"{run}.json").exists():
                with atomic_path(new / f"{run}.json") as part:
                    shutil.copyfile(old / f"{run}.json", part)
    return {run: missing[run] for run in plan if run in missing}


def _same(one, other):
    return one.exists() and one.read_bytes() == other.read_bytes()


def _to_be_made(plan, published, there, own):
    """{run: why} of those that are neither there nor will do as they are published.

    Of those that are there, `own` are not the published ones.
    """
    missing = {run: "" for run in plan if run not in there and run not in published}
    for run in published.keys() - there:
        if why := next(staleness.changes(published[run], plan[run]), None):
            missing[run] = why
    before = -1
    while before != len(missing):  # up and down the links, until nothing is added
        before = len(missing)
        for run, spec in plan.items():
            for need in spec.depends_on:
                if need in missing and run not in there:
                    missing.setdefault(run, f"{need} is made anew")
                if need in own and run not in there:
                    missing.setdefault(run, f"{need} was made here")
                if run in missing and need not in there:
                    missing.setdefault(need, f"{run} needs its model")
    return missing
