"""What each logger has written, read back from its own files: over images seen, and on with the same run."""

import csv
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning import Trainer
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.loggers import CSV, MLFlow, TensorBoard, Wandb, close, log_histogram, log_image, log_settings

BLOCK, HEADER = 32768, 7  # bytes; a header is checksum (4), length (2) and kind (1) of a part of a record
FULL, LAST = 1, 4  # kinds of the parts that end a record; the first and the middle ones are 2 and 3
SHOWN = {"Learning rate": 0.1, "C": 40, "Method": "temi"}


def watched(*loggers: Any, step: int = 3) -> None:
    """All that a training shows, at this step of 64 images each."""
    trainer = cast(Trainer, SimpleNamespace(loggers=loggers, global_step=step))
    log_settings(list(loggers), SHOWN, ("fd_pixels",))
    for logger in loggers:
        logger.log_metrics({"fd_pixels": 5.0}, step)
    log_image(trainer, "samples/grid", Image.new("RGB", (8, 8), "red"))
    log_histogram(trainer, "temi/cluster_sizes", torch.arange(9.0))
    for logger in loggers:
        logger.save()
        logger.finalize("success")
    close(list(loggers))


def test_tensorboard(tmp_path: Path) -> None:
    watched(TensorBoard(tmp_path, 64))
    assert [path.name.split(".")[0] for path in tmp_path.iterdir()] == ["events"]  # so the run is called as its folder
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [point.step for point in events.Scalars("fd_pixels")] == [192]
    assert [point.step for point in events.Images("samples/grid")] == [192]
    assert [point.step for point in events.Histograms("temi/cluster_sizes")] == [192]
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_csv(tmp_path: Path) -> None:
    """Another start leaves the rows of the one before."""
    for step in (3, 5):
        watched(CSV(tmp_path, 64), step=step)
    rows = [list(csv.DictReader(path.open())) for path in sorted(tmp_path.glob("csv/*/metrics.csv"))]
    assert rows == [
        [{"fd_pixels": "5.0", "nimg": "192", "step": "3"}],
        [{"fd_pixels": "5.0", "nimg": "320", "step": "5"}],
    ]
    assert "Learning rate: 0.1" in (tmp_path / "csv/version_0/hparams.yaml").read_text()


class Client:
    """MLflow's client: what it was told, by the name of the call."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.params: dict[str, str] = {}

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=name, lifecycle_stage="active")

    def create_run(self, **given: Any) -> Any:
        self.told.append(("create_run", given))
        return SimpleNamespace(info=SimpleNamespace(run_id="abc"))

    def get_run(self, run_id: str) -> Any:
        return SimpleNamespace(
            info=SimpleNamespace(run_id=run_id, experiment_id="1"), data=SimpleNamespace(params=self.params)
        )

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **given: self.told.append((name, given))


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a client that notes what it is told, since MLflow needs an older pyarrow than the tests."""
    monkeypatch.setattr("lightning.pytorch.loggers.mlflow._MLFLOW_AVAILABLE", True)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    names = ("mlflow", "mlflow.tracking", "mlflow.tracking.context", "mlflow.entities", "mlflow.utils")
    for name in (*names, "mlflow.utils.mlflow_tags"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    fakes: Any = sys.modules
    fakes["mlflow"].set_tracking_uri = lambda place: None
    fakes["mlflow.tracking"].MlflowClient = Client
    fakes["mlflow.tracking"].context = SimpleNamespace()
    fakes["mlflow.utils.mlflow_tags"].MLFLOW_RUN_NAME = "run_name"
    fakes["mlflow.entities"].Metric = fakes["mlflow.entities"].Param = lambda **given: given

    watched(logger := MLFlow(tmp_path, 64))
    assert logger.experiment.place == "sqlite:///mlflow.db"
    told = dict(logger.experiment.told)
    assert [name for name, _ in logger.experiment.told].count("create_run") == 1
    pictures = told["log_image"]
    assert (pictures["key"], pictures["step"]) == ("samples_grid", 192)
    batches = [given for name, given in logger.experiment.told if name == "log_batch"]
    assert [param["key"] for param in batches[0]["params"]] == list(SHOWN)
    (metric,) = batches[1]["metrics"]
    assert (metric["key"], metric["step"]) == ("fd_pixels", 192)

    again = MLFlow(tmp_path, 64)
    again._mlflow_client.params = {"C": "40", "Method": "temi"}  # a value that is there cannot change
    watched(again)
    assert "create_run" not in dict(again.experiment.told)
    (params,) = (given["params"] for _, given in again.experiment.told if "params" in given)
    assert [param["key"] for param in params] == ["Learning rate"]


def records(file: Path) -> Iterator[Any]:
    """The records of a `run-….wandb` file: LevelDB's log format, each a message of W&B's protocol."""
    from wandb.proto import wandb_internal_pb2

    data, place, record = file.read_bytes(), HEADER, b""  # the file begins with a mark as long as a header
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:  # too little for another header: the rest of the block is empty
            place += BLOCK - place % BLOCK
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + HEADER])
        record += data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (FULL, LAST):
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


@pytest.mark.slow
def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two starts of a run, offline: one run there, whose curves are over `nimg`."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for step in (3, 5):
        watched(Wandb(tmp_path, 64), step=step)
    wandb.teardown()  # what is left is written now
    first, second = ([*records(path)] for path in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb")))
    of_kind = {kind: [getattr(one, kind) for one in first if one.WhichOneof("record_type") == kind]
               for kind in ("run", "history", "metric", "config", "exit")}  # fmt: skip
    (run,), (ended,) = of_kind["run"], of_kind["exit"]
    assert [one.run.run_id for one in second if one.WhichOneof("record_type") == "run"] == [run.run_id]
    assert (run.display_name, run.project) == (tmp_path.as_posix(), "cedm")
    assert ended.exit_code == 0
    assert of_kind["metric"][-1].step_metric == "nimg"
    assert {item.key for config in of_kind["config"] for item in config.update} >= set(SHOWN)
    rows = [{item.key or item.nested_key[0]: item.value_json for item in row.item} for row in of_kind["history"]]
    assert {row["nimg"] for row in rows} == {"192"}
    assert {key for row in rows for key in row} >= {"fd_pixels", "samples/grid", "temi/cluster_sizes"}
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/images/samples/*.png"))) == 2
