"""Whole studies whose model and text are on a hub that fails in every way, and then does not."""

import json
import os
import shutil
import ssl
import subprocess
import sys

import pytest
import yaml
from conftest import ONE_THREAD, ROOT, cheap_study
from hub_server import FAULTS, OLD

from prunegpt_utils import hub

pytest_plugins = ["hub_server"]


def study_on(server, tmp_path, runs_folder, model="me/model", data="me/text:small"):
    """(folder, function that starts it) of a study of one short run with a model of the hub."""
    folder = cheap_study(runs_folder)
    content = yaml.safe_load((folder / "study.yaml").read_text())
    content["parameters"] |= {"model": model, "data": data}
    content["notebooks"] = {"01_baselines": {"dense": {"steps": 2}}}
    (folder / "study.yaml").write_text(yaml.safe_dump(content))
    environment = os.environ | ONE_THREAD | {
        "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0",
        "PRUNEGPT_RUNS": str(runs_folder),
    }  # fmt: skip
    command = [sys.executable, "-m", "prunegpt_utils", "study", "cheap", "", "--cores", "1"]

    def start(**more):
        return subprocess.run(
            command, cwd=ROOT, env=environment | more, capture_output=True, text=True, check=False
        )

    return folder, start


@pytest.mark.system
@pytest.mark.parametrize("what", FAULTS)
def test_a_study_is_refused_in_one_line_and_finishes_after(server, tmp_path, runs_folder, what):
    folder, start = study_on(server, tmp_path, runs_folder)
    server.fault, said = FAULTS[what]
    done = start()
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and len(errors) == 1 and said in errors[0]
    assert "Traceback" not in done.stderr
    server.fault = None
    done = start()
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    record = json.loads((folder / "records" / "dense-seed0.json").read_text())
    assert record["model"]["revision"] == record["data"]["revision"] == OLD
    assert record["environment"]["hub"] == {"me/model": OLD, "me/text": OLD}


@pytest.mark.system
def test_what_one_machine_downloaded_is_enough_where_there_is_no_network(
    server, tmp_path, runs_folder
):
    folder, start = study_on(server, tmp_path, runs_folder)
    hub.locate("me/model"), hub.fetch("me/text", "dataset", "data", "small")
    shutil.copytree(tmp_path / "hub", tmp_path / "home" / "hub", symlinks=True)
    server.stop()
    done = start()
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (folder / "records" / "dense-seed0.json").exists()


@pytest.mark.system
def test_an_untrusted_certificate(server, tmp_path):
    name, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        key,
        "-out",
        name,
    ]
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl to make a certificate with")
    subprocess.run([*command, *subject], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(name, key)
    server.servers[0].socket = context.wrap_socket(server.servers[0].socket, server_side=True)
    port = server.servers[0].server_port
    code = "from prunegpt_utils import hub; print(hub.locate('me/model').name)"
    environment = os.environ | {
        "HF_ENDPOINT": f"https://localhost:{port}", "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0",
    }  # fmt: skip
    for trusted in (False, True):
        done = subprocess.run(
            [sys.executable, "-c", code], text=True, capture_output=True, check=False,
            env=environment | ({"SSL_CERT_FILE": str(name)} if trusted else {}),
        )  # fmt: skip
        assert (OLD in done.stdout) == trusted
        assert trusted or "SSL_CERT_FILE names a file" in done.stderr.splitlines()[-1]
