"""Small commands for the Makefile and the Snakefile: `python -m prunegpt_utils --help`."""

import argparse
import sys
from pathlib import Path

from prunegpt_utils import records
from prunegpt_utils.parameters import ParameterError


def main(arguments=None):
    """Run one command; wrong input is one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m prunegpt_utils", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (_, argument, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        many = argparse.REMAINDER if argument == "arguments" else None
        command.add_argument(argument, nargs=many)
    chosen = parser.parse_args(arguments)
    act, argument, _ = COMMANDS[chosen.command]
    try:
        act(getattr(chosen, argument))
    except ParameterError as error:
        sys.exit(f"error: {error}")


def check(study):
    """Read the whole study file, so that a mistake in it shows before the first run."""
    from prunegpt_utils import studies

    studies.plan(study)
    for recipe, need in studies.context(study)["missing"].items():
        print(f"  left out: {recipe}, which needs {need}")


def line(record):
    """One line about a finished run."""
    content = records.read(record)
    perplexity = float(content["metrics"]["validation"]["perplexity"])
    sparsity = content["sparsity"]["prunable"]
    print(
        f"  {content['run']:<28} {100 * sparsity:5.1f} % zeros   validation perplexity "
        f"{perplexity:9.2f}   {content['seconds']:5.0f} s", flush=True
    )  # fmt: skip


def failure(log):
    """The last line of a run's log, and where the rest is."""
    lines = [text for text in Path(log).read_text("utf-8").splitlines() if text.strip()]
    print(f"  failed: {Path(log).stem}: {lines[-1].strip() if lines else 'no output'}")
    print(f"          the whole story: {Path(log).resolve()} and the executed notebook beside it")


def finish(study):
    """Print the table and where figure and report are."""
    from prunegpt_utils import studies, tables

    found, _ = records.read_study(study)
    folder = records.study_folder(study)
    print(tables.plain(tables.frame(found, **studies.context(study))))
    print(f"\nfigure  {folder / 'figures' / 'perplexity.png'}")
    print(f"report  {folder / 'report' / 'index.html'}")


def build(study):
    """Write the HTML report of a study."""
    from prunegpt_utils import report

    report.build(study)


def publish(study):
    """Copy records and figures into the repository and rewrite the README's tables."""
    from prunegpt_utils import report

    for path in report.publish(study):
        print(path)


def tidy(notebook):
    """Make an executed notebook fit for version control."""
    from prunegpt_utils import report

    report.tidy(notebook)


def papermill(arguments):
    """Papermill in each process of `accelerate launch`; only the first keeps its notebook."""
    import os
    import tempfile

    from papermill.__main__ import papermill as run

    if os.environ.get("RANK", "0") == "0":
        run(arguments)
    with tempfile.TemporaryDirectory() as folder:
        source, _, *rest = arguments
        run([source, f"{folder}/out.ipynb", *rest])


COMMANDS = {
    "check": (check, "study", "read a study file and check all of it"),
    "line": (line, "record", "one line about a record"),
    "failure": (failure, "log", "why a run failed"),
    "finish": (finish, "study", "print a study's table and where its figure and report are"),
    "report": (build, "study", "write the HTML report of a study"),
    "tidy": (tidy, "notebook", "strip an executed notebook of what says nothing"),
    "papermill": (papermill, "arguments", "run a notebook on several devices: see the README"),
    "publish": (publish, "study", "put a finished study into results/, figures/ and the README"),
}

if __name__ == "__main__":
    main()
