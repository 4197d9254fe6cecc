"""Small commands for the Makefile and the Snakefile: `python -m prunegpt_utils --help`."""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from prunegpt_utils.errors import ParameterError


def main(arguments: list[str] | None = None) -> None:
    """Run one command; wrong input is one line and exit code 1."""
    parser = argparse.ArgumentParser(prog="python -m prunegpt_utils", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (act, argument) in COMMANDS.items():
        text = act.__doc__[0].lower() + act.__doc__[1:].partition(".")[0]
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(argument, nargs="..." if argument == "arguments" else None)
    chosen = parser.parse_args(arguments)
    act, argument = COMMANDS[chosen.command]
    given = getattr(chosen, argument)
    try:
        # STUDY="pydocs structured" names two
        values = given.split() or [given] if argument == "study" else [given]
        problems = [act(value) for value in values]
    except (ParameterError, OSError) as error:  # a disk may be full, a folder somebody else's
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)  # as shells have it
    if any(problems):
        sys.exit(1)


def check(study: str) -> None:
    """Read a study file and check all of it. A mistake in it shows before the first run."""
    from prunegpt_utils.runs import expansion, optional_models, paths

    expansion.plan(study)
    paths.check_writable(paths.study_folder(study))
    expansion.decide(study)
    for recipe, need in expansion.missing_models(study).items():
        print(f"  left out: {recipe}, which needs {need}")
    for why in filter(None, optional_models.decided(study).values()):
        print(f"            {why}")


def line(record: str) -> None:
    """One line about a record."""
    from prunegpt_utils.runs import records

    content = records.read(record)
    perplexity = float(content["metrics"]["validation"]["perplexity"])
    maker = records.trained_as(content)
    trained = f", trained as {maker}" if maker else ""
    cuts = 0 if content["sparsity"]["requested"] else len(content.get("one_shot_curve") or ())
    zeros = f"{100 * content['sparsity']['prunable']:5.1f} % zeros"
    what = f"before {cuts} cuts" if cuts else zeros  # a curve's metrics are the dense model's
    print(f"  {content['run']:<28} {what:<14}   validation perplexity {perplexity:9.2f}   "
          f"{content['seconds']:5.0f} s{trained}", flush=True)  # fmt: skip


def failure(log: str) -> None:
    """Why a run failed. Names its notebook as far as it got, or its log, as the place to look."""
    from prunegpt_utils.runs.status import failure_reason

    path = Path(log).resolve()
    notebook = path.parents[1] / "notebooks" / f"{path.stem}.ipynb"
    _print_failure(path.stem, failure_reason(path), notebook if notebook.exists() else path)


def _print_failure(run, why, path):
    print(f"  failed: {run}: {why}\n          {_shown(path)}", flush=True)


def _shown(path):
    from prunegpt_utils.runs.paths import ROOT

    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def show_plan(study: str) -> None:
    """What a study still has to do, and how long that takes. Nothing is run."""
    from prunegpt_utils.runs import estimate, expansion, paths, staleness

    found = estimate.estimate(study)
    for name, why in found["todo"].items():
        print(f"  to do  {name}" + (f", again: {why}" if why else ""))
    for recipe, need in expansion.missing_models(study).items():
        print(f"  without {recipe}, which needs {need}: `make study` looks for it once more")
    print(f"{study}: {len(found['done'])} runs done, {len(found['todo'])} to do")
    known = len(found["todo"]) - len(found["unknown"])
    if known:
        minutes, size, judges = found["seconds"] / 60, found["bytes"] / 1e9, found["judged_by"]
        print(f"about {minutes:.0f} minutes of one process for {known} of them (judged by {judges} "
              f"records), to be divided by JOBS; {size:.1f} GB of disk")  # fmt: skip
    if found["unknown"]:
        print(f"no record to judge by: {', '.join(found['unknown'])}")
    sys.stdout.flush()  # that is the answer; what follows imports torch and matplotlib
    for note in staleness.other_versions(study):
        print(f"  note   {note}")
    from prunegpt_utils.report import figure_files, study_graph

    figure = study_graph.study_graph(expansion.plan(study), set(found["done"]))
    print(f"graph   {figure_files.save(figure, paths.study_folder(study) / 'figures', 'plan')}")


def show_status(study: str) -> None:
    """What is done, what runs, what failed. Also how far it is, and why it failed."""
    from prunegpt_utils.runs import expansion, staleness, status

    total, busy = len(expansion.plan(study)), status.running(study)
    print(f"{study}: {total - len(status.unfinished(study))} of {total} runs done")
    for progress in busy.values():
        print(f"  running  {progress}")
    for name, reason in status.failed(study, busy).items():
        print(f"  not done {name}: {reason}")
    for name, reason in staleness.outdated(study).items():
        print(f"  out of date {name}: {reason}")


def check_results(study: str) -> bool:
    """Read all records again and name what is wrong. The exit code is 1 if anything is."""
    from prunegpt_utils.runs import paths, task_records, validation

    found = list(validation.validate(study))
    for problem in found:
        print(f"  {problem}")
    count = len(list(paths.records_folder(study).glob("*.json")))
    scored = len(list(task_records.beside(paths.records_folder(study)).glob("*.json")))
    more = f" and {scored} of task scores" * bool(scored)
    print(f"{study}: {count} records{more} read, {len(found)} problems")
    return bool(found)


def study_and_run(name: str) -> tuple[str, str]:
    """The two parts of `pydocs/dense-seed0`."""
    study, _, run = name.partition("/")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise ParameterError("RUN", name, "must be a study and a run, such as pydocs/dense-seed0")
    return study, run


def rerun(name: str) -> None:
    """Make a recorded run, as study/run, once more and compare."""
    from prunegpt_utils.runs import validation

    equal, lines = validation.comparison(*validation.rerun(*study_and_run(name)))
    for each in lines:
        print(f"  {each}")
    print(f"{name}: {'equal to the last bit' if equal else 'not equal'}")
    if not equal:
        sys.exit(1)


def export(arguments: list[str]) -> None:
    """A run's model, as study/run, with a card; in a folder. Plain transformers load it."""
    from prunegpt_utils.report import model_card

    name, *out = arguments or [""]
    print(model_card.export(*study_and_run(name), *out))


def tasks(arguments: list[str]) -> None:
    """What models still can: a run, folder or model, or all runs of a study. Names tasks, samples.

    The run comes first, then the study that is read if no run is named.
    """
    from prunegpt_utils.report import recovery, task_tables
    from prunegpt_utils.runs import parameters, paths, task_records

    name, study, names, samples = (*arguments, *[""] * 4)[:4]
    names = parameters.check("tasks", names.strip()) or task_records.DEFAULT
    number = parameters.from_text("task_samples", samples or "30")
    if name:
        found = {task_records.find(name): ""}
    else:
        parameters.check("study", study)
        found = {(study, run): why for run, why in task_records.todo(study, names, number).items()}
    shown = {}
    for (place, run), why in found.items():
        print(f"  {run} on {names} ...{f' ({why})' * bool(why)}", flush=True)
        record = task_records.score(place, run, names, number)
        shown[record["run"]] = record["tasks"]
        print(f"  {record['run']}: {record['seconds']:.0f} s, {task_records.path_of(place, run)}",
              flush=True)  # fmt: skip
    print(task_tables.plain(shown if name else task_records.scored(paths.records_folder(study))))
    if not name and (figure := recovery.save_recovered(study)):
        print(f"figure  {figure}")


def override(arguments: list[str]) -> None:
    """Write a study with changes: name, new name, changes."""
    from prunegpt_utils.runs import overrides

    print(f"  written: {overrides.override(*arguments)}")


def study(arguments: list[str], resume: bool = False) -> None:
    """Run studies: names, GPUs, options of Snakemake."""
    from prunegpt_utils.runs import execution, paths, scheduler

    listed, gpus, *options = arguments
    if not (gpus or "0").isdecimal():
        raise ParameterError("GPUS", gpus, "must be a number of GPUs, such as 2")
    names, bad = listed.split() or [listed], False
    for name in names:
        check(name)
    for name in names:
        execution.download(name)
        _announce(name)
    for name, code in scheduler.run(names, options, gpus or 0, resume):
        left = scheduler.unfinished(name)
        if code >= 0 and any(paths.study_folder(name).glob("records/*.json")):
            finish(name)
        if code or left:
            summary(name, left, code)
            bad = True
    if bad:
        sys.exit(1)


def adopt(study: str) -> None:
    """Take a study's published records as made, so that only what is missing is run."""
    from prunegpt_utils.runs import adoption, expansion

    missing, total = adoption.adopt(study), len(expansion.plan(study))
    for run, why in missing.items():
        print(f"  to do  {run}{': ' * bool(why)}{why}")
    print(f"{study}: {total - len(missing)} of {total} runs done")


def clean_store(arguments: list[str]) -> None:
    """Remove the store of trainings. Records, models and tables stay."""
    from prunegpt_utils.runs import trainings

    gone, size, left = trainings.clear()
    print(f"{gone} trainings removed, {size / 1e9:.1f} GB{f'; {left} in use' * bool(left)}")


def _announce(study):
    """Say which runs that are done are made again, and why; and what was made elsewhere."""
    from prunegpt_utils.runs import staleness

    for name, why in staleness.outdated(study).items():
        print(f"  again: {name}: {why}")
    for note in staleness.other_versions(study):
        print(f"  note: {note}")
    sys.stdout.flush()


def resume(arguments: list[str]) -> None:
    """The same, after a crash. What a killed start left behind is taken over."""
    study(arguments, resume=True)


def summary(study: str, left: dict[str, str], code: int) -> None:
    """What a study that did not end well has and has not."""
    from prunegpt_utils.runs import expansion, paths, scheduler

    folder, failed = paths.study_folder(study), {run: why for run, why in left.items() if why}
    for run, why in failed.items():
        _print_failure(run, why, folder / "notebooks" / f"{run}.ipynb")
    others = [run for run, why in left.items() if not why]
    if others:
        print(f"  not made: {', '.join(others)}")
    why, log = scheduler.complaint(study)
    if code > 0 and left and not failed and why:
        print(f"  failed: {why}\n          {_shown(log)}")
    total = len(expansion.plan(study))
    print(f"{study}: {total - len(left)} of {total} runs done, {len(failed)} failed", end="")
    print(f"; `make resume STUDY={study}` goes on" if left or code < 0 else "; see above")


def finish(study: str) -> None:
    """Print a study's table and where its figure and report are."""
    from prunegpt_utils.report import frames, tables
    from prunegpt_utils.runs import expansion, paths, records

    folder = paths.study_folder(study)
    print(tables.plain(frames.frame(records.read_study(study)[0], **expansion.context(study))))
    print()
    for kind, name in (("figure", "figures/perplexity.png"), ("report", "report/index.html")):
        if (folder / name).exists():
            print(f"{kind}  {folder / name}")


def share(study: str) -> None:
    """Write a study as one HTML file that opens anywhere."""
    from prunegpt_utils.report import share

    path = share.build(study)
    print(f"share  {path} ({path.stat().st_size / 1e6:.1f} MB)")


def build(study: str) -> None:
    """Write the HTML report of a study."""
    from prunegpt_utils.report import html

    html.build(study)


def publish(study: str) -> None:
    """Put a finished study into results/, figures/ and the README."""
    from prunegpt_utils.report import publish

    for path in publish.publish(study):
        print(path)


def strip_metadata(notebook: str) -> None:
    """Make an executed notebook fit for git."""
    from prunegpt_utils.report import pages

    pages.strip_metadata(notebook)


def papermill(arguments: list[str]) -> None:
    """Run a notebook on several devices, see docs/several-gpus.md; the first process keeps it."""
    import os
    import tempfile

    from papermill.__main__ import papermill as run

    if os.environ.get("RANK", "0") == "0":
        run(arguments)
    with tempfile.TemporaryDirectory() as folder:
        run([arguments[0], f"{folder}/out.ipynb", *arguments[2:]])


# The first sentence of a command's docstring is its help.
COMMANDS: dict[str, tuple] = {
    "study": (study, "arguments"), "resume": (resume, "arguments"),
    "override": (override, "arguments"), "check": (check, "study"), "line": (line, "record"),
    "adopt": (adopt, "study"), "plan": (show_plan, "study"), "status": (show_status, "study"),
    "check-results": (check_results, "study"), "rerun": (rerun, "run"),
    "export": (export, "arguments"), "tasks": (tasks, "arguments"),
    "failure": (failure, "log"), "finish": (finish, "study"), "report": (build, "study"),
    "share": (share, "study"), "publish": (publish, "study"),
    "strip-metadata": (strip_metadata, "notebook"), "clean-store": (clean_store, "arguments"),
    "papermill": (papermill, "arguments"),
}  # fmt: skip

if __name__ == "__main__":
    streams: list[Any] = [sys.stdout, sys.stderr]
    for stream in streams:
        stream.reconfigure(errors="replace")  # a terminal may know only ASCII
    main()
