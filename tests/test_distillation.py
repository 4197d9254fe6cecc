import pytest
import torch
import torch.nn.functional as F

from prunegpt_utils import losses
from prunegpt_utils.losses import hidden_mse, mean_loss, token_losses


def logits_and_labels(batch=3, length=10, vocabulary=29):
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, batch * length, vocabulary, generator=generator) * 3
    labels = torch.randint(0, vocabulary, (batch * length,), generator=generator)
    return student, teacher, labels


def test_a_teacher_has_nothing_to_teach_itself():
    student, _, labels = logits_and_labels()
    assert token_losses(student, labels, student, alpha=1.0, temperature=3.0).abs().max() < 1e-5


def test_alpha_zero_is_cross_entropy():
    student, teacher, labels = logits_and_labels()
    plain = F.cross_entropy(student, labels, reduction="none")
    assert torch.equal(token_losses(student, labels, teacher, alpha=0.0, temperature=2.0), plain)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_divergence_matches_its_definition(temperature):
    student, teacher, labels = logits_and_labels()
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    wanted = temperature**2 * (p * (p / q).log()).sum(-1)
    ours = token_losses(student, labels, teacher, alpha=1.0, temperature=temperature)
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)
    wanted = temperature**2 * (q * (q / p).log()).sum(-1)
    ours = token_losses(student, labels, teacher, 1.0, temperature, reverse=True)
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)


def test_scale_does_not_depend_on_batch_or_length():
    hidden, weight = torch.randn(2, 5, 8), torch.randn(29, 8)
    labels, teacher = torch.randint(0, 29, (2, 5)), (torch.randn(2, 5, 8), torch.randn(29, 8))
    once = mean_loss(hidden, weight, labels, teacher, 0.5, 2.0)
    wide = [t.repeat(4, 1, 1) for t in (hidden, teacher[0])]
    long = [t.repeat(1, 4, 1) for t in (hidden, teacher[0])]
    args = (teacher[1],)
    torch.testing.assert_close(
        mean_loss(wide[0], weight, labels.repeat(4, 1), (wide[1], *args), 0.5, 2.0), once
    )
    torch.testing.assert_close(
        mean_loss(long[0], weight, labels.repeat(1, 4), (long[1], *args), 0.5, 2.0), once
    )


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("factor", [1.0, 0.25])  # of one micro-batch of as many as it says
def test_chunks_give_the_gradients_of_the_whole(factor, alpha, chunk, reverse):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(30, 8, generator=generator, requires_grad=True)
    weight = torch.randn(29, 8, generator=generator, requires_grad=True)
    labels = torch.randint(0, 29, (30,), generator=generator)
    teacher = (torch.randn(30, 8, generator=generator), torch.randn(29, 8, generator=generator))
    taught = teacher[0] @ teacher[1].T
    whole = token_losses(hidden @ weight.T, labels, taught, alpha, 2.0, reverse).mean()
    wanted = torch.autograd.grad(whole, (hidden, weight))
    loss = mean_loss(hidden, weight, labels, teacher, alpha, 2.0, reverse, chunk)
    torch.testing.assert_close(loss, whole)
    found = torch.autograd.grad(loss, (hidden, weight), torch.tensor(factor))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, factor * theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scaled_before_the_products_or_after_is_the_same_to_the_bit(dtype):
    """Where the number of tokens is a power of two, as that of a batch usually is."""
    generator = torch.Generator().manual_seed(0)
    hidden, matrix = (torch.randn(n, 8, generator=generator).to(dtype) for n in (32, 29))
    arms = hidden, matrix, torch.arange(32) % 29, None, {"alpha": 0.0, "temperature": 1.0}
    _, *whole = losses._chunk_gradients(*arms, 1.0)
    _, *scaled = losses._chunk_gradients(*arms, 1 / 32)
    for after, before in zip(whole, scaled, strict=True):
        assert torch.equal(after / 32, before)


@pytest.mark.parametrize("at_once", [1, 5, 12])
def test_losses_a_few_rows_at_a_time_are_those_of_a_chunk(at_once, monkeypatch):
    rows, _, labels = logits_and_labels()
    hidden, head = rows @ torch.randn(29, 8), torch.randn(29, 8)
    found = []
    for numbers in (at_once * 29 + 3, 30 * 29):
        monkeypatch.setattr(losses, "LOGITS_AT_ONCE", numbers)
        own = [hidden.clone().requires_grad_(), head.clone().requires_grad_()]
        loss = mean_loss(*own, labels, (hidden.flip(0), head), 0.4, 2.0, chunk=12)
        found.append([loss.detach(), *torch.autograd.grad(loss, own)])
    for few, all_ in zip(*found, strict=True):
        torch.testing.assert_close(few, all_)
    assert found[0][2].abs().max() > 0, "no gradient to compare"


def test_states_are_compared_relative_to_the_teachers_size():
    theirs = [torch.full((2, 3, 4), 2.0), torch.full((2, 3, 4), 100.0)]
    assert hidden_mse(theirs, theirs) == 0
    ours = [torch.full((2, 3, 4), 3.0), torch.full((2, 3, 4), 150.0)]  # each half as much again
    assert float(hidden_mse(ours, theirs)) == pytest.approx(0.25)
