"""Put a finished study into the repository: records, figures, a page, numbers of the README."""

import re
import shutil
from pathlib import Path

from prunegpt_utils.errors import ParameterError
from prunegpt_utils.files import atomic_path
from prunegpt_utils.report import controls, forgetting, frames, tables
from prunegpt_utils.runs import (
    expansion,
    paths,
    records,
    staleness,
    status,
    study_files,
    task_records,
)  # fmt: skip
from prunegpt_utils.runs.validation import validate


def publish(study: str) -> list[Path]:
    """Put a finished study's records, figures and numbers into the repository; list what changed.

    Raises:
        ParameterError: changes are not committed, runs are missing, records are not valid or not
            planned, figures are older than records, or published task scores would be lost.
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
    _check_complete(study, folder)
    readme = paths.ROOT / "README.md"
    with_results(readme.read_text("utf-8"))  # what is wrong with another study is told now
    targets = _results(study), paths.ROOT / "figures" / study
    for source, target in zip(("records", "figures"), targets, strict=True):
        with atomic_path(target) as part:
            ignore = shutil.ignore_patterns("plan.*", ".*")
            shutil.copytree(folder / source, part, ignore=ignore)
            if source == "records" and (scores := task_records.beside(folder / source)).is_dir():
                shutil.copytree(scores, part / scores.name, ignore=ignore)
    page = targets[0] / "README.md"
    pages = {page: study_page(study), readme: with_results(readme.read_text("utf-8"))}
    for path, text in pages.items():
        with atomic_path(path) as part:
            part.write_text(text, "utf-8")
    return [*targets, page, readme]


def _check_complete(study, folder):
    """Raise if what would be published is more than the study, or less than it was."""
    found = sorted((folder / "records").glob("*.json"))
    if strange := {path.stem for path in found} - expansion.plan(study).keys():
        named = ", ".join(sorted(strange))
        raise ParameterError("study", study, f"has records that it does not plan: {named}")
    drawn = folder / "figures" / ".drawn"
    newest = max(path.stat().st_mtime for path in found)
    if not drawn.exists() or drawn.stat().st_mtime < newest:
        advice = f"has figures older than its records; `make study STUDY={study}` draws them"
        raise ParameterError("study", study, advice)
    scores = (task_records.beside(place) for place in (folder / "records", _results(study)))
    ours, published = ({path.stem for path in place.glob("*.json")} for place in scores)
    if lost := published - ours:
        advice = f"has no task scores of {', '.join(sorted(lost))}, which are published"
        raise ParameterError("study", study, f"{advice}; `make tasks STUDY={study}` makes them")


def _results(study):
    return paths.ROOT / "results" / study


def study_page(study: str) -> str:
    """What who opens the folder of a study sees: what it asks, its answer, figures and table."""
    found, table = _published(study)
    file = paths.ROOT / "studies" / f"{study}.yaml"
    comment = re.match("(#.*\n)*", file.read_text("utf-8"))[0] if file.exists() else ""
    book = study_files.results_notebook(study)
    figures = sorted((paths.ROOT / "figures" / study).glob("*.png"))
    figures.sort(key=lambda path: path.stem != "perplexity")  # the answer's first
    missing = (expansion.plan(study) if comment else {}).keys() - {each["run"] for each in found}
    parts = [
        f"# {study}",
        re.sub("^# ?", "", comment, flags=re.M).strip(),
        f"`make study STUDY={study}` makes it again. The pictures and tables are explained in "
        f"[{book}](../../notebooks/{book}.ipynb); back to the [README](../../README.md).",
        f"Not published yet: {', '.join(sorted(missing))}." if missing else "",
        controls.answer(study, found, table),
        *(f"![{path.stem}](../../figures/{study}/{path.name})" for path in figures),
        tables.markdown(table, ".", ["training", "texts"]) if len(table) else _list(found),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _published(study):
    found = records.published(study)
    return found, frames.frame(found, **expansion.context(study, _results(study)))


def _list(found):
    """Links to records of models that were cut and not trained, which have no row in a table."""
    return "\n".join(f"- [{record['run']}](./{record['run']}.json)" for record in found)


def with_results(text: str) -> str:
    """`text` with the numbers of published studies between its markers.

    `<!-- answer:pydocs -->` is what `tables.answer` says of the study, `verdict` one sentence of
    it, and `short` the small table.
    """
    for part, study in re.findall("<!-- (answer|verdict|short):(\\S+) -->", text):
        found, table = _published(study)
        answering = controls.answering(study, found, table)
        if part == "short":
            content = tables.short(answering)
        elif part == "verdict":
            content = tables.verdict(answering) or forgetting.verdict(found)
        else:
            content = controls.answer(study, found, table)
        text = between_markers(text, f"{part}:{study}", content)
    return text


def between_markers(text: str, name: str, content: str) -> str:
    """`text` with `content` between its `<!-- name -->` and `<!-- end name -->`, one of each."""
    begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    if (text.count(begin), text.count(end)) != (1, 1):
        raise ParameterError("page", name, f"must have one {begin} and one {end}")
    inside = f"{begin}\n{content}\n{end}"
    return re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: inside, text, flags=re.S)
