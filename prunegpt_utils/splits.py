"""A text in documents, and which are held out: by name, or by a hash of each document."""

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from prunegpt_utils.errors import ParameterError
from prunegpt_utils.files import sha256

SPLITS = ("train", "validation", "test")
_HELD_OUT = 0.05  # share of the documents in validation, and again in test
_NAMES = {
    "train": "train|training|trn",
    "validation": "val|valid|validation|dev|development|eval|evaluation|heldout|holdout",
    "test": "test|tests|testing|tst|devtest",
}
_GLUED = re.compile("(?<![a-z])(?:train|val|dev|test)|(?:train|valid|val|dev|test)(?![a-z])")
_FORMS = {split: re.compile(f"({names})(set|split|data)?") for split, names in _NAMES.items()}


# the line of a title in WikiText; sections have more equals signs
TITLE = re.compile(r" = [^=].*[^=] = \n")


def documents_of(text: str) -> Iterator[tuple[str, str]]:
    """(place, document) of each part of a plain text: lines of WikiText, else its paragraphs.

    The lines of WikiText are its rows on the hub, where a row without text is empty.
    """
    lines = text.removesuffix("\n").split("\n")
    if any(TITLE.fullmatch(f"{line}\n") for line in lines):
        for number, line in enumerate(lines, 1):
            yield f"line {number}", f"{line}\n" if line.strip() else ""
        return
    for number, part in enumerate(re.split(r"\n\s*\n", text), 1):
        if part.strip():
            yield f"paragraph {number}", part


def split_documents(
    documents: list[str], held_out: Sequence[str] = SPLITS[1:]
) -> dict[str, list[str]]:
    """{split: documents}: exact duplicates dropped, each placed by a hash of its own content.

    The hash keeps a document in its split when others come or go. `held_out` are the splits made
    beside train, of a twentieth of the documents each.
    """
    splits = {split: [] for split in ("train", *held_out)}
    for document in dict.fromkeys(documents):
        place = int(sha256(document)[:8], 16) / 16**8
        split = SPLITS[1 + int(place / _HELD_OUT)] if place < 2 * _HELD_OUT else "train"
        splits[split if split in held_out else "train"].append(document)
    return splits


def split_of(name: str) -> str | None:
    """The split that a name says: of a file, with its folders or without, or of a hub's split.

    Returns:
        train, validation or test, in any case and beside other words (`wiki.Valid.txt`, `devset2`,
        `train-00000-of-00001`); None if the name says none of them, or more than one.
    """
    said = splits_said(name)
    return said[0] if len(said) == 1 else None


def splits_said(name: str) -> list[str]:
    """All splits that stand in a name as words of it."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    words = re.findall("[a-z]+", re.sub(r"(held|hold)[^a-z]out", r"\1out", spaced))
    return [split for split, form in _FORMS.items() if any(map(form.fullmatch, words))]


def read_splits(
    name: str, readers: Mapping[str, Callable[[], list[str]]], left_out: Sequence[str] = ()
) -> dict[str, list[str]]:
    """{split: documents} of several texts by what their names say; prints which went where.

    Held-out text never becomes training text: validation or test, where missing, is taken from the
    training text. Where no name says a split, all documents are split. See `split_documents`.

    Args:
        name: what the user asked for.  left_out: names of what is not read.
        readers: {name of a file or of a hub's split: function that reads its documents}.

    Raises:
        ParameterError: splits that are not clear: a name that says two, names that say one beside
            names that say none, or nothing to train on.
    """
    said = {label: splits_said(label) for label in readers}
    _refuse_unclear(name, said)
    splits = {split: [] for split in SPLITS}
    for label, read in readers.items():
        splits[split_of(label) or "train"] += read()
    missing = [split for split in SPLITS[1:] if [split] not in said.values()]
    if missing:
        texts = [text for text in splits["train"] if text.strip()]
        splits |= _carve(texts, missing)
    held = {text for split in SPLITS[1:] for text in splits[split] if len(text.split()) >= 13}
    kept = [text for text in splits["train"] if text not in held]  # a title may come twice
    _show(said, missing, left_out, len(splits["train"]) - len(kept))
    return splits | {"train": kept}


def _carve(documents, held_out):
    """`split_documents`, but with a document in each split even of a few."""
    splits = split_documents(documents, held_out)
    for split in held_out:
        if not splits[split] and len(splits["train"]) > 1:
            splits[split] = [min(splits["train"], key=sha256)]
            splits["train"].remove(splits[split][0])
    return splits


def _refuse_unclear(name, said):
    """Refuse names from which the splits are not clear."""
    loose = [label for label, splits in said.items() if not splits]
    hints = [set(_GLUED.findall(label.lower())) for label in loose]
    if any(len(splits) > 1 for splits in said.values()):
        why = "a name says two"
    elif 0 < len(loose) < len(said):
        why = "some names say one, others none"
    elif not loose and ["train"] not in said.values():
        why = "there is none to train on"
    elif {"train"} in hints and any(found - {"train"} for found in hints):
        why = "names may mean them"  # wikitrain.txt, wikitest.txt
    else:
        return
    allowed = (
        f"has splits that are not clear, {why}: {_where(said)}. "
        f"Name every text after train, validation or test, or none"
    )
    raise ParameterError("data", name, allowed)


def _show(said, missing, left_out, twice):
    """One line that says where each text went, and what of train is left out as held out too."""
    parts = [_where(said)]
    if not any(said.values()):
        parts.append("documents are split 90 : 5 : 5 by a hash")
    elif missing:
        parts.append(f"{' and '.join(missing)}: {_HELD_OUT:.0%} of the training documents")
    if left_out:
        parts.append(f"left out: {_few(left_out)}")
    if twice:
        parts.append(f"left out of train: {twice} documents that are held out too")
    encoding = sys.stdout.encoding or "utf-8"  # a file may have any name, a terminal be ASCII
    print(f"data: {'; '.join(parts)}".encode(encoding, "backslashreplace").decode(encoding))


def _where(said):
    """Names and the split each says."""
    groups = {}
    for label, splits in sorted(said.items(), key=lambda item: [*map(SPLITS.index, item[1])]):
        groups.setdefault(" or ".join(splits) or "no split named", []).append(label)
    return "; ".join(f"{_few(labels)} -> {split}" for split, labels in groups.items())


def _few(labels):
    short = [label if len(label) < 60 else f"{label[:28]}...{label[-28:]}" for label in labels[:3]]
    return ", ".join(short) + (f" and {len(labels) - 3} more" if len(labels) > 3 else "")
