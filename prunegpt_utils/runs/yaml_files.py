"""Read YAML as study files and recipes need it: one mapping of plain values."""

import math
from pathlib import Path

import yaml

from prunegpt_utils.errors import ParameterError

MAX_BYTES = 1_000_000
MAX_VALUES = 100_000  # with aliases written out


class _Loader(yaml.SafeLoader):
    """Safe, and strict: no key twice."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        for i, (key, _) in enumerate(node.value):
            if key.value in keys[:i]:
                problem = f"the key {key.value!r} stands twice"
                raise yaml.MarkedYAMLError(None, None, problem, key.start_mark)
        return super().construct_mapping(node, deep)


def read(path: Path, kind: str) -> dict:
    """The mapping in a YAML file; `kind` is what errors call it: study or recipe.

    Raises:
        ParameterError: not UTF-8, not YAML, not a mapping, a key twice, a tag that would
            build anything but plain values, or aliases that blow it up.
    """
    text = path.read_bytes()
    if len(text) > MAX_BYTES:
        raise ParameterError(kind, path.name, f"has {len(text):,} bytes; at most {MAX_BYTES:,}")
    try:
        content = yaml.load(text.decode("utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except UnicodeDecodeError as error:
        raise ParameterError(kind, path.name, "is not text in UTF-8") from error
    except RecursionError as error:
        raise ParameterError(kind, path.name, "is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path.name}:{mark.line + 1}" if mark else path.name
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ParameterError(kind, place, f"does not read: {reason}") from error
    if not isinstance(content, dict):
        raise ParameterError(kind, path.name, "must be a mapping of names to values")
    if _values(content, {}) > MAX_VALUES:
        allowed = f"holds more than {MAX_VALUES:,} values when its aliases are written out"
        raise ParameterError(kind, path.name, allowed)
    return content


def _values(item, known):
    """How many values `item` holds, shared parts counted wherever they appear."""
    if not isinstance(item, dict | list):
        return 1
    if id(item) not in known:
        known[id(item)] = math.inf  # stays so if it contains itself
        parts = item.values() if isinstance(item, dict) else item
        known[id(item)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(item)]
