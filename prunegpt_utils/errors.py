"""The one error that a user sees: wrong input, named in one line."""

import contextlib
import math
import os


class ParameterError(ValueError):
    """Wrong input: one line that names the parameter, its value and what is allowed."""

    def __init__(self, name, value=None, allowed=None):
        super().__init__(f"{name}: {value!r} {allowed}" if allowed else name)

    def _render_traceback_(self):
        """IPython shows this instead of a traceback: the reader's input is wrong, not the code."""
        return [f"{type(self).__name__}: {self}"]


def one_line(error: Exception) -> str:
    """What a library's error says, on one line of at most 160 characters."""
    return " ".join(str(error).split())[:160]


def environment_number(name: str, default: float, unit: str) -> float:
    """The number that an environment variable says, or the default if it is not set.

    Raises:
        ParameterError: it is no finite number of at least 0.
    """
    given = os.environ.get(name, str(default))
    with contextlib.suppress(ValueError):
        if 0 <= float(given) < math.inf:
            return float(given)
    raise ParameterError(name, given, f"must be a number of {unit}, 0 or more")
