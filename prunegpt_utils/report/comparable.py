"""Which runs may be compared: of one base model, text and protocol, and trained equally long."""

from collections.abc import Sequence

import pandas as pd

from prunegpt_utils.runs import study_files
from prunegpt_utils.runs.expansion import resolver


def base_models(records: Sequence[dict], every: Sequence[dict]) -> list[str]:
    """Base model of each record by name, with what else a comparison holds equal where it differs.

    A model that the study pretrained beside its own stands for that one. Of the text (its name and
    hash), the protocol, the window and the windows a step that is named of which records differ:
    `gpt2, strided`.

    Args:
        every: all records of the study, those of pretrainings too.
    """
    pretrained = [record for record in every if record["notebook"] == "00_pretraining"]
    made = {record[key] for record in pretrained for key in ("recipe", "base_recipe")}
    models = pd.Series([record["model"]["name"] for record in records], dtype=object)
    given = models[~models.isin(made)].mode()
    models = models.where(~models.isin(made), given.iloc[0]) if len(given) else models
    settings = pd.DataFrame([_setting(record) for record in records])
    differing = settings.loc[:, settings.nunique() > 1].agg(", ".join, axis=1)
    return [", ".join(filter(None, pair)) for pair in zip(models, differing, strict=True)]


def _setting(record):
    p, text, protocol = record["parameters"], record["data"], record["protocol"]
    batch = p.get("batch", 1) * p.get("gradient_accumulation_steps", 1)
    return {
        "data": text["name"], "sha256": text["sha256"][:8], "protocol": protocol["name"],
        "block_size": f"windows of {protocol['block_size']}", "batch": f"{batch} a step",
    }  # fmt: skip


def steps_before(records: Sequence[dict]) -> list[int]:
    """Steps of all the runs, one after the other, that each record's run went on from.

    Which they are is what the study file says; without one, what is named so.
    """
    known = {(r["study"], r[key]): r for key in ("base_recipe", "recipe", "run") for r in records}
    resolve = {s: resolver(study_files.load_or_empty(s)) for s in {r["study"] for r in records}}

    def earlier(record):
        name, study = record["parameters"].get("init_from"), record["study"]
        spec = resolve[study]("init_from", record["parameters"]) if name else None
        return known.get((study, spec.name if spec else name)) or known.get((study, name))

    found = []
    for record in records:
        chain = [record]
        while (before := earlier(chain[-1])) and before not in chain:
            chain.append(before)
        found.append(sum(each["training"]["steps"] for each in chain[1:]))
    return found
