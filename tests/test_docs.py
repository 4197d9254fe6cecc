"""What the documents say is true: their code runs, their links lead somewhere."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ONE_THREAD, ROOT, small_text, tiny_gpt2
from test_architectures import ARCHITECTURES

from prunegpt_utils import calibration, criteria, hub
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.report import frames, tables
from prunegpt_utils.runs import expansion, records
from prunegpt_utils.runs.parameters import Parameters

README = ROOT / "README.md"
GUIDE = ROOT / "docs" / "bring-your-own.md"
PAGES = [
    *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "results").glob("*/README.md")),
    ROOT / "benchmarks" / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", README,
]  # fmt: skip
SMALLER = {  # what the guide says -> what the tests run instead
    "seed: [0, 1, 2]": "batch: 2",
    "    dense:": "    dense: {steps: 2}",
    "    control:": "    control: {steps: 2}",
    "sparsity: [0.5, 0.9]": "steps: 2, sparsity: [0.9]",
    "-p block_size 64": "-p block_size 64 -p steps 2 -p batch 2 -p init_from '' -p one_shot_run '' -p reference ''",
}


def blocks(path, language):
    """Fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text("utf-8"), re.M | re.S)


def smaller(text, data):
    """A block of the guide at the size of a test, with the reader's folders in `data`."""
    for written, run in SMALLER.items():
        text = text.replace(written, run)
    return text.replace("/data/", f"{data}/")


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """The reader's own text and model."""
    folder = tmp_path_factory.mktemp("data")
    small_text(folder / "letters")
    shutil.copytree(hub.BASE, folder / "my-model")
    return folder


@pytest.fixture
def own_registry(monkeypatch):
    monkeypatch.setattr(criteria, "CRITERIA", dict(criteria.CRITERIA))


def test_the_guide_s_python_runs(mine, tmp_path, monkeypatch, own_registry, capsys):
    (tmp_path / "my_criteria.py").write_text(criterion_file(), "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    space = {}
    for code in blocks(GUIDE, "python"):
        exec(compile(smaller(code, mine), str(GUIDE), "exec"), space)
    sys.modules.pop("my_criteria")
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("data: ") for line in lines[:-3])  # where each file went
    printed = [line.split() for line in lines[-3:]]
    assert [line[0] for line in printed] == ["relative", "magnitude", "random"]
    assert all(float(line[1]) == pytest.approx(0.5, abs=1e-3) for line in printed)
    assert len({line[2] for line in printed}) == 3  # three rankings, three models


def criterion_file():
    (code,) = [code for code in blocks(GUIDE, "python") if code.startswith("# my_criteria.py")]
    return code


def test_a_criterion_takes_less_than_twenty_lines():
    assert len(criterion_file().splitlines()) < 20


IMPORT = "from prunegpt_utils.criteria import criterion\n"
MINE = IMPORT + "criterion('mine')(lambda weight, stats: weight.abs())"


def test_a_file_of_criteria_reaches_every_process(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    asks = (
        "from prunegpt_utils.runs import parameters, records\n"
        "print(parameters.check('criterion', 'mine'), records.environment()['own_criteria'])"
    )
    environment = os.environ | {"PRUNEGPT_CRITERIA": str(tmp_path / "mine.py")}
    done = subprocess.run(
        [sys.executable, "-c", asks], env=environment, capture_output=True, text=True, check=True
    )
    digest = hashlib.sha256(MINE.encode()).hexdigest()
    assert done.stdout.strip() == f"mine {{'mine.py': '{digest}'}}"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("oh no", "mine.py' does not load: SyntaxError"),
        ("import nothing_there", "does not load: ModuleNotFoundError: No module named 'nothing"),
        (IMPORT + "criterion('magnitude')(min)", "registers 'magnitude', a name that is taken"),
        (IMPORT + "criterion('mine', needs='luck')(min)", "needs: 'luck' must be gradients, inputs"),
    ],
)  # fmt: skip
def test_a_file_of_criteria_that_is_wrong_is_one_line(
    tmp_path, monkeypatch, own_registry, code, message
):
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.setenv("PRUNEGPT_CRITERIA", str(tmp_path / "mine.py"))
    with pytest.raises(ParameterError) as error:
        criteria._load_own()
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("rule", [lambda w, f: w.abs().sum(0), lambda w, f: w / 0 * 0])
def test_a_criterion_that_scores_no_weights_is_one_line(model, own_registry, rule):
    criteria.criterion("broken")(rule)
    with pytest.raises(ParameterError, match="criterion: 'broken' must give each weight of .* a"):
        criteria.scores(model, "broken")


@pytest.fixture
def project(tmp_path):
    """A copy of the project with this environment in it, where the guide can write its files."""
    for name in ("notebooks", "prunegpt_utils", "studies"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
        os.utime(tmp_path / name, (0, 0))  # older than the environment: nothing to install
    (tmp_path / ".venv").mkdir()
    for part in Path(sys.prefix).iterdir():
        (tmp_path / ".venv" / part.name).symlink_to(part)
    (tmp_path / ".venv" / "installed").unlink(missing_ok=True)
    (tmp_path / ".venv" / "installed").touch()
    return tmp_path


@pytest.mark.system
def test_the_guide_s_commands_run(mine, project, runs_folder):
    """From one run to a study with a table and a model to take along."""
    (project / "my_criteria.py").write_text(criterion_file(), "utf-8")
    (study,) = blocks(GUIDE, "yaml")
    (project / "studies" / "mine.yaml").write_text(smaller(study, mine), "utf-8")
    environment = os.environ | ONE_THREAD | {"PYTHONPATH": str(project)}
    for command in blocks(GUIDE, "sh"):
        done = subprocess.run(
            ["sh", "-ec", smaller(command, mine)], cwd=project, env=environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    (file,) = (runs_folder / "try" / "records").glob("gradual-s80-seed0.json")
    assert list(records.read(file)["environment"]["own_criteria"]) == ["my_criteria.py"]
    table = tables.plain(frames.frame(records.read_study("mine")[0]))
    assert "gradual, relative" in table and "gradual, magnitude" in table
    assert (runs_folder / "mine/exports/gradual-relative-s90-seed0/README.md").exists()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_links_and_names_lead_somewhere(path):
    text = path.read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert target.startswith("https://") or (path.parent / target).exists(), target
    for target in re.findall(r"`make ([a-z0-9-]+)", text):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), target
    for fenced in blocks(path, "sh"):
        for target in re.findall(r"\bmake ([a-z0-9-]+)", fenced):
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), target
    for name in re.findall(r"`((?:prunegpt_utils|studies|notebooks|tests|docs)/[\w./-]+)`", text):
        assert (ROOT / name).exists() or "*" in name, name


def test_ratios_of_prior_work_are_those_of_the_numbers_beside_them():
    text = (ROOT / "docs" / "prior-work.md").read_text("utf-8")
    numbers = re.findall(r"\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| (?:\[|the same)", text)
    assert len(numbers) == 13
    for dense, sparse, ratio in numbers:
        places = len(ratio.partition(".")[2])
        assert f"{float(sparse) / float(dense):.{places}f}" == ratio, (dense, sparse)


def test_messages_in_the_faq_are_those_of_the_code():
    """Each error that the FAQ explains, with … for what varies, is one that the code can say."""
    code = " ".join(path.read_text("utf-8") for path in (ROOT / "prunegpt_utils").rglob("*.py"))
    code = re.sub(r'"\s+f?"', "", code)  # texts that go on in the next line
    quoted = re.findall(r"^\*\*`(\w+[\w ]*: ….+?)`", (ROOT / "docs/faq.md").read_text(), re.M)
    assert len(quoted) == 5
    for part in (part.strip() for message in quoted for part in message.split("…")[1:]):
        assert part in code, part


def test_the_citation_is_valid():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert {"cff-version", "message", "title", "authors", "type"} <= set(cited)
    assert cited["cff-version"] == "1.2.0" and cited["type"] == "software"
    for work in cited["references"]:
        assert {"type", "title", "authors"} <= set(work)
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{cited["version"]}"' in project


def test_what_a_criterion_sees_of_the_inputs_is_what_the_guide_says():
    """E[x^2] of each input: a vector, one number an input."""
    assert "E[x²]" in GUIDE.read_text("utf-8")
    model, rows = tiny_gpt2(), torch.randint(0, 97, (3, 17))
    seen, layer = [], model.transformer.h[0].mlp.c_fc
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(0, 1)))
    stats = calibration.calibrate(model, "inputs", [rows[:1], rows[1:]], None)
    hook.remove()
    known = stats["transformer.h.0.mlp.c_fc.weight"].squared_inputs
    torch.testing.assert_close(known, torch.cat(seen).square().mean(0))
    assert known.shape == (layer.nx,)


def test_the_readme_fits_on_a_few_screens_and_its_studies_can_be_planned():
    text = README.read_text("utf-8")
    assert len(text.splitlines()) <= 200 and len(text.encode()) <= 12_000
    for study in re.findall(r"STUDY=([\w-]+)", text):
        assert expansion.plan(study), study
    for study, run in re.findall(r"RUN=([\w-]+)/([\w.-]+)", text):
        assert run in expansion.plan(study), run
    (overrides,) = re.findall(r'NEW=\w+ SET="([^"]+)"', text)
    assert set(re.findall(r"(\w+)=", overrides)) <= set(Parameters.model_fields)


def test_the_guide_names_the_architectures_that_are_tested():
    row = next(line for line in GUIDE.read_text("utf-8").splitlines() if "| architecture |" in line)
    listed = re.findall(r"gradients and zeros: (.*?)\. Mixtures .*? counted: (.*?);", row)
    assert sorted(", ".join(listed[0]).split(", ")) == sorted(", ".join(ARCHITECTURES).split(", "))
