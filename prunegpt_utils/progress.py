"""One live line for long work: in a terminal, in a notebook and in a log, without debris."""

import sys

from tqdm import tqdm


class _Line:
    """A file for tqdm that rewrites one output of the running notebook cell."""

    def __init__(self):
        from IPython.display import display

        self.show = lambda text: {"text/plain": text}
        self.handle = display(self.show(""), raw=True, display_id=True)

    def write(self, text):
        text = text.strip("\r\n ")
        if text:
            self.handle.update(self.show(text), raw=True)

    def flush(self):
        """Nothing is buffered."""


class bar(tqdm):  # noqa: N801 - used like tqdm
    """A progress bar over optimizer steps that also says loss and speed."""

    def __init__(self, total, label, initial=0, quiet=False):
        notebook = "ipykernel" in sys.modules and not sys.stderr.isatty()
        form = (
            "{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} steps, {elapsed} < {remaining}{postfix}"
        )
        super().__init__(
            total=total, desc=label, initial=initial, bar_format=form, mininterval=1.0,
            file=_Line() if notebook and not quiet else sys.stderr, leave=notebook,
            dynamic_ncols=not notebook, disable=quiet or (False if notebook else None),
        )  # fmt: skip
        self.tokens = 0

    def update_with(self, loss, tokens):
        """One step further, with its loss and the tokens it read."""
        self.tokens += tokens
        if not self.disable:
            speed = self.tokens / max(self._time() - self.start_t, 1e-9)
            self.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s", refresh=False)
        self.update()
