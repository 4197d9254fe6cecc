"""What is left of a dense model beyond its perplexity: divergence, changed answers, calibration."""

import math

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_gpt2, tokens_of

from prunegpt_utils import evaluation, fidelity
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.report import fidelity_plots, tables


@pytest.fixture
def other():
    return tiny_gpt2(seed=4)


def logits_of(model, ids, block):
    """Logits and next tokens, window by window, as one would write them down."""
    windows = [window for window in ids.split(block) if len(window) > 1]
    with torch.no_grad():
        found = [model(window[None, :-1]).logits[0] for window in windows]
    return torch.cat(found), torch.cat([window[1:] for window in windows])


def reading(model, ids, block=32, batch=32):
    return evaluation.read(model, tokens_of(ids), "test", block, batch=batch)


def compare(model, other, ids, batch=32, chunk=256):
    return fidelity.compare(reading(model, ids, batch=batch), reading(other, ids), chunk)


def test_a_model_beside_itself_has_lost_nothing(model, ids):
    found = compare(model, model, ids)
    assert found["tokens"] == 968 and found["kl"] == 0 and found["same_top"] == 1  # 31 a window
    assert found["flips_to_wrong"] == found["flips_to_right"] == 0
    assert found["ece"] == found["reference_ece"]


def test_all_of_it_on_the_logits_of_two_models(model, other, ids):
    found = compare(model, other, ids[:1001])
    ours, labels = logits_of(model, ids, 32)
    theirs, _ = logits_of(other, ids, 32)
    log_p, log_q = (each.double().log_softmax(-1) for each in (theirs, ours))
    wanted = F.kl_div(log_q, log_p, log_target=True, reduction="batchmean").item()
    right, reference_right = ours.argmax(-1) == labels, theirs.argmax(-1) == labels
    assert found["tokens"] == len(labels)
    assert found["kl"] == pytest.approx(wanted, rel=1e-5) and wanted > 0.01
    assert found["same_top"] == pytest.approx(
        (ours.argmax(-1) == theirs.argmax(-1)).double().mean()
    )
    assert found["flips_to_wrong"] == (reference_right & ~right).double().mean() > 0
    assert found["flips_to_right"] == (right & ~reference_right).double().mean() > 0


@pytest.mark.parametrize(("batch", "chunk"), [(1, 256), (3, 7), (64, 1), (32, 4096)])
def test_batch_and_chunk_change_nothing(model, other, ids, batch, chunk):
    whole = compare(model, other, ids[:490])
    assert compare(model, other, ids[:490], batch, chunk) == pytest.approx(whole)


def test_the_same_tokens_are_compared_as_are_scored(model, other, ids):
    for length in (2, 33, 64, 100):
        scored = evaluation.score_tokens(model, tokens_of(ids[:length]), "test", 32)
        found = compare(model, other, ids[:length])
        assert found["tokens"] == len(scored.losses)
    with pytest.raises(ParameterError, match="data: '1 tokens' is too little text to score"):
        compare(model, other, ids[:1])


@pytest.mark.parametrize("protocol", ["disjoint", "strided"])
def test_a_reading_scores_a_text_as_it_is_scored_without_one(model, ids, protocol):
    """So that a notebook which compares need not read a text twice."""
    text = tokens_of(ids[:490])
    plain = evaluation.score_tokens(model, text, "test", 32, protocol)
    found = evaluation.read(model, text, "test", 32, protocol)
    torch.testing.assert_close(found.scored.losses, plain.losses, rtol=1e-6, atol=1e-6)
    assert evaluation.metrics(found.scored) == pytest.approx(evaluation.metrics(plain))
    assert found.hidden_states.shape == (len(plain.losses), 16)
    parts = [ids[:490]] if protocol == "strided" else ids[:490].split(32)
    assert torch.equal(found.labels, torch.cat([part[1:] for part in parts]))


def test_readings_of_two_texts_are_refused(model, ids):
    with pytest.raises(ParameterError, match="reference: 'a text of 31 scored tokens' must be"):
        fidelity.compare(reading(model, ids[32:64]), reading(model, ids[:32]))


def test_a_nearly_equal_model_is_never_nearer_than_itself(model, ids):
    near = tiny_gpt2()
    for weight in near.parameters():
        weight.data.mul_(1 + 1e-6)
    assert -1e-8 < compare(near, model, ids)["kl"] < 1e-6


def test_models_are_left_as_they_were(model, other, ids):
    model.train()
    compare(model, other, ids[:64])
    assert model.training and not other.training
    assert model.config._attn_implementation == other.config._attn_implementation == "eager"


def test_logits_of_a_whole_text_never_stand_in_memory():
    big = tiny_gpt2(vocabulary=5000)
    ids, seen = torch.arange(4000) % 5000, []
    hooked = torch.nn.functional.linear

    def watched(hidden, weight, *rest):
        seen.append(hidden.shape[0] if weight.shape[0] == 5000 else 0)
        return hooked(hidden, weight, *rest)

    read = reading(big, ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prunegpt_utils.forward.F.linear", watched)
        fidelity.compare(read, read, chunk=100)
    assert 0 < max(seen) <= 100


def test_flips_are_counted_both_ways_by_hand():
    """Four tokens, three words: kept, lost, won, and wrong in two ways."""
    labels = torch.tensor([0, 1, 2, 0])
    theirs = torch.tensor(
        [[9.0, 0, 0], [0, 9, 0], [0, 9, 0], [0, 9, 0]]
    )  # right, right, wrong, wrong
    ours = torch.tensor(
        [[5.0, 0, 0], [5, 0, 0], [0, 0, 5], [0, 0, 5]]
    )  # right, wrong, right, wrong
    found = fidelity.summarize([fidelity.token_fidelity(ours, theirs, labels)])
    assert found["tokens"] == 4 and found["same_top"] == 0.25
    assert found["flips_to_wrong"] == found["flips_to_right"] == 0.25


def test_the_divergence_is_from_the_reference_to_the_model():
    """p = (3/4, 1/4), q = (1/2, 1/2): KL(p || q) = ln 2 - H(p); the reverse is another number."""
    theirs, ours = torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2)
    found = fidelity.token_fidelity(ours, theirs, torch.tensor([0]))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert found["kl"].item() == pytest.approx(math.log(2) - entropy, rel=1e-5)
    assert found["confidence"].item() == 0.5
    assert found["reference_confidence"].item() == pytest.approx(0.75)


def test_calibration_error_by_hand():
    """Bins of 0.2: |1.7 - 2| / 5 of those at 0.9 and 0.8+, |1.1 - 1| / 5 and |0.2 - 0| / 5."""
    confidence = torch.tensor([0.9, 0.81, 0.5, 0.6, 0.2], dtype=torch.float64)
    right = torch.tensor([True, True, True, False, False])
    # 0.6 belongs to (0.4, 0.6], and 0.2 to (0, 0.2]
    wanted = (abs(1.71 - 2) + abs(1.1 - 1) + abs(0.2 - 0)) / 5
    assert fidelity.calibration_error(confidence, right, bins=5) == pytest.approx(wanted)
    sure = torch.ones(10)
    assert fidelity.calibration_error(sure, sure.bool()) == 0
    assert fidelity.calibration_error(sure, ~sure.bool()) == 1


def test_calibration_error_of_answers_as_sure_as_they_are_right():
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(200_000, generator=generator, dtype=torch.float64)
    right = torch.rand(200_000, generator=generator) < confidence
    assert fidelity.calibration_error(confidence, right) < 0.01
    assert fidelity.calibration_error(confidence.sqrt(), right) > 0.1  # too sure of itself


def test_other_vocabularies_are_refused(model, ids):
    with pytest.raises(ParameterError, match="reference: '101 tokens .* must have the model's 97"):
        compare(model, tiny_gpt2(vocabulary=101), ids)


def test_the_table_says_in_words_what_the_record_holds():
    found = {
        "reference": "control-seed0", "tokens": 9, "kl": 0.12345, "same_top": 0.8,
        "flips_to_wrong": 0.05, "flips_to_right": 0.01, "ece": 0.021, "reference_ece": 0.03,
    }  # fmt: skip
    table = tables.fidelity_table(found)["beside control-seed0"].tolist()
    assert table == ["0.123", "80.0 %", "5.0 %", "1.0 %", "2.1 %", "3.0 %"]


def test_the_figure_has_the_means_and_what_two_dense_models_have():
    def of(recipe, requested, kl):
        kept = {"kl": kl, "flips_to_wrong": kl / 10, "flips_to_right": kl / 20, "same_top": 0.5}
        return {"recipe": recipe, "base_recipe": recipe, "requested": requested, "fidelity": kept}

    rows = [of("control", 0.0, 0.1), of("control", 0.0, 0.3), of("gradual", 0.5, 0.4),
            of("gradual", 0.5, 0.8), of("gradual", 0.9, 1.2), of("zero-shot", 0.0, 9.0)]  # fmt: skip
    table = pd.DataFrame([*rows, of("gradual", 0.7, 1.0) | {"fidelity": None}])
    figure = fidelity_plots.fidelity_by_sparsity(table)
    left, right = figure.axes
    (line, level) = left.lines
    assert line.get_xdata().tolist() == [0.5, 0.9]
    assert line.get_ydata() == pytest.approx([0.6, 1.2]) and level.get_ydata()[0] == 0.2
    drawn = [each.get_ydata()[0] for each in right.lines]
    assert drawn == pytest.approx([0.06, 0.03, 0.02, 0.01])
    assert fidelity_plots.fidelity_by_sparsity(table[table.requested == 0]) is None
    alone = fidelity_plots.fidelity_by_sparsity(table[table.requested > 0])  # no control compared
    assert len(alone.axes[0].lines) == 1
