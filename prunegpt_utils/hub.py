"""Models and data sets by name: in the package, on disk, in the hub's cache, or from the hub.

What is on this machine is used as it is, without a request. What is not is asked of the hub once,
and of what it holds only the files that are needed are downloaded.
"""

import glob
import re
from pathlib import Path

from prunegpt_utils import hub_client, hub_files
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.files import expand_home
from prunegpt_utils.smollm2 import SMOLLM2, locate_smollm2

BASE = Path(__file__).parent / "pydocs-base"  # the embedded pretrained model
WITHOUT_A_HUB = {BASE.name: lambda: BASE, SMOLLM2.name: locate_smollm2}  # name -> its folder
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

# Commits that this study was written against. A cached copy of another one is used too; every
# record says which it was.
REVISIONS = {
    "openai-community/gpt2": "607a30d783dfa663caf39e06633721c8d4cfcd7e",
    "openai-community/gpt2-medium": "6dcaa7a952f72f9298047fd5137cd6e4f05f41da",
    "openai-community/gpt2-large": "32b71b12589c2f8d625668d2335a01cac3249519",
    "openai-community/gpt2-xl": "15ea56dee5df4983c59b2538573817e1667135e2",
    "distilbert/distilgpt2": "2290a62682d06624634c1f46a6ad5be0f47f38aa",
    "Salesforce/wikitext": "b08601e04326c79dfdd32d625aee71d232d685c3",
}
# The same models as they were called before the hub's names had owners; both names are in use.
_OWNERS = {name.partition("/")[2]: name for name in REVISIONS}
REVISIONS |= {short: REVISIONS[name] for short, name in _OWNERS.items()}

_found: dict[tuple, Path] = {}  # what this process has loaded, so that it stays the same


def fetch(repository: str, kind: str, parameter: str, configuration: str = "") -> Path:
    """Folder with the files of a repository, named by its commit: cached, else downloaded.

    A process gets the same folder each time.

    Args:
        repository: id on the hub.  kind: model or dataset.
        parameter: name of the notebook parameter that asked, for the error.
        configuration: of a data set that has several, or empty.

    Raises:
        ParameterError: not cached and not to be had, within seconds.
    """
    from huggingface_hub import constants

    key = (constants.HF_HUB_CACHE, repository, kind, configuration)
    if key not in _found or not _found[key].is_dir():
        folder = _cached(repository, kind, configuration)
        _found[key] = folder or _ask(_files, repository, kind, parameter, configuration)
    return _found[key]


def loaded_commits() -> dict[str, str]:
    """{repository: commit} of all models and data sets of the hub that this process has loaded."""
    return {repository: folder.name for (_, repository, *_), folder in sorted(_found.items())}


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
    folder = expand_home(name)
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise ParameterError(parameter, str(name), "must hold a config.json and safetensors")
        return folder
    if not _HUB_ID.fullmatch(str(name)):
        allowed = f"must be {BASE.name}, a folder, or a hub id; there is no such folder"
        raise ParameterError(parameter, str(name), allowed)
    return fetch(str(name), "model", parameter)


def is_available(name: str) -> bool:
    """Whether `locate(name)` finds a model on this machine; nothing is asked of the hub."""
    known = name in WITHOUT_A_HUB or expand_home(name).is_dir()
    return known or _cached(name, "model") is not None


def why_missing(name: str) -> str | None:
    """Why `locate(name)` would find no model, here or on the hub; None if it would.

    Of the hub only the list of files and the first of them are asked, which is refused where the
    weights would be.
    """
    try:
        if not is_available(name):
            _ask(_first_files, name, "model", "model")
    except ParameterError as error:
        return str(error)
    return None


def download_bytes(name: str) -> int | None:
    """Size of a model's files on the hub, or None if it does not say.

    Raises:
        ParameterError: the hub does not answer, or has no such model.
    """
    sizes, _, files = _ask(_first_files, name, "model", "model")
    known = [sizes.get(file) for file in files]
    return None if None in known else sum(known)


def _cached(repository, kind, configuration="", alone=False):
    """The first snapshot in the hub's cache that holds all that is needed, or None."""
    for folder in _snapshots(repository, kind):
        listed = hub_client.cached_listing(folder)
        if hub_files.is_whole(kind, folder, configuration, listed, alone):
            return folder
    return None


def _snapshots(repository, kind):
    """Folders of a repository in the hub's cache: the pinned commit, `main`, others by age."""
    from huggingface_hub import constants

    short = repository.partition("/")[2]
    names = [repository, _OWNERS.get(repository), _OWNERS.get(short) == repository and short]
    folders = []
    for name in filter(None, names):
        home = Path(constants.HF_HUB_CACHE, f"{kind}s--{name.replace('/', '--')}")
        main = home / "refs" / "main"
        folders += [home / "snapshots" / main.read_text().strip()] if main.is_file() else []
        folders += sorted(home.glob("snapshots/*"), key=lambda path: -path.stat().st_mtime)
    folders.sort(key=lambda path: path.name != REVISIONS.get(repository))
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def _ask(act, repository, kind, parameter, configuration=""):
    """`act(repository, kind, configuration)`, whose every failure is a sentence."""
    from huggingface_hub import constants

    try:
        if constants.is_offline_mode():
            raise hub_client.UnreachableError("HF_HUB_OFFLINE is set")
        with hub_client.patient():
            return act(repository, kind, configuration)
    except hub_client.UnreachableError as error:
        if folder := act is _files and _cached(repository, kind, configuration, alone=True):
            return folder
        advice = _advice(repository, kind, configuration, error)
        raise ParameterError(parameter, *advice) from error
    except hub_files.UnfitError as error:
        raise ParameterError(parameter, _name(repository, configuration), str(error)) from error
    except hub_client.failures() as error:
        allowed = hub_client.sentence(error, kind)
        raise ParameterError(parameter, _name(repository, configuration), allowed) from error


def _first_files(repository, kind, configuration):
    """({file: bytes} on the hub, folder with the first of them, the files that are needed)."""
    commit, sizes = hub_client.listing(repository, kind, REVISIONS.get(repository))
    first = [name for name in hub_files.FIRST[kind] if name in sizes]
    folder = hub_client.download(repository, kind, commit, first)
    return sizes, folder, hub_files.needed(kind, sizes, folder, configuration)


def _files(repository, kind, configuration):
    """Folder with the files of a repository that are needed; those that lack come from the hub."""
    sizes, folder, files = _first_files(repository, kind, configuration)
    if gone := [name for name in files if name not in sizes]:
        raise hub_files.UnfitError(f"names {', '.join(gone)} in its index, which it does not hold")
    if lacking := hub_files.missing(folder, files):
        known = sum(sizes[name] or 0 for name in lacking)
        size = f", {known / 1e6:.1f} MB" if known else ""
        many = "1 file" if len(lacking) == 1 else f"{len(lacking)} files"
        hub_client.say(f"downloading {_name(repository, configuration)}: {many}{size}")
        # weights last: where they are, all the rest is
        for part in (False, True):
            some = [name for name in lacking if name.endswith(".safetensors") == part]
            hub_client.download(repository, kind, folder.name, some)
    return folder


def _name(repository, configuration):
    return f"{repository}:{configuration}" if configuration else repository


def _advice(repository, kind, configuration, why):
    """(name, sentence) of what is not here and cannot be had."""
    there = bool(_snapshots(repository, kind))
    problem = "is not on this machine, and the hub cannot be reached"
    options = " --repo-type dataset" if kind == "dataset" else ""
    options += f" --include '{glob.escape(configuration)}/*'" if configuration else ""
    return _name(repository, configuration if there else ""), (
        f"{problem.replace('not on', 'not wholly on') if there else problem} ({why}). "
        f"Three ways to provide it: connect to the network; run `hf download {repository}{options}`"
        f" where there is one and copy the hub's cache here; or name a local folder instead"
    )
