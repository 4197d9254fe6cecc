"""The report of a study: an index, and a page for each record and notebook."""

import contextlib
import json
import shutil
from pathlib import Path

from prunegpt_utils.errors import ParameterError
from prunegpt_utils.files import atomic_path
from prunegpt_utils.report import controls, frames, parts
from prunegpt_utils.report.pages import FOLDER, notebook_html, render
from prunegpt_utils.runs import paths, records
from prunegpt_utils.runs.expansion import context


def build(study: str) -> Path:
    """Write the report of a study in one step, and the list of studies; return its index.

    Without a run on this machine it is made of the published records and figures, and of the
    notebooks as they are in the repository.
    """
    found, source, figures, books = sources(study)
    folder = paths.study_folder(study)
    own = source.parent == folder
    # a report leads to the notebooks of its own study; those of the repository are elsewhere
    notebooks = {path.stem: f"../notebooks/{path.name}" if own else "" for path in books}
    hidden = shutil.ignore_patterns(".*", "plan.*")
    with atomic_path(folder / "report") as part:
        shutil.copytree(source, part / "records", ignore=hidden)
        if figures.exists():
            shutil.copytree(figures, part / "figures", ignore=hidden)
        shutil.copy(FOLDER / "report.css", part)
        for path in books:
            _put(
                part / f"{path.stem}.html", "notebook.html", study, path.stem,
                body=notebook_html(path, notebooks, study), original=notebooks[path.stem],
                record=(source / f"{path.stem}.json").exists(),
            )  # fmt: skip
        fair = frames.nll_gains(found)
        for record in found:
            name = record["run"]
            _put(
                part / "records" / f"{name}.html", "record.html", study, name, "../",
                page=f"{name}.html" if name in notebooks else "",
                **parts.record_values(record, name in fair),
            )  # fmt: skip
        _index(part, study, found, notebooks)
    _list_studies(folder.parent)
    return folder / "report" / "index.html"


def sources(study: str) -> tuple[list[dict], Path, Path, list[Path]]:
    """What pages are made of: (records, their folder, folder of the figures, notebooks).

    Raises:
        ParameterError: the study has no records, neither of a run nor published, or damaged ones.
    """
    folder = paths.study_folder(study)
    found, source = records.read_study(study)
    own = source.parent == folder
    figures = folder / "figures" if own else paths.ROOT / "figures" / study
    books = sorted((folder if own else paths.ROOT).glob("notebooks/*.ipynb"))
    # papermill writes in place: a run that was killed after its record may have left half of one
    return found, source, figures, [path for path in books if _is_whole(path)]


def _is_whole(notebook):
    try:
        return bool(json.loads(notebook.read_text("utf-8")))
    except ValueError:
        return False


def _put(path, template, study, title, root="", **values):
    text = render(template, study=study, title=title, root=root, **values)
    path.write_text(text, "utf-8")


def _index(folder, study, found, notebooks):
    table = frames.frame(found, **context(study))
    table.drop(columns=frames.OBJECTS).to_csv(folder / "table.csv", index=False)
    values = parts.of_study(study, found, table, folder / "figures")
    values["results"] *= values["results"] in notebooks
    _put(folder / "index.html", "index.html", study, notebooks=notebooks, **values)


def _list_studies(folder):
    """Write the page that leads to every report below a folder."""
    known = []
    for index in sorted(folder.glob("*/report/index.html")):
        copies, found = sorted(index.parent.glob("records/*.json")), []
        for path in copies:
            # of a time when records had another form, or damaged: its numbers are on its own pages
            with contextlib.suppress(ParameterError):
                found += filter(None, [records.read(path)])
        name, answer = index.parts[-3], ""
        with contextlib.suppress(ParameterError):  # its study file is of another time, too
            answer = parts.bullets(controls.answer(name, found))
        known.append({"name": name, "records": len(copies), "answer": answer})
    first = f"{known[0]['name']}/report/"
    with atomic_path(folder / "index.html") as part:  # reports of several studies may end at once
        _put(part, "studies.html", known[0]["name"], "Studies", first, studies=known)
