"""Put a finished study into the repository: records, figures, and its numbers in the README."""

import re
import shutil
from pathlib import Path

from prunegpt_utils.errors import ParameterError
from prunegpt_utils.files import atomic_path
from prunegpt_utils.report import frames, tables
from prunegpt_utils.runs import expansion, paths, records, staleness, status
from prunegpt_utils.runs.validation import validate


def publish(study: str) -> list[Path]:
    """Put a finished study's records, figures and numbers into the repository; list what changed.

    Raises:
        ParameterError: changes are not committed, runs are missing, or records are not valid.
    """
    if records.environment()["dirty"]:
        raise ParameterError("tree", "dirty", "must be committed before results are published")
    folder = paths.study_folder(study)
    if missing := status.unfinished(study):
        raise ParameterError("study", study, f"is incomplete: {', '.join(missing)}")
    for run, why in staleness.outdated(study).items():
        raise ParameterError("study", study, f"is out of date: {run}: {why}")
    for problem in validate(study):
        raise ParameterError("study", study, f"has records that are not sound: {problem}")
    readme = paths.ROOT / "README.md"
    targets = paths.ROOT / "results" / study, paths.ROOT / "figures" / study
    for source, target in zip(("records", "figures"), targets, strict=True):
        with atomic_path(target) as part:
            shutil.copytree(folder / source, part, ignore=shutil.ignore_patterns("plan.*", ".*"))
    text = with_results(readme.read_text("utf-8"), study)
    with atomic_path(readme) as part:
        part.write_text(text, "utf-8")
    return [*targets, readme]


def with_results(text: str, study: str) -> str:
    """`text` with the published numbers of `study` between its markers."""
    files = sorted((paths.ROOT / "results" / study).glob("*.json"))
    table = frames.frame(list(map(records.read, files)), **expansion.context(study))
    text = between_markers(text, f"answer:{study}", tables.answer(table))
    return between_markers(text, f"table:{study}", tables.markdown(table, f"results/{study}"))


def between_markers(text: str, name: str, content: str) -> str:
    """`text` with `content` between `<!-- name -->` and `<!-- end name -->`, if it has these."""
    begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    inside = f"{begin}\n{content}\n{end}"
    return re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: inside, text, flags=re.S)
