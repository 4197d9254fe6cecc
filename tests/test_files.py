"""Files are written whole or not at all."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from prunegpt_utils.files import acquire, atomic_path, cached_json, is_locked


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


@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o002, 0o664, 0o775), (0o077, 0o600, 0o700)]
)
def test_the_umask_says_who_may_read(tmp_path, umask, file, folder):
    """However private a library, or a temporary folder, made it: safetensors writes mode 600."""
    before = os.umask(umask)
    try:
        with atomic_path(tmp_path / "model") as part:
            part.mkdir(mode=0o700)
            fill(part / "deep", "folder", "weights")
            (part / "deep" / "inside").chmod(0o600)
        with atomic_path(tmp_path / "tokens.safetensors") as part:
            save_file({"ids": torch.zeros(1)}, part)
    finally:
        os.umask(before)
    files = [tmp_path / "tokens.safetensors", tmp_path / "model" / "deep" / "inside"]
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {oct(file)}
    assert {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "model").rglob("deep")} == {
        oct(folder)
    }


def test_a_damaged_cache_is_made_again(tmp_path):
    for damage in ("", '{"a": 1', "[" * 100_000):
        (tmp_path / "cached.json").write_text(damage)
        assert cached_json(lambda: {"a": 1}, tmp_path / "cached.json") == {"a": 1}
    assert json.loads((tmp_path / "cached.json").read_text()) == {"a": 1}


def test_asking_for_a_lock_leaves_it_as_it_is(tmp_path):
    lock = tmp_path / "lock"
    assert not is_locked(lock)
    with acquire(lock):
        text = lock.read_text()
        assert is_locked(lock) and lock.read_text() == text
    assert not is_locked(lock)
