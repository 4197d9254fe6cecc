"""The hub with the real client, against a server of the tests: what is asked, and every fault."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hub_server import BUSY, FAULTS, MODEL_FILES, NEW, OLD, WEIGHTS, Fault

from prunegpt_utils import corpora, hub, modeling
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.runs import expansion, optional_models

pytest_plugins = ["hub_server"]


def another_process():
    """Forget what this process has loaded."""
    hub._found.clear()


def files_of(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def lose(file):
    """Take a file out of the hub's cache."""
    file.resolve().unlink()
    file.unlink()


def refusal(load, *arguments):
    """The one line with which `load` is refused, within seconds."""
    begin = time.monotonic()
    with pytest.raises(ParameterError) as caught:
        load(*arguments)
    assert time.monotonic() - begin < 10
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_of_a_model_only_what_is_needed_comes_and_it_is_asked_for_once(server):
    model = modeling.load_model("me/model")
    folder = hub.locate("me/model")
    assert files_of(folder) == MODEL_FILES
    assert modeling.describe("me/model", "me/model", model)["revision"] == folder.name == OLD
    server.requests.clear()
    modeling.load_model("me/model"), modeling.load_tokenizer("me/model")
    another_process()
    modeling.load_model("me/model"), modeling.load_tokenizer("me/model")
    assert server.requests == []
    server.stop()
    another_process()
    assert modeling.load_model("me/model").lm_head.weight.equal(model.lm_head.weight)


def test_of_a_model_in_parts_those_of_its_index_come(server):
    folder = hub.locate("me/sharded")
    parts = {name for name in files_of(folder) if name.endswith(".safetensors")}
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert parts == set(index["weight_map"].values()) and len(parts) > 1
    modeling.load_model("me/sharded")
    lose(folder / min(parts))
    another_process()
    server.requests.clear()
    hub.locate("me/sharded")
    assert server.paths(cdn=True) and all(min(parts) in path for path in server.paths(cdn=True))


def test_of_a_data_set_one_configuration_comes(server, tmp_path):
    corpus = corpora.load_text("me/text:small", tmp_path / "cache")
    assert corpus.revision == OLD
    assert {split: len(texts) for split, texts in corpus.splits.items()} == {
        "train": 40, "validation": 10, "test": 10,
    }  # fmt: skip
    assert len(server.paths(cdn=True)) == 4 and all("/small/" in p for p in server.paths(cdn=True))
    server.stop()
    another_process()
    assert corpora.load_text("me/text:small", tmp_path / "other").splits == corpus.splits
    line = refusal(corpora.load_text, "me/text:large", tmp_path)
    assert line.startswith("data: 'me/text:large' is not wholly on this machine")


@pytest.mark.parametrize("lost", ["train-00001-of-00002", "validation-00000-of-00001"])
@pytest.mark.parametrize("listed", [True, False])  # whether the cache says what the hub holds
def test_half_a_data_set_is_completed_or_refused(server, tmp_path, lost, listed):
    folder = hub.fetch("me/text", "dataset", "data", "small")
    if not listed:
        shutil.rmtree(folder.parents[1] / "trees")
        (folder / "README.md").unlink()
    file = folder / "small" / f"{lost}.parquet"
    lose(file)
    another_process()
    server.requests.clear()
    hub.fetch("me/text", "dataset", "data", "small")
    assert file.exists() and [Path(path).stem for path in server.paths(cdn=True)] == [lost]
    lose(file)
    server.stop()
    another_process()
    assert "is not wholly on this machine" in refusal(corpora.load_text, "me/text:small", tmp_path)


def test_a_configuration_must_be_named_and_be_there(server, tmp_path):
    assert "must say which configuration" in refusal(corpora.load_text, "me/text", tmp_path)
    assert "it has: small, large" in refusal(corpora.load_text, "me/text:none", tmp_path)
    assert server.paths(cdn=True) == []


def test_the_pinned_commit_comes_though_the_branch_has_moved(server, repositories):
    commits = {NEW: repositories["models/me/model"][NEW]} | repositories[
        "models/openai-community/gpt2"
    ]
    server.repositories["models/openai-community/gpt2"] = commits
    assert hub.locate("gpt2").name == hub.REVISIONS["openai-community/gpt2"]
    server.requests.clear()
    assert hub.locate("openai-community/gpt2").name == hub.REVISIONS["gpt2"]  # the same model
    assert server.requests == []


def test_a_hub_without_the_pinned_commit_gives_its_main_branch_and_that_is_recorded(server, capsys):
    model = modeling.load_model("gpt2-xl", "teacher")
    assert modeling.describe("gpt2-xl", "gpt2-xl", model)["revision"] == OLD
    assert "commit 15ea56de is not on this hub" in capsys.readouterr().err
    assert hub.loaded_commits() == {"gpt2-xl": OLD}


def test_the_commit_recorded_is_the_one_loaded(server, tmp_path):
    model = modeling.load_model("me/model")
    hub.fetch("me/text", "dataset", "data", "small")
    folder = hub.locate("me/model")
    newer = folder.with_name(NEW)  # another process gets what has been published since
    shutil.copytree(folder, newer)
    (folder.parents[1] / "refs").mkdir(exist_ok=True)
    (folder.parents[1] / "refs" / "main").write_text(NEW)
    assert modeling.describe("me/model", "me/model", model)["revision"] == OLD
    assert hub.loaded_commits() == {"me/model": OLD, "me/text": OLD}


def test_the_token_goes_to_the_hub_alone(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_valid")
    server.gated = {"me/model": {"hf_valid"}}
    server.xet = True  # which the client then asks for with a token of its own
    hub.locate("me/model")
    assert {(cdn, token) for cdn, *_, token in server.requests} == {
        (False, "hf_valid"), (True, ""),
    }  # fmt: skip


def test_a_cache_that_the_command_line_filled_is_found(server, tmp_path):
    environment = os.environ | {"HF_ENDPOINT": server.url, "HF_HUB_CACHE": str(tmp_path / "hub")}
    environment |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    subprocess.run(
        [Path(sys.executable).parent / "hf", "download", "gpt2", "config.json", "model.safetensors", "tokenizer.json"],
        env=environment, check=True, capture_output=True,
    )  # fmt: skip
    server.stop()
    modeling.load_model("gpt2"), modeling.load_tokenizer("gpt2")
    assert hub.locate("gpt2").name == hub.REVISIONS["gpt2"]


@pytest.mark.parametrize("what", FAULTS)
def test_every_fault_is_one_line_and_the_next_start_goes_on(server, what):
    server.fault, said = FAULTS[what]
    line = refusal(hub.locate, "me/model")
    assert line.startswith("model: 'me/model' ") and said in line
    server.fault = None
    assert files_of(hub.locate("me/model")) == MODEL_FILES


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault("/api/", answer=BUSY, times=2), "it answers 503 Service Unavailable; trying again"),
        (
            Fault("/resolve/", answer=(429, "", {"Retry-After": "1"}), times=1),
            "trying again in 1 s",
        ),
        (Fault(act="drop", times=1), "without sending a response"),
        (Fault(WEIGHTS, True, act="cut", times=2), "Trying to resume download"),
        (Fault(WEIGHTS, True, BUSY, times=1), "it answers 503"),
    ],
)
def test_what_passes_is_waited_for_in_view(server, capfd, caplog, fault, said):
    server.fault = fault
    assert files_of(hub.locate("me/model")) == MODEL_FILES
    assert said in capfd.readouterr().err + caplog.text


def test_the_hubs_own_advice_is_shown_whole(server, monkeypatch):
    server.gated = {"me/model": {"hf_other"}}
    monkeypatch.setenv("HF_TOKEN", "hf_valid")
    assert refusal(hub.locate, "me/model").count("Ask for access on its page.") == 9
    monkeypatch.setenv("HF_TOKEN", "hf_stale")
    assert "`hf auth login`" in refusal(hub.locate, "gpt2")


def test_a_repository_without_safe_weights_is_refused_before_they_come(
    server, repositories, tmp_path
):
    folder = shutil.copytree(repositories["models/me/model"][OLD], tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    server.repositories["models/me/pickled"] = {OLD: folder}
    assert "a pickle runs code when it is read" in refusal(hub.locate, "me/pickled")
    folder = shutil.copytree(repositories["models/me/sharded"][OLD], tmp_path / "lost")
    next(folder.glob("model-00001-*")).unlink()
    server.repositories["models/me/lost"] = {OLD: folder}
    assert "names model-00001-of" in refusal(hub.locate, "me/lost")
    assert server.paths(cdn=True) == []


def test_a_proxy_and_a_mirror_of_any_port(server, monkeypatch):
    from huggingface_hub import constants

    mirror = "http://mirror.invalid:8123"
    monkeypatch.setattr(constants, "ENDPOINT", mirror)
    url = mirror + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
    monkeypatch.setenv("HTTP_PROXY", server.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert files_of(hub.locate("me/model")) == MODEL_FILES


def optional_study(folder):
    """A study of one run, and of two that need what may not be there."""
    folder.mkdir(parents=True)
    models = [{"model": name, "optional": True} for name in ("me/model", "me/none", "me/gated")]
    recipes = dict(zip(("zero-shot", "dense", "control"), models, strict=True))
    content = {"study": folder.name, "notebooks": {"01_baselines": recipes}}
    (folder / "study.yaml").write_text(yaml.safe_dump(content))
    return folder


def test_optional_models_are_decided_once(server, repositories, runs_folder):
    server.repositories["models/me/gated"] = repositories["models/me/model"]
    server.gated = {"me/gated": set()}
    folder = optional_study(runs_folder / "mine")
    assert not expansion.plan("mine") and server.requests == []  # a plan asks no network
    expansion.decide("mine")
    assert set(expansion.plan("mine")) == {"zero-shot-seed0"}
    found = optional_models.decided("mine")
    assert found["me/model"] is None
    assert "Not Found" in found["me/none"] and "Ask for access" in found["me/gated"]
    server.stop()
    assert set(expansion.plan("mine")) == {"zero-shot-seed0"}  # on a machine that has neither
    assert expansion.missing_models("mine") == {"dense": "me/none", "control": "me/gated"}
    expansion.decide("mine")  # what was found stays found
    assert set(expansion.plan("mine")) == {"zero-shot-seed0"}
    (folder / "optional_models.json").write_text("[1]")
    assert "delete it" in refusal(expansion.plan, "mine")


def test_verify_gpt2_downloads_no_weights_unasked(server, capsys):
    from benchmarks import verify_gpt2

    assert list(verify_gpt2._unasked()) == ["gpt2"]
    said = capsys.readouterr().out
    assert 'gpt2-xl      left out: MODELS="gpt2-xl" downloads 0.0 GB' in said  # tiny ones, here
    assert (
        'gpt2-medium  left out: MODELS="gpt2-medium" downloads it where there is a network' in said
    )
    assert server.paths(cdn=True) == []
    sizes = [p.stat().st_size for p in hub.locate("me/model").iterdir()]
    assert hub.download_bytes("me/model") == sum(sizes)
