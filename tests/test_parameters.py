import pytest

from prunegpt_utils import criteria, losses, protocols, schedules, structured
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.runs import parameters

OLD_NAMES = {
    "untaught": "baseline", "curve": "one_shot_run", "start": "init_from", "block": "block_size",
    "accumulate": "gradient_accumulation_steps", "decay": "lr_schedule", "divergence": "kd_loss",
    "regrow": "regrow_decay", "one_sparsity": "layer_sparsity",
    "neurons_gone": "neuron_sparsity", "heads_gone": "head_sparsity",
}  # fmt: skip
DECLARED = 'study: str = "a"\nsparsity: float = 0.9  # what goes\nsteps: int = 3'


@pytest.mark.parametrize("value", [-0.1, 1.0, 90, "0.9", None, float("nan"), float("inf"), True])
def test_sparsity_outside_its_range(value):
    with pytest.raises(
        ParameterError, match=r"^sparsity: .* must lie in \[0, 1\), such as 0.9"
    ) as caught:
        parameters.check("sparsity", value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", -1), ("steps", 2.5), ("steps", True), ("batch", 0), ("block_size", 1), ("seed", -1),
        ("lr", 0.0), ("lr", 1.5), ("alpha", 1.1), ("temperature", 0.0), ("scope", "local"),
        ("criterion", "luck"), ("lr_schedule", "step"), ("precision", "fp8"), ("study", "../x"),
        ("study", "a b"), ("recipe", ""), ("model", ""), ("data", ""), ("prune_until", 2.0),
    ],
)  # fmt: skip
def test_values_out_of_range_are_named(name, value):
    with pytest.raises(ParameterError, match=f"^{name}: "):
        parameters.check(name, value)


def test_whole_numbers_serve_as_floats():
    assert parameters.check("sparsity", 0) == 0.0 and isinstance(
        parameters.check("alpha", 1), float
    )


def test_unknown_parameter_suggests_the_nearest():
    with pytest.raises(
        ParameterError, match="sparsty: 0.9 is not a parameter; did you mean 'sparsity'"
    ):
        parameters.check("sparsty", 0.9)


def test_a_misspelt_injected_parameter_is_caught():
    cells = ["", DECLARED, "# Parameters\nsparsty = 0.5\n"]
    space = {"In": cells, "sparsity": 0.9, "steps": 3, "study": "a", "sparsty": 0.5}
    with pytest.raises(
        ParameterError, match="sparsty: 0.5 is no parameter of this notebook; did you"
    ):
        parameters.read(space)


def test_what_the_reader_defines_later_is_no_parameter():
    space = {"In": ["", DECLARED, "x = 1"], "sparsity": 0.9, "steps": 3, "study": "a", "x": 1}
    space["scope"] = "a parameter of other notebooks"
    assert parameters.read(space) == {"study": "a", "steps": 3, "sparsity": 0.9}


@pytest.mark.parametrize(
    ("name", "given", "meant"),
    [
        ("lr", "1e-3", 0.001), ("steps", "1e3", 1000), ("steps", 400.0, 400), ("scope", 124, "2:4"),
        ("patterns", 248, "4:8"), ("sparsities", 0.5, "0.5"), ("study", 2024, "2024"),
        ("model", "~/tiny", "/home/me/tiny"), ("recipe", "~", "~"), ("lr", "fast", "fast"),
        ("steps", 2.5, 2.5), ("study", True, True), ("study", 20.5, 20.5), ("teacher", None, None),
        ("unknown", "~", "~"),
    ],
)  # fmt: skip
def test_what_yaml_and_papermill_make_of_a_value_is_read_as_meant(monkeypatch, name, given, meant):
    monkeypatch.setenv("HOME", "/home/me")
    found = parameters.as_meant(name, given)
    assert found == meant and type(found) is type(meant)


def test_a_notebook_gets_what_was_meant():
    """Its cells use the names themselves, not what `read` returns."""
    declared = 'study: str = "a"\nscope: str = ""\nlr: float = 0.1\nsparsities: str = "0.9"'
    space = {"In": ["", declared], "study": 2024, "scope": 124, "lr": "1e-3", "sparsities": 0.5}
    meant = {"study": "2024", "scope": "2:4", "lr": 0.001, "sparsities": "0.5"}
    assert parameters.read(space) == meant == {name: space[name] for name in meant}
    assert parameters.read(space) == meant


def test_notebooks_show_one_line_and_no_traceback():
    error = ParameterError("sparsity", 90, "must lie in [0, 1)")
    assert error._render_traceback_() == ["ParameterError: sparsity: 90 must lie in [0, 1)"]


@pytest.mark.parametrize(("old", "new"), OLD_NAMES.items())
def test_an_old_name_leads_to_the_new_one(old, new):
    with pytest.raises(ParameterError, match=f"^{old}: 1 is called {new} now") as error:
        parameters.check(old, 1)
    assert "\n" not in str(error.value)
    space = {"In": ["", DECLARED, f"# Parameters\n{old} = 1\n"], "study": "a", old: 1}
    with pytest.raises(ParameterError, match=f"^{old}: 1 is called {new} now") as error:
        parameters.read(space)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("old", ["forward", "reverse", "hidden"])
def test_an_old_value_leads_to_the_new_ones(old):
    with pytest.raises(
        ParameterError, match=f"^kd_loss: '{old}' .* forward_kl, reverse_kl or hidden"
    ):
        parameters.check("kd_loss", old)


def choices(name):
    """The values of a parameter that has only a few, as the table of parameters lists them."""
    rules = parameters.Parameters.model_fields[name].metadata
    (pattern,) = [rule.pattern for rule in rules if hasattr(rule, "pattern")]
    return sorted(pattern.removeprefix("^(").removesuffix(")$").split("|"))


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("kd_loss", losses.KD_LOSSES), ("lr_schedule", schedules.LR_SCHEDULES),
        ("protocol", protocols.PROTOCOLS), ("importance", structured.IMPORTANCES),
    ],
)  # fmt: skip
def test_the_table_allows_what_the_code_knows(name, known):
    assert choices(name) == sorted(known)


def test_the_table_allows_the_criteria_of_the_code():
    assert sorted(parameters._CRITERIA) == sorted(criteria.CRITERIA)
