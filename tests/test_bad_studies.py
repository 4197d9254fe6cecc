"""Study files that are wrong: each is one line with its place, before any work."""

import time

import pytest
import yaml
from conftest import ROOT
from test_parameters import OLD_NAMES

from prunegpt_utils.errors import ParameterError
from prunegpt_utils.runs import expansion, study_files, yaml_files

BOMB = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    + [f"a{k + 1}: &a{k + 1} [{', '.join([f'*a{k}'] * 10)}]" for k in range(12)]
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "must be a mapping"),
        (b"# nothing but a comment", "must be a mapping"),
        (b"- one\n- two", "must be a mapping"),
        (b"just words", "must be a mapping"),
        (b"42", "must be a mapping"),
        (b"study: [1, 2", r"mine.yaml:1' does not read"),
        (b"study: a\n  notebooks: b", r"mine.yaml:2' does not read"),
        (b"a: 1\nb: 2\na: 3", r"mine.yaml:3' does not read: the key 'a' stands twice"),
        (b"a: {b: 1, b: 2}", "the key 'b' stands twice"),
        (b"\tstudy: a", "does not read"),
        (b"a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        (b"a: !!python/name:os.system", "could not determine a constructor"),
        (b"a: !mine 3", "could not determine a constructor"),
        (b"a: 2026-13-45", "does not read"),
        (b"a: *nowhere", "undefined alias"),
        (BOMB.encode(), "holds more than 100,000 values"),
        (b"a: &a [*a]", "holds more than 100,000 values"),
        (b"a: " + b"[" * 5000, "is nested too deeply"),
        (b"a: \xff\xfe", "is not text in UTF-8"),
        (b"a: b\x00c", "does not read"),
        (b"a: " + b"x" * 1_000_001, "has 1,000,004 bytes"),
        (b"a: 1\n---\nb: 2", "does not read"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_plain_mapping(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text)
    begin = time.process_time()
    with pytest.raises(ParameterError, match=message) as error:
        yaml_files.read(path, "study")
    assert "\n" not in str(error.value) and time.process_time() - begin < 5


DENSE = {"01_baselines": {"dense": None}}


def gradual(**entry):
    return {"notebooks": DENSE | {"02_pruning": {"gradual": {"one_shot_run": ""} | entry}}}


@pytest.fixture
def mine(monkeypatch):
    """A function that plans a study of some content, named `mine`."""
    read = study_files._read

    def plan(content):
        replaced = {"study": {"study": "mine"} | content}
        monkeypatch.setattr(
            study_files, "_read", lambda kind, *rest: replaced.get(kind) or read(kind, *rest)
        )
        return expansion.plan("mine")

    return plan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"notebooks": None}, "notebooks: None must be a dict"),
        ({"notebooks": {}}, "notebooks: must list at least one"),
        ({"notebooks": ["dense"]}, r"notebooks: \['dense'\] must be a dict"),
        ({"notebooks": {"01_baseline": {"dense": None}}}, "notebooks: '01_baseline' must be one of 00"),
        ({"notebooks": {"01_baselines": ["dense"]}}, "must name recipes, each with a colon"),
        ({"notebooks": {"01_baselines": {"dens": None}}}, "'dens' is no recipe; did you mean 'dense'"),
        ({"notebooks": {"../01_baselines": {"dense": None}}}, "notebooks: '../01_baselines' must be one of"),
        ({"notebooks": {"01_baselines": {"dense": "fast"}}}, "dense: 'fast' must be parameters"),
        ({"notebooks": {"01_baselines": {1: None}}}, "1 is no recipe"),
        ({"note": "x"}, "'note' is no part of a study"),
        ({"pretrained": ["nowhere"]}, "pretrained: 'nowhere' must be a study"),
        ({"pretrained": "fair"}, "pretrained: 'fair' must be a list"),
        ({"study": "other"}, "study: 'other' must be the name of the file, 'mine'"),
        ({"study": None}, "study: None must be a str"),
        ({"parameters": [1]}, r"parameters: \[1\] must be a dict"),
        ({"parameters": {"sede": 1}}, "sede: 1 is not a parameter; did you mean 'seed'"),
        (gradual(sparsity=90), "02_pruning: gradual: sparsity: 90.0 must lie in"),
        (gradual(sparsity=-0.1), "sparsity: -0.1 must lie in"),
        (gradual(sparsity=1.0), "sparsity: 1.0 must lie in"),
        (gradual(sparsity=float("nan")), "sparsity: nan must lie in"),
        (gradual(sparsity="0.9"), "sparsity: '0.9' must lie in"),
        (gradual(sparsity=True), "sparsity: True must lie in"),
        (gradual(sparsity={"from": 0}), "sparsity: {'from': 0} must lie in"),
        (gradual(sparsity=None), "sparsity: None must lie in"),
        (gradual(sparsty=0.5), "gradual: 'sparsty' is no parameter of this notebook; did you mean 'sparsity'"),
        (gradual(alpha=0.5), "gradual: 'alpha' is no parameter of this notebook"),
        (gradual(seed=-1), "seed: -1 must be a whole number"),
        (gradual(seed=1.5), "seed: 1.5 must be a whole number"),
        (gradual(seed=[0, "1"]), "seed: '1' must be a whole number"),
        (gradual(seed=[[0]]), r"seed: \[0\] must be a whole number"),
        (gradual(lr=float("inf")), "lr: inf must lie between 0 and 1"),
        (gradual(steps=-5), "steps: -5 must be a whole number"),
        (gradual(scope="3:2"), "scope: '3:2' must be global"),
        (gradual(criterion="size"), "criterion: 'size' must be magnitude"),
        (gradual(lr_schedule="sudden"), "lr_schedule: 'sudden' must be cosine or linear"),
        (gradual(recipe="a/b"), "recipe: 'a/b' must be letters"),
        (gradual(recipe=".."), "recipe: '..' must be letters"),
        (gradual(recipe="a b"), "recipe: 'a b' must be letters"),
        (gradual(recipe="$(ls)"), r"recipe: '\$\(ls\)' must be letters"),
        (gradual(recipe="dünn"), "recipe: 'dünn' must be letters"),
        (gradual(recipe=""), "recipe: '' must be letters"),
        (gradual(study="../../elsewhere"), "study: '../../elsewhere' must be letters"),
        (gradual(recipe="r" * 161), "recipe: 'r+' must be letters, .* at most 160"),
        (gradual(optional="no"), "optional: 'no' must be true or false"),
        (gradual(optional=None), "optional: None must be true or false"),
        ({"published": {"dense": None}}, "published: dense: None must be a perplexity"),
        ({"published": {"dense": "low"}}, "published: dense: 'low' must be a perplexity"),
        ({"results": "05_result"}, "results: '05_result' must be one of 00"),
        ({"parameters": {"lr": None}}, "01_baselines: dense: lr: None must lie between"),
        ({"parameters": None}, "parameters: None must be a dict"),
        ({"notebooks": {"01_baselines": None}}, "01_baselines: None must name recipes"),
    ],
)  # fmt: skip
def test_a_study_that_cannot_be(mine, change, message):
    with pytest.raises(ParameterError, match=message) as error:
        mine({"notebooks": DENSE} | change)
    assert str(error.value).startswith("studies/mine.yaml: ")


@pytest.mark.parametrize(("old", "new"), OLD_NAMES.items())
def test_an_old_parameter_in_a_study_file_is_one_line(mine, old, new):
    for content in (gradual(**{old: 1}), {"notebooks": DENSE, "parameters": {old: 1}}):
        with pytest.raises(ParameterError, match=f"{old}.* is called {new} now") as error:
            mine(content)
        assert "\n" not in str(error.value)


RETRAINED = ["random", "magnitude", "first-order", "fisher", "wanda", "sparsegpt"]
OLD_RECIPES = {f"retrained-{criterion}": "retrained" for criterion in RETRAINED} | {
    f"taught-by-{teacher}": "gradual-distilled" for teacher in ("dense", "zero-shot", "xl")
}


@pytest.mark.parametrize(("old", "new"), OLD_RECIPES.items())
def test_an_old_recipe_in_a_study_file_is_one_line(mine, old, new):
    with pytest.raises(ParameterError, match=f"'{old}' is written as `{new}: .*` now") as error:
        mine({"notebooks": {"02_pruning": {old: None}}})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("criterion", RETRAINED)
def test_what_replaces_an_old_recipe_keeps_its_name(mine, criterion):
    written = yaml.safe_load(study_files.RENAMED_RECIPES[f"retrained-{criterion}"])
    plan = mine({"notebooks": DENSE | {"02_pruning": {"one-shot": None} | written}})
    run = plan[f"retrained-{criterion}-s90-seed0"]
    assert (run.base_recipe, run.axes) == ("retrained", {"criterion": criterion})
    assert run.parameters["criterion"] == criterion


def test_all_mistakes_are_listed_at_once(mine):
    with pytest.raises(ParameterError) as error:
        mine(gradual(sparsity=[90, 0.5, 2], lr=[0.001, 5]))
    lines = str(error.value).splitlines()
    assert len(lines) == len(set(lines)) == 3  # 90, 2, and a learning rate of 5
    assert all(line.startswith("studies/mine.yaml: 02_pruning: gradual: ") for line in lines)


@pytest.mark.parametrize(
    "name", ["no-such", "../pydocs", "pydocs.yaml", "", "a b", "$(ls)", "/etc/passwd"]
)
def test_a_study_that_does_not_exist(name):
    with pytest.raises(
        ParameterError,
        match=f"study: '{name}'".replace("$", r"\$").replace("(", r"\(").replace(")", r"\)"),
    ):
        expansion.plan(name)


def test_a_thousand_runs_are_planned_in_seconds(mine):
    content = gradual(seed=list(range(50)), lr=[k / 1000 for k in range(1, 21)])
    content["notebooks"] |= {"01_baselines": {"dense": {"seed": list(range(50))}}}
    begin = time.process_time()  # not the time that others on this machine take
    assert len(mine(content)) == 1050
    assert time.process_time() - begin < 10


def test_every_study_of_the_project_reads():
    for path in (ROOT / "studies").rglob("*.yaml"):
        assert yaml_files.read(path, "study")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("5e-4", 0.0005), ("1.5e3", 1500.0), (".5", 0.5), ("-1.5E+3", -1500.0),
        ("2:4", "2:4"), ("1:30:00", "1:30:00"), ("010", 10), ("0x1F", 31), ("1_000", 1000),
        ("1.2.3", "1.2.3"), ("1e", "1e"), ("e5", "e5"), ("'1e-3'", "1e-3"), ("yes", True), ("~", None),
    ],
)  # fmt: skip
def test_numbers_are_read_as_they_are_meant(tmp_path, text, value):
    """YAML 1.1 has 1e-3 as a text, 2:4 as 124 and 010 as 8."""
    path = tmp_path / "mine.yaml"
    path.write_text(f"a: {text}\nb: [{text}]\n")
    found = yaml_files.read(path, "study")
    assert found == {"a": value, "b": [value]} and type(found["a"]) is type(value)
    yaml_files.write(path, found)
    assert yaml_files.read(path, "study") == found


def test_unquoted_patterns_and_exponents_make_the_runs_that_are_meant(runs_folder):
    folder = runs_folder / "2024"
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text(
        "study: 2024\nparameters: {lr: 1e-3, steps: 1e2}\nnotebooks:\n"
        "  01_baselines: {dense: {seed: [0, 1]}}\n"
        "  02_pruning: {gradual: {one_shot_run: '', sparsity: 0.5, scope: [2:4, 4:8]}}\n"
        "  06_criteria: {criteria: {sparsities: 0.5, patterns: 2:4}}\n"
    )
    plan = expansion.plan("2024")
    assert plan["dense-seed1"].parameters["lr"] == 0.001
    assert plan["dense-seed0"].parameters["steps"] == 100
    assert plan["gradual-2of4-s50-seed0"].parameters["scope"] == "2:4"
    p = plan["criteria-seed0"].parameters
    assert (p["study"], p["sparsities"], p["patterns"]) == ("2024", "0.5", "2:4")


def test_folders_of_one_name_are_told_apart(mine, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    models = ["/data/a/tiny", "/data/b/tiny/", "~/b/tiny", "org/tiny", "gpt2"]
    plan = mine({"parameters": {"model": models}, "notebooks": DENSE | gradual()["notebooks"]})
    names = ["a-tiny", "data-b-tiny", "me-b-tiny", "org-tiny", "gpt2"]
    assert set(plan) == {f"dense-{name}-seed0" for name in names} | {
        f"gradual-{name}-s90-seed0" for name in names
    }
    run = plan["gradual-me-b-tiny-s90-seed0"]
    assert run.parameters["model"] == "/home/me/b/tiny"
    assert run.depends_on == ("dense-me-b-tiny-seed0",) and run.axes == {"model": "me-b-tiny"}


def test_home_is_expanded_wherever_a_folder_may_be_named(mine, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    entry = {"data": "~/text", "init_from": "~/model", "one_shot_run": ""}
    plan = mine(
        {"parameters": {"model": "~/base"}, "notebooks": {"02_pruning": {"gradual": entry}}}
    )
    p = plan["gradual-s90-seed0"].parameters
    assert [p[key] for key in ("model", "data", "init_from")] == [
        "/home/me/base", "/home/me/text", "/home/me/model",
    ]  # fmt: skip
