"""What readers call recipes, criteria and parameters, and how figures draw them."""

import re
from collections.abc import Mapping

GREY = "#777777"

# criterion -> (label, colour, marker), none of them that of `gradual` below, drawn beside them
CRITERIA = {
    "random": ("at random", GREY, "v"),
    "magnitude": ("magnitude", "#882255", "<"),
    "first-order": ("first-order", "#CC79A7", "X"),
    "wanda": ("Wanda", "#009E73", "^"),
    "sparsegpt": ("SparseGPT", "#D55E00", "D"),
    "fisher": ("Fisher", "#332288", "p"),
}

# recipe -> (label, colour, marker), in the order of the tables
METHODS = {
    "zero-shot-xl": ("GPT-2 XL, zero-shot", GREY, "^"),
    "zero-shot": ("pretrained, zero-shot", GREY, "o"),
    "dense": ("fine-tuned", GREY, "s"),
    "control": ("dense control: fine-tuned for as long", "#000000", "D"),
    "dense-distilled": ("dense + teacher", "#56B4E9", "D"),
    "one-shot": ("one-shot, no retraining", "#CC79A7", "v"),
    "retrained": ("one-shot, retrained", GREY, "o"),  # drawn as its criterion
    "original": ("the 2021 recipe", "#D55E00", "X"),
    "original-distilled": ("the 2021 recipe + teacher", "#D55E00", "P"),
    "gradual": ("gradual", "#E69F00", "s"),
    "gradual-distilled": ("gradual + teacher", "#0072B2", "o"),
    "two-four": ("2:4", "#F0E442", "s"),
    "two-four-distilled": ("2:4 + teacher", "#882255", "p"),
    "narrow": ("fewer neurons", "#009E73", "s"),
    "narrow-distilled": ("fewer neurons + teacher", "#009E73", "o"),
    "shallow": ("fewer blocks", "#CC79A7", "s"),
    "shallow-distilled": ("fewer blocks + teacher", "#CC79A7", "o"),
    "small": ("pretrained small", "#332288", "s"),
    "small-distilled": ("pretrained small + teacher", "#332288", "o"),
    "scratch-random": ("random zeros from scratch", "#D55E00", "s"),
    "scratch-random-distilled": ("random zeros from scratch + teacher", "#D55E00", "o"),
    "scratch-mask": ("the pruned model's zeros from scratch", "#882255", "s"),
    "scratch-mask-distilled": ("the pruned model's zeros from scratch + teacher", "#882255", "o"),
}

# parameter -> how labels say its value, in the order in which the label of a run lists them
PHRASES = {
    "teacher": "teacher: {}", "alpha": "weight of the teacher {}", "temperature": "temperature {}",
    "kd_loss": "{}", "sparsity_start": "first cut of {}",
    "prune_until": "last cut after {} of the steps", "scope": "{}", "criterion": "{}",
    "rounds": "{} rounds of learning-rate rewinding",
    "regrow_decay": "removed weights may return (decay {})", "steps": "{} steps",
    "lr": "learning rate {}",
}  # fmt: skip

VALUE_LABELS = {
    "forward_kl": "forward KL", "reverse_kl": "reverse KL", "hidden_mse": "hidden states",
    "uniform": "one ranking for each matrix",
}  # fmt: skip

# parameter, or parameter and its new value -> what an ablation changes, of `PHRASES` and old value
_WHOLE: dict[object, str] = {
    "criterion": "weights ranked by {} instead of {}", "rounds": "{}", "regrow_decay": "{}",
    ("kd_loss", "hidden_mse"): "teacher's hidden states instead of its probabilities",
    ("scope", "uniform"): "one ranking for each matrix instead of one for all",
}  # fmt: skip

TEXT_LABELS = {"Salesforce/wikitext:wikitext-2-raw-v1": "WikiText-2 (test)"}  # by their names

_TEACHERS = {"dense": "the fine-tuned model", "zero-shot": "the pretrained model"}


def method_label(base_recipe: str, axes: Mapping) -> str:
    """What readers call a recipe with some parameters changed: `gradual, learning rate 0.004`."""
    return style_of(base_recipe, axes)[0]


def style_of(base_recipe: str, axes: Mapping) -> tuple[str, str, str]:
    """Label, colour and marker of a recipe; a change of its parameters shows in the label alone.

    Args:
        base_recipe: name of the recipe; one that is not known is its own label.
        axes: {parameter: value} of what is changed, see `runs.schema.Record`.
    """
    changes = dict(axes)
    if str(changes.get("model")).startswith("scratch-"):  # of the recipe only the teacher is left
        base_recipe = changes.pop("model") + "-distilled" * base_recipe.endswith("-distilled")
    label, colour, marker = METHODS.get(base_recipe, (base_recipe, GREY, "o"))
    if base_recipe == "retrained" and changes.get("criterion") in CRITERIA:
        criterion, colour, marker = CRITERIA[changes.pop("criterion")]
        label = f"{criterion}, retrained"
    if "teacher" in changes and label.endswith("+ teacher"):
        label += f" ({_value('teacher', changes.pop('teacher'))})"
    names = sorted(changes, key=lambda name: (_place(PHRASES, name), name))
    return ", ".join([label, *(_phrase(name, changes[name]) for name in names)]), colour, marker


def change(parameter: str, new: object, old: object) -> str:
    """What an ablation changes, in a whole phrase: `learning rate 0.004 instead of 0.002`.

    Args:
        parameter: its name.  new, old: its values with and without the change.
    """
    whole = _WHOLE.get((parameter, new)) or _WHOLE.get(parameter, "{} instead of {}")
    return whole.format(_phrase(parameter, new), _value(parameter, old))


def _phrase(name, value):
    """A text of a parameter that has no phrase says what it is; a number does not."""
    plain = "{}" if isinstance(value, str) else name.replace("_", " ") + " {}"
    return PHRASES.get(name, plain).format(_value(name, value))


def _value(name, value):
    if not isinstance(value, str):
        percent = name in ("sparsity_start", "prune_until")
        return f"{100 * value:g} %" if percent else f"{value:,.6g}"
    if name == "teacher" and (known := re.fullmatch(r"([a-z-]+?)(?:-steps(\d+))?", value)):
        steps = f" of {int(known[2]):,} steps" if known[2] else ""
        return _TEACHERS.get(known[1], f"the {known[1]}") + steps
    return CRITERIA.get(value, [VALUE_LABELS.get(value, value.rpartition("/")[2])])[0]


def order(base_recipe: str, axes: Mapping | None = None) -> tuple[int, int]:
    """Key to sort recipes by: their places in `METHODS`, unknown ones last, then by criterion."""
    criterion = (axes or {}).get("criterion") if base_recipe == "retrained" else None
    return _place(METHODS, base_recipe), _place(CRITERIA, criterion)


def _place(known, name):
    return [*known, name].index(name)
