"""Read and write YAML as study files and recipes need it: one mapping of plain values."""

import math
import re
from pathlib import Path

import yaml

from prunegpt_utils.errors import ParameterError
from prunegpt_utils.files import atomic_path

MAX_BYTES = 1_000_000
MAX_VALUES = 100_000  # with aliases written out


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
# Numbers as YAML 1.2 has them. In YAML 1.1, which PyYAML reads, 1e-3 is a text, 2:4 is the number
# 124 (in base 60), and 010 is 8.
_NUMBERS = {
    _INT: r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+",
    _FLOAT: r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}


class _Loader(yaml.SafeLoader):
    """Safe, and strict: no key twice, and numbers as they are meant."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as in the class above
        first: [pair for pair in pairs if pair[0] not in _NUMBERS]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_yaml_int(self, node):
        text = node.value.replace("_", "")
        return int(text, 0 if text[:2] in ("0o", "0x") else 10)

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        for i, (key, _) in enumerate(node.value):
            if key.value in keys[:i]:
                problem = f"the key {key.value!r} stands twice"
                raise yaml.MarkedYAMLError(None, None, problem, key.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes texts that either version of YAML would take for a number."""


for _tag, _form in _NUMBERS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(f"^(?:{_form})$"), list("-+.0123456789"))
_Loader.add_constructor(_INT, _Loader.construct_yaml_int)


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


def write(path: Path, content: dict) -> None:
    """Write a mapping for `read`, in one step."""
    with atomic_path(path) as part:
        part.write_text(yaml.dump(content, Dumper=_Dumper, sort_keys=False), "utf-8")


def _values(item, known):
    """How many values `item` holds, shared parts counted wherever they appear."""
    if not isinstance(item, dict | list):
        return 1
    if id(item) not in known:
        known[id(item)] = math.inf  # stays so if it contains itself
        parts = item.values() if isinstance(item, dict) else item
        known[id(item)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(item)]
