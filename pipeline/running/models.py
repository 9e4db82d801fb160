"""The model that a training starts with: a fresh denoiser, or one that goes on from the weights of another."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from datamodules.image_datamodule import ImageDataModule
from datamodules.pseudo_labels.cluster_names import names_of
from lightning_modules.diffusion.augment import AUGMENT_DIM
from lightning_modules.diffusion.denoiser import CLUSTER_NAMES, Denoiser
from lightning_modules.diffusion.network_settings import NetworkSettings
from lightning_modules.diffusion.objective import objective_class
from lightning_modules.edm_module import EDMModule
from lightning_modules.optimizer_settings import OptimizerSettings
from lightning_modules.training_settings import TrainingSettings
from pipeline.evaluation.evaluation_settings import EvaluationSettings
from pipeline.running.condition import pseudo_labels_fingerprint
from pipeline.running.devices import device_of
from pipeline.running.run_files import denoiser_file
from pipeline.running.run_folder import is_first_process
from pipeline.running.trainer_settings import CUDA_GRAPHS, TrainerSettings
from pipeline.settings.compile_cache import keep_compiled_in
from pipeline.settings.schemas import SharedSettings
from storage.errors import UserError


@dataclass(frozen=True)
class ModelSettings:
    """The settings that decide a model."""

    network: NetworkSettings
    training: TrainingSettings
    optimizer: OptimizerSettings
    trainer: TrainerSettings
    evaluation: EvaluationSettings
    init_from: str | None
    cluster_names: str | None
    seed: int
    cache_dir: str

    @classmethod
    def of(cls, settings: SharedSettings) -> "ModelSettings":
        """Those of a command."""
        return cls(**{name: getattr(settings, name) for name in cls.__dataclass_fields__})

    def build(self, data: ImageDataModule, condition: str) -> EDMModule:
        """The module to train on `data`; `condition` is what the data's clusters are called.

        Raises:
            UserError: the network does not fit the images, or `init_from` the network.
        """
        torch.manual_seed(self.seed)
        try:
            denoiser = Denoiser(
                self.network,
                img_resolution=data.resolution,
                img_channels=data.channels,
                label_dim=data.num_classes,
                augment_dim=AUGMENT_DIM,
                objective=objective_class(self.training.objective)(),
            )
        except ValueError as error:
            raise UserError(f"network: {error}") from error
        denoiser.cluster_frequencies, denoiser.cluster_ids = data.class_frequencies, data.cluster_ids
        names = {} if data.pseudo_labels is None else names_of(data.pseudo_labels, self.cluster_names)
        denoiser.meta = {
            "dataset": data.source.name,
            "images": data.source.images_fingerprint,
            "conditioning": condition,
            "num_clusters": 0 if data.pseudo_labels is None else data.pseudo_labels.num_clusters,
            "pseudo_labels": None if data.pseudo_labels is None else pseudo_labels_fingerprint(data.pseudo_labels),
            CLUSTER_NAMES: {str(cluster): name for cluster, name in names.items()},
            "label_dropout": self.training.label_dropout,
            "channels_last": self.trainer.channels_last,
            **({} if self.training.objective == "edm" else {"objective": self.training.objective}),
        }
        if self.init_from is not None:
            anew = start_from(denoiser, denoiser_file(self.init_from, "init_from"))
            if anew and is_first_process():
                print(f"init_from   {self.init_from}, but for the weights of {' and '.join(anew)}")
        module = EDMModule(denoiser, self.training, self.optimizer, self.seed)
        if self.trainer.channels_last:
            module.denoiser.to(memory_format=torch.channels_last)
            module.emas.to(memory_format=torch.channels_last)
        if self.trainer.compile in (True, CUDA_GRAPHS):
            keep_compiled_in(self.cache_dir)
            module.compile_pass(device_of(self.trainer.accelerator), self.trainer.compile == CUDA_GRAPHS)
            module.averaged_denoiser.compile(dynamic=False, filled_to=self.evaluation.batch_size)  # makes images
        return module


def start_from(denoiser: Denoiser, path: Path) -> list[str]:
    """Copy weights and σ_data from another denoiser.

    Weights for the labels start anew unless both were trained on the same pseudo-labels of the same images: equal ids
    alone may be those of other clusters. So do those for augmentation where there was none.

    Returns:
        What starts anew, and why.

    Raises:
        UserError: the file is no denoiser, or of another network.
    """
    other = Denoiser.from_pretrained(path)
    own, given = denoiser.state_dict(), other.state_dict()
    anew = {} if other.augment_dim else {"map_augment": "augmentation (it had none)"}
    if denoiser.label_dim and (why := other_clusters(denoiser, other)):
        anew["map_label"] = f"the labels ({why})"
    own = {name: weight for name, weight in own.items() if not any(part in name for part in anew)}
    fitting = {name: given[name] for name in own if name in given and given[name].shape == own[name].shape}
    missing = [name for name in own if name not in fitting]
    if missing:
        raise UserError(
            f"init_from={path}: its network is another one ({other.settings} for {other.img_channels} channels of "
            f"{other.img_resolution}×{other.img_resolution} pixels); {missing[0]} does not fit. "
            "Choose the same network= and dataset.resolution=."
        )
    denoiser.load_state_dict(fitting, strict=False)
    denoiser.objective = replace(denoiser.objective, sigma_data=other.objective.sigma_data)
    return [what for part, what in anew.items() if any(part in name for name in denoiser.state_dict())]


def other_clusters(denoiser: Denoiser, other: Denoiser) -> str | None:
    """Why the labels of another denoiser may stand for other clusters than these; None where they are the same."""
    if not other.label_dim:
        return "it had none"
    known = other.meta.get("pseudo_labels")
    if known is None:
        return "its file does not tell which pseudo-labels it was trained on"
    if known != denoiser.meta["pseudo_labels"]:
        return "it was trained on other pseudo-labels"
    same_images = other.meta.get("images") in (None, denoiser.meta["images"])  # sorted classes of equal size are alike
    return None if same_images else "it was trained on other images"


def passes_of(training: TrainingSettings, world_size: int) -> int:
    """The fewest passes that an optimizer step needs, each of at most `max_batch_per_device` images on each device.

    Raises:
        UserError: the batch cannot be shared evenly.
    """
    batch_size = training.batch_size
    if batch_size % world_size:
        raise UserError(
            f"training.batch_size={batch_size} cannot be shared by {world_size} devices. Set another trainer.devices, "
            f"or training.batch_size={max(1, round(batch_size / world_size)) * world_size}."
        )
    share = batch_size // world_size
    largest = min(share, training.max_batch_per_device or share)
    passes = next(passes for passes in range(1, share + 1) if share % passes == 0 and share // passes <= largest)
    if 4 * (share // passes) < largest:
        nearest = -(-share // largest) * largest * world_size
        raise UserError(
            f"training.batch_size={batch_size}: {share} images on each device are no multiple of a number near "
            f"training.max_batch_per_device={largest}. Set training.batch_size={nearest}."
        )
    return passes
