"""Where the items of tasks come from: the reader's own folder, or the hub."""

import gzip
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from prunegpt_utils.errors import ParameterError, one_line
from prunegpt_utils.files import expand_home
from prunegpt_utils.hub import fetch


def local_copy(name: str) -> Path | None:
    """A file or folder of the folder that PRUNEGPT_TEXTS names; None if it is not there."""
    folder = os.environ.get("PRUNEGPT_TEXTS")
    path = expand_home(folder) / name if folder else None
    return path if path and path.exists() else None


def read_rows(task: str, file: str, hub: tuple[str, str], fields: Iterable[str]) -> list[dict]:
    """The rows of a data set in their order.

    Args:
        task: that needs them, for the error.  fields: that each row must have, as texts.
        file: of the folder that PRUNEGPT_TEXTS names; JSON lines, gzipped or not.
        hub: (data set, one of its configurations) that is read where there is no such file: all
            configurations, or that called `default` alone.

    Raises:
        ParameterError: neither is to be had, or a row lacks a field.
    """
    path, (repository, _) = local_copy(file), hub
    try:
        rows = _read_file(path) if path else _read_hub(*hub)
        for number, row in enumerate(rows, 1):
            if not all(isinstance(row[field], str) for field in fields):
                raise ValueError(f"row {number} has a field that is no text")
    except ParameterError as error:
        needs = f"needs {file} in the folder that PRUNEGPT_TEXTS names, or {repository}"
        raise ParameterError("tasks", task, f"{needs} of the hub: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError) as error:
        allowed = f"needs texts named {', '.join(fields)} in each row of {path or repository}"
        raise ParameterError("tasks", task, f"{allowed}: {one_line(error)}") from error
    if not rows:
        raise ParameterError("tasks", task, f"has no rows in {path or repository}")
    return rows


def _read_file(path):
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def _read_hub(repository, known):
    from datasets import get_dataset_config_names, load_dataset

    names, rows = [known], []
    if known != "default":
        names = get_dataset_config_names(str(fetch(repository, "dataset", "tasks", known)))
    with tempfile.TemporaryDirectory() as cache:
        for name in names:
            folder = fetch(repository, "dataset", "tasks", name)
            splits = load_dataset(str(folder), name, cache_dir=cache)
            rows += [dict(row) for split in splits.values() for row in split]
    return rows
