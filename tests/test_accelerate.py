"""Several processes under Accelerate do what one does alone, and write once."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import ONE_THREAD, ROOT, tiny_gpt2
from test_training import SCOPES

from prunegpt_utils.config import TrainConfig
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.masks import measure_sparsity
from prunegpt_utils.modeling import digest
from prunegpt_utils.pruner import Pruner
from prunegpt_utils.runs import records
from prunegpt_utils.schedules import PruningSchedule
from prunegpt_utils.tokenization import windows
from prunegpt_utils.training import train

LAUNCH = [
    "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
]  # fmt: skip
SCRIPT = """
import hashlib, socket, sys
from pathlib import Path

import torch
from accelerate import PartialState, notebook_launcher

sys.path.insert(0, sys.argv[2])
from prunegpt_utils import training
from test_accelerate import PLAN, SCOPES, TEACHER, every_criterion, trained

def main():
    folder, update = Path(sys.argv[1], "checkpoints"), training.Trainer.update

    def dies(self, lr):
        if self.state.step == 7:
            raise InterruptedError
        update(self, lr)

    training.Trainer.update = dies
    try:
        trained(folder, PLAN, TEACHER, save_every=0)
    except InterruptedError:
        training.Trainer.update = update
    model, result = trained(folder, PLAN, TEACHER)
    weights = b"".join(w.detach().numpy().tobytes() for w in model.state_dict().values())
    rank = PartialState().process_index
    Path(sys.argv[1], f"rank-{rank}").write_text(hashlib.sha256(weights).hexdigest())
    prints = [every_criterion(Path(f"{sys.argv[1]}-all"), name) for name in SCOPES]
    Path(sys.argv[1], f"criteria-{rank}").write_text(" ".join(prints))

if sys.argv[3:] == ["notebook"]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    notebook_launcher(main, num_processes=2, use_port=port)
else:
    main()
"""
PLAN = TrainConfig(
    12, 3e-3, batch=4, gradient_accumulation_steps=2, evaluations=12, alpha=0.5, temperature=2.0,
    pruning=PruningSchedule(0.8, 0.4, criterion="fisher"),
)  # fmt: skip
TEACHER = 7


def inputs():
    ids = torch.randint(0, 97, (1200,), generator=torch.Generator().manual_seed(1))
    return windows(ids[:800], 16), ids[800:]


def trained(folder, plan, teacher=None, dropout=0.0, **options):
    model = tiny_gpt2(dropout=dropout)
    result = train(model, *inputs(), folder, plan, teacher and tiny_gpt2(teacher), **options)
    return model, result


def every_criterion(folder, criterion):
    """Where the zeros are after a short training with dropout, as every process sees them."""
    pruning = PruningSchedule(0.875, 0.5, criterion=criterion, scope=SCOPES[criterion])
    plan = TrainConfig(6, 3e-3, batch=4, evaluations=1, pruning=pruning)
    model = tiny_gpt2(dropout=0.1)
    masks = []

    def watch(self, step, before=Pruner.before_step):
        before(self, step)
        masks.append(torch.cat([mask.flatten() for mask in self.masks.values()]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pruner, "before_step", watch)
        train(model, *inputs(), folder / criterion, plan)
    return digest(*(mask.to(torch.uint8) for mask in masks))


def history(folder):
    (note,) = folder.rglob("training.json")
    return json.loads(note.read_text())["result"]["history"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    trained(folder, PLAN, TEACHER)
    return folder


@pytest.mark.parametrize("launcher", ["accelerate launch", "notebook_launcher"])
def test_two_processes_train_as_one(alone, tmp_path, launcher):
    """Also if they are interrupted on the way."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable]
    command += LAUNCH if launcher == "accelerate launch" else []
    command += [script, tmp_path, ROOT / "tests"]
    if launcher == "notebook_launcher":
        command.append("notebook")
    environment = os.environ | ONE_THREAD | {"HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = history(alone), history(tmp_path)  # one folder with one training in it
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for key in ("loss", "nll", "sparsity"):
        assert [row[key] for row in two] == pytest.approx([row[key] for row in one], abs=1e-5)
    ranks = [(tmp_path / f"rank-{rank}").read_text() for rank in (0, 1)]
    assert ranks[0] == ranks[1]  # the same weights, hence the same masks
    masks = [(tmp_path / f"criteria-{rank}").read_text() for rank in (0, 1)]
    assert masks[0] == masks[1] and len(set(masks[0].split())) == len(SCOPES)


def test_a_launch_that_would_shard_the_model_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ParameterError, match="--use_fsdp: True is not supported; use --multi_gpu"):
        trained(tmp_path, PLAN)


def test_the_precision_of_an_earlier_trainer_does_not_leak_in(alone, tmp_path):
    """Accelerate keeps one state a process; only the configuration may say in what precision we train."""
    AcceleratorState._reset_state()
    Accelerator(cpu=True, mixed_precision="bf16")
    trained(tmp_path, PLAN, TEACHER)
    assert history(tmp_path) == history(alone)


def test_processes_must_share_a_batch_evenly(tmp_path, monkeypatch):
    three = SimpleNamespace(num_processes=3)
    monkeypatch.setattr("prunegpt_utils.distributed.Accelerator", lambda **_: three)
    with pytest.raises(ParameterError, match="batch: 4 must be a multiple of the 3 processes"):
        trained(tmp_path, PLAN)


def test_the_trained_model_is_what_was_written(tmp_path):
    model, _ = trained(tmp_path, PLAN, TEACHER)
    again, _ = trained(tmp_path, PLAN, TEACHER)
    assert measure_sparsity(model) == measure_sparsity(again)
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.system
def test_a_notebook_on_two_processes_writes_one_record(tmp_path):
    """The measured loss is that of one process, and so is everything else but the clock."""
    found = {}
    for name, launch in (("one", []), ("two", LAUNCH)):
        runs = tmp_path / name
        command = [
            sys.executable, *launch, "-m", "prunegpt_utils", "papermill",
            ROOT / "notebooks" / "01_baselines.ipynb", tmp_path / f"{name}.ipynb", "--kernel", "python3",
            "-p", "init_from", "", "-p", "steps", "4", "-p", "study", "small", "-p", "batch", "2",
        ]  # fmt: skip
        environment = os.environ | ONE_THREAD | {"PRUNEGPT_RUNS": str(runs)}
        done = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        files = [path.name for path in (runs / "small" / "records").iterdir()]
        assert files == ["control-seed0.json"] and (tmp_path / f"{name}.ipynb").exists()
        found[name] = records.read(runs / "small" / "records" / files[0])
    assert [found[name]["environment"]["processes"] for name in found] == [1, 2]
    one, two = (found[name]["metrics"]["validation"]["nll"] for name in found)
    # in bf16, whose sums of 8 bits depend on the batch; in float32 it is 1e-5, tested above
    assert one == pytest.approx(two, abs=1e-3)
