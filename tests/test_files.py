"""Files are written whole or not at all."""

import pytest

from prunegpt_utils.files import atomic_path, cached_json


def fill(path, kind, text):
    """Write a file, or a folder with one in it."""
    if kind == "folder":
        path.mkdir()
    (path / "inside" if kind == "folder" else path).write_text(text, "utf-8")


def content(path):
    return (path / "inside" if path.is_dir() else path).read_text("utf-8")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_there_is_replaced(tmp_path, kind):
    path = tmp_path / "made" / "result"
    for text in ("old", "new"):
        with atomic_path(path) as part:
            assert part != path and part.name == path.name
            fill(part, kind, text)
        assert content(path) == text
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_failing_block_leaves_what_is_there(tmp_path, kind):
    path = tmp_path / "result"
    fill(path, kind, "old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as part:
        fill(part, kind, "new")
        raise ZeroDivisionError
    assert content(path) == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_failing_block_leaves_nothing_where_nothing_was(tmp_path, kind):
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "result") as part:
        fill(part, kind, "new")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_what_is_cached_is_made_once(tmp_path):
    made = []
    for _ in range(2):
        found = cached_json(
            lambda: made.append(1) or {"a": [1.5]}, tmp_path / "made" / "cached.json"
        )
        assert found == {"a": [1.5]} and made == [1]
