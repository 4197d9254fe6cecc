"""Self-contained HTML of executed notebooks, an index, and what gets published."""

import base64
import html
import re
import shutil
from pathlib import Path

import nbformat

from prunegpt_utils import records, studies, tables
from prunegpt_utils.audit import problems
from prunegpt_utils.parameters import ParameterError

STYLE = Path(__file__).with_name("report.css")
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$\w])\$([^$\n]+?)\$(?!\w)", re.S)


def build(study: str) -> Path:
    """Write the report of a study below its folder; return the path of its index."""
    folder = records.study_folder(study)
    found, source = records.read_study(study)
    target = folder / "report"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(
        source, target / "records", ignore=lambda _, names: [n for n in names if n[0] == "."]
    )
    pages = sorted((folder / "notebooks").glob("*.ipynb"))
    for path in pages:
        page = _page(path.stem, notebook_html(path))
        (target / f"{path.stem}.html").write_text(page, "utf-8")
    body = _index(
        study,
        tables.frame(found, **studies.context(study)),
        folder / "figures",
        {path.stem for path in pages},
    )
    (target / "index.html").write_text(_page(f"PruneGPT: {study}", body), "utf-8")
    return target / "index.html"


def notebook_html(path: str | Path) -> str:
    """Body of an executed notebook as HTML: formulas as MathML, images inside, no scripts."""
    from latex2mathml.converter import convert
    from nbconvert import HTMLExporter

    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = FORMULA.sub(
                lambda match: convert(match[1] or match[2], "block" if match[1] else "inline"),
                cell.source,
            )
            cell.source = re.sub(
                r"\]\(\w+\.ipynb\)|\]\(\.\./README\.md\)", "](index.html)", cell.source
            )
    exporter = HTMLExporter(
        template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True
    )
    body, _ = exporter.from_notebook_node(notebook)
    return re.sub(r"<script.*?</script>", "", body, flags=re.S)


def _index(study, table, figures, pages):
    def link(run, seed):
        record = f'<a href="records/{run}.json">record</a>'
        return f'<a href="{run}.html">seed {seed}</a> ({record})' if run in pages else record

    cells = [html.escape(heading) for heading in tables.headings(table)]
    lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in cells) + "</tr>"]
    for *texts, links in tables.rows(table, link):
        cells = [html.escape(text) for text in texts] + [links]
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    image = base64.b64encode((figures / "perplexity.png").read_bytes()).decode()
    return (
        "<h1>How far can GPT-2 be compressed before it forgets how to write, and what brings it "
        f"back?</h1><p>Study <b>{html.escape(study)}</b>. Perplexity on the validation text, lower "
        "is better; <i>x control</i> compares with the dense model that got as many extra steps. "
        "Every number comes from a record that one executed notebook wrote; the last column leads "
        f'to both. <a href="{studies.results_notebook(study)}.html">All results</a></p>'
        f'<img alt="perplexity against sparsity" src="data:image/png;base64,{image}">'
        f'<div class="wide"><table>{"".join(lines)}</table></div>'
    )


def _page(title, body):
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE.read_text('utf-8')}</style></head>"
        f'<body><nav><a href="index.html">PruneGPT</a></nav><main>{body}</main></body></html>'
    )


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
