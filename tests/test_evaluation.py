import math
import re
import tracemalloc

import numpy as np
import pandas
import pytest
import torch
from conftest import WIKITEXT, tiny_gpt2, tokens_of

from prunegpt_utils import corpora, evaluation, forward, modeling, tokenization
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.evaluation import perplexity


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
    ours = perplexity(model, tokens_of(ids[:length]), "test", block, "strided", stride)
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
        perplexity(model, tokens_of(ids), "test", 32, "strided", 16, batch)["nll"]
        for batch in (1, 3, 64)
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
    assert ours["byte_perplexity"] == pytest.approx(math.exp(ours["nll"] * 1000 / 1500))


def test_overflow_is_inf_and_keeps_the_nll(ids):
    model = tiny_gpt2()
    model.transformer.ln_f.weight.data *= 1e4
    ours = perplexity(model, tokens_of(ids), "test", 32)
    assert ours["perplexity"] == math.inf and math.isfinite(ours["nll"])


def test_scoring_leaves_the_mode_alone(model, ids):
    model.train()
    attention = model.config._attn_implementation
    perplexity(model, tokens_of(ids), "test", 32)
    assert model.training and model.config._attn_implementation == attention == "eager"


def test_reading_neither_drops_out_nor_learns(model):
    model.train()
    with forward.inference_mode(model):
        assert not model.training and not torch.is_grad_enabled()
        assert model.config._attn_implementation == "sdpa"
    with pytest.raises(RuntimeError), forward.inference_mode(model):
        raise RuntimeError
    assert model.training and model.config._attn_implementation == "eager"


def test_attention_is_trained_by_the_length_of_a_window(model):
    def attention(tokens, dropout=0.0):
        model.config.attn_pdrop = dropout
        with forward.training_attention(model, tokens):
            return model.config._attn_implementation

    assert [attention(tokens) for tokens in (128, 256, 257, 1024)] == ["eager"] * 2 + ["sdpa"] * 2
    assert attention(1024, dropout=0.1) == "eager", "no fused kernel has dropout on a CPU"
    assert model.config._attn_implementation == "eager", "it is as before"


@pytest.fixture(scope="module")
def wikitext(tmp_path_factory):
    """The first 1,100 rows of the raw test split, in the embedded tokenizer's tokens."""
    if not WIKITEXT.exists():
        pytest.skip("WikiText is not on this machine")
    file = next((WIKITEXT / "wikitext-2-raw-v1").glob("test*"))
    rows = pandas.read_parquet(file)["text"].tolist()[:1100]
    corpus = corpora.corpus_of("wikitext", dict.fromkeys(corpora.SPLITS, rows))
    tokenizer = modeling.load_tokenizer("pydocs-base")
    cache = tmp_path_factory.mktemp("cache")
    return (
        rows,
        tokenizer,
        tokenization.tokenize(corpus, tokenizer, cache),
        tiny_gpt2(vocabulary=2048),
    )


def window_nll(model, ids):
    """Sum over the predicted tokens of one window, and how many they are."""
    with torch.no_grad():
        loss = model(ids[None], labels=ids[None]).loss.item()
    return loss * (len(ids) - 1), len(ids) - 1


def test_run_clm_as_its_script_computes_it(wikitext):
    """Tokenise in batches of 1,000 rows, concatenate, cut into blocks, drop the remainder."""
    rows, tokenizer, tokens, model = wikitext
    losses = []
    for begin in range(0, len(rows), 1000):
        batch = tokenizer(rows[begin : begin + 1000])["input_ids"]
        ids = torch.tensor([token for row in batch for token in row])
        for start in range(0, len(ids) - len(ids) % 32, 32):
            losses.append(window_nll(model, ids[start : start + 32])[0] / 31)
    ours = perplexity(model, tokens, "test", 32, "run_clm")
    assert ours["tokens"] == 31 * len(losses)
    assert ours["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)


def test_word_level_scores_every_token_of_every_page(wikitext):
    rows, tokenizer, tokens, model = wikitext
    text = "".join(row or " \n" for row in rows)
    titles = [m.start() for m in re.finditer(r"(?m)^ = [^=\n]+ = $", text)]
    # the line break before the next title belongs to no page
    ends = [*(start - 1 for start in titles[1:]), len(text)]
    originals = [text[a:b] for a, b in zip(titles, ends, strict=True)]
    total, words = 0.0, 0
    for page in originals:
        ids = torch.tensor(
            [tokenizer.eos_token_id, *tokenizer(tokenization.detokenize(page))["input_ids"]]
        )
        for begin in range(0, len(ids) - 1, 32):
            # the model reads 32 tokens, the last ones of a page too, and predicts the next of each
            end = min(begin + 33, len(ids))
            window = ids[max(0, end - 33) : end]
            with torch.no_grad():
                log_p = model(window[None, :-1]).logits[0].log_softmax(-1)
            scored = end - begin - 1
            total -= log_p[range(len(window) - 1), window[1:]][-scored:].sum().item()
        words += len(re.split(r"\s+", page))
    ours = perplexity(model, tokens, "test", 32, "word-level")
    scored = sum(len(tokenizer(tokenization.detokenize(page))["input_ids"]) for page in originals)
    assert ours["tokens"] == scored and ours["nll"] == pytest.approx(total / scored, rel=1e-5)
    assert ours["word_perplexity"] == pytest.approx(math.exp(total / words), rel=1e-4)


def test_word_level_is_that_of_lm_eval(tmp_path):
    """The embedded model on the raw test split, as lm-eval 0.4.13 measures it."""
    if not WIKITEXT.exists():
        pytest.skip("WikiText is not on this machine")
    file = next((WIKITEXT / "wikitext-2-raw-v1").glob("test*"))
    rows = pandas.read_parquet(file)["text"].tolist()
    splits = {"train": rows[:9], "validation": rows[:9], "test": rows}
    tokenizer, model = modeling.load_tokenizer("pydocs-base"), modeling.load_model("pydocs-base")
    tokens = tokenization.tokenize(corpora.corpus_of("raw", splits), tokenizer, tmp_path)
    ours = perplexity(model, tokens, "test", 128, "word-level")
    assert ours["words"] == 241_335 and ours["bytes"] == 1_290_527
    assert ours["word_perplexity"] == pytest.approx(42082.8513, rel=1e-6)
    assert ours["byte_perplexity"] == pytest.approx(7.323704, rel=1e-6)
    assert ours["bits_per_byte"] == pytest.approx(2.8725735, rel=1e-6)


def test_a_page_begins_with_bos_where_there_is_one():
    tokenizer = modeling.load_tokenizer("pydocs-base")
    assert tokenization._pages(["a page"], tokenizer).ids[0] == tokenizer.eos_token_id
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    first = tokenization._pages(["a page"], tokenizer).ids[0]
    assert first == tokenizer.bos_token_id != tokenizer.eos_token_id


@pytest.mark.parametrize("protocol", ["disjoint", "strided"])
def test_joined_protocols_on_real_text(wikitext, protocol):
    rows, tokenizer, _, model = wikitext
    ids = torch.tensor(tokenizer("\n\n".join(rows[:200]))["input_ids"])
    stride = 8 if protocol == "strided" else 32
    wanted, scored = naive(model, ids, 32, stride)
    ours = perplexity(model, tokens_of(ids), "test", 32, protocol, stride)
    assert ours["tokens"] == scored
    assert ours["perplexity"] == pytest.approx(math.exp(wanted), rel=1e-4)


def test_natural_spacing():
    spaced = ' He paid 1 @,@ 000 @.@ 5 ( about half ) for Jones \'s well @-@ known " work " . \n'
    natural = ' He paid 1,000.5 (about half) for Jones\'s well-known "work".\n'
    assert tokenization.detokenize(spaced) == natural


@pytest.mark.parametrize("stride", [0, 33])
def test_stride_out_of_range(model, ids, stride):
    with pytest.raises(ParameterError, match=r"stride: -?\d+ must lie between 1 and the block"):
        perplexity(model, tokens_of(ids), "test", 32, "strided", stride or -1)


def test_paired_interval_is_that_of_the_normal_approximation():
    generator = torch.Generator().manual_seed(3)
    common = 5 * torch.randn(4000, generator=generator)  # how hard each token is: cancels in pairs
    windows = 0.2 * torch.randn(400, generator=generator)  # what the tokens of a window share
    first = common + 0.1 + windows.repeat_interleave(10)
    found = evaluation.paired_difference(first, common, 10)
    error = float(windows.std()) / 20
    assert found["mean"] == pytest.approx(0.1 + float(windows.mean()), abs=1e-5)
    assert found["low"] == pytest.approx(found["mean"] - 1.96 * error, abs=0.1 * error)
    assert found["high"] == pytest.approx(found["mean"] + 1.96 * error, abs=0.1 * error)


def test_a_model_does_not_differ_from_itself(model, ids):
    losses = evaluation.score_tokens(model, tokens_of(ids), "test", 32).losses
    assert evaluation.paired_difference(losses, losses, 32) == {"mean": 0, "low": 0, "high": 0}


def test_a_text_shorter_than_a_window_still_has_an_interval():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 100, generator=generator)
    found = evaluation.paired_difference(first, second, window=1024)
    assert found["low"] < found["mean"] < found["high"]


def test_the_interval_is_that_of_a_bootstrap_over_windows():
    generator = torch.Generator().manual_seed(5)
    windows = torch.randn(250, 1, generator=generator)  # what the tokens of a window share
    first = (windows + torch.randn(250, 16, generator=generator)).flatten()
    second = torch.zeros_like(first)
    found = evaluation.paired_difference(first, second, window=16, seed=1)
    means = first.double().view(-1, 16).mean(1).numpy()
    drawn = np.random.default_rng(7).choice(means, (10_000, len(means))).mean(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert found["mean"] == pytest.approx(means.mean())
    assert found["low"] == pytest.approx(low, abs=0.05 * (high - low))
    assert found["high"] == pytest.approx(high, abs=0.05 * (high - low))


def test_the_bootstrap_of_a_long_text_needs_little_memory():
    losses = torch.rand(300_000, generator=torch.Generator().manual_seed(0))
    tracemalloc.start()
    evaluation.paired_difference(losses, losses / 2, window=16, draws=2000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6


def test_windows_of_a_text_are_those_that_the_model_read(model, ids):
    tokens = tokens_of(ids[:100])
    tokens.layouts["joined"]["validation"] = tokens.layouts["joined"]["test"]
    found, windows = evaluation.score_splits(model, tokens, 32)
    losses = evaluation.score_tokens(model, tokens, "test", 32).losses
    assert found == dict.fromkeys(("validation", "test"), perplexity(model, tokens, "test", 32))
    wanted = [round(part.double().mean().item(), 5) for part in losses.split([31, 31, 31, 3])]
    assert windows == {"validation": wanted, "test": wanted}
    assert evaluation.score_splits(model, tokens, 32, "strided")[1] is None


def test_nll_by_window_by_hand():
    losses = torch.tensor([1.0, 2.0, 3.0, 5.0, 0.123456])
    assert evaluation.nll_by_window(losses, 2) == [1.5, 4.0, 0.12346]


def test_two_records_are_compared_as_two_models_are():
    generator = torch.Generator().manual_seed(5)
    first, second = torch.rand(2, 1003, generator=generator) * 3
    whole = evaluation.paired_difference(first, second, window=31, seed=2)
    by_window = [evaluation.nll_by_window(losses, 31) for losses in (first, second)]
    found = evaluation.paired_window_difference(*by_window, tokens=1003, window=31, seed=2)
    assert found == pytest.approx(whole, abs=1e-5)
    assert found["mean"] == pytest.approx(float((first - second).mean()), abs=1e-5)


@pytest.mark.parametrize(("counts", "tokens"), [((3, 4), 90), ((3, 3), 124), ((2, 2), 61)])
def test_windows_of_two_texts_are_not_compared(counts, tokens):
    lists = [[1.0] * count for count in counts]
    with pytest.raises(
        ParameterError, match=r"nll_by_window: '\d and \d windows' must be those of"
    ):
        evaluation.paired_window_difference(*lists, tokens=tokens, window=31)
