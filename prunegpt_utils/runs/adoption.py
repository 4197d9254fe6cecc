"""Go on from a study's published records on a machine that has not made them."""

import graphlib
import shutil

from prunegpt_utils.errors import ParameterError
from prunegpt_utils.files import atomic_path
from prunegpt_utils.runs import expansion, paths, records, staleness, task_records


def adopt(study: str) -> dict[str, str]:
    """Copy published records, and task scores, to where the study's runs are made.

    Left out are those that would be made again at once (see `staleness.outdated`) or stand on a run
    that is to be made or was made here; and those on which such a run stands, as what it needs is
    their model, which is not published. What was made here stays.

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
    files = {run: (source / f"{run}.json", target / f"{run}.json") for run in plan}
    own = {run for run, pair in files.items() if pair[1].exists() and not _same(*pair)}
    known = {run: record for run, record in published.items() if record and run not in own}
    missing = _to_be_made(plan, known, own)
    for run in missing.keys() - own:  # of an earlier adoption; the published one stays
        files[run][1].unlink(missing_ok=True)
    # what stands on others is written after them: Snakemake goes by the times of files
    needs = {run: spec.depends_on for run, spec in plan.items()}
    for run in graphlib.TopologicalSorter(needs).static_order():
        if run in own or run in missing or run not in plan:
            continue
        scores = task_records.beside(source), task_records.beside(target)
        for old, new in ((source, target), scores):
            if (old / f"{run}.json").exists():
                with atomic_path(new / f"{run}.json") as part:
                    shutil.copyfile(old / f"{run}.json", part)
    return {run: missing[run] for run in plan if run in missing}


def _same(one, other):
    return one.exists() and one.read_bytes() == other.read_bytes()


def _to_be_made(plan, published, own):
    """{run: why} of those that were not made here and will not do as they are published."""
    missing = {run: "" for run in plan if run not in own and run not in published}
    missing |= staleness.outdated_among(plan, published)
    before = -1
    while before != len(missing):  # up and down the links, until nothing is added
        before = len(missing)
        for run, need in ((run, need) for run, spec in plan.items() for need in spec.depends_on):
            if need in missing and run not in own:
                missing.setdefault(run, f"{need} is made anew")
            if need in own and run not in own:
                missing.setdefault(run, f"{need} was made here")
            if run in missing and need not in own:
                missing.setdefault(need, f"{run} needs its model")
    return missing
