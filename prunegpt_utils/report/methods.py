"""What readers call recipes, criteria and parameters, and how figures draw them."""

from collections.abc import Mapping

GREY = "#777777"

# criterion -> (label, colour, marker)
CRITERIA = {
    "random": ("at random", GREY, "v"),
    "magnitude": ("magnitude", "#E69F00", "s"),
    "first-order": ("first-order", "#CC79A7", "X"),
    "wanda": ("Wanda", "#009E73", "^"),
    "sparsegpt": ("SparseGPT", "#D55E00", "D"),
    "fisher": ("Fisher", "#0072B2", "o"),
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
    "shallow": ("fewer layers", "#CC79A7", "s"),
    "shallow-distilled": ("fewer layers + teacher", "#CC79A7", "o"),
    "small": ("pretrained small", "#332288", "s"),
    "small-distilled": ("pretrained small + teacher", "#332288", "o"),
}

# parameter -> label, in the order in which the label of a run lists them; others go by their names
PARAMETER_LABELS = {
    "teacher": "teacher", "alpha": "weight of the teacher", "temperature": "temperature",
    "kd_loss": "KD loss", "sparsity_start": "first cut", "prune_until": "last cut after",
    "scope": "scope", "criterion": "criterion", "rounds": "rounds", "regrow_decay": "regrowth",
    "steps": "steps", "lr": "learning rate",
}  # fmt: skip

VALUE_LABELS = {
    "forward_kl": "forward KL", "reverse_kl": "reverse KL", "hidden_mse": "hidden states",
    "scratch-mask": "the pruned model's zeros from scratch",
    "scratch-random": "random zeros from scratch",
}  # fmt: skip


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
    label, colour, marker = METHODS.get(base_recipe, (base_recipe, GREY, "o"))
    if base_recipe == "retrained" and changes.get("criterion") in CRITERIA:
        criterion, colour, marker = CRITERIA[changes.pop("criterion")]
        label = f"{criterion}, retrained"
    names = sorted(changes, key=lambda name: (_place(PARAMETER_LABELS, name), name))
    return ", ".join([label, *(_change(name, changes[name]) for name in names)]), colour, marker


def _change(name, value):
    """A text says what it is; a number and the teacher do not."""
    if not isinstance(value, str):
        return f"{PARAMETER_LABELS.get(name, name).replace('_', ' ')} {value}"
    text = VALUE_LABELS.get(value, value.rpartition("/")[2])
    return f"taught by {text}" if name == "teacher" else text


def order(base_recipe: str, axes: Mapping | None = None) -> tuple[int, int]:
    """Key to sort recipes by: their places in `METHODS`, unknown ones last, then by criterion."""
    criterion = (axes or {}).get("criterion") if base_recipe == "retrained" else None
    return _place(METHODS, base_recipe), _place(CRITERIA, criterion)


def _place(known, name):
    return [*known, name].index(name)
