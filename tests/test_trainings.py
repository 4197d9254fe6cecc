"""The store of trainings: what is equal is made once, nothing in use goes, and records tell."""

import os
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import cheap_study, measured, papermill

from prunegpt_utils import __main__ as commands
from prunegpt_utils.errors import ParameterError
from prunegpt_utils.files import acquire
from prunegpt_utils.runs import records, schema, trainings

DENSE = {"recipe": "dense", "init_from": "", "steps": 6, "batch": 2, "block_size": 64, "seed": 0}


def ended(name, used, size=1000):
    """A training that has ended, was used at a time in seconds, and takes about `size` bytes."""
    place = trainings.folder() / name
    place.mkdir(parents=True)
    (place / "model.safetensors").write_bytes(b"x" * (size - 2))
    (place / "training.json").write_text("{}")
    (place / "lock").touch()
    os.utime(place / "lock", (used, used))
    return place


def left():
    return {place.name for place in trainings.folder().glob("*/")}


def test_the_longest_unused_goes_first(monkeypatch):
    for name, used in (("a", 3), ("b", 1), ("c", 2)):
        ended(name, used)
    monkeypatch.setenv("PRUNEGPT_TRAININGS_GB", "2.5e-6")
    trainings.trim()
    assert left() == {"a", "c"}
    monkeypatch.delenv("PRUNEGPT_TRAININGS_GB")
    trainings.trim()
    assert left() == {"a", "c"}


def test_what_is_in_use_or_has_not_ended_stays(monkeypatch):
    used, begun = ended("used", 1), trainings.folder() / "begun"
    begun.mkdir()
    (begun / "resume.safetensors").write_bytes(b"x" * 1000)
    ended("other", 2)
    monkeypatch.setenv("PRUNEGPT_TRAININGS_GB", "0")
    with acquire(used / "lock"):
        trainings.trim()
        assert left() == {"used", "begun"}
        assert trainings.clear() == (1, 1000, 1) and left() == {"used"}
    assert trainings.clear()[::2] == (1, 0) and left() == set()


def test_a_lock_that_was_removed_while_one_waited_for_it_locks_nothing(runs_folder):
    """Who waited gets the lock of the file that is there now."""
    path, order = runs_folder / "place" / "lock", []

    def second():
        with acquire(path):
            order.append(path.exists())

    with ThreadPoolExecutor(1) as pool:
        with acquire(path):
            waiting = pool.submit(second)
            time.sleep(0.2)
            shutil.rmtree(path.parent)
        waiting.result()
    assert order == [True]


def test_clean_store_says_what_it_did(capsys):
    commands.main(["clean-store"])
    ended("a", 1, 2 * 10**8)
    commands.main(["clean-store"])
    assert capsys.readouterr().out.splitlines() == [
        "0 trainings removed, 0.0 GB", "1 trainings removed, 0.2 GB"
    ]  # fmt: skip


@pytest.mark.parametrize("given", ["much", "-1", "nan", "inf", ""])
def test_a_limit_that_is_none_is_told_before_any_work(monkeypatch, given):
    monkeypatch.setenv("PRUNEGPT_TRAININGS_GB", given)
    message = f"PRUNEGPT_TRAININGS_GB: {given!r} must be a number of gigabytes, 0 or more"
    with pytest.raises(ParameterError, match=re.escape(message)):
        records.open_run("01_baselines", {**DENSE, "study": "mine"})


def test_a_training_that_was_given_took_no_time_of_the_run():
    training = {"steps": 5, "tokens": 10, "seconds": 60.0}
    maker = {"run": "mine/dense-seed0", "torch": "2.13.0", "device": "cpu", "processor": "one"}
    given = {"study": "other", "run": "dense-seed0", "training": training | {"made_by": maker}}
    assert records.seconds_trained(given) == 0
    assert records.seconds_trained(given | {"study": "mine"}) == 60
    assert records.seconds_trained(given | {"training": training}) == 60  # of an earlier version


def test_a_record_names_its_training_in_full():
    run = records.open_run("01_baselines", {**DENSE, "study": "mine"})
    training = {"steps": 5, "tokens": 10, "seconds": 1.0, "made_by": {"run": "mine/dense-seed0"}}
    with pytest.raises(ParameterError, match=r"training\.made_by\.torch is missing"):
        records.write(run, **measured() | {"training": training})


def test_two_studies_train_once(tmp_path, monkeypatch, capsys):
    folder = cheap_study(tmp_path)
    parameters = DENSE | {"model": str(folder / "tiny"), "data": str(folder / "text.txt")}
    monkeypatch.setenv("PRUNEGPT_RUNS", str(tmp_path))
    found = []
    for study in ("first", "second", "third"):
        changes = {"study": study} | ({"lr": 0.01} if study == "third" else {})
        done = papermill("01_baselines", tmp_path, parameters | changes)
        assert not done.returncode, done.stderr[-2000:]
        found.append(records.read(tmp_path / study / "records" / "dense-seed0.json"))
    first, second, third = (record["training"] for record in found)
    assert first == second and first["made_by"]["run"] == "first/dense-seed0"
    assert third["made_by"]["run"] == "third/dense-seed0"
    assert found[0]["metrics"] == found[1]["metrics"] != found[2]["metrics"]
    assert [list(schema.problems(record)) for record in found] == [[], [], []]
    assert len(list(trainings.folder().glob("*/training.json"))) == 2
    for study in ("first", "second"):
        commands.main(["line", str(tmp_path / study / "records" / "dense-seed0.json")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(" s") and lines[1].endswith(" s, trained as first/dense-seed0")
