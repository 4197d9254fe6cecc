"""The WikiText study end to end, offline: a tiny GPT-2 and a few rows in a cache of the hub."""

import json
import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import torch
from conftest import ROOT, WIKITEXT
from transformers import GPT2Config, GPT2LMHeadModel

from prunegpt_utils import corpora
from prunegpt_utils.report import frames
from prunegpt_utils.runs import expansion


def snapshot(cache, kind, repository):
    home = cache / "hub" / f"{kind}s--{repository.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0" * 40)
    folder = home / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def cache(tmp_path):
    if not WIKITEXT.exists():
        pytest.skip("WikiText is not on this machine")
    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2)
    folder = snapshot(tmp_path, "model", "gpt2")
    GPT2LMHeadModel(config).save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(WIKITEXT / "gpt2-tokenizer" / name, folder)
    file = next((WIKITEXT / "wikitext-2-raw-v1").glob("test*"))
    rows = pd.read_parquet(file)["text"].tolist()
    texts = snapshot(tmp_path, "dataset", "Salesforce/wikitext") / "wikitext-2-raw-v1"
    texts.mkdir()
    for split, some in zip(corpora.SPLITS, (rows[:22], rows[100:125], rows[200:225]), strict=True):
        pd.DataFrame({"text": some}).to_parquet(texts / f"{split}-00000-of-00001.parquet")
    return tmp_path


@pytest.mark.system
def test_make_study_fills_the_table_offline(cache, runs_folder):
    environment = os.environ | {
        "HF_HOME": str(cache), "HF_HUB_OFFLINE": "1", "PRUNEGPT_RUNS": str(runs_folder),
    }  # fmt: skip
    environment.pop("MAKEFLAGS", None)
    done = subprocess.run(
        ["make", "study", "STUDY=wikitext-2", f"PYTHON={sys.executable}"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "left out: gradual-distilled-gpt2-xl, which needs gpt2-xl" in done.stdout
    assert "needs gpt2-xl" in done.stdout.split("published")[1]
    files = sorted((runs_folder / "wikitext-2" / "records").glob("*.json"))
    found = [json.loads(file.read_text()) for file in files]
    assert {record["run"] for record in found} == set(expansion.plan("wikitext-2"))
    for record in found:
        assert record["protocol"]["name"] == "run_clm" and record["protocol"]["block_size"] == 1024
        assert record["model"]["revision"] == record["data"]["revision"] == "0" * 40
    table = frames.frame(found, published={"dense": 21.76})
    distilled = table[table.recipe == "gradual-distilled"].sparsity.tolist()
    assert distilled == pytest.approx([0.5, 0.8, 0.9], abs=1e-3)
