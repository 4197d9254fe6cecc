"""Small commands for the Makefile and the Snakefile: `python -m prunegpt_utils --help`."""

import argparse
import sys
from pathlib import Path

from prunegpt_utils import records
from prunegpt_utils.parameters import ParameterError


def main(arguments: list[str] | None = None) -> None:
    """Run one command; wrong input is one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m prunegpt_utils", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (_, argument, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        many = argparse.REMAINDER if argument == "arguments" else None
        command.add_argument(argument, nargs=many)
    chosen = parser.parse_args(arguments)
    act, argument, _ = COMMANDS[chosen.command]
    given = getattr(chosen, argument)
    try:
        # STUDY="pydocs structured" names two
        for value in given.split() or [given] if argument == "study" else [given]:
            act(value)
    except ParameterError as error:
        sys.exit(f"error: {error}")


def check(study: str) -> None:
    """Read the whole study file, so that a mistake in it shows before the first run."""
    from prunegpt_utils import studies

    studies.plan(study)
    for recipe, need in studies.left_out(study).items():
        print(f"  left out: {recipe}, which needs {need}")


def line(record: str) -> None:
    """One line about a finished run."""
    content = records.read(record)
    perplexity = float(content["metrics"]["validation"]["perplexity"])
    sparsity = content["sparsity"]["prunable"]
    print(
        f"  {content['run']:<28} {100 * sparsity:5.1f} % zeros   validation perplexity "
        f"{perplexity:9.2f}   {content['seconds']:5.0f} s", flush=True
    )  # fmt: skip


def failure(log: str) -> None:
    """Why a notebook failed, told at once, and where to look: it as far as it got, or its log."""
    from prunegpt_utils.forecast import reason

    path = Path(log).resolve()
    notebook = path.parents[1] / "notebooks" / f"{path.stem}.ipynb"
    _tell_failed(path.stem, reason(path), notebook if notebook.exists() else path)


def _tell_failed(run, why, path):
    shown = path.relative_to(records.ROOT) if path.is_relative_to(records.ROOT) else path
    print(f"  failed: {run}: {why}\n          {shown}", flush=True)


def show_plan(study: str) -> None:
    """What a study still has to do, and how long that takes; nothing is run."""
    from prunegpt_utils import plots, studies
    from prunegpt_utils.forecast import forecast

    found = forecast(study)
    for name in found["todo"]:
        print(f"  to do  {name}")
    print(f"{study}: {len(found['done'])} runs done, {len(found['todo'])} to do")
    known = len(found["todo"]) - len(found["unknown"])
    if known:
        minutes, size = found["seconds"] / 60, found["bytes"] / 1e9
        print(
            f"about {minutes:.0f} minutes of one process for {known} of them (judged by "
            f"{found['judged_by']} records), to be divided by JOBS; {size:.1f} GB of disk"
        )
    if found["unknown"]:
        print(f"no record to judge by: {', '.join(found['unknown'])}")
    figure = plots.study_graph(studies.plan(study), set(found["done"]))
    print(f"graph   {plots.save(figure, records.study_folder(study) / 'figures', 'plan')}")


def status(study: str) -> None:
    """What is done, what runs and how far it is, and what failed and why."""
    from prunegpt_utils import forecast, studies

    folder = records.study_folder(study) / "records"
    names = studies.plan(study)
    done = sum((folder / f"{name}.json").exists() for name in names)
    print(f"{study}: {done} of {len(names)} runs done")
    busy = forecast.running(study)
    for said in busy.values():
        print(f"  running  {said}")
    for name, reason in forecast.failed(study, busy).items():
        print(f"  not done {name}: {reason}")


def check_results(study: str) -> None:
    """Read all records of a study again and name what is wrong with them."""
    from prunegpt_utils.audit import problems

    found = list(problems(study))
    for problem in found:
        print(f"  {problem}")
    count = len(list(records.records_folder(study).glob("*.json")))
    print(f"{study}: {count} records read, {len(found)} problems")
    if found:
        sys.exit(1)


def study_and_run(name: str) -> tuple[str, str]:
    """The two parts of `pydocs/dense-seed0`."""
    study, _, run = name.partition("/")
    if not run:
        raise ParameterError("RUN", name, "must be a study and a run, such as pydocs/dense-seed0")
    return study, run


def rerun(name: str) -> None:
    """Make a recorded run once more and compare."""
    from prunegpt_utils.audit import rerun as again

    old, new = again(*study_and_run(name))
    equal = True
    for split in ("validation", "test"):
        before, now = (float(record["metrics"][split]["nll"]) for record in (old, new))
        equal &= before == now
        print(f"  {split:<11} nll {before:.6f} then, {now:.6f} now, {now - before:+.6f}")
    for key, value in old["environment"].items():
        if new["environment"].get(key) != value:
            print(f"  {key}: {value} then, {new['environment'].get(key)} now")
    print(f"{name}: {'equal to the last bit' if equal else 'not equal'}")
    if not equal:
        sys.exit(1)


def export(arguments: list[str]) -> None:
    """Write a run's model as a folder for plain transformers; the folder may be named."""
    from prunegpt_utils.export import export as write

    name, *out = arguments or [""]
    print(write(*study_and_run(name), *out))


def derive(arguments: list[str]) -> None:
    """Write a study with some parameters changed: its name, the new name, the changes."""
    from prunegpt_utils import batch

    print(f"  written: {batch.derive(*arguments)}")


def study(arguments: list[str], resume: bool = False) -> None:
    """Run studies: their names, the number of GPUs, and what else Snakemake is told."""
    from prunegpt_utils import batch

    listed, gpus, *options = arguments
    names, bad = listed.split() or [listed], False
    for name in names:
        check(name)
    for name, code in batch.run(names, options, gpus or 0, resume):
        left = batch.unfinished(name)
        if code >= 0 and any(records.study_folder(name).glob("records/*.json")):
            finish(name)
        bad |= bool(code or left)
        if code or left:
            summary(name, left, code)
    if bad:
        sys.exit(1)


def resume(arguments: list[str]) -> None:
    """The same, taking over what a killed start left behind."""
    study(arguments, resume=True)


def summary(study: str, left: dict[str, str], code: int) -> None:
    """What a study that did not end well has and has not."""
    from prunegpt_utils import studies

    folder, failed = records.study_folder(study), {run: why for run, why in left.items() if why}
    for run, why in failed.items():
        _tell_failed(run, why, folder / "notebooks" / f"{run}.ipynb")
    others = [run for run, why in left.items() if not why]
    if others:
        print(f"  not made: {', '.join(others)}")
    total = len(studies.plan(study))
    print(f"{study}: {total - len(left)} of {total} runs done, {len(failed)} failed", end="")
    print(f"; `make resume STUDY={study}` goes on" if left or code < 0 else "; see above")


def finish(study: str) -> None:
    """Print the table and where figure and report are."""
    from prunegpt_utils import studies, tables

    found, _ = records.read_study(study)
    folder = records.study_folder(study)
    print(tables.plain(tables.frame(found, **studies.context(study))))
    print(f"\nfigure  {folder / 'figures' / 'perplexity.png'}")
    print(f"report  {folder / 'report' / 'index.html'}")


def build(study: str) -> None:
    """Write the HTML report of a study."""
    from prunegpt_utils import report

    report.build(study)


def publish(study: str) -> None:
    """Copy records and figures into the repository and rewrite the README's tables."""
    from prunegpt_utils import report

    for path in report.publish(study):
        print(path)


def tidy(notebook: str) -> None:
    """Make an executed notebook fit for version control."""
    from prunegpt_utils import report

    report.tidy(notebook)


def papermill(arguments: list[str]) -> None:
    """Papermill in each process of `accelerate launch`; only the first keeps its notebook."""
    import os
    import tempfile

    from papermill.__main__ import papermill as run

    if os.environ.get("RANK", "0") == "0":
        run(arguments)
    with tempfile.TemporaryDirectory() as folder:
        source, _, *rest = arguments
        run([source, f"{folder}/out.ipynb", *rest])


COMMANDS: dict[str, tuple] = {
    "study": (study, "arguments", "run studies: names, GPUs, options of Snakemake"),
    "resume": (resume, "arguments", "the same, after a crash"),
    "derive": (derive, "arguments", "write a study with changes: name, new name, changes"),
    "check": (check, "study", "read a study file and check all of it"),
    "line": (line, "record", "one line about a record"),
    "plan": (show_plan, "study", "what a study still has to do, and how long that takes"),
    "status": (status, "study", "what is done, what runs, what failed"),
    "check-results": (check_results, "study", "read all records again and name what is wrong"),
    "rerun": (rerun, "run", "make a recorded run, as study/run, once more and compare"),
    "export": (export, "arguments", "a run's model, as study/run, with a card; in a folder"),
    "failure": (failure, "log", "why a run failed"),
    "finish": (finish, "study", "print a study's table and where its figure and report are"),
    "report": (build, "study", "write the HTML report of a study"),
    "tidy": (tidy, "notebook", "strip an executed notebook of what says nothing"),
    "papermill": (papermill, "arguments", "run a notebook on several devices: see the README"),
    "publish": (publish, "study", "put a finished study into results/, figures/ and the README"),
}

if __name__ == "__main__":
    main()
