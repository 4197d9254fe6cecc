"""What the tests share: a tiny GPT-2, random tokens, and a runs folder that vanishes."""

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics
from types import SimpleNamespace

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers: no test asks the network

import pytest
import torch
import yaml
from transformers import GPT2Config, GPT2LMHeadModel

from prunegpt_utils import modeling
from prunegpt_utils.tokenization import Layout

ROOT = Path(__file__).parent.parent
WIKITEXT = ROOT.parent / "shared" / "data"  # beside the repository; tests that need it skip without
ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
torch.set_num_threads(1)  # tiny models: a second thread only waits


@pytest.fixture(autouse=True)
def runs_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEGPT_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


def tiny_gpt2(seed=0, vocabulary=97, block=32, dropout=0.0, layers=2):
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=block, n_embd=16, n_layer=layers, n_head=2, use_cache=False,
        resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout, bos_token_id=0, eos_token_id=0,
        initializer_range=0.3, attn_implementation="eager",
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def tokens_of(ids, words=100, size=400, layout="joined", lengths=None):
    """Tokens of one split, `test`, in one layout."""
    text = Layout(ids, lengths or [len(ids)], words, size)
    return SimpleNamespace(ids={"test": ids}, layouts={layout: {"test": text}})


@pytest.fixture
def model():
    return tiny_gpt2()


@pytest.fixture
def ids():
    return torch.randint(0, 97, (1000,), generator=torch.Generator().manual_seed(1))


def scored(perplexity=20.0):
    """The metrics of one split, as a record holds them."""
    sizes = {"tokens": 900, "words": 400, "bytes": 2000}
    per_unit = {"word_perplexity": 1.0, "bits_per_byte": 1.0}
    return sizes | per_unit | {"perplexity": perplexity, "nll": math.log(perplexity)}


def measured(perplexity=20.0, sparsity=0.9):
    """All that a notebook must measure to write a record."""
    return {
        "metrics": {split: scored(perplexity) for split in ("validation", "test")},
        "sparsity": {"requested": sparsity, "prunable": sparsity, "model": sparsity / 2},
        "model": {"name": "tiny", "parameters": 1000, "prunable": 800, "revision": None},
        "data": {"name": "text", "train_tokens": 5000, "sha256": "ab" * 32},
        "protocol": {"name": "disjoint", "block_size": 32, "stride": 32, "joiner": ""},
        "training": {"steps": 5, "tokens": 10, "seconds": 1.0, "history": []},
    }


def cheap_study(runs):
    """Lay out a study of two runs that take seconds each; return its folder below `runs`.

    Its study file, text and model lie in that folder, so that nothing of the project changes.
    """
    folder, rng = runs / "cheap", random.Random(0)
    folder.mkdir(parents=True)
    model = tiny_gpt2(vocabulary=2048, block=64)
    modeling.save_model(model, modeling.load_tokenizer("pydocs-base"), folder / "tiny")
    words = ["one", "two", "three", "four", "five", "six", "seven"]
    documents = [" ".join(rng.choices(words, k=60)) for _ in range(120)]
    (folder / "text.txt").write_text("\n\n".join(documents), "utf-8")
    parameters = {"model": str(folder / "tiny"), "data": str(folder / "text.txt")}
    recipes = {"dense": {"steps": 60}, "control": {"steps": 60}}
    content = {
        "study": "cheap", "parameters": parameters | {"block_size": 64, "batch": 2},
        "notebooks": {"01_baselines": recipes},
    }  # fmt: skip
    (folder / "study.yaml").write_text(yaml.safe_dump(content), "utf-8")
    return folder


def small_text(folder):
    """A text of the reader's own in three files: pages of Python's reference, the short ones."""
    folder.mkdir()
    pages = [text for _, text in sorted(topics.items()) if 800 < len(text) < 3000]
    for split, chosen in {"train": pages[8:], "valid": pages[:4], "test": pages[4:8]}.items():
        (folder / f"{split}.txt").write_text("\n".join(chosen), "utf-8")
    return folder


def papermill(notebook, runs, parameters):
    """Run a notebook as a user would, in a kernel of its own; `runs` is where it writes."""
    command = [
        sys.executable, "-m", "papermill", ROOT / "notebooks" / f"{notebook}.ipynb", runs / "out.ipynb",
        "--kernel", "python3", "--no-progress-bar", "--parameters_yaml", json.dumps(parameters),
    ]  # fmt: skip
    environment = os.environ | ONE_THREAD | {"PRUNEGPT_RUNS": str(runs)}
    return subprocess.run(
        command, env=environment, cwd=runs, capture_output=True, text=True, check=False
    )
