"""How the pages of a report are made: templates, formulas, executed notebooks, docstrings."""

import base64
import functools
import importlib
import inspect
import io
import pkgutil
import re
from collections.abc import Container
from pathlib import Path
from types import ModuleType

import nbformat

FOLDER = Path(__file__).with_name("templates")
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$\w])\$([^$\n]+?)\$(?!\w)", re.S)
_SECTION = re.compile(r"^(Args|Returns|Yields|Raises):$", re.M)


@functools.cache
def _environment():
    import jinja2
    from markupsafe import Markup

    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    found.globals["read"] = lambda name: Markup((FOLDER / name).read_text("utf-8"))  # noqa: S704
    found.globals["math"] = lambda tex: Markup(formulas(f"$${tex}$$"))  # noqa: S704
    return found


def render(name: str, **values: object) -> str:
    """Text of a template with `values` in it; what is not marked as HTML is escaped."""
    return _environment().get_template(name).render(values)


def formulas(text: str) -> str:
    """`text` with its TeX, between dollars, as MathML, which browsers draw without a script."""
    from latex2mathml.converter import convert

    def mathml(match):
        return convert(match[1] or match[2], "block" if match[1] else "inline")

    return FORMULA.sub(mathml, text)


def notebook_html(path: Path, names: Container[str] = ()) -> str:
    """Body of an executed notebook as HTML: formulas as MathML, images inside, no scripts.

    Args:
        path: of the notebook.
        names: of the notebooks that have a page beside this one; links to others, and to the
            README, lead to the index.
    """
    from nbconvert import HTMLExporter

    def link(match):
        return f"]({match[1]}.html)" if match[1] in names else "](index.html)"

    notebook, heading = nbformat.read(path, as_version=4), path.stem
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = (re.findall(r"^#+ (.+)", cell.source, re.M) or [heading])[-1]
            cell.source = re.sub(
                r"\]\((?:\.\./)?(\w+)\.(?:ipynb|md)\)", link, formulas(cell.source)
            )
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _smaller(output.data["image/png"])
                output.metadata.setdefault("image/png", {})["alt"] = f"Figure: {heading}"
    exporter = HTMLExporter(
        template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True,
        exclude_anchor_links=True,
    )  # fmt: skip
    body, _ = exporter.from_notebook_node(notebook)
    return _trimmed(body)


def _trimmed(body):
    """What nbconvert wrote without scripts and unseen markup, its links and tables made to fit."""
    body = re.sub(r"<script.*?</script>", "", body, flags=re.S)
    body = re.sub(r'<span class="(?:n|p|o|nn|nb|nf|w|bp|si|sd|kc|fm)">([^<]*)</span>', r"\1", body)
    body = re.sub(r'href="[^":]*/([\w.-]+)\.json"', r'href="records/\1.html"', body)
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


def documentation(package: ModuleType) -> list[dict]:
    """What the docstrings of a package say, for the page of its functions.

    Returns:
        list of dict: name, text and members of each module; a member has name, signature, text
        and sections [(heading, text), ...].
    """
    modules = []
    for found in pkgutil.iter_modules(package.__path__):
        if found.name.startswith("_"):
            continue
        module = importlib.import_module(f"{package.__name__}.{found.name}")
        members = [
            {"name": name, "signature": _signature(member), **_parsed(member)}
            for name, member in inspect.getmembers(module)
            if getattr(member, "__module__", "") == module.__name__ and not name.startswith("_")
            if (inspect.isfunction(member) or inspect.isclass(member)) and member.__doc__
        ]
        modules.append({"name": found.name, "members": members, **_parsed(module)})
    return modules


def _signature(member):
    try:
        return re.sub(r" at 0x\w+", "", str(inspect.signature(member)))
    except ValueError:
        return ""


def _parsed(thing):
    """The text of a docstring, and its sections as Google's style names them."""
    text, *rest = _SECTION.split(inspect.getdoc(thing) or "")
    sections = []
    for heading, body in zip(rest[::2], rest[1::2], strict=True):
        listed = heading in ("Args", "Raises")  # a line an entry, what goes on is indented
        body = inspect.cleandoc(body).strip()
        sections.append((heading, re.sub(r"\n +", " ", body) if listed else _flowing(body)))
    return {"text": _flowing(text.strip()), "sections": sections}


def _flowing(text):
    """Paragraphs without their line breaks; indented lines keep theirs."""
    return re.sub(r"(?<!\n)\n(?![\n ])", " ", text)
