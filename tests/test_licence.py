"""One licence, wherever it is named, and what the embedded model learnt from is told."""

import ast
import json
import tomllib

import yaml
from conftest import ROOT


def test_all_files_name_one_licence():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert project["license"] == citation["license"] == "Apache-2.0"
    assert all((ROOT / name).exists() for name in project["license-files"])
    heading = (ROOT / "LICENSE").read_text("utf-8").split()[:4]
    assert heading == ["Apache", "License", "Version", "2.0,"]


def test_the_notice_names_all_that_the_embedded_model_learnt_from():
    book = json.loads((ROOT / "notebooks" / "00_pretraining.ipynb").read_text("utf-8"))
    cell = next(c for c in book["cells"] if "parameters" in c["metadata"].get("tags", ()))
    values = {
        node.target.id: node.value for node in ast.parse("".join(cell["source"])).body
        if isinstance(node, ast.AnnAssign)
    }  # fmt: skip
    notice = (ROOT / "NOTICE").read_text("utf-8").replace("scikit-learn", "sklearn")
    assert [name for name in values["packages"].value.split() if name not in notice] == []
