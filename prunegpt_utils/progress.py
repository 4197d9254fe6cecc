"""One live line for long work: in a terminal, in a notebook and in a log, without debris."""

import sys
import time

from tqdm import tqdm

_FORM = "{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} steps, {elapsed} < {remaining}{postfix}"


class _Line:
    """A file for tqdm that rewrites one output of the running notebook cell."""

    def __init__(self):
        from IPython.display import display

        self.show = lambda text: {"text/plain": text}
        self.handle = display(self.show(""), raw=True, display_id=True)

    def write(self, text):
        if text := text.strip("\r\n "):
            self.handle.update(self.show(text), raw=True)

    def flush(self):
        """Nothing is buffered."""


def _in_kernel():
    """Whether this process runs a notebook; one that has merely imported a kernel does not."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel")


class ProgressBar(tqdm):
    """A progress bar over optimizer steps that also says loss and speed.

    It also stands in the file `path`, if one is named, for other processes to read meanwhile.
    """

    def __init__(self, total, label, path=None, initial=0, quiet=False):
        notebook = _in_kernel()
        self.tokens, self.path, self.written, self.began = 0, path, 0.0, time.monotonic()
        super().__init__(
            total=total, desc=label, initial=initial, bar_format=_FORM, mininterval=1.0,
            file=_Line() if notebook and not quiet else sys.stderr, leave=notebook,
            dynamic_ncols=not notebook, disable=quiet or (False if notebook else None),
        )  # fmt: skip

    def advance(self, tokens: int, loss: float | None = None) -> None:
        """One step further, with the tokens it read and its loss, if it has one."""
        if self.disable:
            return
        self.tokens += tokens
        now = time.monotonic()
        speed = f"{self.tokens / max(now - self.began, 1e-9):,.0f} tokens/s"
        self.set_postfix_str(speed if loss is None else f"loss {loss:.3f}, {speed}", refresh=False)
        self.update()
        if self.path and now - self.written > 1:
            self.written = now
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(f"{self}\n", "utf-8")

    def close(self) -> None:
        """The last line stays on the screen; the file goes."""
        super().close()
        if self.path:
            self.path.unlink(missing_ok=True)
