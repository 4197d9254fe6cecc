"""The losses: cross-entropy and distillation from a teacher, never all logits at once."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from prunegpt_utils.config import TrainConfig
from prunegpt_utils.forward import (
    all_hidden_states,
    autocast,
    inference_mode,
    last_hidden_states,
    lm_head,
    logits,
)

KD_LOSSES = ("forward_kl", "reverse_kl", "hidden_mse")
LOGITS_AT_ONCE = 1 << 21  # in float32: few enough for a processor's cache, enough for its threads


def token_losses(
    logits: torch.Tensor, labels: torch.Tensor, teacher_logits: torch.Tensor | None = None,
    alpha: float = 0.0, temperature: float = 1.0, reverse: bool = False,
) -> torch.Tensor:  # fmt: skip
    """Loss of each token in nats, a float32 tensor of shape (tokens,).

    (1 - alpha) * cross-entropy + alpha * T^2 * KL(softmax(t / T) || softmax(s / T)), as Hinton et
    al. 2015 (arXiv 1503.02531) weigh the two: T^2 keeps the gradients' scale independent of T.
    Reverse swaps the two sides of the KL, so that the student is punished for what the teacher
    would not say rather than for what it leaves unsaid (Gu et al. 2024, arXiv 2306.08543).
    This is the definition; training takes the same from `_losses_and_gradients`, and tests compare.

    Args:
        logits: student s, shape (tokens, vocabulary).  labels: next tokens, shape (tokens,).
        teacher_logits: t, same shape as `logits`, or None.
        alpha: weight of the teacher, in [0, 1].  temperature: T > 0.
        reverse: KL(student || teacher) instead.
    """
    logits = logits.float()
    if teacher_logits is None or alpha == 0:
        return F.cross_entropy(logits, labels, reduction="none")
    log_student = F.log_softmax(logits / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    sides = (log_teacher, log_student) if reverse else (log_student, log_teacher)
    divergence = F.kl_div(*sides, reduction="none", log_target=True).sum(-1) * temperature**2
    if alpha == 1:
        return divergence
    return (1 - alpha) * F.cross_entropy(logits, labels, reduction="none") + alpha * divergence


def _losses_and_gradients(logits, labels, teacher_logits, alpha, temperature, reverse=False):
    """What `token_losses` gives, and its gradient with respect to the student's logits.

    (1 - alpha) * (softmax(s) - label) + alpha * T * G, where with q = softmax(s / T) and
    p = softmax(t / T) the slope G is q - p, or in reverse q (r - <q, r>) with r = (s - t) / T.
    Each softmax is made once, of one exponential a logit; all else follows from it. Both logits
    are used up.
    """
    rows, gradient = torch.arange(len(labels), device=labels.device), logits.softmax(-1)
    losses = _log_sum_exp(logits, gradient) - logits[rows, labels]
    gradient[rows, labels] -= 1
    if teacher_logits is None or alpha == 0:
        return losses, gradient
    student, teacher = logits.div_(temperature), teacher_logits.float().div_(temperature)
    probs, teacher_probs = student.softmax(-1), teacher.softmax(-1)
    log_sum_gap = _log_sum_exp(student, probs) - _log_sum_exp(teacher, teacher_probs)
    if reverse:
        ratio = student.sub_(teacher)
        mean = torch.linalg.vecdot(probs, ratio)
        divergence, slope = mean - log_sum_gap, probs.mul_(ratio.sub_(mean[:, None]))
    else:
        divergence = torch.linalg.vecdot(teacher_probs, teacher.sub_(student)) + log_sum_gap
        slope = probs.sub_(teacher_probs)
    losses = (1 - alpha) * losses + alpha * temperature**2 * divergence
    gradient.mul_(1 - alpha).add_(slope, alpha=alpha * temperature)
    return losses, gradient


def _log_sum_exp(logits, probs):
    """Of each row, from its softmax: log p = s - log sum exp s, read off where p is largest."""
    return logits.amax(-1) - probs.amax(-1).log()


class _ChunkedLoss(torch.autograd.Function):
    """Mean of `token_losses` over tokens, `chunk` tokens at a time.

    Forward also computes the gradients, so that the logits of a chunk die with it: memory is
    chunk x vocabulary instead of tokens x vocabulary. The products are those of a chunk, since each
    adds to the gradient of the weight, which fits no cache; what stands between them is done for
    `LOGITS_AT_ONCE`, whose gradient takes their place.
    """

    @staticmethod
    def forward(ctx, hidden, weight, labels, teacher, options, chunk):
        """`hidden` (tokens, width), `weight` (vocabulary, width), `teacher` as in `mean_loss`."""
        total, matrix = hidden.new_zeros((), dtype=torch.float32), weight.to(hidden.dtype)
        grad_hidden, grad_weight = torch.empty_like(hidden), None
        for start in range(0, len(labels), chunk):
            part = slice(start, start + chunk)
            theirs = (teacher[0][part], teacher[1]) if teacher else None
            loss, grad_hidden[part], product = _chunk_gradients(
                hidden[part], matrix, labels[part], theirs, options, 1 / len(labels)
            )
            total += loss
            # to begin with zeros would be one more pass over all of it
            grad_weight = product.to(weight) if grad_weight is None else grad_weight.add_(product)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total / len(labels)

    @staticmethod
    def backward(ctx, grad):
        """Scale what forward stored, in place: a second backward is not to be had."""
        parts = ctx.saved_tensors
        if not _is_one(grad):  # of a step without micro-batches it is
            parts = tuple(part.mul_(grad) for part in parts)
        return *parts, None, None, None, None


def _is_one(grad):
    """Whether a gradient is known to be 1, without waiting for a device to say so."""
    known = grad.device.type == "cpu" and not isinstance(grad, FakeTensor)
    return known and float(grad) == 1


def _chunk_gradients(hidden, matrix, labels, teacher, options, scale):
    """Sum of the losses of a chunk, and `scale` times its gradients for `hidden` and `matrix`.

    The gradient of the logits is scaled, which fits a cache, and not that of the matrix.
    """
    own, target = logits(hidden, matrix), logits(*teacher) if teacher else None
    total = hidden.new_zeros((), dtype=torch.float32)
    at_once = max(1, LOGITS_AT_ONCE // len(matrix))
    for start in range(0, len(own), at_once):
        rows = slice(start, start + at_once)
        theirs = None if target is None else target[rows]
        losses, gradient = _losses_and_gradients(own[rows].float(), labels[rows], theirs, **options)
        total += losses.sum()
        own[rows] = gradient.mul_(scale)
    return total, own @ matrix, own.T @ hidden


def _recomputed_loss(hidden, head, labels, teacher, options, chunk):
    """The same for a `head` that is a function: autograd finds its gradient.

    The logits of a chunk are thrown away all the same, and made again for the backward pass (Chen
    et al. 2016, arXiv 1604.06174). A chunk is a quarter as long: autograd keeps more of it.
    """
    chunk = max(1, chunk // 4)

    def losses_from(start):
        part, target = slice(start, start + chunk), None
        if teacher:
            with torch.no_grad():
                target = logits(teacher[0][part], teacher[1])
        return token_losses(logits(hidden[part], head), labels[part], target, **options).sum()

    starts = range(0, len(labels), chunk)
    return sum(checkpoint(losses_from, k, use_reentrant=False) for k in starts) / len(labels)


def mean_loss(
    hidden: torch.Tensor, head: torch.Tensor | Callable, labels: torch.Tensor,
    teacher: tuple | None = None, alpha: float = 0.0, temperature: float = 1.0,
    reverse: bool = False, chunk: int = 1024,
) -> torch.Tensor:  # fmt: skip
    """Mean of `token_losses` over a batch of whatever shape, a float32 scalar.

    Args:
        hidden: last hidden states, shape (..., width); their dtype is that of the logits' matmul.
        head: output layer, see `forward.lm_head`.  labels: next tokens, shape (...).
        teacher: None, or the teacher's (hidden, head), which get no gradient.
        alpha, temperature, reverse: see `token_losses`.
        chunk: tokens whose logits live at the same time.
    """
    hidden = hidden.flatten(0, -2)
    if teacher is not None:
        known, matrix = teacher[0].flatten(0, -2).to(hidden.dtype), teacher[1]
        teacher = known, matrix.to(hidden.dtype) if torch.is_tensor(matrix) else matrix
    options = {"alpha": alpha, "temperature": temperature, "reverse": reverse}
    chunked = _ChunkedLoss.apply if torch.is_tensor(head) else _recomputed_loss
    return chunked(hidden, head, labels.flatten(), teacher, options, chunk)


def hidden_mse(
    hidden_states: list[torch.Tensor], teacher_hidden_states: list[torch.Tensor]
) -> torch.Tensor:
    """How far the student's hidden states are from the teacher's, relative to their size.

    Mean over layers of |s - t|^2 / |t|^2 (SquareHead, Kurtic et al. 2023, arXiv 2310.06927), a
    float32 scalar; both lists have a tensor a layer, of equal shapes.
    """
    pairs = zip(hidden_states, teacher_hidden_states, strict=True)
    parts = [(s.float() - t.float()).square().mean() / t.float().square().mean() for s, t in pairs]
    return sum(parts) / len(parts)


def batch_loss(
    model: PreTrainedModel, rows: torch.Tensor, config: TrainConfig,
    teacher: PreTrainedModel | None = None, teacher_hidden_states: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Mean training loss of some windows, by `config.kd_loss`: a float32 scalar with gradient.

    `forward_kl` and `reverse_kl` compare the outputs (see `token_losses`); `hidden_mse` is
    (1 - alpha) * cross-entropy + alpha * `hidden_mse` of the states after every block.

    Args:
        model: the student.  rows: int64 tensor of shape (batch, block_size + 1).
        config: for precision, alpha, temperature and kd_loss.  teacher: frozen model or None.
        teacher_hidden_states: what `teacher_cache.cached_hidden_states` has of these windows,
            shape (batch, block_size, width); None has the teacher read them now.
    """
    rows = rows.to(model.device)
    inputs, labels = rows[:, :-1], rows[:, 1:]
    distilled = teacher is not None and config.alpha > 0
    if distilled and config.kd_loss == "hidden_mse":
        return _hidden_mse_loss(model, inputs, labels, config, teacher)
    target = None
    with autocast(model, config.precision):
        hidden = last_hidden_states(model, inputs)
        if distilled:
            if teacher_hidden_states is None:
                with inference_mode(teacher):
                    teacher_hidden_states = last_hidden_states(teacher, inputs)
            target = teacher_hidden_states.to(model.device), lm_head(teacher)
    return mean_loss(
        _rounded(hidden, config), lm_head(model), labels, target, config.alpha,
        config.temperature, reverse=config.kd_loss == "reverse_kl",
    )  # fmt: skip


def _hidden_mse_loss(model, inputs, labels, config, teacher):
    with autocast(model, config.precision):
        ours = all_hidden_states(model, inputs)
        with torch.no_grad():  # with the student's attention: equal models differ by nothing
            theirs = all_hidden_states(teacher, inputs)
    plain = mean_loss(_rounded(ours[-1], config), lm_head(model), labels)
    return (1 - config.alpha) * plain + config.alpha * hidden_mse(ours, theirs)


def _rounded(hidden, config):
    """LayerNorms give float32 even where the matrix products are asked for in bf16."""
    return hidden.to(torch.bfloat16) if config.precision == "bf16" else hidden
