"""How much of a dense model is left in a compressed one, token by token, beyond its perplexity."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from prunegpt_utils.errors import ParameterError
from prunegpt_utils.evaluation import window_batches
from prunegpt_utils.forward import inference_mode, last_hidden_states, lm_head, logits
from prunegpt_utils.protocols import rolling_windows

BINS = 15  # of the calibration error, as in the paper


def compare(
    model: PreTrainedModel, reference: PreTrainedModel, ids: torch.Tensor, block_size: int,
    batch: int = 32, chunk: int = 256,
) -> dict:  # fmt: skip
    """Compare a model with the dense one that it stands for, on every token of a text.

    Two models of equal accuracy may still answer differently, and perplexity hides it; the
    divergence and the flips show it (Dutta et al. 2024, arXiv 2407.09141).

    Both models read the windows side by side and nothing is cached on disk: it is one pass of
    each over the validation text, a few hundredths of a run, and exact. The reference's logits
    would be vocabulary numbers a token, and their best few would not give the divergence.

    Args:
        model, reference: with the same vocabulary, on the same device.
        ids: int64, shape (tokens,), cut into disjoint windows of `block_size` tokens.
        batch: windows at a time.  chunk: tokens whose logits live at the same time. Both change
            the speed and the memory alone.

    Returns:
        dict: what `summarize` makes of `token_fidelity`.

    Raises:
        ParameterError: too little text to score, or another vocabulary.
    """
    spans = rolling_windows(len(ids), block_size, block_size)
    if not spans:
        raise ParameterError("data", f"{len(ids)} tokens", "is too little text to score")
    parts = []
    with inference_mode(model), inference_mode(reference):
        heads = [lm_head(each) for each in (model, reference)]
        for first, rows in window_batches(spans, batch):
            windows = torch.stack([ids[begin:end] for begin, end in rows]).to(model.device)
            labels = windows[:, first:].flatten().split(chunk)
            hidden = [
                last_hidden_states(each, windows[:, :-1])[:, first - 1 :].flatten(0, 1).split(chunk)
                for each in (model, reference)
            ]
            for ours, theirs, label in zip(*hidden, labels, strict=True):
                parts.append(
                    token_fidelity(logits(ours, heads[0]), logits(theirs, heads[1]), label)
                )
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
