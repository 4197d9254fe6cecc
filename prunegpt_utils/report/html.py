"""The report of a study: an index, and a page for each record and notebook."""

import base64
import contextlib
import re
import shutil
from pathlib import Path

import mistune
import pandas as pd

from prunegpt_utils.errors import ParameterError
from prunegpt_utils.files import atomic_path
from prunegpt_utils.report import frames, samples, tables
from prunegpt_utils.report.methods import method_label, order
from prunegpt_utils.report.pages import notebook_html, render
from prunegpt_utils.runs import paths, records, study_files
from prunegpt_utils.runs.expansion import context

_FIRST = ("perplexity", "bytes", "one-shot", "layers", "training")  # figures, in this order
_METHOD = (  # parameters that tell one recipe from another; the first ones say how it is trained
    "steps", "epochs", "lr", "batch", "sparsity_start", "prune_from", "prune_until", "block_size",
    "criterion", "scope", "teacher", "alpha", "temperature",
)  # fmt: skip
_GAIN = "nll_gain_over_baseline"
_PARTS = (  # of a record, in the order of its page; others follow
    "metrics", "sparsity", _GAIN, "nll_gap_to_teacher", "training", "parameters",
    "sparsity_by_matrix",
)  # fmt: skip


def build(study: str) -> Path:
    """Write the report of a study in one step, and the list of studies; return its index.

    Without a run on this machine it is made of the published records and figures, and of the
    notebooks as they are in the repository.
    """
    folder = paths.study_folder(study)
    found, source = records.read_study(study)
    own = source.parent == folder
    figures = folder / "figures" if own else paths.ROOT / "figures" / study
    books = sorted((folder if own else paths.ROOT).glob("notebooks/*.ipynb"))
    # a report leads to the notebooks of its own study; those of the repository are elsewhere
    notebooks = {path.stem: f"../notebooks/{path.name}" if own else "" for path in books}
    hidden = shutil.ignore_patterns(".*", "plan.*")
    with atomic_path(folder / "report") as part:
        shutil.copytree(source, part / "records", ignore=hidden)
        if figures.exists():
            shutil.copytree(figures, part / "figures", ignore=hidden)
        for path in books:
            _put(
                part / f"{path.stem}.html", "notebook.html", study, path.stem,
                body=notebook_html(path, notebooks), original=notebooks[path.stem],
                record=(source / f"{path.stem}.json").exists(),
            )  # fmt: skip
        fair = frames.nll_gains(found)
        for record in found:
            _record_page(part / "records", study, record, notebooks, record["run"] in fair)
        _index(part, study, found, notebooks)
    _list_studies(folder.parent)
    return folder / "report" / "index.html"


def _put(path, template, study, title, root="", **values):
    text = render(template, study=study, title=title, root=root, **values)
    path.write_text(text, "utf-8")


def _record_page(folder, study, record, notebooks, fair):
    parts = {name: record.get(name) for name in _PARTS}
    if not fair:  # of a record written before this was looked at
        parts["difference to another run, not the same without a teacher"] = parts.pop(_GAIN)
    rest = {name: value for name, value in record.items() if name != _GAIN}
    parts |= {name: value for name, value in rest.items() if isinstance(value, dict | list)}
    sample, name = [record] if parts.pop("sample", None) else [], record["run"]
    lists = {
        f"{part}: {name}": rows
        for part, values in parts.items() if isinstance(values, dict)
        for name, rows in values.items() if isinstance(rows, list)
    }  # fmt: skip
    alone = {key: value for key, value in record.items() if not isinstance(value, dict | list)}
    _put(
        folder / f"{name}.html", "record.html", study, name, "../", record=record,
        parts={"run": alone, **parts, **lists}, sample=samples.html(sample),
        page=f"{name}.html" if name in notebooks else "",
    )  # fmt: skip


def _index(folder, study, found, notebooks):
    table = frames.frame(found, **context(study))
    table.drop(columns=["axes", "untaught"]).to_csv(folder / "table.csv", index=False)
    headings, rows = _rows(table)
    results = study_files.results_notebook(study)
    _put(
        folder / "index.html", "index.html", study, f"{study}: how far can GPT-2 be compressed?",
        count=len(found), answer=_bullets(tables.answer(table)), headings=headings, rows=rows,
        figures=_figures(folder / "figures"), methods=_methods(found), environment=_machines(found),
        samples=samples.html(samples.chosen(found)), notebooks=notebooks,
        results=results if results in notebooks else "",
    )  # fmt: skip


def _rows(table):
    """Headings and rows of the table; the number of each seed leads to its record."""
    numbers = table.set_index("run").perplexity.map(tables.number)
    *headings, _ = tables.headings(table)
    rows = [
        ([(text, _sortable(text)) for text in texts], [one.rsplit(":", 2) for one in links.split()])
        for *texts, links in tables.rows(table, lambda run, seed: f"{run}:{seed}:{numbers[run]}")
    ]
    return headings, rows


def _sortable(text):
    """The number that a cell begins with, `none` being zero; its text if it has none."""
    number = re.match(r"(inf|[\d.,]+(e\+?\d+)?)", text.replace("none", "0"))
    return number[0].replace(",", "").replace("inf", "Infinity") if number else text


def _bullets(text):
    """Markdown of `tables.answer` as HTML, all else in it escaped."""
    return mistune.create_markdown(escape=True)(text)


def _figures(folder):
    """What the results notebook drew, the answer first, each with its alternative text."""
    from PIL import Image

    names = {path.stem for path in folder.glob("*.svg")}
    found = []
    for name in [name for name in _FIRST if name in names] + sorted(names.difference(_FIRST)):
        with Image.open(folder / f"{name}.png") as image:
            description = image.info.get("Description", name)
        drawing = base64.b64encode((folder / f"{name}.svg").read_bytes()).decode()
        found.append({
            "name": name, "alt": description, "image": f"data:image/svg+xml;base64,{drawing}",
            "files": sorted(path.name for path in folder.glob(f"{name}.*")),
        })  # fmt: skip
    return found


def _methods(found):
    """What a reader needs to do it again: model, text, protocol, the parameters of each recipe."""
    last = found[-1]
    recipes = {record["recipe"]: record for record in found}.values()
    recipes = sorted(recipes, key=lambda record: order(record["base_recipe"], record["axes"]))
    shown = {method_label(r["base_recipe"], r["axes"]): _distinctive(r) for r in recipes}
    model, data, protocol = last["model"], last["data"], last["protocol"]
    return {
        "model": f"{model['name']}, {model['parameters']:,} parameters",
        "data": f"{data['name']}, {data['train_tokens']:,} training tokens "
        f"(sha256 {data['sha256'][:12]}…)",
        "tokens": f"{last['metrics']['validation']['tokens']:,}",
        "protocol": f"protocol {protocol['name']}, windows of {protocol['block_size']} tokens, "
        f"a window every {protocol['stride']}",
        "distilled": any("alpha" in values for values in shown.values()),
        "recipes": shown,
    }


def _distinctive(record):
    """Parameters of a record that say how it was made; how it was trained only if it was."""
    trained = record["training"].get("steps")
    names = _METHOD if trained else _METHOD[_METHOD.index("block_size") :]
    return {name: record["parameters"][name] for name in names if record["parameters"].get(name)}


def _machines(found):
    """Devices, versions and commits of the runs, a row a combination."""
    columns = ["device", "threads", "python", "torch", "transformers", "numpy", "commit"]
    rows = pd.DataFrame([record["environment"] for record in found])
    rows = rows.reindex(columns=columns).fillna("").astype({"commit": str})
    rows["commit"] = rows.commit.str[:10]
    counts = rows.value_counts(sort=False).reset_index(name="runs")
    return {"columns": list(counts.columns), "rows": counts.to_numpy().tolist()}


def _list_studies(folder):
    """Write the page that leads to every report below a folder."""
    known = []
    for index in sorted(folder.glob("*/report/index.html")):
        copies, found = sorted(index.parent.glob("records/*.json")), []
        for path in copies:
            # of a time when records had another form, or damaged: its numbers are on its own pages
            with contextlib.suppress(ParameterError):
                found.append(records.read(path))
        answer = _bullets(tables.answer(frames.frame(found))) if found else ""
        known.append({"name": index.parts[-3], "records": len(copies), "answer": answer})
    first = f"{known[0]['name']}/report/"
    _put(folder / "index.html", "studies.html", known[0]["name"], "Studies", first, studies=known)
