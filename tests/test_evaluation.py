import math

import pytest
import torch
from conftest import tiny_gpt2, tokens_of

from prunegpt_utils.evaluation import perplexity
from prunegpt_utils.parameters import ParameterError


def naive(model, ids, block, stride):
    """The loop of the Hugging Face documentation, one window at a time, with the labels shifted inside."""
    losses, scored, previous = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + block, len(ids))
        window = ids[None, begin:end]
        labels = window.clone()
        labels[:, : -(end - previous)] = -100
        count = int((labels[:, 1:] != -100).sum())
        if count:
            with torch.no_grad():
                losses += model(window, labels=labels).loss.item() * count
            scored += count
        previous = end
        if end == len(ids):
            break
    return losses / scored, scored


@pytest.mark.parametrize("length", [1000, 993, 33, 32, 31, 2])
@pytest.mark.parametrize(("block", "stride"), [(32, 32), (32, 16), (32, 7), (20, 20)])
def test_equals_a_naive_loop(model, ids, length, block, stride):
    wanted, scored = naive(model, ids[:length], block, stride)
    ours = perplexity(model, tokens_of(ids[:length]), "test", block, stride)
    assert ours["tokens"] == scored
    assert ours["nll"] == pytest.approx(wanted, abs=1e-5)
    assert ours["perplexity"] == pytest.approx(math.exp(wanted), rel=1e-4)


def test_equals_torchmetrics(model, ids):
    from torchmetrics.text import Perplexity

    metric = Perplexity()
    for begin in range(0, 960, 32):
        window = ids[None, begin : begin + 32]
        with torch.no_grad():
            metric.update(model(window).logits[:, :-1], window[:, 1:])
    ours = perplexity(model, tokens_of(ids[:960]), "test", 32)
    assert ours["perplexity"] == pytest.approx(float(metric.compute()), rel=1e-4)


def test_batch_size_changes_nothing(model, ids):
    scores = [
        perplexity(model, tokens_of(ids), "test", 32, 16, batch)["nll"] for batch in (1, 3, 64)
    ]
    assert max(scores) - min(scores) < 1e-5


def test_the_short_last_window_weighs_by_its_tokens(model, ids):
    whole = perplexity(model, tokens_of(ids[:64]), "test", 32)
    rest = perplexity(model, tokens_of(ids[64:70]), "test", 32)
    both = perplexity(model, tokens_of(ids[:70]), "test", 32)
    mean = (62 * whole["nll"] + 5 * rest["nll"]) / 67
    assert both["tokens"] == 67 and both["nll"] == pytest.approx(mean, abs=1e-5)


def test_units_follow_from_the_mean_nll(model, ids):
    ours = perplexity(model, tokens_of(ids, words=250, size=1500), "test", 32)
    assert ours["word_perplexity"] == pytest.approx(math.exp(ours["nll"] * 1000 / 250))
    assert ours["bits_per_byte"] == pytest.approx(ours["nll"] * 1000 / 1500 / math.log(2))


def test_overflow_is_inf_and_keeps_the_nll(ids):
    model = tiny_gpt2()
    model.transformer.ln_f.weight.data *= 1e4
    ours = perplexity(model, tokens_of(ids), "test", 32)
    assert ours["perplexity"] == math.inf and math.isfinite(ours["nll"])


def test_scoring_leaves_the_mode_alone(model, ids):
    model.train()
    perplexity(model, tokens_of(ids), "test", 32)
    assert model.training


@pytest.mark.parametrize("stride", [0, 33])
def test_stride_out_of_range(model, ids, stride):
    with pytest.raises(ParameterError, match=r"stride: -?\d+ must lie between 1 and the block"):
        perplexity(model, tokens_of(ids), "test", 32, stride or -1)
