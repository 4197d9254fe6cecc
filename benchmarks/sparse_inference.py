"""How much faster is a model whose zeros are skipped?

Its block matrices in compressed sparse rows, beside the dense model, as notebook 04 does it:
writing tokens one after the other, and reading a prompt. The limit is the bytes that move.
"""

import torch

from benchmarks.side_by_side import gpt2, options, random_ids, ratio, row, write
from prunegpt_utils.efficiency import time_in_turns
from prunegpt_utils.encodings import memory_bytes, sparse_copy
from prunegpt_utils.masks import prune

SPARSITY, TOLERANCE = 0.9, 1e-3  # of the logits, absolute and relative


@torch.no_grad()
def measure(size, tokens, prompt, turns):
    """Rows of both uses."""
    dense = gpt2(size, n_positions=prompt + tokens)
    prune(dense, "random", SPARSITY, "uniform")
    sparse = sparse_copy(dense)
    ids = random_ids(1, prompt, vocabulary=dense.config.vocab_size)
    torch.testing.assert_close(
        sparse(ids).logits, dense(ids).logits, rtol=TOLERANCE, atol=TOLERANCE
    )
    settings = {"do_sample": False, "pad_token_id": 0, "use_cache": True}

    def write_tokens(model):
        return model.generate(ids[:, :8], min_new_tokens=tokens, max_new_tokens=tokens, **settings)

    uses = {"writing": write_tokens, "reading": lambda model: model(ids)}
    sizes, rows = {"dense": memory_bytes(dense), "ours": memory_bytes(sparse)}, []
    models = {"dense": dense, "ours": sparse}
    for use, act in uses.items():
        acts = {name: (lambda who=who, act=act: act(who)) for name, who in models.items()}
        seconds = time_in_turns(acts, turns)
        what = f"{use}, {size}, {SPARSITY:.0%} zeros in sparse rows"
        rows.append(row(what, "dense", "times as fast", ratio(seconds, "dense", "ours"),
            seconds=seconds, bytes=sizes, operations=2 * dense.num_parameters()))  # fmt: skip
    fewer = sizes["dense"] / sizes["ours"]
    return [*rows, row(f"weights read, {size}", "dense", "times fewer bytes", fewer)]


def main(arguments=None):
    """Measure, print and write."""
    smoke, turns = options(__doc__, arguments)
    case = ("tiny", 2, 12) if smoke else ("124M", 8, 128)
    return write("sparse_inference", "sparse inference", measure(*case, turns), smoke)


if __name__ == "__main__":
    main()
