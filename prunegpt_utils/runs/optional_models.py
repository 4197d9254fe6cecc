"""Which optional models a study is made with: decided once, where it starts, and written down.

Plans, jobs on other machines and tables read what was decided and ask no network. The file
`optional_models.json` in the study's folder holds it; whoever wants to decide anew deletes it.
"""

import json
from collections.abc import Iterable

from prunegpt_utils import hub
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.files import atomic_path
from prunegpt_utils.runs import paths


def decided(study: str) -> dict[str, str | None]:
    """{model: None, or why it was left out} as the study began; empty before.

    Raises:
        ParameterError: the file holds something else.
    """
    path = _path(study)
    try:
        found = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        allowed = (
            "must hold {model: null, or why it is left out}; delete it, and `make study` decides"
        )
        raise ParameterError("optional_models", str(path), allowed)
    return found


def decide(study: str, models: Iterable[str]) -> None:
    """Look for `models` on this machine and on the hub, but for those found before."""
    before = decided(study)
    found = {name: hub.why_missing(name) for name in models if before.get(name, name) is not None}
    if found and before | found != before:
        with atomic_path(_path(study)) as part:
            part.write_text(json.dumps(before | found, indent=2) + "\n", "utf-8")


def _path(study):
    return paths.study_folder(study) / "optional_models.json"
