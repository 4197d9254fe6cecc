"""What a reader sees of the models: a text coloured by surprise, and what they write, as HTML."""

import itertools
import math

from prunegpt_utils.report.methods import method_label
from prunegpt_utils.report.pages import render

# Most surprising last: (probability from which on, how strongly coloured). One colour over any
# paper: even the strongest leaves black on white, and white on black, a contrast above 4.5 : 1.
_LEVELS = ((0.5, 0), (0.2, 0.06), (0.05, 0.14), (0.01, 0.26), (0.001, 0.45), (0, 0.7))


def chosen(records: list[dict]) -> list[dict]:
    """Of the records with a sample: the dense control and one method, at rising sparsity.

    The method is the first of gradual + teacher, gradual, the 2021 recipe and one-shot that the
    study has; the seed is the lowest of which there is a record.
    """
    rows = {}
    for record in sorted(records, key=lambda record: record["seed"]):
        if (record.get("sample") or {}).get("read"):
            mine = rows.setdefault(record["recipe"], {})
            mine.setdefault(record["sparsity"]["requested"], record)
    methods = ("gradual-distilled", "gradual", "original", "one-shot")
    method = next((rows[recipe] for recipe in methods if recipe in rows), {})
    return [record for _, record in sorted((method | rows.get("control", {})).items())]


def html(records: list[dict]) -> str:
    """Samples side by side, as HTML that stands in a page of any colour, all text in it escaped.

    Args:
        records: with a `sample`, see `evaluation.sample`, in the order to be shown; none make ''.
    """
    if not records:
        return ""
    levels = itertools.pairwise([(1, 0), *_LEVELS])
    legend = [(alpha, f"{100 * low:g} to {100 * high:g} %") for (high, _), (low, alpha) in levels]
    models = [_model(record) for record in records]
    return render("samples.html", legend=legend, models=models, prompts=models[0]["written"])


def strength(loss: float) -> float:
    """How strongly a token is coloured that a model gave the probability exp(-loss)."""
    return next(alpha for low, alpha in _LEVELS if math.exp(-loss) >= low)


def _model(record):
    name = method_label(record["base_recipe"], record["axes"]).split(": ")[0]  # without a remark
    sparsity, sample = record["sparsity"]["prunable"], record["sample"]
    read, written = sample["read"], sample["written"].items()
    tokens = [(text, f"{loss:.2f}", strength(loss)) for text, loss in read]
    return {
        "name": f"{name}, {100 * sparsity:.0f} %" if sparsity else name,
        "nll": f"{sum(loss for _, loss in read) / len(read):.2f}" if read else "-",
        "read": list(itertools.dropwhile(lambda token: not token[0].strip(), tokens)),
        "written": {prompt: " ".join(text.split()) for prompt, text in written},
    }
