"""A hub of two ports for the tests: it speaks as much of the protocol as the real client asks for.

The hub names the files of a repository and holds the small ones; weights and tables lie on a port of
their own, as on the real hub's CDN. Repositories are folders; faults are set while it runs.
"""

import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest
import yaml
from conftest import tiny_gpt2
from safetensors.torch import save_file

from prunegpt_utils import corpora, hub, hub_client, modeling

LARGE = re.compile(r".*\.(safetensors|parquet|bin|msgpack)")
LOGIN = (200, "<html>Welcome to our network. Please log in.</html>", {"Content-Type": "text/html"})


@dataclass
class Fault:
    """What befalls requests whose path matches.

    Attributes:
        path: regular expression.  cdn: whether on the port of the large files.
        answer: (status, text, headers) instead of the real one.
        act: drop (no answer), reset (of the connection), hang, or cut (after half of the bytes).
        times: how often; forever if None.
    """

    path: str = ".*"
    cdn: bool = False
    answer: tuple = ()
    act: str = ""
    times: int | None = None


@dataclass
class Hub:
    """A running hub: what it holds and what it was asked.

    Attributes:
        repositories: {"models/owner/name" or "datasets/owner/name": {commit: folder}}, main first.
        moved: {old: new name}.  gated: {repository: tokens with access}.  xet: whether it offers
            its large files in the storage protocol Xet, too, which is not there.
        requests: (port, method, path, token) of each.
    """

    repositories: dict[str, dict[str, Path]]
    moved: dict[str, str] = field(default_factory=dict)
    gated: dict[str, set] = field(default_factory=dict)
    tokens: set = field(default_factory=lambda: {"hf_valid"})
    xet: bool = False
    fault: Fault | None = None
    requests: list = field(default_factory=list)
    servers: list = field(default_factory=list)

    def start(self, port: int = 0) -> None:
        """Listen on two ports of this machine; the hub's own may be given."""
        for number, cdn in ((port, False), (0, True)):
            server = ThreadingHTTPServer(("127.0.0.1", number), _Handler)
            server.hub, server.cdn, server.daemon_threads = self, cdn, True
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            self.servers.append(server)
        self.url, self.cdn_url = (f"http://127.0.0.1:{s.server_port}" for s in self.servers)

    def stop(self) -> None:
        """Answer nothing from now on."""
        while self.servers:
            server = self.servers.pop()
            server.shutdown()
            server.server_close()

    def paths(self, cdn: bool = False) -> list[str]:
        """What one of the ports was asked for."""
        return [path for port, _, path, _ in self.requests if port == cdn]


@contextlib.contextmanager
def running(repositories: dict, **options: object):
    """A `Hub` while the block runs."""
    hub = Hub(repositories, **options)
    hub.start()
    try:
        yield hub
    finally:
        hub.stop()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Nothing is printed."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)  # a proxy is asked for whole addresses
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.server.hub.requests.append((self.server.cdn, self.command, path, token))
        fault = self.befalls(self.server.hub.fault, path)
        with contextlib.suppress(ConnectionError):
            if fault and fault.answer:
                self.answer(*fault.answer)
            elif fault and fault.act != "cut":
                self.break_off(fault.act)
            elif self.server.cdn:
                self.send_file(path, cut=fault is not None)
            else:
                self.route(self.server.hub, path, token)

    def befalls(self, fault, path):
        if not fault or fault.cdn != self.server.cdn or not re.search(fault.path, path):
            return None
        if fault.times is not None:
            fault.times -= 1
            return fault if fault.times >= 0 else None
        return fault

    def break_off(self, act):
        self.close_connection = True
        if act == "hang":
            time.sleep(20)
        elif act == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close() if act == "reset" else self.connection.shutdown(socket.SHUT_RDWR)

    def answer(self, status, body, headers=()):
        body = body if isinstance(body, (str, bytes)) else json.dumps(body)
        body = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        for key, value in {"Content-Length": len(body), **dict(headers)}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status, code, message):
        self.answer(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})

    def route(self, hub, path, token):
        if token and token not in hub.tokens:
            return self.refuse(401, "", "Invalid credentials in Authorization header")
        kinds = {"/api/models/": "models", "/api/datasets/": "datasets", "/datasets/": "datasets"}
        start = next((start for start in kinds if path.startswith(start)), "/")
        kind, rest = kinds.get(start, "models"), path.removeprefix(start)
        match = re.fullmatch(r"(.+?)(?:/(revision|tree|resolve)/([^/]+)(?:/(.+))?)?", rest)
        name, what, revision, file = match.groups()
        if name in hub.moved:
            place = f"{start}{hub.moved[name]}{rest.removeprefix(name)}"
            return self.answer(307, "", {"Location": place})
        commits = hub.repositories.get(f"{kind}/{name}")
        if commits is None:
            return self.refuse(404, "RepoNotFound", "Repository not found")
        commit = next(iter(commits)) if revision in (None, "main") else revision
        if commit not in commits:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {commit}")
        if what == "resolve":
            return self.resolve(hub, name, commit, commits[commit] / file, token)
        files = sorted(p for p in commits[commit].rglob("*") if p.is_file())
        entries = [self.entry(hub, commits[commit], file) for file in files]
        names = [{"rfilename": entry["path"], "size": entry["size"]} for entry in entries]
        info = {"id": name, "sha": commit, "siblings": names, "gated": name in hub.gated}
        body = entries if what == "tree" else info
        return self.answer(200, body, {"Content-Type": "application/json"})

    def entry(self, hub, folder, file):
        found = {"type": "file", "path": file.relative_to(folder).as_posix(), "oid": "0" * 40}
        found["size"] = size = file.stat().st_size
        if LARGE.fullmatch(file.name):
            found["lfs"] = {"oid": _digest(file), "size": size, "pointerSize": 100}
            found |= {"xetHash": _digest(file)} if hub.xet else {}
        return found

    def resolve(self, hub, name, commit, file, token):
        if name in hub.gated and token not in hub.gated[name]:
            why = f"Access to model {name} is restricted. {'Ask for access on its page. ' * 9}"
            return self.refuse(403 if token else 401, "GatedRepo", why)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_digest(file)}"'}
        if not LARGE.fullmatch(file.name):
            return self.answer(200, file.read_bytes(), headers)
        headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": file.stat().st_size}
        headers |= {"X-Xet-Hash": _digest(file)} if hub.xet else {}
        return self.answer(302, "", headers | {"Location": hub.cdn_url + str(file)})

    def send_file(self, path, cut):
        body, part = Path(path).read_bytes(), self.headers.get("Range")
        begin = int(re.match(r"bytes=(\d+)-", part)[1]) if part else 0
        self.send_response(206 if part else 200)
        self.send_header("Content-Length", str(len(body) - begin))
        if part:
            self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(
                body[begin : begin + (len(body) - begin) // 2] if cut else body[begin:]
            )
            if cut:
                self.break_off("drop")


def _digest(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


OLD, NEW = "a" * 40, "b" * 40
MODEL_FILES = {
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip
ROWS = [f"The row of number {n} is a text of its own." for n in range(60)]


def model_folder(folder, seed=0, shards=False):
    """A tiny model with all that repositories hold beside what is needed."""
    model = tiny_gpt2(seed, vocabulary=2048, block=64)
    model.save_pretrained(folder, **({"max_shard_size": "20KB"} if shards else {}))
    modeling.load_tokenizer("pydocs-base").save_pretrained(folder)
    save_file({"x": model.lm_head.weight.clone()}, folder / "model.fp16.safetensors")
    for name in ("pytorch_model.bin", "flax_model.msgpack", "README.md", "onnx/config.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"not needed: {name}")
    return folder


def data_folder(folder):
    """Two configurations, the train split of each in two parts."""
    configs = []
    for name in ("small", "large"):
        (folder / name).mkdir(parents=True)
        parts = {"train-00000-of-00002": ROWS[:20], "train-00001-of-00002": ROWS[20:40]}
        parts |= {"validation-00000-of-00001": ROWS[40:50], "test-00000-of-00001": ROWS[50:]}
        for part, rows in parts.items():
            pd.DataFrame({"text": rows}).to_parquet(folder / name / f"{part}.parquet")
        files = [{"split": s, "path": f"{name}/{s}-*"} for s in corpora.SPLITS]
        configs.append({"config_name": name, "data_files": files})
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
    return folder


@pytest.fixture(scope="session")
def repositories(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repositories")
    return {
        "models/me/model": {
            OLD: model_folder(folder / "model"),
            NEW: model_folder(folder / "newer", 1),
        },
        "models/me/sharded": {OLD: model_folder(folder / "sharded", shards=True)},
        "models/openai-community/gpt2": {hub.REVISIONS["gpt2"]: folder / "model"},
        "models/openai-community/gpt2-xl": {OLD: folder / "newer"},
        "datasets/me/text": {OLD: data_folder(folder / "text")},
    }


@pytest.fixture
def server(repositories, tmp_path, monkeypatch):
    """A running hub which this process takes for the real one, with an empty cache."""
    from huggingface_hub import constants

    moved = {name: f"openai-community/{name}" for name in ("gpt2", "gpt2-xl")}
    with running(dict(repositories), moved=moved) as hub_server:
        url = hub_server.url + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in {
            "ENDPOINT": hub_server.url, "HUGGINGFACE_CO_URL_TEMPLATE": url, "HF_HUB_OFFLINE": False,
            "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_TOKEN_PATH": str(tmp_path / "token"),
        }.items():  # fmt: skip
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(hub, "_found", {})
        monkeypatch.setattr(hub_client, "_PAUSES", (0.1, 0.1, 0))
        monkeypatch.setattr(hub_client, "_PATIENCE", 3)
        yield hub_server


WEIGHTS = r"model\.safetensors"
BUSY = (503, "busy", {})
FAULTS = {
    "the hub drops connections": (Fault(act="drop"), "cannot be reached"),
    "the hub resets connections": (Fault(act="reset"), "Connection reset"),
    "the hub never answers": (Fault(act="hang"), "no answer within"),
    "the list of files never comes": (Fault("/tree/", act="hang"), "no answer within"),
    "a login page instead of the hub": (Fault(answer=LOGIN), "login page"),
    "a login page instead of files": (Fault("/resolve/", answer=LOGIN), "firewall and proxy"),
    "a login page instead of weights": (Fault(WEIGHTS, True, LOGIN), "should be of size"),
    "an answer of another kind": (Fault("/api/", answer=(200, {}, {})), "not the hub's"),
    "forbidden": (Fault("/api/", answer=(403, "Ask your administrator", {})), "administrator"),
    "not found": (Fault("/api/", answer=(404, "", {})), "404"),
    "busy for good": (Fault(answer=BUSY), "it answers 503"),
    "too many requests for good": (Fault("/resolve/", answer=(429, "", {})), "it answers 429"),
    "weights reset": (Fault(WEIGHTS, True, act="reset"), "cannot be reached"),
    "weights that never come": (Fault(WEIGHTS, True, act="hang"), "no answer within"),
    "weights forbidden": (Fault(WEIGHTS, True, (403, "by policy", {})), "by policy"),
}
