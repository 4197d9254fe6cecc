"""The losses: cross-entropy and divergence from a teacher, never all logits at once."""

import hashlib
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from prunegpt_utils.models import autocast, digest, fingerprint, hidden_states
from prunegpt_utils.progress import bar

MOST_BYTES = 4 << 30  # of a lesson that is kept on disk


def token_losses(
    logits: torch.Tensor, labels: torch.Tensor, teacher_logits: torch.Tensor | None = None,
    alpha: float = 0.0, temperature: float = 1.0, reverse: bool = False,
) -> torch.Tensor:  # fmt: skip
    """Loss of each token.

    (1 - alpha) * cross-entropy + alpha * T^2 * KL(softmax(t / T) || softmax(s / T)), as Hinton et
    al. 2015 (arXiv 1503.02531) weigh the two: T^2 keeps the gradients' scale independent of T.
    Reverse swaps the two sides of the KL, so that the student is punished for what the teacher
    would not say rather than for what it leaves unsaid (Gu et al. 2024, arXiv 2306.08543).

    Args:
        logits: student s, shape (tokens, vocabulary).
        labels: next tokens, shape (tokens,).
        teacher_logits: t, same shape as `logits`, or None.
        alpha: weight of the teacher, in [0, 1].
        temperature: T > 0.
        reverse: KL(student || teacher) instead.

    Returns:
        float32 tensor of shape (tokens,), natural units.
    """
    logits = logits.float()
    if teacher_logits is None or alpha == 0:
        return F.cross_entropy(logits, labels, reduction="none")
    log_student = F.log_softmax(logits / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    sides = (log_teacher, log_student) if reverse else (log_student, log_teacher)
    divergence = F.kl_div(*sides, reduction="none", log_target=True).sum(-1)
    divergence = divergence * temperature**2
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
    chances, target = student.softmax(-1), teacher.softmax(-1)
    apart = _log_sum_exp(student, chances) - _log_sum_exp(teacher, target)
    if reverse:
        ratio = student.sub_(teacher)
        mean = torch.linalg.vecdot(chances, ratio)
        divergence, slope = mean - apart, chances.mul_(ratio.sub_(mean[:, None]))
    else:
        divergence = torch.linalg.vecdot(target, teacher.sub_(student)) + apart
        slope = chances.sub_(target)
    losses = (1 - alpha) * losses + alpha * temperature**2 * divergence
    gradient.mul_(1 - alpha).add_(slope, alpha=alpha * temperature)
    return losses, gradient


def _log_sum_exp(logits, chances):
    """Of each row, from its softmax: log p = s - log sum exp s, read off where p is largest."""
    return logits.amax(-1) - chances.amax(-1).log()


class _ChunkedLoss(torch.autograd.Function):
    """Mean of `token_losses` over tokens, `chunk` tokens at a time.

    Forward also computes the gradients, so that the logits of a chunk die with it: memory is
    chunk x vocabulary instead of tokens x vocabulary. A smaller chunk fits the processor's cache,
    but the gradient of the weight, which each chunk adds to, does not.
    """

    @staticmethod
    def forward(ctx, hidden, weight, labels, teacher, options, chunk):
        """`hidden` (tokens, width), `weight` (vocabulary, width), `teacher` a pair of those."""
        total = hidden.new_zeros((), dtype=torch.float32)
        matrix = weight.to(hidden.dtype)
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        for start in range(0, len(labels), chunk):
            part = slice(start, start + chunk)
            logits = F.linear(hidden[part], matrix).float()
            taught = F.linear(teacher[0][part], teacher[1]) if teacher else None
            losses, gradient = _losses_and_gradients(logits, labels[part], taught, **options)
            gradient = gradient.to(hidden.dtype)
            total += losses.sum()
            grad_hidden[part] = gradient @ matrix
            grad_weight += gradient.T @ hidden[part]
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.tokens = len(labels)
        return total / len(labels)

    @staticmethod
    def backward(ctx, grad):
        """Scale what forward stored, in place: a second backward is not to be had."""
        scale = grad / ctx.tokens
        return *(part.mul_(scale) for part in ctx.saved_tensors), None, None, None, None


def mean_loss(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, teacher: tuple | None = None,
    alpha: float = 0.0, temperature: float = 1.0, reverse: bool = False, chunk: int = 256,
) -> torch.Tensor:  # fmt: skip
    """Mean loss over all tokens of a batch, whatever its shape (see `token_losses`).

    Args:
        hidden: last hidden states, shape (..., width); their dtype is that of the logits' matmul.
        weight: output layer, shape (vocabulary, width).
        labels: next tokens, shape (...).
        teacher: None, or the teacher's (hidden, weight) without gradient.
        alpha, temperature, reverse: see `token_losses`.
        chunk: tokens whose logits live at the same time.

    Returns:
        float32 scalar.
    """
    hidden = hidden.flatten(0, -2)
    if teacher is not None:
        teacher = (teacher[0].flatten(0, -2).to(hidden.dtype), teacher[1].to(hidden.dtype))
    options = {"alpha": alpha, "temperature": temperature, "reverse": reverse}
    return _ChunkedLoss.apply(hidden, weight, labels.flatten(), teacher, options, chunk)


def state_loss(states: list[torch.Tensor], teacher_states: list[torch.Tensor]) -> torch.Tensor:
    """How far the student's hidden states are from the teacher's, relative to their size.

    Mean over layers of |s - t|^2 / |t|^2 (SquareHead, Kurtic et al. 2023, arXiv 2310.06927).

    Args:
        states, teacher_states: sequences of tensors of equal shapes, one a layer.

    Returns:
        float32 scalar.
    """
    pairs = zip(states, teacher_states, strict=True)
    parts = [(s.float() - t.float()).square().mean() / t.float().square().mean() for s, t in pairs]
    return sum(parts) / len(parts)


def lesson(
    teacher: PreTrainedModel, windows: torch.Tensor, folder: Path, precision: str, batch: int = 32
) -> torch.Tensor | None:
    """What a teacher says of every training window, computed once and kept on disk.

    Not its probabilities, which are vocabulary numbers a token, but the last hidden states from
    which its head makes them: width numbers a token, and exact. What is left of the teacher in a
    step is one matrix product.

    Args:
        teacher: frozen model.
        windows: int64 tensor of shape (n, block + 1).
        folder: where the lesson is kept, under a name that hashes all it depends on.
        precision: bf16 or float32, that of the training: the states are rounded as it would.
        batch: windows the teacher reads at a time.

    Returns:
        tensor of shape (n, block, width), mapped from disk rather than read into memory; None if
        it would take more than `MOST_BYTES`.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    shape = (len(windows), windows.shape[1] - 1, teacher.config.hidden_size)
    if torch.Size(shape).numel() * dtype.itemsize > MOST_BYTES:
        return None
    name = hashlib.sha256(f"{fingerprint(teacher)} {digest(windows)} {precision}".encode())
    path = Path(folder, f"lesson-{name.hexdigest()[:16]}.safetensors")
    if not path.exists():
        _write_lesson(teacher, windows, path, precision, torch.empty(shape, dtype=dtype), batch)
    return load_file(path)["states"]


@torch.no_grad()
def _write_lesson(teacher, windows, path, precision, states, batch):
    path.parent.mkdir(parents=True, exist_ok=True)
    # a name of its own: another process may be writing the same lesson
    with tempfile.TemporaryDirectory(dir=path.parent) as beside:
        with bar(-(-len(windows) // batch), "the teacher reads the text") as progress:
            for start in range(0, len(windows), batch):
                part = windows[start : start + batch, :-1].to(teacher.device)
                with autocast(teacher, precision):
                    states[start : start + batch] = hidden_states(teacher, part)
                progress.advance(part.numel())
        part = Path(beside, path.name)
        save_file({"states": states}, part)
        part.replace(path)
