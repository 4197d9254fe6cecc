"""Measure the pretrained GPT-2 models under every protocol and compare with what others report.

`make verify-gpt2` runs it. It needs `gpt2` and WikiText-2 in the hub's cache, or a network; larger
models are measured where they are cached. Exit code 1 if any value is off by more than 0.05.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from prunegpt_utils.corpora import load_text
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.evaluation import perplexity
from prunegpt_utils.hub import is_available
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
TOLERANCE = 0.05


def main():
    """Print a line a value; return how many are off."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="Salesforce/wikitext:wikitext-2-raw-v1")
    chosen = parser.parse_args()
    off, loaded = 0, {}
    with TemporaryDirectory() as cache:
        corpus = load_text(chosen.data, cache)
        for name, split, protocol, stride, metric, wanted in REFERENCE:
            if name != "gpt2" and not is_available(name):
                print(f"{name:<12} {split:<11} {protocol:<11} left out: no weights here")
                continue
            if name not in loaded:  # one model in memory at a time
                model, tokenizer = load_model(name), load_tokenizer(name)
                loaded = {name: (model, tokenize(corpus, tokenizer, Path(cache)))}
            model, tokens = loaded[name]
            ours = perplexity(model, tokens, split, 1024, protocol, stride, batch=4)
            bad = abs(ours[metric] - wanted) > TOLERANCE
            off += bad
            verdict = "OFF" if bad else "agrees"
            print(
                f"{name:<12} {split:<11} {protocol:<11} measured {ours[metric]:7.2f}   "
                f"reported {wanted:6.2f}   {verdict}", flush=True
            )  # fmt: skip
    return off


if __name__ == "__main__":
    try:
        sys.exit(1 if main() else 0)
    except ParameterError as error:
        sys.exit(f"error: {error}")
