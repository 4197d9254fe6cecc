"""Models and data sets by name: in the package, on disk, in the hub's cache, or from the hub."""

import contextlib
import re
import socket
from pathlib import Path
from urllib.parse import urlsplit

from prunegpt_utils.errors import ParameterError, one_line
from prunegpt_utils.smollm2 import SMOLLM2, locate_smollm2

BASE = Path(__file__).parent / "pydocs-base"  # the embedded pretrained model
WITHOUT_A_HUB = {BASE.name: lambda: BASE, SMOLLM2.name: locate_smollm2}  # name -> its folder
_WEIGHTS = "*.safetensors"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

# Commits that this study was written against. A cached copy of another one is used too; every
# record says which it was.
REVISIONS = {
    "gpt2": "607a30d783dfa663caf39e06633721c8d4cfcd7e",
    "openai-community/gpt2": "607a30d783dfa663caf39e06633721c8d4cfcd7e",
    "Salesforce/wikitext": "b08601e04326c79dfdd32d625aee71d232d685c3",
}


def fetch(repository: str, kind: str, parameter: str, wanted: str, patterns: list[str]) -> Path:
    """Folder with the files of a repository, named by its commit: cached, else downloaded.

    Args:
        repository: id on the hub.  kind: model or dataset.
        parameter: name of the notebook parameter that asked, for the error.
        wanted: glob of what a cached copy must have to count.  patterns: of what to download.

    Raises:
        ParameterError: not cached and not to be had, within seconds.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    cached = _cached(repository, kind)
    complete = [folder for folder in cached if any(folder.glob(wanted))]
    if complete:
        return complete[0]
    if not _reachable():
        if cached:
            return cached[0]  # whoever reads it knows best what is missing
        flag = " --repo-type dataset" if kind == "dataset" else ""
        allowed = (
            f"is not on this machine, and the hub cannot be reached. Three ways to provide it: "
            f"connect to the network; run `hf download {repository}{flag}` where there is one and "
            f"copy the hub's cache here; or name a local folder instead"
        )
        raise ParameterError(parameter, repository, allowed)
    try:
        found = snapshot_download(
            repository, repo_type=kind, revision=REVISIONS.get(repository), allow_patterns=patterns
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        allowed = f"is no {kind} that the hub lets us download: {one_line(error)}"
        raise ParameterError(parameter, repository, allowed) from error
    return Path(found)


def locate(name: str | Path, parameter: str = "model") -> Path:
    """Folder of a model: in the package, on disk, in the hub's cache, or downloaded from it.

    Args:
        name: `pydocs-base`, `smollm2-135m`, a folder written by `save_pretrained`, or a hub id.
        parameter: name of the notebook parameter that asks, for the error.

    Raises:
        ParameterError: nothing by that name.
    """
    if name in WITHOUT_A_HUB:
        return WITHOUT_A_HUB[str(name)]()
    if Path(name).is_dir():
        if not Path(name, "config.json").exists():
            raise ParameterError(parameter, str(name), "must hold a config.json and safetensors")
        return Path(name)
    if not _HUB_ID.fullmatch(str(name)):
        allowed = f"must be {BASE.name}, a folder, or a hub id; there is no such folder"
        raise ParameterError(parameter, str(name), allowed)
    return fetch(str(name), "model", parameter, _WEIGHTS, ["*.json", "*.txt", _WEIGHTS])


def is_available(name: str) -> bool:
    """Whether `locate(name)` would find weights: here, in the hub's cache or on the hub."""
    if name in WITHOUT_A_HUB or Path(name).is_dir():
        return True
    return any(any(folder.glob(_WEIGHTS)) for folder in _cached(name, "model")) or _reachable()


def _cached(repository, kind):
    """Snapshots in the hub's cache, the pinned one first."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    folders = []
    for revision in dict.fromkeys((REVISIONS.get(repository), None)):
        with contextlib.suppress(LocalEntryNotFoundError, HFValidationError):
            options = {"repo_type": kind, "revision": revision, "local_files_only": True}
            folders.append(Path(snapshot_download(repository, **options)))
    return folders


def _reachable():
    """Whether the hub answers; its own client would try for most of a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    url = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((url.hostname, url.port or 443), timeout=3).close()
    except OSError:
        return False
    return True
