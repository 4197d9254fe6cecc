"""Floating-point operations of training, by a formula: what a perplexity has cost."""

import torch
from transformers import PreTrainedModel

from prunegpt_utils.modeling import prunable_weights, transformer_blocks


def forward_flops(model: PreTrainedModel, block_size: int) -> tuple[int, int]:
    """Operations that one token of a window costs in the blocks, and in the output layer.

    A weight takes part in one multiplication and one addition a token, pruned or not: a dense
    product multiplies zeros as well. Attention adds the scores and the weighted sum over all
    positions of the window, of which a causal mask hides half but saves none (Kaplan et al. 2020,
    arXiv 2001.08361, section 2.1, and Hoffmann et al. 2022, arXiv 2203.15556, appendix F).

    Args:
        block_size: positions of a window.

    Returns:
        (blocks with what lies between them and the embeddings, head), operations a token; of a
        mixture as if every expert read every token.
    """
    config, stack = model.config, transformer_blocks(model)[1]
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    # of latent attention queries and keys have one size, values another, and `head_dim` is neither
    sizes = getattr(config, "qk_head_dim", size) + getattr(config, "v_head_dim", size)
    sizes *= getattr(config, "heads_kept", heads)
    weights = sum(weight.numel() for weight in prunable_weights(model).values())
    beside = set(stack.modules()) | {model.get_output_embeddings()}
    linear = (m for m in model.modules() if isinstance(m, torch.nn.Linear) and m not in beside)
    weights += sum(layer.weight.numel() for layer in linear)
    head = model.get_output_embeddings().weight.numel()
    return 2 * weights + 2 * block_size * sizes * len(stack), 2 * head


def training_flops(
    model: PreTrainedModel, tokens: int, block_size: int, teacher: PreTrainedModel | None = None,
    cached_tokens: int | None = None, teacher_head: bool = True,
) -> dict[str, int]:  # fmt: skip
    """Operations of a training: of the student, and of its teacher's reading.

    Backward costs twice what forward does: a product for the gradient of its input, another for
    that of its weight. Of a teacher there is forward alone, its blocks only once a token of the
    text where its hidden states are cached. What made the teacher is that training's.

    Args:
        tokens: read in training.  block_size: positions of a window.  teacher: or None.
        cached_tokens: of the text whose hidden states are cached; None if they are not.
        teacher_head: whether the teacher's output layer is computed, and not its blocks alone.

    Returns:
        dict: "student" and "teacher", operations.
    """
    found = {"student": 3 * tokens * sum(forward_flops(model, block_size)), "teacher": 0}
    if teacher is not None:
        blocks, head = forward_flops(teacher, block_size)
        read = tokens if cached_tokens is None else cached_tokens
        found["teacher"] = read * blocks + tokens * head * teacher_head
    return found
