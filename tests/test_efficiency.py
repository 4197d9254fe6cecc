import inspect
from functools import partial

import pytest
import torch
from conftest import ROOT
from transformers import GPT2Config

from prunegpt_utils import losses
from prunegpt_utils.config import TrainConfig
from prunegpt_utils.efficiency import _Peak, predicted_memory, time_in_turns, tracked_memory

SMALL = GPT2Config(vocab_size=4096, n_embd=256, n_layer=4, n_head=4, n_positions=256)


def test_peak_counts_what_lives_at_the_same_time():
    with _Peak() as peak:
        a = torch.zeros(1000)
        del a  # 4,000 bytes come and go
        b = torch.zeros(500)
        c = b.view(10, 50) + 1  # a view is no new memory, the sum is
    assert peak.most == 4000 and peak.now == 4000 and c.shape == (10, 50)


@pytest.mark.parametrize("precision", ["bf16", "float32"])
@pytest.mark.parametrize("distilled", [True, False])
def test_memory_is_as_predicted(precision, distilled):
    plan = TrainConfig(1, 1e-3, batch=2, precision=precision, alpha=0.5)
    predicted = sum(predicted_memory(SMALL, plan, 256, distilled).values())
    assert predicted == pytest.approx(tracked_memory(SMALL, plan, 256, distilled), rel=0.25)


def test_gpt2_fits_the_original_hardware():
    """124M, distilled and masked, one window of 1,024 tokens: far below 11 GB."""
    plan = TrainConfig(1, 1e-3, batch=1, precision="bf16", alpha=0.5)
    assert tracked_memory(GPT2Config(), plan, 1024) < 6e9


def test_acts_take_turns_after_one_to_warm_up(monkeypatch):
    clock, order = iter(range(100)), []
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    found = time_in_turns({"a": partial(order.append, 1), "b": partial(order.append, 2)}, 2)
    assert order == [1, 2, 1, 2, 1, 2] and found == {"a": [1, 1], "b": [1, 1]}


def test_the_chunk_of_the_prediction_is_that_of_the_loss():
    """Otherwise notebook 03's table shows the memory of a loss that nobody computes."""
    plan = TrainConfig(1, 1e-3, batch=2, alpha=0.5)
    chunk = inspect.signature(losses.mean_loss).parameters["chunk"].default
    wide = GPT2Config(vocab_size=50_257, n_embd=64, n_layer=1, n_head=1, n_positions=1024)
    logits = predicted_memory(wide, plan, 1024)["logits of a chunk"]
    held, at_once = 2 * chunk * wide.vocab_size, losses.LOGITS_AT_ONCE
    assert at_once < held / 2, "a part of a chunk is to be in float32"
    number = 2 if plan.precision == "bf16" else 4
    assert logits == number * held + 5 * 4 * at_once
    tracked = tracked_memory(wide, plan, 1024)
    assert sum(predicted_memory(wide, plan, 1024).values()) == pytest.approx(tracked, rel=0.25)
    prose = (ROOT / "notebooks" / "03_distillation.ipynb").read_text("utf-8")
    assert f"made for {chunk:,} tokens at a time" in prose
