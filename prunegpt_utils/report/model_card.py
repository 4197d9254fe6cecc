"""A run's model to take along: a stock checkpoint with a model card that says what it is."""

import contextlib
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedModel

from prunegpt_utils.errors import ParameterError, one_line
from prunegpt_utils.files import atomic_path, expand_home
from prunegpt_utils.masks import measure_sparsity
from prunegpt_utils.modeling import fingerprint, load_stock, load_tokenizer
from prunegpt_utils.report.pages import FOLDER
from prunegpt_utils.runs import parameters, paths, records


def export(study: str, run: str, out: str | None = None) -> Path:
    """Write the model of a run as a folder that plain transformers loads, with a model card.

    The folder appears in one step; an export of the same run that is there already is replaced.

    Args:
        study, run: names; the run must have been made on this machine.
        out: folder to write; by default `exports/<run>` in the folder of the study.

    Raises:
        ParameterError: no such run, a model that stock transformers cannot load or that is not the
            one of the record, or a folder that holds something else.
    """
    home = paths.study_folder(parameters.check("study", study))
    record = records.read(home / "records" / f"{run}.json")
    source = home / "models" / run
    if record is None or not source.is_dir():
        known = ", ".join(sorted(path.name for path in home.glob("models/*"))) or "none"
        raise ParameterError("RUN", f"{study}/{run}", f"has no model on this machine; {known} have")
    target = expand_home(out).resolve() if out else home / "exports" / run
    _refuse_to_overwrite(target, _title(record))
    model, tokenizer = _load(source), load_tokenizer(source)
    # what training switched off and generating wants: the cache, and a token to pad with, before
    # the shorter prompts of a batch
    model.config.use_cache = model.generation_config.use_cache = True
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token or tokenizer.bos_token
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"  # only these are saved
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    with atomic_path(target) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        saved = _load(part)
        if fingerprint(saved) != fingerprint(model):  # every weight, zeros included
            raise ParameterError("RUN", run, "does not come back from its files as it was written")
        model_card(record, saved).save(part / "README.md")
    return target


def model_card(record: dict, model: PreTrainedModel) -> ModelCard:
    """The card of a model, as it was read from its file, with its record's scores as metadata.

    Raises:
        ParameterError: the zeros counted in the model are not the sparsity of the record.
    """
    p = {key: _without_folder(value) for key, value in record["parameters"].items()}
    data = p.get("data", record["data"]["name"])  # a base of notebook 00 makes its own text
    sparsity = _measured(model, record)
    card = ModelCardData(
        language="en", library_name="transformers", pipeline_tag="text-generation",
        tags=["pruning", "sparsity", "prunegpt"], model_name=_title(record),
        datasets=[data.partition(":")[0]] if record["data"].get("revision") else None,
        base_model=p.get("model") if record["model"].get("revision") else None,
        eval_results=list(_results(record, data, sparsity)),
    )  # fmt: skip
    return ModelCard.from_template(
        card, template_path=str(FOLDER / "model-card.md"), title=_title(record), record=record, p=p,
        recipe=yaml.safe_dump(p, sort_keys=True).strip(), measured=sparsity,
        kind=model.config.model_type,
    )  # fmt: skip


def _results(record, data, sparsity):
    """EvalResult of each score, and of the sparsity of the file."""
    kind, _, configuration = data.partition(":")
    windows = "{name} windows of {block_size} tokens".format_map(record["protocol"])
    numbers = [
        (name, scores[name], f"{name} of the {split} text, {windows}", split)
        for split, scores in record["metrics"].items() for name in ("perplexity", "nll")
    ]  # fmt: skip
    for name, part in {"prunable": "the matrices of the blocks", "model": "all parameters"}.items():
        numbers.append(("sparsity", sparsity[name], f"fraction of zeros in {part}", None))
    for metric, value, description, split in numbers:
        yield EvalResult(
            task_type="text-generation", task_name="Language modelling", dataset_type=kind,
            dataset_name=record["data"]["name"], dataset_config=configuration or None,
            dataset_revision=record["data"].get("revision"), dataset_split=split,
            metric_type=metric, metric_name=description, metric_value=value,
        )  # fmt: skip


def _title(record):
    return f"prunegpt-{record['study']}-{record['run']}"


def _without_folder(value):
    """A folder of this machine says nothing elsewhere; its last part is a name."""
    local = isinstance(value, str) and expand_home(value).is_absolute()
    return Path(value).name if local else value


def _refuse_to_overwrite(target, title):
    """Refuse a folder that holds anything but an export of the same run."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    card = target / "README.md"
    theirs = None
    with contextlib.suppress(ValueError, yaml.YAMLError):  # no model card
        theirs = ModelCard.load(card).data.to_dict().get("model-index") if card.exists() else None
    if not theirs or theirs[0].get("name") != title:
        raise ParameterError("OUT", str(target), f"holds something else than {title}")


def _load(folder):
    """The model as transformers alone loads it."""
    try:
        if hasattr(AutoConfig.from_pretrained(folder), "heads_kept"):
            raise ValueError("it has fewer attention heads than its width implies")
        return load_stock(folder)
    except (OSError, ValueError, KeyError, SafetensorError, RuntimeError) as error:
        allowed = f"does not load in plain transformers: {one_line(error)}"
        raise ParameterError("RUN", folder.name, allowed) from error


def _measured(model, record):
    found, noted = measure_sparsity(model), record["sparsity"]["prunable"]
    if abs(found["prunable"] - noted) > 1e-6:
        allowed = f"has {100 * found['prunable']:.3f} % of zeros; its record says {100 * noted:.3f}"
        raise ParameterError("RUN", f"{record['study']}/{record['run']}", allowed)
    return found
