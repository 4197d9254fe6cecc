import pytest

from prunegpt_utils import parameters
from prunegpt_utils.parameters import ParameterError

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
        ("steps", -1), ("steps", 2.5), ("steps", True), ("batch", 0), ("block", 1), ("seed", -1),
        ("lr", 0.0), ("lr", 1.5), ("alpha", 1.1), ("temperature", 0.0), ("scope", "local"),
        ("criterion", "luck"), ("decay", "step"), ("precision", "fp8"), ("study", "../x"),
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


def test_notebooks_show_one_line_and_no_traceback():
    error = ParameterError("sparsity", 90, "must lie in [0, 1)")
    assert error._render_traceback_() == ["ParameterError: sparsity: 90 must lie in [0, 1)"]
