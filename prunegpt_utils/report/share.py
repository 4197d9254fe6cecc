"""A study as one page to pass on: everything inside, nothing fetched."""

import base64
import io
import math
import re
from pathlib import Path

import numpy as np

from prunegpt_utils.files import atomic_path
from prunegpt_utils.report import frames, html, parts, tables
from prunegpt_utils.report.methods import style_of
from prunegpt_utils.report.pages import notebook_html, render
from prunegpt_utils.runs import paths
from prunegpt_utils.runs.expansion import context

LIMIT = 5_000_000  # bytes of the page: what a mail takes
_CORNER = 128  # rows and columns of a mask that are drawn
_POINT = ["run", "seed", "label", "base_recipe", "recipe", "sparsity", "test", "test_ratio",
          "dense", "colour", "marker"]  # fmt: skip


def build(study: str) -> Path:
    """Write the shared page of a study in one step and return it: one file.

    It is made of what the report is made of. Notebooks that would make it larger than `LIMIT` bytes
    are left out and named: the report as a folder has them.

    Raises:
        ParameterError: the study has no records, or damaged ones.
    """
    found, _, figures, books = html.sources(study)
    table, fair = frames.frame(found, **context(study)), frames.nll_gains(found)
    values = parts.of_study(study, found, table, figures) | {
        "study": study, "names": [path.stem for path in books],
        "records": [parts.record_values(record, record["run"] in fair) for record in found],
        "data": {"points": _points(table), **_views(study, table, found)},
    }  # fmt: skip
    room = LIMIT - len(render("share.html", **values, books={}).encode())
    kept = _notebooks(study, books, found, values["results"], room)
    page = paths.study_folder(study) / "share.html"
    with atomic_path(page) as part:
        part.write_text(render("share.html", **values, books=kept), "utf-8")
    return page


def _points(table):
    """What the chart shows: a run a point; the mean of those marked as dense is a line.

    Where runs are compared with several best dense models, as of several lengths, none is marked.
    """
    styles = [style_of(*of) for of in zip(table.base_recipe, table["axes"], strict=True)]
    points = table.assign(dense=table.run.isin(_shared_dense(table)))
    points["colour"], points["marker"] = [of[1] for of in styles], [of[2] for of in styles]
    points = points[np.isfinite(table.test.astype(float))][_POINT].astype(object)
    return points.where(points.notna(), None).to_dict("records")


def _shared_dense(table):
    """Names of the runs of the best dense model that all runs are compared with, if it is one."""
    compared = table[table.dense_run.notna() & ~table.run.isin(table.dense_run)]
    several = len(compared[["model", "budget", "dense"]].drop_duplicates()) > 1
    return set() if several else set(compared.dense_run)


def _views(study, table, found):
    """What the slider shows: {method: {percent: model}}, of the lowest seed that has a sample."""
    with_sample = {one["run"]: one for one in found if (one.get("sample") or {}).get("read")}
    asked = 100 * table.requested.where(table.requested > 0, table.sparsity)
    rows = table.assign(percent=asked.round().astype(int)).sort_values("seed", kind="stable")
    rows, best, shown = rows[rows.run.isin(with_sample)], set(table.dense_run), {}
    whole = rows[rows.run.isin(best) | (rows.recipe == "control")]
    reference = min(whole.itertuples(), key=lambda row: row.run not in best, default=None)
    if reference is None:
        return {"views": {}, "reference": None}
    size = frames.stored_bytes(with_sample[reference.run])
    for row in rows[rows.percent > 0].itertuples():
        view = _view(study, row, with_sample[row.run], size)
        shown.setdefault(row.label, {}).setdefault(row.percent, view)
    first = _view(study, reference, with_sample[reference.run], size)
    return {"views": shown, "reference": first | {"best": reference.run in _shared_dense(table)}}


def _view(study, row, record, dense):
    size, fidelity = frames.stored_bytes(record), record.get("fidelity")
    numbers = {
        "test perplexity": tables.number(row.test),
        "x best dense (test)": f"{row.test_ratio:.2f}" if math.isfinite(row.test_ratio) else "-",
        "validation perplexity": tables.number(row.perplexity),
        "bytes, if packed": f"{size / 1e6:.2f} MB, {100 * size / dense:.0f} % of dense",
        **(tables.fidelity_table(fidelity).iloc[:, 0].to_dict() if fidelity else {}),
    }
    return {
        "run": row.run, "label": row.label, "seed": row.seed, "numbers": numbers,
        "read": record["sample"]["read"], "written": record["sample"]["written"],
        "matrices": record.get("sparsity_by_matrix"), "mask": _mask(study, record),
        "loss": math.log(row.perplexity) if math.isfinite(row.perplexity) else None,
    }  # fmt: skip


def _mask(study, record):
    """A corner of the matrix in the middle of a run's model: what is kept; None without it."""
    from PIL import Image
    from safetensors import safe_open

    path = paths.study_folder(study) / "models" / record["run"] / "model.safetensors"
    names = list(record.get("sparsity_by_matrix") or {})
    if not names or not path.exists():
        return None
    name = names[len(names) // 2]
    with safe_open(path, "pt") as file:
        if name not in file.keys():  # noqa: SIM118 (it is no dict)
            return None
        kept = file.get_tensor(name).flatten(0, -2)[:_CORNER, :_CORNER] != 0
    written = io.BytesIO()
    Image.fromarray((~kept).numpy()).save(written, "PNG", optimize=True)
    picture = f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"
    return {"matrix": name, "shape": list(kept.shape), "image": picture}


def _notebooks(study, books, found, results, room):
    """{name: body} of the notebooks that fit into `room` bytes.

    That which reads the records comes first, then one of each kind.
    """
    kinds = {record["run"]: record["notebook"] for record in found}
    firsts = {kinds.get(path.stem, path.stem): path for path in reversed(books)}.values()
    names, kept = [path.stem for path in books], {}
    for path in sorted(books, key=lambda path: (path.stem != results, path not in firsts)):
        body = _inside(notebook_html(path, names, study))
        room -= len(body.encode()) + 500  # with what is around it
        if room < 0:
            break
        kept[path.stem] = body
    return kept


def _inside(body):
    """A notebook's page as a part of another one: its links lead to places there, or nowhere."""
    body = re.sub(r'<(h\d|div)([^>]*?) id="[^"]*"', r"<\1\2", body)
    body = re.sub(r'href="records/([\w.-]+)\.html"', r'data-record="\1"', body)
    body = re.sub(r'href="([\w.-]+)\.html"', r'href="#notebook-\1"', body)
    body = body.replace('"#notebook-index"', '"#top"')
    return re.sub(r' href="(?!https?:|mailto:|#notebook-|#top")[^"]*"', "", body)
