"""Other texts that a model is scored on besides its own: does what holds on one hold on another?"""

from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunegpt_utils.corpora import load_test
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.evaluation import perplexity
from prunegpt_utils.tokenization import Layout, Tokens, tokenize


def load_other_texts(
    names: str, tokenizer: PreTrainedTokenizerBase, cache: str | Path, limit: int = 0
) -> tuple[dict[str, Tokens], dict[str, str]]:
    """The test splits of some texts, documents joined by a blank line.

    Args:
        names: separated by spaces, see `corpora.load_test`.  cache: folder for what takes long.
        limit: tokens that are kept, the first ones; 0 for all.

    Returns:
        ({name: Tokens}, {name: why it is not to be had}).
    """
    found, missing = {}, {}
    for name in names.split():
        try:
            tokens = tokenize(load_test(name, cache), tokenizer, cache)
        except ParameterError as error:
            missing[name] = str(error)
            continue
        whole = tokens.layouts["joined"]["test"]
        kept = first_tokens(whole, tokenizer, limit) if 0 < limit < whole.tokens else whole
        layouts = {"joined": {"test": kept}}
        found[name] = Tokens(tokens.corpus, tokens.sha256, tokens.revision, layouts)
    return found, missing


def first_tokens(layout: Layout, tokenizer: PreTrainedTokenizerBase, limit: int) -> Layout:
    """The first `limit` tokens of a text, and how many words and bytes they stand for."""
    ids = layout.ids[:limit]
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return Layout(ids, [len(ids)], len(text.split()), len(text.encode("utf-8")))


def score_other_texts(
    model: PreTrainedModel, texts: Mapping[str, Tokens], block_size: int, batch: int = 4
) -> dict[str, dict]:
    """{name: `evaluation.metrics`} in disjoint windows of `block_size`, `batch` at a time."""
    return {
        name: perplexity(model, tokens, "test", block_size, batch=batch)
        for name, tokens in texts.items()
    }


def describe_other_texts(texts: Mapping[str, Tokens], scores: Mapping[str, dict]) -> dict:
    """What a record says of each text, by its name: sha256 of all of its test split, and scores."""
    return {
        name: {"sha256": text.sha256, "revision": text.revision, "metrics": scores[name]}
        for name, text in texts.items()
    }
