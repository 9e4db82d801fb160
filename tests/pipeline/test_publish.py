"""A trained model goes to the hub with its card, and comes back from there: against a small hub in this process."""

import base64
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml

from lightning_modules.clustering.assignment import ClusteringHead
from lightning_modules.clustering.heads import ClusteringHeads
from lightning_modules.diffusion.denoiser import Denoiser
from pipeline.running.publication import measured_models
from storage.digests import file_digest
from storage.errors import UserError

from .conftest import TINY_EDM, Cedm, summary

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """What `create_repo`, `upload_folder` and `hf_hub_download` ask of the hub, for files of a megabyte."""

    files: dict[str, bytes]
    refuses = False

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.refuses:
            self.answer({"error": "no"}, 403)
        elif self.path == "/api/repos/create":
            self.answer({"url": f"http://{self.headers['Host']}/me/model"})
        elif "/preupload/" in self.path:
            named = json.loads(body)["files"]
            self.answer({"files": [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in named]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"commitOid": COMMIT, "commitUrl": f"http://{self.headers['Host']}/me/model/commit/{COMMIT}"})
        else:
            self.answer({})

    def do_GET(self) -> None:
        found = re.fullmatch(r"/me/model/resolve/[^/]+/(.+)", self.path)
        content = self.files.get(found[1]) if found else None
        if content is None:
            self.answer({"sha": COMMIT, "siblings": [], "id": "me/model"}, 404 if found else 200)
            return
        self.send_response(200)
        for name, value in {"ETag": '"1"', "X-Repo-Commit": COMMIT, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET  # noqa: N815

    def answer(self, content: dict, code: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Hub]]:
    """A hub without files, to which this process and those that it starts turn."""
    handler = type("OneHub", (Hub,), {"files": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    for name, value in {"HF_ENDPOINT": address, "HF_TOKEN": "hf_x", "HF_HOME": str(tmp_path / "hf")}.items():
        monkeypatch.setenv(name, value)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    yield handler
    server.shutdown()


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own: where the hub is, huggingface_hub decides when it is imported."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)


def test_a_card_says_what_was_measured_and_nothing_of_where(cedm: Cedm, workplace: Path) -> None:
    assert cedm("train", *TINY_EDM, "conditioning=none", "run_dir=secret-place/run").code == 0
    words = ["run=secret-place/run", "dry_run=true", 'images_license="cc-by-4.0|<mit>"', "repo=me/model"]
    assert cedm("publish", *words).code == 0
    folder = Path("secret-place/run/hub")
    model = folder / "denoiser.safetensors"
    assert file_digest(model) == file_digest(Path("secret-place/run/denoiser.safetensors"))
    _, metadata, text = (folder / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(metadata)["pipeline_tag"] == "unconditional-image-generation"
    assert f"fd_pixels {summary('secret-place/run')['fd_pixels']:.4g}" in text
    assert r"| cc-by-4.0\|&lt;mit&gt; |" in text
    assert json.loads((folder / "config.json").read_text())["img_resolution"] == 8

    measured = ["num=80", "metrics=[fd]", "memorisation=false", "steps=2"]
    assert cedm("evaluate", "generated=secret-place/run", *measured, "run_dir=scores").code == 0
    assert cedm("publish", *words, "scores=scores").code == 0  # once more
    text = (folder / "README.md").read_text()
    assert f"| fd_pixels | {summary('scores')['fd_pixels']:.4g} |" in text
    assert '"num_reference"' in text
    assert "secret-place" not in text
    exec(compile(text.split("```python\n")[1].split("```")[0].replace("me/model", str(folder)), "card", "exec"), {})

    assert cedm("train", *TINY_EDM, "conditioning=none", "seed=1", "run_dir=other").code == 0
    refused = cedm("publish", "run=other", *words[1:], "scores=scores")
    assert (refused.code, "another model" in refused.err) == (2, True), refused.err


def test_scores_of_several_models_are_told_apart() -> None:
    sets = [{"sha256": "a"}, {"made_by": {"inputs": {"denoiser": "b"}}}, {"from": "files"}]
    assert measured_models({"scores": {"fd": {"protocol": {"generated": sets}}}}) == {"a", "b", None}


def test_what_is_pushed_comes_back(hub: type[Hub], tmp_path: Path) -> None:
    heads = ClusteringHeads(1, 6, 5, 8, 4)
    head = ClusteringHead(heads.head(0), torch.zeros(6), torch.ones(6), {"kind": "pixels"})
    head.save_pretrained(tmp_path)
    done = python(
        "from lightning_modules.clustering.assignment import ClusteringHead\n"
        f"print(ClusteringHead.from_pretrained({str(tmp_path)!r}).push_to_hub('me/model'))\n"
        "again = ClusteringHead.from_pretrained('me/model')\n"
        f"again.save_pretrained({str(tmp_path / 'again.safetensors')!r})\n"
    )
    assert done.returncode == 0, done.stderr
    assert hub.files["head.safetensors"] == (tmp_path / "head.safetensors").read_bytes()
    again = ClusteringHead.from_pretrained(tmp_path / "again.safetensors")
    assert torch.equal(again.head.hidden_weight, head.head.hidden_weight)

    hub.refuses = True
    done = python(
        "from lightning_modules.diffusion.denoiser import Denoiser\n"
        "from storage.errors import UserError\n"
        "from storage.hub import push\n"
        "from pathlib import Path\n"
        f"for attempt in (lambda: push([Path({str(tmp_path / 'head.safetensors')!r})], 'me/model', False),\n"
        "                lambda: Denoiser.from_pretrained('me/model')):\n"
        "    try:\n        attempt()\n    except UserError as error:\n        print(error)\n"
    )
    assert done.returncode == 0, done.stderr
    push, read = done.stdout.splitlines()
    assert "me/model: the hub did not take the model" in push
    assert "no denoiser.safetensors of that repository" in read


def test_a_mistyped_path_asks_no_hub(tmp_path: Path) -> None:
    for name in ("runs/none.safetensors", tmp_path / "a/b", "a/b/c"):
        with pytest.raises(UserError, match="no such file"):
            Denoiser.from_pretrained(name)
