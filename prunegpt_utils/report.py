"""The report of a study, an index with a page a record and a notebook; publishing."""

import base64
import re
import shutil
from pathlib import Path

import mistune
import nbformat
import pandas as pd
from markupsafe import Markup

import prunegpt_utils
from prunegpt_utils import records, samples, studies, tables
from prunegpt_utils.audit import problems
from prunegpt_utils.pages import documentation, notebook_html, render
from prunegpt_utils.parameters import ParameterError

_FIRST = ("perplexity", "bytes", "one-shot", "layers", "training")  # figures, in this order
_METHOD = (  # parameters that tell one recipe from another; the first ones say how it is trained
    "steps", "epochs", "lr", "batch", "sparsity_start", "prune_from", "prune_until", "block",
    "criterion", "scope", "teacher", "alpha", "temperature",
)  # fmt: skip


def build(study: str) -> Path:
    """Write the report of a study, beside its place and then into it, and the list of studies.

    Without a run on this machine it is made of the published records and figures, and of the
    notebooks as they are in the repository.

    Returns:
        Path of its index.
    """
    folder = records.study_folder(study)
    found, source = records.read_study(study)
    mine = source.parent == folder
    part, target = folder / "report.part", folder / "report"
    shutil.rmtree(part, ignore_errors=True)
    hidden = shutil.ignore_patterns(".*", "plan.*")
    shutil.copytree(source, part / "records", ignore=hidden)
    figures = folder / "figures" if mine else records.ROOT / "figures" / study
    if figures.exists():
        shutil.copytree(figures, part / "figures", ignore=hidden)
    books = sorted((folder if mine else records.ROOT).glob("notebooks/*.ipynb"))
    names = {path.stem for path in books}
    for path in books:
        shown = {
            "record": (source / f"{path.stem}.json").exists(),
            "original": _original(path, folder),
        }
        body = Markup(notebook_html(path, names))  # noqa: S704
        _put(part / f"{path.stem}.html", "notebook.html", study, path.stem, body=body, **shown)
    for record in found:
        _record_page(part / "records", study, record, names)
    _put(part / "api.html", "api.html", study, "Functions", modules=documentation(prunegpt_utils))
    _index(part, study, found, {path.stem: _original(path, folder) for path in books})
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    _list_studies(folder.parent)
    return target / "index.html"


def _put(path, template, study, title, root="", **values):
    text = render(template, study=study, title=title, root=root, **values)
    path.write_text(text, "utf-8")


def _original(path, folder):
    """Where a report finds a notebook of its own study; '' for one of the repository."""
    return f"../notebooks/{path.name}" if folder in path.parents else ""


def _record_page(folder, study, record, pages):
    first = ("metrics", "sparsity", "gain", "behind", "training", "parameters", "matrices")
    parts = {name: record.get(name) for name in first}
    parts |= {name: value for name, value in record.items() if isinstance(value, dict | list)}
    sample, name = [record] if parts.pop("sample", None) else [], record["run"]
    lists = {
        f"{part}: {name}": rows
        for part, values in parts.items() if isinstance(values, dict)
        for name, rows in values.items() if isinstance(rows, list)
    }  # fmt: skip
    alone = {key: value for key, value in record.items() if not isinstance(value, dict | list)}
    _put(
        folder / f"{name}.html", "record.html", study, name, "../", record=record,
        parts={"run": alone, **parts, **lists}, sample=Markup(samples.html(sample)),  # noqa: S704
        page=f"{name}.html" if name in pages else "",
    )  # fmt: skip


def _index(target, study, found, notebooks):
    table = tables.frame(found, **studies.context(study))
    table.to_csv(target / "table.csv", index=False)
    headings, rows = _rows(table)
    results = studies.results_notebook(study)
    _put(
        target / "index.html", "index.html", study, f"{study}: how far can GPT-2 be compressed?",
        count=len(found), answer=_bullets(tables.answer(table)), headings=headings, rows=rows,
        figures=_figures(target / "figures"), methods=_methods(found), environment=_machines(found),
        samples=Markup(samples.html(samples.chosen(found))),  # noqa: S704
        results=results if results in notebooks else "",
        notebooks=[{"name": name, "original": path} for name, path in notebooks.items()],
    )  # fmt: skip


def _rows(table):
    """Headings and rows of the table; the number of each seed leads to its record."""
    value = {} if table.empty else table.set_index("run").perplexity
    *headings, _ = tables.headings(table)
    rows = []
    for *texts, links in tables.rows(table, lambda run, seed: f"{run}:{seed}"):
        pairs = [pair.rsplit(":", 1) for pair in links.split()]
        rows.append({
            "cells": [{"text": text, "value": _sortable(text)} for text in texts],
            "links": [
                {"page": f"records/{run}.html", "seed": seed, "text": tables.number(value[run])}
                for run, seed in pairs
            ],
        })  # fmt: skip
    return headings, rows


def _sortable(text):
    """The number that a cell begins with, `none` being zero; its text if it has none."""
    number = re.match(r"(inf|[\d.,]+(e\+?\d+)?)", text.replace("none", "0"))
    return number[0].replace(",", "").replace("inf", "Infinity") if number else text


def _bullets(text):
    """Markdown of `tables.answer` as HTML, all else in it escaped."""
    return Markup(mistune.create_markdown(escape=True)(text))  # noqa: S704


def _figures(folder):
    """What the results notebook drew, the answer first, each with its alternative text."""
    from PIL import Image

    names = {path.stem for path in folder.glob("*.svg")}
    order = [name for name in _FIRST if name in names] + sorted(names.difference(_FIRST))
    found = []
    for name in order:
        with Image.open(folder / f"{name}.png") as image:
            said = image.info.get("Description", name)
        image = base64.b64encode((folder / f"{name}.svg").read_bytes()).decode()
        files = sorted(path.name for path in folder.glob(f"{name}.*"))
        found.append({
            "name": name, "alt": said, "image": f"data:image/svg+xml;base64,{image}",
            "files": files,
        })  # fmt: skip
    return found


def _methods(found):
    """What a reader needs to do it again: model, text, protocol, the parameters of each recipe."""
    last = found[-1]
    recipes = {record["recipe"]: _telling(record) for record in found}
    recipes = sorted(recipes.items(), key=lambda item: tables.place(item[0]))
    validation, model, data = last["metrics"]["validation"], last["model"], last["data"]
    protocol = last["protocol"]
    return {
        "model": f"{model['name']}, {model['parameters']:,} parameters",
        "data": f"{data['name']}, {data['train_tokens']:,} training tokens "
        f"(sha256 {data['sha256'][:12]}…)",
        "tokens": f"{validation['tokens']:,}",
        "protocol": f"protocol {protocol['name']}, windows of {protocol['block']} tokens, a window "
        f"every {protocol['stride']}",
        "taught": any("alpha" in values for _, values in recipes),
        "recipes": {tables.look(name)[0]: values for name, values in recipes},
    }


def _telling(record):
    """Parameters of a record that say how it was made; how it was trained only if it was."""
    names = _METHOD if record["training"].get("steps") else _METHOD[_METHOD.index("block") :]
    return {name: record["parameters"][name] for name in names if record["parameters"].get(name)}


def _machines(found):
    """Devices, versions and commits of the runs, a row a combination."""
    columns = ["device", "threads", "python", "torch", "transformers", "numpy", "commit"]
    rows = pd.DataFrame([record["environment"] for record in found])
    rows = rows.reindex(columns=columns).fillna("").assign(commit=rows.commit.str[:10])
    counts = rows.value_counts(sort=False).reset_index(name="runs")
    return {"columns": list(counts.columns), "rows": counts.to_numpy().tolist()}


def _list_studies(folder):
    """Write the page that leads to every report below a folder."""
    known = []
    for index in sorted(folder.glob("*/report/index.html")):
        name = index.parent.parent.name
        found = [records.read(path) for path in sorted(index.parent.glob("records/*.json"))]
        answer = _bullets(tables.answer(tables.frame(found))) if found else ""
        known.append({"name": name, "records": len(found), "answer": answer})
    first = f"{known[0]['name']}/report/"
    _put(folder / "index.html", "studies.html", known[0]["name"], "Studies", first, studies=known)


def publish(study: str) -> list[Path]:
    """Copy records and figures of a finished study into the repository, rewrite the README.

    Raises:
        ParameterError: the tree has changes that are not committed, runs are missing, or records
            are not sound.
    """
    if records.environment()["dirty"]:
        raise ParameterError("tree", "dirty", "must be committed before results are published")
    folder = records.study_folder(study)
    missing = [n for n in studies.plan(study) if not (folder / "records" / f"{n}.json").exists()]
    if missing:
        raise ParameterError("study", study, f"is incomplete: {', '.join(missing)}")
    found = next(problems(study), None)
    if found:
        raise ParameterError("study", study, f"has records that are not sound: {found}")
    for source, target in (("records", "results"), ("figures", "figures")):
        shutil.rmtree(records.ROOT / target / study, ignore_errors=True)
        kept = shutil.ignore_patterns("plan.*", ".*")
        shutil.copytree(folder / source, records.ROOT / target / study, ignore=kept)
    readme = records.ROOT / "README.md"
    readme.write_text(with_results(readme.read_text("utf-8"), study), "utf-8")
    return [records.ROOT / "results" / study, records.ROOT / "figures" / study, readme]


def with_results(text: str, study: str) -> str:
    """`text` with the published numbers of `study` between its markers."""
    found = [
        records.read(path) for path in sorted((records.ROOT / "results" / study).glob("*.json"))
    ]
    table = tables.frame(found, **studies.context(study))
    for kind, content in (
        ("answer", tables.answer(table)),
        ("table", tables.markdown(table, f"results/{study}")),
    ):
        begin, end = f"<!-- {kind}:{study} -->", f"<!-- end {kind}:{study} -->"
        text = re.sub(f"{begin}.*?{end}", lambda _: f"{begin}\n{content}\n{end}", text, flags=re.S)  # noqa: B023
    return text


def tidy(path: str | Path) -> None:
    """Remove from an executed notebook what differs from run to run and says nothing."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        for name in ("papermill", "execution"):
            cell.metadata.pop(name, None)
    nbformat.write(notebook, path)
