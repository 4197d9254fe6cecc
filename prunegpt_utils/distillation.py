"""The losses: cross-entropy and divergence from a teacher, never all logits at once."""

import torch
import torch.nn.functional as F


def token_losses(logits, labels, teacher_logits=None, alpha=0.0, temperature=1.0):
    """Loss of each token.

    (1 - alpha) * cross-entropy + alpha * T^2 * KL(softmax(t / T) || softmax(s / T)), as Hinton et
    al. 2015 (arXiv 1503.02531) weigh the two: T^2 keeps the gradients' scale independent of T.

    Args:
        logits: student s, shape (tokens, vocabulary).
        labels: next tokens, shape (tokens,).
        teacher_logits: t, same shape as `logits`, or None.
        alpha: weight of the teacher, in [0, 1].
        temperature: T > 0.

    Returns:
        float32 tensor of shape (tokens,), natural units.
    """
    logits = logits.float()
    if teacher_logits is None or alpha == 0:
        return F.cross_entropy(logits, labels, reduction="none")
    log_student = F.log_softmax(logits / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1)
    divergence = divergence * temperature**2
    if alpha == 1:
        return divergence
    return (1 - alpha) * F.cross_entropy(logits, labels, reduction="none") + alpha * divergence


def _losses_and_gradients(logits, labels, teacher_logits, alpha, temperature):
    """What `token_losses` gives, and its gradient with respect to the student's logits.

    (1 - alpha) * (softmax(s) - label) + alpha * T * (softmax(s / T) - softmax(t / T)): three
    exponentials a logit, of which automatic differentiation would take three times as many.
    """
    rows, plain = torch.arange(len(labels), device=labels.device), F.log_softmax(logits, dim=-1)
    losses = -plain[rows, labels]
    gradient = plain.exp_()
    gradient[rows, labels] -= 1
    if teacher_logits is None or alpha == 0:
        return losses, gradient
    student = F.log_softmax(logits / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    target = teacher.exp()
    divergence = torch.linalg.vecdot(target, teacher.sub_(student))
    losses = (1 - alpha) * losses + alpha * temperature**2 * divergence
    gradient.mul_(1 - alpha).add_(student.exp_().sub_(target), alpha=alpha * temperature)
    return losses, gradient


class _ChunkedLoss(torch.autograd.Function):
    """Mean of `token_losses` over tokens, `chunk` tokens at a time.

    Forward also computes the gradients, so that the logits of a chunk die with it: memory is
    chunk x vocabulary instead of tokens x vocabulary, and a chunk fits the processor's cache.
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
            gradient = (gradient / len(labels)).to(hidden.dtype)
            total += losses.sum()
            grad_hidden[part] = gradient @ matrix
            grad_weight += gradient.T @ hidden[part]
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total / len(labels)

    @staticmethod
    def backward(ctx, grad):
        """Scale what forward stored."""
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad * grad_hidden, grad * grad_weight, None, None, None, None


def mean_loss(hidden, weight, labels, teacher=None, alpha=0.0, temperature=1.0, chunk=128):
    """Mean loss over all tokens of a batch, whatever its shape (see `token_losses`).

    Args:
        hidden: last hidden states, shape (..., width); their dtype is that of the logits' matmul.
        weight: output layer, shape (vocabulary, width).
        labels: next tokens, shape (...).
        teacher: None, or the teacher's (hidden, weight) without gradient.
        alpha, temperature: see `token_losses`.
        chunk: tokens whose logits live at the same time.

    Returns:
        float32 scalar.
    """
    hidden = hidden.flatten(0, -2)
    if teacher is not None:
        teacher = (teacher[0].flatten(0, -2).to(hidden.dtype), teacher[1].to(hidden.dtype))
    options = {"alpha": alpha, "temperature": temperature}
    return _ChunkedLoss.apply(hidden, weight, labels.flatten(), teacher, options, chunk)
