"""Which files of a repository of the hub are needed, and whether a folder holds them."""

import collections
import fnmatch
import json
import re
from collections.abc import Collection
from pathlib import Path

# What says which of the others are needed.
FIRST = {"model": ["config.json", "model.safetensors.index.json"], "dataset": ["README.md"]}

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_MODEL = (".json", ".txt", ".model", ".jinja", ".tiktoken")  # configurations and tokenizers
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_DATA = re.compile(r".*\.(parquet|jsonl?|csv|tsv|txt|arrow)(\.(gz|zst|xz|bz2))?", re.IGNORECASE)
_ABOUT = re.compile(
    r"(.*/)?(readme|licen[cs]e|notice|citation|requirements|dataset_infos?)\..*", re.I
)
_SHARD = re.compile(r"(.*-)\d+(-of-(\d+).*?)(-[0-9a-f]{16})?((?:\.\w+)+)")


class UnfitError(Exception):
    """Why no choice of files of a repository would do."""


def needed(kind: str, names: Collection[str], folder: Path, configuration: str = "") -> list[str]:
    """Files of a repository without which it cannot be used, and no others.

    Args:
        kind: model or dataset.  names: of all files of the repository.
        folder: with those of `FIRST`.  configuration: of a data set, or empty.

    Raises:
        UnfitError: no weights in safetensors, or no data, or not of that configuration.
    """
    if kind == "model":
        return _model_files(names, folder)
    data = [n for n in names if _DATA.fullmatch(n) and not _ABOUT.fullmatch(n)]
    own = [name for name in data if configuration and name.startswith(f"{configuration}/")]
    if own:
        return own
    splits = _card_splits(folder, configuration)
    chosen = [_matching(data, patterns) for patterns in splits.values()] if splits else [data]
    if not all(chosen):
        raise UnfitError("lacks data in .parquet, .jsonl, .json, .csv or .txt of one of its splits")
    card = [name for name in FIRST["dataset"] if name in names]
    return [*card, *dict.fromkeys(name for files in chosen for name in files)]


def is_whole(
    kind: str, folder: Path, configuration: str, listed: Collection[str] | None, alone: bool
) -> bool:
    """Whether a folder holds all that is needed.

    Args:
        listed: names of all files of the repository, or None if they are not known. Then a data set
            must have all three splits, unless its card says which it has.
        alone: nobody can be asked. Then a model may lack its tokenizer, and a data set may be one
            without a split for validation or test.
    """
    names = files_in(folder)
    try:
        if kind == "model":
            files = [*_model_files(names, folder), "config.json"]
            told = alone or _has_tokenizer(names) or (listed and not _has_tokenizer(listed))
            return bool(told) and not missing(folder, files)
        if listed is not None:
            return not missing(folder, needed(kind, listed, folder, configuration))
        if _lost_shards(needed(kind, names, folder, configuration)):
            return False
        own = configuration if (folder / configuration).is_dir() else ""
        if not own and _card_splits(folder, configuration):
            return True
        splits = _named_splits(folder / own)
        return len(splits) == 3 or (alone and splits == {"train"})
    except UnfitError:
        return False


def missing(folder: Path, files: Collection[str]) -> list[str]:
    """Those of `files` that are not in a folder."""
    return [name for name in files if not (folder / name).exists()]


def files_in(folder: Path) -> list[str]:
    """Names of the files in a folder and below, relative to it, with `/`."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def _model_files(names, folder):
    top = [name for name in names if "/" not in name and not name.startswith(".")]
    files = [n for n in top if n.endswith(_MODEL) and not n.endswith(".index.json")]
    if _WEIGHTS in top:
        return [*files, _WEIGHTS]
    if _INDEX in top:
        return [*files, _INDEX, *_shards(folder / _INDEX)]
    pickled = [name for name in top if name.endswith(_PICKLED)]
    why = "a pickle runs code when it is read; convert it first"
    raise UnfitError(f"has no {_WEIGHTS}" + (f", only {pickled[0]}: {why}" if pickled else ""))


def _shards(index):
    """Files of weights that an index names, if it is there."""
    try:
        return sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnfitError(f"has an index of its weights that does not read: {error}") from error


def _has_tokenizer(names):
    own = (".model", ".tiktoken", "tokenizer.json", "vocab.txt")
    top = {name for name in names if "/" not in name}
    return {"vocab.json", "merges.txt"} <= top or any(name.endswith(own) for name in top)


def _matching(names, patterns):
    patterns = [*patterns, *(pattern.removeprefix("**/") for pattern in patterns)]
    return [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]


def _card_splits(folder, configuration):
    """{split: patterns of its files} of a configuration, by the data set's card; empty if silent.

    Raises:
        UnfitError: there is no such configuration, or there are several and none is named.
    """
    known = _card_configurations(folder)
    if configuration and configuration not in known:
        raise UnfitError(
            f"has no configuration {configuration!r}; it has: {', '.join(known) or 'one'}"
        )
    if not configuration and len(known) > 1 and "default" not in known:
        raise UnfitError(f"must say which configuration, behind a colon: {', '.join(known)}")
    return known.get(configuration or "default") or next(iter(known.values()), {})


def _card_configurations(folder):
    """{configuration: {split: patterns of its files}} that the data set's card names."""
    if not (folder / "README.md").exists():
        return {}
    from datasets.data_files import sanitize_patterns
    from huggingface_hub import DatasetCard

    found = {}
    try:
        for entry in DatasetCard.load(folder / "README.md").data.get("configs") or ():
            home = f"{entry['data_dir'].strip('/')}/" if entry.get("data_dir") else ""
            splits = sanitize_patterns(entry.get("data_files") or "**").items()
            found[str(entry["config_name"])] = {k: [home + p for p in v] for k, v in splits}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnfitError(
            f"has a card that does not read: {' '.join(str(error).split())}"
        ) from error
    return found


def _named_splits(folder):
    """The splits that the names of files and folders speak of, as the library `datasets` does."""
    from datasets.data_files import get_data_patterns

    try:
        return set(map(str, get_data_patterns(str(folder))))
    except FileNotFoundError:
        return set()


def _lost_shards(files):
    """Whether of any `<name>-<n>-of-<N>` there are fewer than N."""
    seen, of = collections.Counter(), {}
    for name in files:
        if match := _SHARD.fullmatch(name):
            key = match[1], match[2], match[5]
            seen[key], of[key] = seen[key] + 1, int(match[3])
    return any(seen[key] < number for key, number in of.items())
