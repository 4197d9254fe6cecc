"""Models and data sets from the Hugging Face hub: from its cache first, at a known revision."""

import contextlib
import socket
from pathlib import Path
from urllib.parse import urlsplit

from prunegpt_utils.parameters import ParameterError

# Commits that this study was written against. A cached copy of another one is used too; every
# record says which it was.
REVISIONS = {
    "gpt2": "607a30d783dfa663caf39e06633721c8d4cfcd7e",
    "openai-community/gpt2": "607a30d783dfa663caf39e06633721c8d4cfcd7e",
    "Salesforce/wikitext": "b08601e04326c79dfdd32d625aee71d232d685c3",
}


def fetch(repository: str, kind: str, parameter: str, wanted: str, patterns: list[str]) -> Path:
    """Folder with the files of a repository: the cached snapshot, else a download.

    Args:
        repository: id on the hub.  kind: model or dataset.
        parameter: name of the notebook parameter that asked, for the error.
        wanted: glob of what must be there for a cached copy to count.
        patterns: globs of what to download.

    Returns:
        Path of the snapshot; its name is the commit.

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
            repository,
            repo_type=kind,
            revision=REVISIONS.get(repository),
            allow_patterns=patterns,
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        allowed = f"is no {kind} that the hub lets us download: {reason}"
        raise ParameterError(parameter, repository, allowed) from error
    return Path(found)


def available(repository: str, kind: str, wanted: str) -> bool:
    """Whether `fetch` has a chance: the files are cached, or the hub answers."""
    return any(any(folder.glob(wanted)) for folder in _cached(repository, kind)) or _reachable()


def _cached(repository, kind):
    """Snapshots in the hub's cache, the pinned one first."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    folders = []
    for revision in dict.fromkeys((REVISIONS.get(repository), None)):
        with contextlib.suppress(LocalEntryNotFoundError, HFValidationError):
            found = snapshot_download(
                repository, repo_type=kind, revision=revision, local_files_only=True
            )
            folders.append(Path(found))
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
