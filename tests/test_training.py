import contextlib
import errno
import math
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from conftest import tiny_gpt2
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from prunegpt_utils import (
    checkpoints,
    evaluation,
    forward,
    losses,
    masks,
    modeling,
    protocols,
    pruner,
    teacher_cache,
    tokenization,
    training,
)
from prunegpt_utils.config import TrainConfig
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.progress import ProgressBar
from prunegpt_utils.schedules import PruningSchedule
from prunegpt_utils.tokenization import windows
from prunegpt_utils.training import train

PRUNED = PruningSchedule(final=0.9, start=0.5, prune_until=0.5)
PLAN = TrainConfig(
    steps=20,
    lr=1e-2,
    batch=4,
    gradient_accumulation_steps=2,
    alpha=0.5,
    temperature=2.0,
    pruning=PRUNED,
)


def run(folder, ids, plan=PLAN, dropout=0.1, seed=0, **options):
    model = tiny_gpt2(seed, dropout=dropout)
    teacher = modeling.frozen_copy(tiny_gpt2(7))
    result = train(model, windows(ids, 16), ids[:200], folder, plan, teacher, **options)
    return model, result


def interrupted(monkeypatch, folder, ids, at, plan=PLAN):
    """Start a run with a checkpoint every step and kill it during step `at`."""
    update, calls = training.Trainer.update, []

    def dies(self, lr):
        calls.append(lr)
        if len(calls) == at:
            raise KeyboardInterrupt
        update(self, lr)

    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "update", dies)
        with pytest.raises(KeyboardInterrupt):
            run(folder, ids, plan, save_every=0)


@pytest.mark.parametrize("at", [2, 9, 12, 20])
@pytest.mark.parametrize("options", [("float32", "magnitude"), ("bf16", "fisher")])
def test_resume_is_bitwise(tmp_path, ids, monkeypatch, at, options):
    precision, criterion = options
    pruning = replace(PRUNED, criterion=criterion)
    plan = replace(PLAN, precision=precision, pruning=pruning)
    whole, result = run(tmp_path / "whole", ids, plan)
    interrupted(monkeypatch, tmp_path / "cut", ids, at, plan)
    assert list((tmp_path / "cut").rglob("resume.safetensors"))
    resumed, again = run(tmp_path / "cut", ids, plan)
    assert modeling.fingerprint(resumed) == modeling.fingerprint(whole)
    assert again["history"] == result["history"] and again["best_step"] == result["best_step"]
    assert not list((tmp_path / "cut").rglob("resume.safetensors"))


SCOPES = {
    "magnitude": "global", "random": "uniform", "first-order": "global", "fisher": "uniform",
    "wanda": "per-row", "sparsegpt": "uniform",
}  # fmt: skip


@pytest.mark.parametrize("criterion", SCOPES)
def test_every_criterion_resumes_to_the_same_bits(tmp_path, ids, monkeypatch, criterion):
    """Masks are computed in each step here, and with dropout in the model calibration has none."""
    pruning = replace(PRUNED, final=0.875, criterion=criterion, scope=SCOPES[criterion])
    plan = replace(PLAN, pruning=pruning)
    whole, _ = run(tmp_path / "whole", ids, plan)
    interrupted(monkeypatch, tmp_path / "cut", ids, 5, plan)
    resumed, _ = run(tmp_path / "cut", ids, plan)
    assert modeling.fingerprint(resumed) == modeling.fingerprint(whole)


def test_a_finished_run_is_loaded_not_repeated(tmp_path, ids, monkeypatch):
    first, result = run(tmp_path, ids)
    monkeypatch.setattr(training.Trainer, "loop", None)  # would raise if called
    second, again = run(tmp_path, ids)
    assert modeling.fingerprint(first) == modeling.fingerprint(second) and again == result


def test_the_same_training_in_two_processes_is_made_once(tmp_path, ids, monkeypatch):
    """The second one waits, as after a start that died while its notebook lived on."""
    _, result = run(tmp_path / "alone", ids)
    loops, loop = [], training.Trainer.loop

    def slow(*arguments):
        loops.append(1)
        time.sleep(0.3)  # long enough for the other one to come
        loop(*arguments)

    monkeypatch.setattr(training.Trainer, "loop", slow)
    two, teacher = [tiny_gpt2(dropout=0.1) for _ in range(2)], modeling.frozen_copy(tiny_gpt2(7))
    rest = (windows(ids, 16), ids[:200], tmp_path / "both", PLAN, teacher)
    with ThreadPoolExecutor(2) as pool:  # each opens the lock for itself, as processes do
        found = [future.result() for future in [pool.submit(train, m, *rest) for m in two]]
    assert len(loops) == 1
    assert all(map(torch.equal, two[0].parameters(), two[1].parameters()))
    assert found[0]["history"] == found[1]["history"] == result["history"]


def test_a_full_disk_costs_no_checkpoint(tmp_path, ids, monkeypatch):
    whole, _ = run(tmp_path / "whole", ids)
    interrupted(monkeypatch, tmp_path / "cut", ids, 9)
    (kept,) = (tmp_path / "cut").rglob("resume.safetensors")
    before = kept.read_bytes()

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", full)
        with pytest.raises(OSError, match="No space left"):
            run(tmp_path / "cut", ids, save_every=0)
    assert kept.read_bytes() == before
    again, _ = run(tmp_path / "cut", ids)
    assert all(map(torch.equal, whole.parameters(), again.parameters()))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_teacher_cached_on_disk_teaches_the_same(tmp_path, ids, monkeypatch, precision):
    plan = replace(PLAN, precision=precision)
    _, live = run(tmp_path / "live", ids, plan)
    monkeypatch.setattr(teacher_cache, "_compute", watched := Mock(wraps=teacher_cache._compute))
    for name in ("first", "second"):  # the second finds what the first wrote
        _, kept = run(tmp_path / name, ids, plan, cache=tmp_path / "cache")
        for ours, theirs in zip(kept["history"], live["history"], strict=True):
            assert ours["nll"] == pytest.approx(theirs["nll"], rel=1e-5)
    assert watched.call_count == 1 and len(list((tmp_path / "cache").iterdir())) == 1


def test_a_teacher_reads_what_its_student_reads_and_no_more(tmp_path, ids, monkeypatch):
    short = replace(PLAN, steps=3, evaluations=1)
    count = 3 * short.windows_per_step
    monkeypatch.setattr(teacher_cache, "_compute", watched := Mock(wraps=teacher_cache._compute))
    _, live = run(tmp_path / "live", ids, short)
    _, kept = run(tmp_path / "kept", ids, short, cache=tmp_path / "cache")
    assert kept["history"][0]["nll"] == pytest.approx(live["history"][0]["nll"], rel=1e-5)
    read = watched.call_args.args[1]
    assert len(read) == count < len(windows(ids, 16))
    assert kept["flops"]["teacher"] == live["flops"]["teacher"]  # no token twice


def test_hidden_states_too_large_to_cache_are_computed_live(tmp_path, ids, monkeypatch):
    monkeypatch.setattr(teacher_cache, "MAX_BYTES", 1000)
    live = run(tmp_path / "live", ids)[1]["history"]
    assert run(tmp_path / "large", ids, cache=tmp_path / "cache")[1]["history"] == live
    assert not (tmp_path / "cache").exists()


def test_other_arguments_are_another_run(tmp_path, ids):
    run(tmp_path, ids)
    run(tmp_path, ids, replace(PLAN, lr=2e-2))
    run(tmp_path, ids, seed=3)
    assert len(list(tmp_path.iterdir())) == 3


def test_sparsity_holds_through_momentum_save_and_reload(tmp_path, ids):
    model, result = run(tmp_path, ids)
    assert masks.measure_sparsity(model)["prunable"] == pytest.approx(0.9, abs=1e-3)
    (folder,) = tmp_path.iterdir()
    assert masks.measure_sparsity(modeling.load_model(folder)) == masks.measure_sparsity(model)
    on_the_way = [row["sparsity"] for row in result["history"]]
    assert on_the_way == sorted(on_the_way) and on_the_way[-1] == 0.9


def test_best_weights_are_those_with_the_final_sparsity(tmp_path, ids):
    model, result = run(tmp_path, ids)
    final = [row for row in result["history"] if row["sparsity"] == 0.9]
    assert result["best_step"] == min(final, key=lambda row: row["nll"])["step"]
    best = (
        evaluation.token_nll(model, ids[:200], protocols.rolling_windows(200, 16, 16))
        .double()
        .mean()
    )
    assert float(best) == pytest.approx(min(row["nll"] for row in final), abs=1e-6)


def test_no_steps_prunes_at_once(tmp_path, ids):
    plan = TrainConfig(
        steps=0, lr=1e-3, pruning=PruningSchedule(final=0.7, start=0.7, prune_until=0.0)
    )
    model, result = run(tmp_path, ids, plan)
    assert masks.measure_sparsity(model)["prunable"] == pytest.approx(0.7, abs=1e-3)
    assert result["tokens"] == 0 and result["history"] == []


def test_equal_seeds_give_equal_weights_and_others_do_not(tmp_path, ids):
    prints = [
        modeling.fingerprint(run(tmp_path / name, ids, replace(PLAN, seed=seed))[0])
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert prints[0] == prints[1] != prints[2]


def test_a_process_that_has_imported_a_kernel_is_no_notebook(monkeypatch):
    """As one that executes notebooks: there is no cell whose output could be rewritten."""
    monkeypatch.setitem(sys.modules, "ipykernel", Mock())
    with ProgressBar(2, "training") as bar:
        bar.advance(8)
    assert bar.disable


def test_gradients_from_before_are_no_part_of_the_first_step(tmp_path, ids):
    wanted, _ = run(tmp_path / "clean", ids)
    model, teacher = tiny_gpt2(0, dropout=0.1), modeling.frozen_copy(tiny_gpt2(7))
    losses.batch_loss(model, windows(ids, 16)[:2], PLAN).backward()
    train(model, windows(ids, 16), ids[:200], tmp_path / "used", PLAN, teacher)
    assert modeling.fingerprint(model) == modeling.fingerprint(wanted)


@pytest.mark.parametrize(
    "size", [0.0, 1e-9, 0.5, 1 - 1e-6, 1.0, 1 + 1e-6, 40.0, math.inf, math.nan]
)
def test_gradients_are_clipped_as_torch_clips_them(size):
    models = [torch.nn.Linear(3, 5), torch.nn.Linear(3, 5)]
    for model in models:
        model.weight.grad = torch.full((5, 3), size / 15**0.5)  # of this norm; the bias has none
    training.clip_gradients(models[0], 1.0)
    torch.nn.utils.clip_grad_norm_(models[1].parameters(), 1.0)
    ours, theirs = (model.weight.grad for model in models)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def tiny_llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=97, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, use_cache=False, tie_word_embeddings=True,
    )).eval()  # fmt: skip


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
@pytest.mark.parametrize("options", [{}, {"precision": "bf16"}, {"gradient_accumulation_steps": 2}])
def test_a_lookup_of_few_rows_trains_to_the_same_bits(tmp_path, ids, monkeypatch, make, options):
    """Some tokens stand in a batch more than twice, where the order of a sum shows."""
    models, text = [make(), make()], windows(ids, 8) % 7
    config = TrainConfig(4, 1e-2, batch=4, **options)
    train(models[0], text, ids[:99], tmp_path / "rows", config)
    monkeypatch.setattr(training, "sparse_lookup", contextlib.nullcontext)
    train(models[1], text, ids[:99], tmp_path / "dense", config)
    for ours, theirs in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(ours, theirs)


def test_a_lookup_of_few_rows_makes_no_gradient_of_the_whole_embedding(ids):
    model, text = tiny_gpt2(), windows(ids, 8)
    embedding = model.get_input_embeddings()
    with forward.sparse_lookup(model):
        losses.batch_loss(model, text[:2], TrainConfig(1, 1e-2)).backward()
        assert embedding.weight.grad.is_sparse
        assert embedding.weight.data_ptr() == model.lm_head.weight.data_ptr()
    assert embedding.weight is model.lm_head.weight and not embedding.sparse
    model.base_model.compile(backend="eager")
    with forward.sparse_lookup(model):
        assert embedding.weight is model.lm_head.weight, "would be compiled anew at every step"
    model.base_model._compiled_call_impl = None
    with pytest.raises(ZeroDivisionError), forward.sparse_lookup(model):
        1 / 0  # noqa: B018
    assert embedding.weight is model.lm_head.weight and not embedding.sparse


def test_accumulation_equals_one_large_batch(tmp_path, ids):
    plans = [
        TrainConfig(steps=5, lr=1e-3, batch=b, gradient_accumulation_steps=a)
        for b, a in ((8, 1), (2, 4))
    ]
    histories = [run(tmp_path / str(p.batch), ids, p, dropout=0.0)[1]["history"] for p in plans]
    for ours, theirs in zip(*histories, strict=True):
        assert ours["nll"] == pytest.approx(theirs["nll"], abs=1e-4)
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)


def test_non_finite_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path, ids, monkeypatch):
    update = training.Trainer.update

    def poison(self, lr):
        update(self, lr)
        if self.state.step == 6:
            self.model.transformer.ln_f.weight.data[0] = math.nan

    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "update", poison)
        with pytest.raises(
            FloatingPointError, match="loss: nan at step 7; the checkpoint of step 5"
        ):
            run(tmp_path / "cut", ids, save_every=0)
    resumed, _ = run(tmp_path / "cut", ids)
    whole, _ = run(tmp_path / "whole", ids)
    assert modeling.fingerprint(resumed) == modeling.fingerprint(whole)


def test_a_damaged_checkpoint_is_named(tmp_path, ids, monkeypatch):
    interrupted(monkeypatch, tmp_path, ids, 5)
    (path,) = tmp_path.rglob("resume.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ParameterError, match=r"checkpoint: .*resume.safetensors' is damaged"):
        run(tmp_path, ids)


def test_fisher_scores_use_what_training_knows(tmp_path, ids):
    """The first cut has no gradients yet and measures them; the later ones take Adam's."""
    plan = replace(PLAN, pruning=replace(PRUNED, criterion="fisher"))
    by_fisher, _ = run(tmp_path, ids, plan)
    by_size, _ = run(tmp_path, ids)
    assert masks.measure_sparsity(by_fisher)["prunable"] == pytest.approx(0.9, abs=1e-4)
    assert masks.sparsity_by_matrix(by_fisher) != masks.sparsity_by_matrix(by_size)


def test_every_token_is_seen_once_an_epoch():
    rows = [row for index in range(25) for row in tokenization.batch_indices(50, 4, index, seed=3)]
    assert sorted(rows[:50]) == sorted(rows[50:]) == list(range(50)) and rows[:50] != rows[50:]


def test_learning_rate_rises_then_falls_to_zero():
    plan = TrainConfig(steps=100, lr=1.0, warmup=0.1)
    factors = [plan.lr_at(step) for step in range(100)]
    assert factors[0] < 0.1 and max(factors) == factors[10] == 1.0 and factors[-1] < 0.001
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_each_round_removes_a_share_and_rewinds_the_learning_rate():
    plan = TrainConfig(steps=90, lr=1.0, pruning=PruningSchedule(final=0.875, rounds=3))
    held = [plan.pruning.sparsity(step, 90) for step in (0, 29, 30, 60, 89, 90)]
    assert held == pytest.approx([0.5, 0.5, 0.75, 0.875, 0.875, 0.875])
    factors = [plan.lr_at(step) for step in range(90)]
    assert factors[30:60] == pytest.approx(factors[:30])
    assert factors[60:] == pytest.approx(factors[:30])
    assert factors[29] < 0.1 < 0.9 < factors[32]


@pytest.mark.parametrize(("steps", "rounds"), [(20, 6), (160, 6), (160, 12), (100, 7)])
def test_every_round_begins_and_ends_where_its_zeros_change(steps, rounds):
    plan = TrainConfig(steps, 1.0, pruning=PruningSchedule(final=0.9, rounds=rounds), warmup=0.0)
    held = [plan.pruning.sparsity(step, steps) for step in range(steps)]
    begins = [step for step in range(steps) if step == 0 or held[step] > held[step - 1]]
    assert len(begins) == rounds
    assert all(plan.lr_at(step) > 0.9 for step in begins)


@pytest.mark.parametrize("steps", [7, 100, 131, 160, 250, 400])
def test_masks_are_computed_no_more_often_than_asked(steps):
    schedule = PruningSchedule(final=0.9, start=0.5, prune_until=1.0, updates=40)
    assert min(steps, 20) < len(schedule.cuts(steps)) <= 41 or steps == 7


@pytest.mark.parametrize("final", [0.1, 0.2, 0.3, 0.7, 0.9])
def test_the_last_round_has_the_final_sparsity_to_the_last_bit(final):
    assert PruningSchedule(final=final, rounds=3).sparsity(89, 90) == final


REGROWING = replace(PLAN, pruning=replace(PRUNED, regrow_decay=0.1, start=0.9, prune_until=0.8))


def test_removed_weights_may_return_until_pruning_ends(tmp_path, ids, monkeypatch):
    drawn, make = [], pruner.prune

    def watch(*arguments):
        drawn.append(make(*arguments))
        return drawn[-1]

    monkeypatch.setattr(pruner, "prune", watch)
    model, result = run(tmp_path, ids, REGROWING)
    first, last = drawn[0], drawn[-1]
    assert any((last[name] & ~first[name]).any() for name in last)  # some came back
    assert masks.measure_sparsity(model)["prunable"] == pytest.approx(0.9, abs=1e-3)
    assert {row["sparsity"] for row in result["history"]} == {0.9}


def test_regrowth_resumes_to_the_same_bits(tmp_path, ids, monkeypatch):
    whole, _ = run(tmp_path / "whole", ids, REGROWING)
    interrupted(monkeypatch, tmp_path / "cut", ids, 5, REGROWING)
    resumed, _ = run(tmp_path / "cut", ids, REGROWING)
    assert modeling.fingerprint(resumed) == modeling.fingerprint(whole)


def test_states_teach_the_same_model_nothing(ids):
    model = tiny_gpt2()
    plan, rows = TrainConfig(1, 1e-3, alpha=1.0, kd_loss="hidden_mse"), ids[None, :17]
    loss = losses.batch_loss(model, rows, plan, modeling.frozen_copy(model))
    assert float(loss) == 0 and loss.requires_grad
    other = losses.batch_loss(model, rows, plan, modeling.frozen_copy(tiny_gpt2(seed=5)))
    assert float(other) > 0.1


def test_a_cut_that_cannot_be_made_is_refused_before_the_first_step(model, ids, tmp_path):
    """However late the schedule would have asked for it."""
    late = {"final": 0.5, "prune_from": 0.9, "prune_until": 0.9}
    for schedule, message in (
        (PruningSchedule(criterion="sparsegpt", scope="global", **late), "scope: 'global' must be"),
        (PruningSchedule(scope="1:4", final=0.8, prune_from=0.9), "sparsity: 0.8 must be at most"),
        (PruningSchedule(criterion="sparsegpt", scope="2:4", start=0.25, final=0.5), "sparsity: 0.25"),
    ):  # fmt: skip
        config = TrainConfig(10, 1e-3, batch=2, pruning=schedule)
        with pytest.raises(ParameterError, match=message):
            train(model, windows(ids, 16), ids[:64], tmp_path, config)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_training_is_that_of_a_configuration_and_not_of_weights_alone(ids):
    """Dropout and rotary positions are in no weight."""
    data = windows(ids, 16), ids[:200], PLAN
    plain, other = (tiny_gpt2(dropout=dropout) for dropout in (0.0, 0.5))
    first, second, third = (
        checkpoints.training_identity(student, *data, teacher)
        for student, teacher in ((plain, plain), (other, plain), (plain, other))
    )
    assert first["model"] != second["model"] and first["teacher"] != third["teacher"]
    again = tiny_gpt2()
    again.config.use_cache, again.config._name_or_path = True, "elsewhere"
    assert checkpoints.training_identity(again, *data, plain) == first


def test_a_training_that_lacks_a_weight_is_refused(tmp_path, ids):
    run(tmp_path, ids)
    (path,) = tmp_path.rglob("model.safetensors")
    weights = load_file(path)
    save_file({k: v for k, v in weights.items() if "ln_f" not in k}, path, {"format": "pt"})
    with pytest.raises(ParameterError, match="'model.safetensors' lacks transformer.ln_f.weight"):
        run(tmp_path, ids)


def test_no_steps_with_a_teacher_are_a_training_too(tmp_path, ids):
    _, result = run(tmp_path, ids, replace(PLAN, steps=0), cache=tmp_path / "cache")
    assert result["steps"] == 0 and result["tokens"] == 0


@pytest.mark.parametrize("given", ["soon", "-1", "nan"])
def test_seconds_between_checkpoints_must_be_some(tmp_path, ids, monkeypatch, given):
    monkeypatch.setenv("PRUNEGPT_SAVE_EVERY", given)
    with pytest.raises(ParameterError, match=f"PRUNEGPT_SAVE_EVERY: '{given}' must be a number"):
        run(tmp_path, ids)
