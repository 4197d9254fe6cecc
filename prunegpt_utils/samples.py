"""What a reader sees of the models: a text coloured by surprise, and what they write, as HTML."""

import itertools
import math

from prunegpt_utils.pages import render
from prunegpt_utils.tables import look

# Most surprising last: (probability from which on, how strongly coloured). One colour over any
# paper: even the strongest leaves black on white, and white on black, a contrast above 4.5 : 1.
_LEVELS = ((0.5, 0), (0.2, 0.06), (0.05, 0.14), (0.01, 0.26), (0.001, 0.45), (0, 0.7))


def chosen(found: list[dict]) -> list[dict]:
    """Of the records with a sample: the dense control and one method, at rising sparsity.

    The method is the first of gradual + teacher, gradual, the 2021 recipe and one-shot that the
    study has; the seed is the lowest of which there is a record.
    """
    mine = sorted((r for r in found if r.get("sample")), key=lambda record: record["seed"])
    rows = {}
    for recipe in ("gradual-distilled", "gradual", "original", "one-shot"):
        pruned = [record for record in mine if record["recipe"] == recipe]
        for record in [r for r in mine if r["recipe"] == "control"] + pruned:
            rows.setdefault(record["sparsity"]["requested"], record)
        if pruned:
            break
    return [rows[sparsity] for sparsity in sorted(rows)]


def html(found: list[dict]) -> str:
    """Samples side by side, as HTML that stands in a page of any colour.

    Args:
        found: records with a `sample`, see `evaluation.sample`, in the order to be shown.

    Returns:
        str: HTML, all text in it escaped; '' if there is no record.
    """
    if not found:
        return ""
    highs = [1, *(probability for probability, _ in _LEVELS)]
    legend = [
        (alpha, f"{100 * low:g} to {100 * high:g} %")
        for high, (low, alpha) in zip(highs, _LEVELS, strict=False)
    ]
    models = [_shown(record) for record in found]
    return render("samples.html", legend=legend, models=models, prompts=models[0]["written"])


def strength(loss: float) -> float:
    """How strongly a token is coloured that a model gave the probability exp(-loss)."""
    return next(alpha for low, alpha in _LEVELS if math.exp(-loss) >= low)


def _shown(record):
    name = look(record["recipe"])[0].split(":")[0]
    gone, read = record["sparsity"]["prunable"], record["sample"]["read"]
    tokens = [(text, f"{loss:.2f}", strength(loss)) for text, loss in read]
    return {
        "name": f"{name}, {100 * gone:.0f} %" if gone else name,
        "nll": f"{sum(loss for _, loss in read) / len(read):.2f}",
        "read": list(itertools.dropwhile(lambda token: not token[0].strip(), tokens)),
        "written": {
            prompt: " ".join(text.split()) for prompt, text in record["sample"]["written"].items()
        },
    }
