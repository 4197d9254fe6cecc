"""The hub's own client, made to give up within seconds and to say what it waits for."""

import contextlib
import contextvars
import functools
import glob
import json
import queue
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

_PATIENCE = 6  # seconds without an answer, unless HF_HUB_ETAG_TIMEOUT says otherwise
_PAUSES = (1, 2, 0)  # seconds after each of three tries
_BUSY = (408, 429, 500, 502, 503, 504)
_PASSING = ("ConnectError", "ReadError", "WriteError", "RemoteProtocolError")


class UnreachableError(OSError):
    """The hub does not answer, or is too busy to."""


def failures() -> tuple:
    """What the client raises; a ValueError and the like at an answer that is none of the hub's."""
    from huggingface_hub.errors import HTTPError

    return HTTPError, OSError, ValueError, KeyError, TypeError, AttributeError


def say(line: str) -> None:
    """A line for whoever waits."""
    print(f"  {line}", file=sys.stderr, flush=True)


def cached_listing(folder: Path) -> list[str] | None:
    """Names of all files of the repository whose commit a snapshot is, if the client kept them."""
    try:
        kept = (folder.parents[1] / "trees" / f"{folder.name}.json").read_text("utf-8")
        return list(json.loads(kept)["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def listing(repository: str, kind: str, revision: str | None) -> tuple[str, dict]:
    """(commit, {file: bytes or None}) of a repository at a commit, or at `main` if it has none."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    ask = functools.partial(HfApi().repo_info, repository, repo_type=kind, files_metadata=True)
    try:
        info = ask(revision=revision)
    except RevisionNotFoundError:
        if revision is None:
            raise
        say(f"{repository}: commit {revision[:8]} is not on this hub; its main branch is taken")
        info = ask()
    if not (isinstance(info.sha, str) and info.siblings):
        raise ValueError("a repository without a commit or files")
    return info.sha, {file.rfilename: file.size for file in info.siblings}


def download(repository: str, kind: str, commit: str, names: Sequence[str]) -> Path:
    """The snapshot folder of a commit, with the files `names` in it."""
    from huggingface_hub import constants, snapshot_download

    home = Path(constants.HF_HUB_CACHE, f"{kind}s--{repository.replace('/', '--')}")
    folder = home / "snapshots" / commit
    if names and not all((folder / name).exists() for name in names):
        exact = [glob.escape(name) for name in names]
        snapshot_download(repository, repo_type=kind, revision=commit, allow_patterns=exact)
        if lost := [name for name in names if not (folder / name).exists()]:
            raise UnreachableError(f"it did not send {', '.join(lost)}")
    return folder


@contextlib.contextmanager
def patient() -> Iterator[None]:
    """Within the block, requests of the client are tried again, in view, and end in seconds.

    Files come over plain HTTP, which passes wherever the hub does; the storage protocol Xet asks
    hosts of its own. What the client tells and asks for statistics, it does not.
    """
    from huggingface_hub import constants, set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def make():
        client = default_client_factory()
        vars(client)["send"] = functools.partial(_send, client.send)
        return client

    names = ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY")
    before = {name: getattr(constants, name) for name in names}
    vars(constants).update(dict.fromkeys(names, True))
    set_client_factory(make)
    try:
        yield
    finally:
        set_client_factory(default_client_factory)
        vars(constants).update(before)


def _send(send, request, **options):
    """The response to a request, tried three times.

    The client's own retries take up to 23 s, and of a request without an answer minutes.

    Raises:
        UnreachableError: no answer, or the hub is busy.
    """
    from huggingface_hub.errors import HTTPError

    for pause in _PAUSES:
        try:
            response = _answer(send, request, **options)
        except HTTPError as error:
            problem = _one_line(error)
            if untrusted := "CERTIFICATE" in problem.upper():
                problem += "; SSL_CERT_FILE names a file of certificates to trust"
            if untrusted or type(error).__name__ not in _PASSING:
                raise UnreachableError(problem) from error
        else:
            if response.status_code not in _BUSY:
                return response
            response.close()
            problem = f"it answers {response.status_code} {response.reason_phrase}".strip()
            pause = pause and (_wanted_pause(response) or pause)
        if pause:
            say(f"hub: {problem}; trying again in {pause} s")
            time.sleep(pause)
    raise UnreachableError(problem)


def _wanted_pause(response):
    """Seconds after which a busy server wants to be asked again, if it says so."""
    said = response.headers.get("retry-after", "")
    quota = re.search(r"r\s*=\s*0\b.*?t\s*=\s*(\d+)", response.headers.get("ratelimit", ""))
    return int(said) if said.isdigit() else int(quota[1]) + 1 if quota else 0


def _answer(send, request, stream=False, **options):
    """The response to a request, in whose headers alone no more than `_PATIENCE` may go.

    A thread waits for them: the name service, and a name with many addresses, know no time-out.
    """
    from huggingface_hub import constants

    own = constants.HF_HUB_ETAG_TIMEOUT != constants.DEFAULT_ETAG_TIMEOUT
    patience = constants.HF_HUB_ETAG_TIMEOUT if own else _PATIENCE
    limits, later = request.extensions.get("timeout", {}), patience + 1  # this wait ends first
    limits = {key: limits.get(key) or later for key in ("connect", "read", "write", "pool")}
    request.extensions = {**request.extensions, "timeout": limits}
    answers, context = queue.SimpleQueue(), contextvars.copy_context()

    def wait():
        try:
            response = context.run(send, request, stream=True, **options)
            answers.put(SimpleNamespace(response=response, error=None))
        except BaseException as error:  # raised again where it is awaited
            answers.put(SimpleNamespace(response=None, error=error))

    threading.Thread(target=wait, daemon=True).start()
    try:
        found = answers.get(timeout=patience)
    except queue.Empty:
        raise UnreachableError(f"no answer within {patience} s") from None
    if found.error:
        raise found.error
    if not stream:
        found.response.read()
    return found.response


def sentence(error: BaseException, kind: str) -> str:
    """What a failure of the client says, whole, on one line."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError):
        error = error.__cause__ or error  # the client itself only says that it found nothing
    text = _one_line(error)
    if "Invalid credentials" in text:
        text += ". The token on this machine is no longer valid; `hf auth login` makes a new one"
    if isinstance(error, errors.HFValidationError):
        return f"is no name of a {kind}: {text}"
    if isinstance(error, errors.HfHubHTTPError):
        return f"is no {kind} that the hub lets us download: {text}"
    if isinstance(error, errors.HTTPError):
        return f"did not come whole: {text}; a new start goes on with the files that did"
    if isinstance(error, OSError):
        return f"cannot be downloaded: {text}"
    return f"cannot be downloaded: the answer is not the hub's, but perhaps a login page's ({text})"


def _one_line(error):
    text = re.sub(r"For more information check: \S+", "", str(error))  # on HTTP in general
    return " ".join(text.split()) or type(error).__name__
