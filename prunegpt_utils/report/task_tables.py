"""What models did on tasks, as a table for the terminal."""

from collections.abc import Mapping

from prunegpt_utils.report.tables import number


def plain(scored: Mapping[str, Mapping]) -> str:
    """A row a model, a column a metric: accuracy in % and perplexity, each ± its standard error.

    Args:
        scored: {name of a model: {task: scores}}, see `tasks.scoring.score_tasks`.
    """
    columns = {
        (task, metric): scores.get("chance") if metric == "acc" else None
        for tasks in scored.values() for task, scores in tasks.items()
        for metric in scores["metrics"] if not metric.endswith("_stderr")
    }  # fmt: skip
    lines = [["", *(_title(*column) for column in columns)]]
    lines += [
        [name, *(_cell(tasks.get(task), metric) for task, metric in columns)]
        for name, tasks in scored.items()
    ]
    guesses = ("" if chance is None else f"{100 * chance:.1f}" for chance in columns.values())
    lines.append(["a guess", *guesses])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "   ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    )


def _title(task, metric):
    return task.replace("_", " ") + ("" if metric == "acc" else f" {metric.replace('_', ' ')}")


def _cell(scores, metric):
    if scores is None or metric not in scores["metrics"]:
        return "-"
    value, error = (float(scores["metrics"][key]) for key in (metric, f"{metric}_stderr"))
    if metric == "acc":
        return f"{100 * value:.1f} ± {100 * error:.1f}"
    return f"{number(value)} ± {number(error)}"
