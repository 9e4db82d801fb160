"""Finding a backbone's files: folders, a hub that answers as the real one does, no network; each failure in words."""

import json
import pickle
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from datamodules.backbones.backbone_settings import BackboneSettings
from datamodules.backbones.backbones import build_backbone
from storage.errors import UserError

TINY_VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 8,
}
COMMIT = "0123456789" * 4
REFUSALS = {  # of the hub, by repository: the status and the code that its client turns into an error
    "lab/gated": (403, "GatedRepo"),
    "lab/unknown": (401, "RepoNotFound"),
}


def settings(**overrides: Any) -> BackboneSettings:
    standard = {"name": "tiny", "kind": "transformers", "model": "lab/model", "revision": "main"}
    return BackboneSettings(**{**standard, "output": "cls_token", **overrides})


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    transformers.ViTModel(transformers.ViTConfig(**TINY_VIT), add_pooling_layer=False).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A hub on this machine: the repository `a/b` is the folder `a/b` below the path that this gives."""
    root = tmp_path / "hub"

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            repository, _, rest = self.path.lstrip("/").partition("/resolve/")
            revision, _, name = rest.partition("/")
            path = root / repository / name
            status, code = REFUSALS.get(repository, (404, "EntryNotFound"))
            if revision not in ("main", COMMIT):
                status, code = 404, "RevisionNotFound"
            elif path.is_file():
                status, code = 200, ""
            content = path.read_bytes() if status == 200 else b""
            self.send_response(status)
            for header, value in (("X-Error-Code", code), ("X-Repo-Commit", COMMIT), ("ETag", f'"{len(content)}"')):
                if value:
                    self.send_header(header, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    visit(f"http://127.0.0.1:{server.server_port}", tmp_path, monkeypatch)
    yield root
    server.shutdown()
    server.server_close()


def visit(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take `endpoint` for the hub, with an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub_cache"))


def test_a_model_is_downloaded_once(hub: Path, vit_folder: Path) -> None:
    shutil.copytree(vit_folder, hub / "lab/model")
    images = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    expected = build_backbone(settings(path=str(vit_folder)), 8, 3)
    downloaded = build_backbone(settings(), 8, 3)
    assert torch.equal(downloaded.extract(images), expected.extract(images))
    assert downloaded.identity == expected.identity
    shutil.rmtree(hub / "lab")  # now from the cache
    assert build_backbone(settings(), 8, 3).identity == expected.identity


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"model": "lab/gated"},
            r"lab/gated \(revision main\) is gated.*huggingface\.co/lab/gated.*hf auth login.*backbone\.path",
        ),
        (
            {"model": "lab/unknown"},
            r"lab/unknown \(revision main\).*hub knows no.*Check backbone\.model",
        ),
        ({"revision": "v9"}, r"lab/model \(revision v9\).*hub knows no"),
        (
            {"model": "lab/empty"},
            r"lab/empty \(revision main\): holds no config\.json and no preproc",
        ),
        ({"model": "not a name"}, r"not a name .*hub knows no"),
    ],
)
def test_what_the_hub_refuses_is_said_in_words(hub: Path, overrides: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_backbone(settings(**overrides), 8, 3)


def only_a_pickle(vit_folder: Path, folder: Path) -> None:
    shutil.copytree(vit_folder, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("place", ["hub", "folder"])
def test_pickled_weights_are_refused_and_the_cure_works(
    place: str, hub: Path, vit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_a_pickle(vit_folder, hub / "lab/model")
    chosen = settings(path=str(hub / "lab/model") if place == "folder" else None)
    with pytest.raises(UserError, match=r"Pickled weights.*refused.*python -c .*backbone\.path=FOLDER") as caught:
        build_backbone(chosen, 8, 3)
    if place == "folder":
        monkeypatch.chdir(tmp_path)
        cure = str(caught.value).split('python -c "')[1].split('"')[0]
        exec(cure, {})
        converted = build_backbone(settings(path="FOLDER"), 8, 3)
        images = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
        assert torch.equal(
            converted.extract(images), build_backbone(settings(path=str(vit_folder)), 8, 3).extract(images)
        )


def test_a_folder_without_a_processor_is_named(vit_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(vit_folder, tmp_path / "model"))
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"model: holds no preprocessor_config\.json.*save_pretrained"):
        build_backbone(settings(path=str(folder)), 8, 3)
    with pytest.raises(UserError, match=r"absent: no such folder"):
        build_backbone(settings(path=str(tmp_path / "absent")), 8, 3)


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        ("config.json", "num_hidden_layers", 10**9, "tells of 1,000,000,000 layers"),
        ("config.json", "hidden_size", 10**6, "cannot load this"),
        ("config.json", "hidden_size", "x", "cannot load this"),
        ("config.json", "model_type", ["vit"], "cannot load this"),
        ("preprocessor_config.json", "size", {"height": 10**6, "width": 10**6}, "1,000,000 pixels a side"),
        ("preprocessor_config.json", "image_mean", "x", "cannot be used as its files say"),
    ],
)
def test_what_a_strangers_files_tell_of_a_network(
    vit_folder: Path, tmp_path: Path, file: str, key: str, value: Any, message: str
) -> None:
    folder = shutil.copytree(vit_folder, tmp_path / "vit")
    told = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**told, key: value}))
    with pytest.raises(UserError, match=message):
        build_backbone(settings(path=str(folder)), 16, 3)


def test_a_kernel_that_a_file_names_is_not_run(vit_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(vit_folder, tmp_path / "vit")
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, "attn_implementation": "lab/kernel"}))
    backbone: Any = build_backbone(settings(path=str(folder)), 16, 3)
    assert backbone.model.config._attn_implementation == "sdpa"


def test_without_a_network_the_message_comes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    visit("http://127.0.0.1:9", tmp_path, monkeypatch)
    start = time.monotonic()
    words = r"neither in the Hugging Face cache.*hf download lab/model.*path=FOLDER\.\n.*BACKBONE=efficientnet_lite0"
    with pytest.raises(UserError, match=words):
        build_backbone(settings(), 8, 3)
    with pytest.raises(UserError) as met:
        build_backbone(settings(), 8, 3, setting="evaluation.weights.tiny")
    assert "BACKBONE" not in str(met.value)
    assert time.monotonic() - start < 5


class Harmful:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return print, ("code of the file ran",)


def test_an_authors_checkpoint_is_read_as_tensors_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "checkpoint.pth"
    checkpoint = settings(
        kind="checkpoint",
        path=str(path),
        url="https://example.org/checkpoint.pth",
        model="vit_tiny_patch16_224",
        arguments={"depth": 1},
        prefix="encoder.",
        unused=[],
        processing={"input_size": [3, 224, 224]},
    )
    with pytest.raises(UserError, match=r"no such file\. Download https://example\.org/checkpoint\.pth"):
        build_backbone(checkpoint, 8, 3)
    path.write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(UserError, match=r"refused, it cannot be read as plain tensors"):
        build_backbone(checkpoint, 8, 3)
    assert "code of the file ran" not in capsys.readouterr().out
    torch.save({"state_dict": {"teacher.patch_embed.proj.weight": torch.zeros(1)}}, path)
    with pytest.raises(UserError, match=r"under backbone\.prefix='encoder\.' \(prefixes .* in there: teacher\.\)"):
        build_backbone(checkpoint, 8, 3)
