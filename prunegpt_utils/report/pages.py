"""What pages are made of: templates, formulas, executed notebooks."""

import base64
import functools
import io
import re
from collections.abc import Container
from pathlib import Path

import nbformat

FOLDER = Path(__file__).with_name("templates")
LINK = re.compile(r"\]\((?:\.\./)?(\w+)\.(?:ipynb|md)\)")
REPOSITORY = re.compile(r"\[([^\]]*)\]\(\.\./\w+/[^)]*\)")  # its folders: no page of a report
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$\w])\$([^$\n]+?)\$(?!\w)", re.S)


@functools.cache
def _environment():
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "allow_nan": False}
    environment.globals["read"] = lambda name: Markup((FOLDER / name).read_text("utf-8"))  # noqa: S704
    environment.globals["math"] = lambda tex: Markup(formulas(f"$${tex}$$"))  # noqa: S704
    return environment


def render(name: str, **values: object) -> str:
    """Text of a template with `values` in it; what is not marked as HTML is escaped."""
    return _environment().get_template(name).render(values)


def formulas(text: str) -> str:
    """`text` with its TeX, between dollars, as MathML, which browsers draw without a script."""
    from latex2mathml.converter import convert

    return FORMULA.sub(lambda tex: convert(tex[1] or tex[2], "block" if tex[1] else "inline"), text)


def notebook_html(path: Path, names: Container[str] = (), study: str = "") -> str:
    """Body of an executed notebook as HTML: formulas as MathML, images inside, no scripts.

    Args:
        path: of the notebook.
        names: of the notebooks that have a page beside this one; links to others, and to the
            README, lead to the index.
        study: whose records have a page beside this one; links to others lead nowhere.
    """
    from nbconvert import HTMLExporter

    def link(match):
        return f"]({match[1]}.html)" if match[1] in names else "](index.html)"

    notebook, heading = nbformat.read(path, as_version=4), path.stem
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = (re.findall(r"^#+ (.+)", cell.source, re.M) or [heading])[-1]
            cell.source = LINK.sub(link, REPOSITORY.sub(r"\1", formulas(cell.source)))
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _smaller(output.data["image/png"])
                output.metadata.setdefault("image/png", {})["alt"] = f"Figure: {heading}"
    exporter = HTMLExporter(
        template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True,
        exclude_anchor_links=True,
    )  # fmt: skip
    return _trimmed(exporter.from_notebook_node(notebook)[0], study)


def _trimmed(body, study):
    """What nbconvert wrote without scripts and unseen markup, its links and tables made to fit."""
    body = re.sub(r"<script.*?</script>", "", body, flags=re.S)
    body = re.sub(r'<span class="(?:n|p|o|nn|nb|nf|w|bp|si|sd|kc|fm)">([^<]*)</span>', r"\1", body)
    own = rf'href="(?:[^":]*/{re.escape(study)}/(?:records/)?|(?:\.\./)?records/)([\w.-]+)\.json"'
    body = re.sub(own, r'href="records/\1.html"', body)
    body = re.sub(r' href="[^":]*\.json"', "", body)
    body = body.replace("<th></th>", "<td></td>")  # a corner of a table is no heading
    # what may scroll sideways on a narrow screen can be reached with the keyboard
    return re.sub(r'<div class="(output_(?:html|markdown) )', r'<div tabindex="0" class="\1', body)


def _smaller(png):
    """A drawing in 64 colours, base64 to base64: looks the same and takes a third of the bytes."""
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    smaller = io.BytesIO()
    image.quantize(64, dither=Image.Dither.NONE).save(smaller, "PNG", optimize=True)
    return base64.b64encode(smaller.getvalue()).decode()


def strip_metadata(path: str | Path) -> None:
    """Remove from an executed notebook what differs from run to run and says nothing."""
    from nbconvert.preprocessors import ClearMetadataPreprocessor

    clear = ClearMetadataPreprocessor(
        preserve_cell_metadata_mask={"tags"},
        preserve_nb_metadata_mask={"kernelspec", "language_info"},
    )
    notebook, _ = clear.preprocess(nbformat.read(path, as_version=4), {})
    for cell in notebook.cells:  # nbconvert leaves cells of text alone, papermill does not
        cell.metadata.pop("papermill", None)
    nbformat.write(notebook, path)
