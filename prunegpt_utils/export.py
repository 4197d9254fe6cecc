"""A run's model to take along: a stock checkpoint with a model card that tells what it is."""

import tempfile
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from prunegpt_utils import parameters, records
from prunegpt_utils.masks import measure
from prunegpt_utils.models import fingerprint, load_tokenizer
from prunegpt_utils.parameters import ParameterError

TEMPLATE = Path(__file__).parent / "templates" / "model-card.md"


def export(study: str, run: str, out: str | None = None) -> Path:
    """Write the model of a run as a folder that plain transformers loads, with a model card.

    The folder is written beside its place and then renamed; an export of the same run that is
    there already is replaced.

    Args:
        study, run: names; the run must have been made on this machine.
        out: folder to write; by default `exports/<run>` in the folder of the study.

    Returns:
        Path of the folder.

    Raises:
        ParameterError: no such run, a model that stock transformers cannot load or that is not the
            one of the record, or a folder that holds something else.
    """
    home = records.study_folder(parameters.check("study", study))
    record = records.read(home / "records" / f"{run}.json")
    source = home / "models" / run
    if record is None or not source.is_dir():
        known = ", ".join(sorted(path.name for path in home.glob("models/*"))) or "none"
        raise ParameterError("RUN", f"{study}/{run}", f"has no model on this machine; {known} have")
    target = Path(out).expanduser().resolve() if out else home / "exports" / run
    _check_free(target, _title(record))
    model, tokenizer = _load_stock(source), load_tokenizer(source)
    _settle(model, tokenizer)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as beside:
        part = Path(beside, target.name)
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        saved = _load_stock(part)
        assert fingerprint(saved) == fingerprint(model)  # every weight, zeros included
        model_card(record, saved).save(part / "README.md")
        if target.exists():
            target.rename(Path(beside, "old"))
        part.rename(target)
    return target


def model_card(record: dict, model: PreTrainedModel) -> ModelCard:
    """The card of an exported model, with the scores of its record as metadata.

    Args:
        record: of the run.  model: as it was read from the exported file, to count its zeros.

    Returns:
        huggingface_hub.ModelCard.

    Raises:
        ParameterError: the model has not the sparsity of the record.
    """
    p = {key: _without_folder(value) for key, value in record["parameters"].items()}
    sparsity = _measured(model, record)
    card = ModelCardData(
        language="en", library_name="transformers", pipeline_tag="text-generation",
        tags=["pruning", "sparsity", "prunegpt"], model_name=_title(record),
        datasets=[p["data"].partition(":")[0]] if record["data"]["revision"] else None,
        base_model=p["model"] if record["model"]["revision"] else None,
        eval_results=list(_results(record, p["data"], sparsity)),
    )  # fmt: skip
    return ModelCard.from_template(
        card, template_path=str(TEMPLATE), title=_title(record), record=record, p=p,
        recipe=yaml.safe_dump(p, sort_keys=True).strip(), measured=sparsity,
        kind=model.config.model_type,
    )  # fmt: skip


def _results(record, data, sparsity):
    """EvalResult of each score, and of the sparsity of the file."""
    kind, _, configuration = data.partition(":")
    text = {
        "task_type": "text-generation", "task_name": "Language modelling", "dataset_type": kind,
        "dataset_name": record["data"]["name"], "dataset_config": configuration or None,
        "dataset_revision": record["data"]["revision"],
    }  # fmt: skip
    windows = f"{record['protocol']['name']} windows of {record['protocol']['block']} tokens"
    for split, scores in record["metrics"].items():
        for name in ("perplexity", "nll"):
            told = f"{name} of the {split} text, {windows}"
            yield EvalResult(
                metric_type=name, metric_value=scores[name], metric_name=told,
                dataset_split=split, **text,
            )  # fmt: skip
    for name, value in sparsity.items():
        told = {"prunable": "the matrices of the blocks", "model": "all parameters"}[name]
        told = f"fraction of zeros in {told}"
        yield EvalResult(metric_type="sparsity", metric_value=value, metric_name=told, **text)


def _title(record):
    return f"prunegpt-{record['study']}-{record['run']}"


def _without_folder(value):
    """A folder of this machine says nothing elsewhere; its last part is a name."""
    local = isinstance(value, str) and Path(value).expanduser().is_absolute()
    return Path(value).name if local else value


def _check_free(target, title):
    """Refuse a folder that holds anything but an export of the same run."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    card = target / "README.md"
    theirs = ModelCard.load(card).data.to_dict().get("model-index") if card.exists() else None
    if not theirs or theirs[0].get("name") != title:
        raise ParameterError("OUT", str(target), f"holds something else than {title}")


def _load_stock(folder):
    """The model as transformers alone loads it."""
    options = {"use_safetensors": True, "output_loading_info": True}
    try:
        if hasattr(AutoConfig.from_pretrained(folder), "heads_kept"):
            raise ValueError("it has fewer attention heads than its width implies")
        model, told = AutoModelForCausalLM.from_pretrained(folder, **options)
        wrong = [*told["missing_keys"], *told["unexpected_keys"], *told["mismatched_keys"]]
        if wrong:
            raise ValueError(f"{wrong[0]} is missing, unknown or of another shape")
    except (OSError, ValueError, KeyError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        allowed = f"does not load in plain transformers: {reason}"
        raise ParameterError("RUN", folder.name, allowed) from error
    return model


def _settle(model, tokenizer):
    """What training switched off and generating wants: the cache, and a token to pad with."""
    model.config.use_cache = model.generation_config.use_cache = True
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.eos_token_id


def _measured(model, record):
    found, said = measure(model), record["sparsity"]["prunable"]
    if abs(found["prunable"] - said) > 1e-6:
        allowed = f"has {100 * found['prunable']:.3f} % of zeros; its record says {100 * said:.3f}"
        raise ParameterError("RUN", f"{record['study']}/{record['run']}", allowed)
    return found
