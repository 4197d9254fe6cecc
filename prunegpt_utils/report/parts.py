"""What the report and the shared page both show: answer, limits, table, figures, methods."""

import base64
import functools
import statistics
from pathlib import Path

import mistune
import pandas as pd

from prunegpt_utils.report import best_dense, controls, samples, tables
from prunegpt_utils.report.methods import VALUE_LABELS, method_label
from prunegpt_utils.runs import records, study_files

_FIRST = (  # figures, in this order
    "perplexity", "rates", "weights", "bytes", "one-shot", "layers", "training",
)  # fmt: skip
_FAIR = "fair"  # the study in which every learning rate was swept, the dense models' too
_GAIN = "nll_gain_over_baseline"
_HIDDEN = (_GAIN, "nll_by_window")  # of a record: what is shown already, and long lists of numbers
_PARTS = (  # of a record, in the order of its page; others follow
    "metrics", "sparsity", "fidelity", _GAIN, "nll_gap_to_teacher", "training", "parameters",
    "sparsity_by_matrix",
)  # fmt: skip


def of_study(study: str, found: list[dict], table: pd.DataFrame, figures: Path) -> dict:
    """Values that the macros of `parts.html` read.

    Args:
        found: records of the study.  table: of `frames.frame`.  figures: folder of its figures.
    """
    headings, rows = table_rows(table)
    full = f"{study}-full"  # the larger study of the same kind, if there is one that was published
    fair_answer, fair_model = _published_answer(_FAIR)
    base = _of_base_model(found)
    alike = study != _FAIR and fair_model == base["model"]["name"]
    return {
        "title": f"{study}: how far can GPT-2 be compressed?", "count": len(found),
        "samples": samples.html(samples.chosen(found)),
        "answer": bullets(controls.answer(study, found, table)),
        "results": study_files.results_notebook(study),
        "notes": bullets(" ".join(tables.notes(table))), "headings": headings, "rows": rows,
        "groups": switches(headings), "figures": _figures(figures),
        "methods": _methods(table, found), "base": base, "environment": _machines(found),
        "seeds": table.seed.nunique(), "best": best_dense.names(table),
        "full": full, "full_answer": _published_answer(full)[0],
        "fair": _FAIR, "fair_answer": fair_answer * alike,
        "took": _duration(sum(map(_seconds, found))),
    }  # fmt: skip


def _seconds(record):
    """How long a run took, with its training if another study made that."""
    given = records.trained_as(record)
    elsewhere = given and not given.startswith(f"{record['study']}/")
    return record["seconds"] + (record["training"]["seconds"] if elsewhere else 0)


def _duration(seconds):
    return f"{seconds / 3600:.1f} hours" if seconds > 3600 else f"{seconds / 60:.0f} minutes"


@functools.cache
def _published_answer(study):
    """Answer of a published study as HTML, and the model that it is of; '' and '' of none."""
    found = records.published(study)
    answer = bullets(controls.answer(study, found))
    return answer, _of_base_model(found)["model"]["name"] if found else ""


def _of_base_model(found):
    """A record of the whole base model of most runs; a cut one's `model` may have fewer weights."""
    name = statistics.mode(record["model"]["name"] for record in found)
    named = (record for record in found if record["model"]["name"] == name)
    return max(named, key=lambda record: record["model"]["parameters"])


def record_values(record: dict, fair: bool) -> dict:
    """Values that the macro of a record reads.

    Args:
        fair: whether its comparison with another run is one with and without a teacher.
    """
    parts = {name: record.get(name) for name in _PARTS}
    if not fair:  # of a record written before this was looked at
        parts["difference to another run, not the same without a teacher"] = parts.pop(_GAIN)
    rest = {name: value for name, value in record.items() if name not in _HIDDEN}
    parts |= {name: value for name, value in rest.items() if isinstance(value, dict | list)}
    sample = [record] if parts.pop("sample", None) else []
    alone = {key: value for key, value in record.items() if not isinstance(value, dict | list)}
    return {"record": record, "parts": {"run": alone, **parts}, "sample": samples.html(sample)}


def bullets(text: str) -> str:
    """Markdown of `tables.answer` as HTML, all else in it escaped; no line ends within `95 %`."""
    html = mistune.create_markdown(escape=True)(text)
    return html.replace(" % interval", "\N{NO-BREAK SPACE}% interval")


def table_rows(table: pd.DataFrame) -> tuple[list, list]:
    """Headings and rows of the table; the test perplexity of each seed leads to its record.

    Each heading and cell comes with the group of columns that shows and hides it, a cell with its
    heading as well.
    """
    numbers = table.set_index("run").test.map(tables.number)
    of = {column.title: column.group for column in tables.columns(table, tables.GROUPS)}
    headings = [(text, of.get(text, "")) for text in tables.headings(table, tables.GROUPS)[:-1]]
    found = tables.rows(table, lambda run, seed: f"{run}:{seed}:{numbers[run]}", tables.GROUPS)
    rows = []
    for *texts, links in found:
        cells = [(text, *of) for text, of in zip(texts, headings, strict=True)]
        rows.append((cells, [one.rsplit(":", 2) for one in links.split()]))
    return headings, rows


def switches(headings: list) -> dict[str, str]:
    """{group of columns that the table has: what a reader is offered}."""
    there = {group for _, group in headings}
    return {group: text for group, text in tables.GROUPS.items() if group in there}


def _figures(folder):
    """What the results notebook drew, the answer first, each with its alternative text."""
    from PIL import Image

    names = {path.stem for path in folder.glob("*.svg")} - {"plan"}
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


def _methods(table, found):
    """{label of a recipe: what acted in its runs}."""
    parameters = {record["run"]: record["parameters"] for record in found}
    return {
        method_label(*runs[["base_recipe", "axes"]].iloc[0]): _effective(
            runs, parameters[runs.run.iloc[-1]]
        )
        for _, runs in table.groupby("recipe", sort=False)
    }


def _effective(runs, p):
    """{what: value} of the runs of a recipe: only parameters that did something in them."""
    values, steps = {}, runs.steps.max()
    if steps:
        values = {"peak learning rate": _span(runs.lr, ".2g"), "steps": f"{steps:,}"}
        values |= {"kept step": _span(runs.best_step.dropna(), ",.0f")}
    if p.get("sparsity"):
        how = [_span(runs.requested, ".0%"), p.get("criterion"), p.get("scope")]
        values["removes"] = ", ".join(filter(None, how))
    if p.get("sparsity") and steps:
        first, last = (p.get(name, 0) * steps for name in ("prune_from", "prune_until"))
        start = _span(runs.requested.clip(upper=p.get("sparsity_start", 0.0)), ".0%")
        values["cuts"] = f"step {first:,.0f} to {last:,.0f}, the first at {start}"
    for part in ("neurons", "heads", "blocks"):
        gone = {f"{part.removesuffix('s')} sparsity": _span(runs[part], "g")}
        values |= gone if runs[part].any() else {}
    if p.get("alpha"):
        how = [f"{name} {p[name]:g}" for name in ("alpha", "temperature") if name in p]
        who = [p.get("teacher"), VALUE_LABELS.get(p.get("kd_loss"))]
        values["teacher"] = ", ".join(filter(None, who + how))
    return values


def _span(numbers, spec):
    """One number, or the smallest and the largest."""
    texts = [f"{value:{spec}}".replace("%", " %") for value in (numbers.min(), numbers.max())]
    return " to ".join(dict.fromkeys(texts)) if len(numbers) else "-"


_VERSIONS = ("torch", "transformers", "numpy")


def _machines(found):
    """Devices, versions and commits of the runs, a row a combination."""
    columns = ["device", "processor", "threads", "python", *_VERSIONS, "commit"]
    rows = pd.DataFrame([record["environment"] for record in found])
    rows = rows.reindex(columns=columns).fillna("").astype({"commit": str})
    rows["commit"] = rows.commit.str[:10]
    rows = rows.loc[:, rows.ne("").any()]  # older records do not name the processor
    counts = rows.value_counts(sort=False).reset_index(name="runs")
    return {"columns": list(counts.columns), "rows": counts.to_numpy().tolist()}
