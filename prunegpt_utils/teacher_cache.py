"""The teacher's hidden states of a text, computed once for all students that it teaches."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from prunegpt_utils.files import atomic_path
from prunegpt_utils.forward import autocast, inference_mode, last_hidden_states, probe_ids
from prunegpt_utils.modeling import digest, model_identity
from prunegpt_utils.progress import ProgressBar

MAX_BYTES = 4 << 30  # of the hidden states that are cached on disk


def cached_hidden_states(
    teacher: PreTrainedModel, windows: torch.Tensor, folder: Path, precision: str, batch: int = 32
) -> torch.Tensor | None:
    """The teacher's last hidden states of windows of the training text, cached on disk.

    Not its probabilities, which are vocabulary numbers a token, but the last hidden states from
    which its head makes them: width numbers a token, and exact. What is left of the teacher in a
    step is one matrix product.

    Args:
        teacher: frozen model.  windows: int64 tensor of shape (n, block_size + 1).
        folder: of the cache; the file's name hashes all that the states depend on.
        precision: bf16 or float32, that of the training: the states are rounded as it would.
        batch: windows the teacher reads at a time.

    Returns:
        tensor of shape (n, block_size, width), mapped from disk rather than read; None if it would
        take more than `MAX_BYTES`.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with torch.no_grad():  # which is not the width of the blocks where a projection follows them
        width = last_hidden_states(teacher, probe_ids(teacher)).shape[-1]
    shape = (len(windows), windows.shape[1] - 1, width)
    if torch.Size(shape).numel() * dtype.itemsize > MAX_BYTES:
        return None
    name = digest(f"{model_identity(teacher)} {digest(windows)} {precision}")
    path = Path(folder, f"teacher-{name[:16]}.safetensors")
    if not path.exists():
        _compute(teacher, windows, path, precision, torch.empty(shape, dtype=dtype), batch)
    return load_file(path)["hidden_states"]


def _compute(teacher, windows, path, precision, hidden_states, batch):
    with atomic_path(path) as part:
        with ProgressBar(-(-len(windows) // batch), "the teacher reads the text") as progress:
            for start in range(0, len(windows), batch):
                rows = windows[start : start + batch, :-1].to(teacher.device)
                with autocast(teacher, precision), inference_mode(teacher):
                    hidden_states[start : start + batch] = last_hidden_states(teacher, rows)
                progress.advance(rows.numel())
        save_file({"hidden_states": hidden_states}, part)
