"""Measure the pretrained GPT-2 models under every protocol and compare with what others report.

`make verify-gpt2` runs it for `gpt2` and for the larger models that are on this machine already;
`make verify-gpt2 MODELS="gpt2-medium gpt2-xl"` for those named, which it downloads. It needs
WikiText-2 in the hub's cache, or a network. Exit code 1 if any value is off by more than 0.05.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from prunegpt_utils import hub
from prunegpt_utils.corpora import load_text
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.evaluation import perplexity
from prunegpt_utils.modeling import load_model, load_tokenizer
from prunegpt_utils.tokenization import tokenize

# model, split, protocol, stride, metric, perplexity. The raw WikiText-2 text, windows of 1,024.
# Sources: Hugging Face's guide on perplexity and its run_clm example, lm-eval, the GPT-2 cards.
REFERENCE = [
    ("gpt2", "test", "disjoint", None, "perplexity", 29.94),
    ("gpt2", "test", "strided", 512, "perplexity", 25.19),
    ("gpt2", "validation", "disjoint", None, "perplexity", 31.04),
    ("gpt2", "validation", "run_clm", None, "perplexity", 30.63),
    ("gpt2", "test", "word-level", None, "word_perplexity", 37.37),
    ("gpt2-medium", "test", "disjoint", None, "perplexity", 21.72),
    ("gpt2-medium", "test", "strided", 512, "perplexity", 18.47),
    ("gpt2-large", "test", "disjoint", None, "perplexity", 19.44),
    ("gpt2-large", "test", "strided", 512, "perplexity", 16.44),
    ("gpt2-xl", "test", "disjoint", None, "perplexity", 17.40),
    ("gpt2-xl", "test", "strided", 512, "perplexity", 14.80),
]
MODELS = list(dict.fromkeys(name for name, *_ in REFERENCE))
TOLERANCE = 0.05


def main():
    """Print a line a value; return how many are off."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="model", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--data", default="Salesforce/wikitext:wikitext-2-raw-v1")
    chosen = parser.parse_args()
    if unknown := set(chosen.models) - set(MODELS):
        raise ParameterError("models", *sorted(unknown)[:1], f"must be of {', '.join(MODELS)}")
    with TemporaryDirectory() as cache:
        corpus = load_text(chosen.data, cache)
        return sum(verify(name, corpus, cache) for name in chosen.models or _unasked())


def _unasked():
    """`gpt2` and what is on this machine; of the others a line says how to ask for them."""
    for name in MODELS:
        if name == "gpt2" or hub.is_available(name):
            yield name
        else:
            print(f'{name:<12} left out: MODELS="{name}" downloads {_size(name)}', flush=True)


def _size(name):
    try:
        size = hub.download_bytes(name)
    except ParameterError:  # no network
        size = None
    return f"{size / 1e9:.1f} GB" if size else "it where there is a network"


def verify(name: str, corpus, cache: str) -> int:
    """How many values of one model are off."""
    model, tokens, off = load_model(name), tokenize(corpus, load_tokenizer(name), Path(cache)), 0
    for _, split, protocol, stride, metric, wanted in (row for row in REFERENCE if row[0] == name):
        ours = perplexity(model, tokens, split, 1024, protocol, stride, batch=4)
        bad = abs(ours[metric] - wanted) > TOLERANCE
        off += bad
        print(
            f"{name:<12} {split:<11} {protocol:<11} measured {ours[metric]:7.2f}   "
            f"reported {wanted:6.2f}   {'OFF' if bad else 'agrees'}", flush=True
        )  # fmt: skip
    return off


if __name__ == "__main__":
    try:
        sys.exit(1 if main() else 0)
    except ParameterError as error:
        sys.exit(f"error: {error}")
