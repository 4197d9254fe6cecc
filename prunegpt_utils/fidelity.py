"""How much of a dense model is left in a compressed one, token by token, beyond its perplexity."""

from collections.abc import Sequence

import torch

from prunegpt_utils.errors import ParameterError
from prunegpt_utils.evaluation import Reading
from prunegpt_utils.forward import inference_mode, lm_head, logits

BINS = 15  # of the calibration error, as in the paper


def compare(model: Reading, reference: Reading, chunk: int = 256) -> dict:
    """Compare a model with the dense one that it stands for, on every scored token of a text.

    Two models of equal accuracy may still answer differently, and perplexity hides it; the
    divergence and the flips show it (Dutta et al. 2024, arXiv 2407.09141).

    Readings are hidden states, from which the head makes the logits again: vocabulary numbers a
    token would be too many to keep, and their best few would not give the divergence.

    Args:
        model, reference: of the same text and windows, by models with the same vocabulary on the
            same device.
        chunk: tokens whose logits live at the same time; changes the speed and the memory alone.

    Returns:
        dict: what `summarize` makes of `token_fidelity`.

    Raises:
        ParameterError: another vocabulary, or another text.
    """
    if not torch.equal(model.labels, reference.labels):
        shown = f"a text of {len(reference.labels)} scored tokens"
        raise ParameterError("reference", shown, f"must be the {len(model.labels)} of the model")
    with inference_mode(model.model), inference_mode(reference.model):
        heads = lm_head(model.model), lm_head(reference.model)
        tensors = model.hidden_states, reference.hidden_states, model.labels
        chunks = (each.split(chunk) for each in tensors)
        parts = [
            token_fidelity(logits(ours, heads[0]), logits(theirs, heads[1]), labels)
            for ours, theirs, labels in zip(*chunks, strict=True)
        ]
    return summarize(parts)


def token_fidelity(
    logits: torch.Tensor, reference_logits: torch.Tensor, labels: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Compare the predictions of two models for the same tokens.

    Args:
        logits, reference_logits: shape (tokens, vocabulary).  labels: next tokens, shape (tokens,).

    Returns:
        dict of tensors on the CPU, of shape (tokens,): kl = KL(reference || model) in nats;
        same_top, whether both have the same top choice; right and reference_right, whether that of
        each is the next token; confidence and reference_confidence, its probability.

    Raises:
        ParameterError: the vocabularies differ in size.
    """
    if logits.shape != reference_logits.shape:
        sizes = f"{reference_logits.shape[-1]} tokens in its vocabulary"
        raise ParameterError("reference", sizes, f"must have the model's {logits.shape[-1]}")
    ours, theirs = (each.float().log_softmax(-1) for each in (logits, reference_logits))
    (log_p, top), (reference_log_p, reference_top) = ours.max(-1), theirs.max(-1)
    found = {
        "kl": torch.linalg.vecdot(theirs.exp(), theirs - ours),
        "same_top": top == reference_top,
        "right": top == labels,
        "reference_right": reference_top == labels,
        "confidence": log_p.exp(),
        "reference_confidence": reference_log_p.exp(),
    }
    return {name: values.cpu() for name, values in found.items()}


def summarize(parts: Sequence[dict[str, torch.Tensor]]) -> dict:
    """What a record says of a comparison.

    Args:
        parts: of `token_fidelity`, one after the other.

    Returns:
        dict: tokens (compared); kl, mean KL(reference || model) in nats a token; same_top, the
        share of tokens with the same top choice; flips_to_wrong, the share where the reference's
        top choice is the next token and the model's is not; flips_to_right, the reverse; ece and
        reference_ece, the `calibration_error` of each.
    """
    all_of = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    right, reference_right = all_of["right"], all_of["reference_right"]
    return {
        "tokens": len(right),
        "kl": all_of["kl"].double().mean().item(),
        "same_top": _share(all_of["same_top"]),
        "flips_to_wrong": _share(reference_right & ~right),
        "flips_to_right": _share(right & ~reference_right),
        "ece": calibration_error(all_of["confidence"], right),
        "reference_ece": calibration_error(all_of["reference_confidence"], reference_right),
    }


def calibration_error(confidence: torch.Tensor, right: torch.Tensor, bins: int = BINS) -> float:
    """Expected calibration error: how far confidence is from accuracy, in [0, 1].

    The mean over tokens of |accuracy - mean confidence| of the token's bin, with equal bins
    (k / bins, (k + 1) / bins] of the confidence (Guo et al. 2017, arXiv 1706.04599, equation 3).

    Args:
        confidence: probability of the top choice, shape (tokens,), in [0, 1].
        right: bool, shape (tokens,), whether the top choice is the next token.
    """
    confidence = confidence.double()
    bin_of = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    gaps = torch.bincount(bin_of, weights=right.double() - confidence, minlength=bins)
    return (gaps.abs().sum() / len(confidence)).item()


def _share(flags):
    return flags.double().mean().item()
