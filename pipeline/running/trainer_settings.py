"""Settings of the devices that a command works on, and of Lightning's Trainer."""

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from storage.settings import Settings, setting

PROFILERS = {
    "simple": "lightning.pytorch.profilers:SimpleProfiler",
    "advanced": "lightning.pytorch.profilers:AdvancedProfiler",
    "pytorch": "lightning.pytorch.profilers:PyTorchProfiler",
}


class More(NamedTuple):
    """A callback or logger of Lightning's: its class as `module:name`, the package that it needs, what it writes to."""

    target: str
    package: str = ""
    needs: str = ""  # `logger` or `bar`


CALLBACKS = {  # those that leave alone what is trained and when it ends
    "lr_monitor": More("lightning.pytorch.callbacks:LearningRateMonitor", needs="logger"),
    "device_stats": More("lightning.pytorch.callbacks:DeviceStatsMonitor", "psutil", "logger"),
    "rich_progress": More("callbacks.lightning_internals:RichBar", "rich", "bar"),
    "model_summary": More("lightning.pytorch.callbacks:ModelSummary"),
    "rich_model_summary": More("lightning.pytorch.callbacks:RichModelSummary", "rich"),
}
LOGGERS = {
    "tensorboard": More("callbacks.loggers:TensorBoard"),
    "csv": More("callbacks.loggers:CSV"),
    "wandb": More("callbacks.loggers:Wandb", "wandb"),
    "mlflow": More("callbacks.loggers:MLFlow", "mlflow"),
}
SHARDED = "the averages of the weights, and a resume to the same bytes, need whole parameters on every device"
HANDS_NOTHING_BACK = "its processes hand nothing back, so what comes after the training would be lost with them"
REFUSED_STRATEGIES = {  # by how their names begin
    "fsdp": SHARDED, "deepspeed": SHARDED, "ddp_spawn": HANDS_NOTHING_BACK, "ddp_fork": HANDS_NOTHING_BACK,
    "ddp_notebook": HANDS_NOTHING_BACK,
}  # fmt: skip
NO_SUCH_LOOP = "there is no loop for validation, test or prediction. Distances are measured every evaluation.every_kimg"
ONE_EPOCH = "a training is one endless epoch, whose images follow from the step. Set training.duration_kimg for a "
ONE_EPOCH += "shorter one, clustering.max_epochs for a clustering, dataset.max_images for fewer images"
OWNED = {  # the Trainer's other arguments: why they are not set, and what is
    **dict.fromkeys(
        ("max_epochs", "min_epochs", "max_steps", "min_steps", "limit_train_batches", "overfit_batches",
         "reload_dataloaders_every_n_epochs", "fast_dev_run"),
        ONE_EPOCH,
    ),
    **dict.fromkeys(
        ("limit_val_batches", "limit_test_batches", "limit_predict_batches", "val_check_interval",
         "check_val_every_n_epoch", "num_sanity_val_steps", "inference_mode"),
        NO_SUCH_LOOP,
    ),
    "accumulate_grad_batches": "it follows from training.batch_size and training.max_batch_per_device. Set these",
    "use_distributed_sampler": "the stream of images shares itself between the processes",
    "log_every_n_steps": "curves are over images. Set evaluation.log_every_kimg",
    "enable_checkpointing": "snapshots are what a stopped run goes on from. Set evaluation.snapshot_every_kimg",
    "default_root_dir": "everything is written into the run folder. Set run_dir",
    "barebones": "a training without snapshots could not go on after a stop",
    "logger": "set logger, such as logger=[tensorboard,csv]",
    "callbacks": f"set callbacks, a list of {', '.join(CALLBACKS)}",
    "plugins": "they are code, which settings may not name",
    "enable_autolog_hparams": "the settings are given to the logger anyway. Set logger=none for no logger",
    "model_registry": "models lie in the run folder",
}  # fmt: skip


AUTO, CUDA_GRAPHS = "auto", "cuda_graphs"


@dataclass(frozen=True)
class TrainerSettings(Settings):
    """The config group `trainer`. What of it changes the model (`identity`) is for the diffusion training alone."""

    group = "trainer"

    accelerator: str = setting(
        "auto",
        "kind of device; auto: GPUs where there are some",
        choices=("auto", "cpu", "gpu", "cuda", "mps"),
        identifies=False,
    )
    devices: Any = setting(
        "auto", "number of devices of this machine (on a CPU: processes), a list of GPUs, or auto", identifies=False
    )
    num_nodes: int = setting(1, "machines that take part", low=1, identifies=False)
    strategy: str = setting(
        "auto",
        "how they work together; auto: ddp where there are several; ddp_find_unused_parameters_true, or _false",
        identifies=False,
    )
    precision: str = setting(
        AUTO,
        "of the networks' arithmetic; auto: bf16-mixed from 16×16 pixels on, where the device computes in it",
        choices=(AUTO, "32-true", "bf16-mixed", "16-mixed"),
    )
    compile: Any = setting(AUTO, "torch.compile the network: true, false, cuda_graphs; auto: large ones on GPUs")
    channels_last: bool = setting(True, "keep images in memory as [height, width, channels]")
    gradient_clip_val: float | None = setting(None, "clip gradients to this norm, or value; null: don't", above=0)
    gradient_clip_algorithm: str = setting("norm", "norm: of all gradients together", choices=("norm", "value"))
    sync_batchnorm: bool = setting(False, "of a network with batch norms: over all devices")
    max_time: Any = setting(
        None, "stop after DD:HH:MM:SS, or {hours:11}; the same command goes on, for as long again", identifies=False
    )
    deterministic: Any = setting(None, "true, or warn: only kernels that always give the same bytes", identifies=False)
    benchmark: bool | None = setting(
        None, "let cuDNN try which kernels are fastest; null: unless deterministic", identifies=False
    )
    detect_anomaly: bool = setting(False, "look for NaN in all gradients; slow", identifies=False)
    profiler: str | None = setting(
        None, "times of all parts, into the folder profile of the run", choices=tuple(PROFILERS), identifies=False
    )
    enable_progress_bar: bool = setting(True, "show the progress bar", identifies=False)
    enable_model_summary: bool = setting(False, "print the layers of the network", identifies=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for beginning, reason in REFUSED_STRATEGIES.items():
            if self.strategy.startswith(beginning):
                self.refuse("strategy", f"{reason}. Set {self.key('strategy')}=ddp")
        if not re.fullmatch("auto|ddp(_find_unused_parameters_(true|false))?", self.strategy):
            self.refuse("strategy", "auto, ddp or ddp_find_unused_parameters_true is expected")
        if not isinstance(self.compile, bool) and self.compile not in (AUTO, CUDA_GRAPHS):
            self.refuse("compile", f"auto, true, false or {CUDA_GRAPHS} is expected")
        if self.deterministic not in (None, True, False, "warn"):
            self.refuse("deterministic", "true, false or warn is expected")
        if self.gradient_clip_val is not None and self.precision == "16-mixed":
            self.refuse("gradient_clip_val", "Adam is told of float16's scale itself. Set trainer.precision=bf16-mixed")
        self.seconds  # noqa: B018, as it raises

    @property
    def seconds(self) -> float | None:
        """`max_time` in seconds; None for no limit."""
        limit, units = self.max_time, ("days", "hours", "minutes", "seconds")
        if isinstance(limit, str) and re.fullmatch(r"\d+:\d\d:\d\d:\d\d", limit):
            limit = dict(zip(units, map(int, limit.split(":")), strict=True))
        if limit is None:
            return None
        if not isinstance(limit, dict) or not limit or {*limit} - {*units} or not all(map(is_amount, limit.values())):
            self.refuse("max_time", "DD:HH:MM:SS is expected, such as 00:11:30:00, or {hours:11,minutes:30}")
        return sum(limit.get(unit, 0) * length for unit, length in zip(units, (86400, 3600, 60, 1), strict=True))


def is_amount(value: Any) -> bool:
    """Whether this is a number from 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
