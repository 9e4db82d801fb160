"""TEMIModule under Lightning's Trainer: its step by hand, its epochs, resuming, two processes, a broken batch."""

import csv
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_modules.clustering.clustering_settings import TEMISettings
from lightning_modules.clustering.heads import ClusteringHeads
from lightning_modules.clustering.temi_loss import TEMILoss
from lightning_modules.temi_module import TEMIModule

DIM, PAIRS, STEPS_PER_EPOCH = 6, 8, 4


class Batch(NamedTuple):
    images: Tensor
    neighbours: Tensor
    indices: Tensor


class Pairs(Dataset):
    """Batch n is a function of n; process `rank` of `world_size` gets its share of it."""

    def __init__(self, start: int = 0, rank: int = 0, world_size: int = 1) -> None:
        self.start, self.rank, self.world_size = start, rank, world_size

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, step: int) -> Batch:
        generator = torch.Generator().manual_seed(self.start + step)
        groups = torch.randint(3, (PAIRS,), generator=generator)
        images, neighbours = 3 * torch.eye(DIM)[groups] + 0.3 * torch.randn(2, PAIRS, DIM, generator=generator)
        mine = torch.arange(PAIRS).chunk(self.world_size)[self.rank]
        return Batch(images[mine], neighbours[mine], 100 * step + mine)


def build_module(**settings: Any) -> TEMIModule:
    torch.manual_seed(0)
    defaults = {"num_heads": 3, "num_clusters": 5, "max_epochs": 3, "warmup_epochs": 2, "lr": 0.02}
    small = {"hidden_dim": 16, "bottleneck_dim": 8, "batch_size": PAIRS}
    return TEMIModule(TEMISettings(**{**small, **defaults, **settings}), DIM, STEPS_PER_EPOCH)


def build_trainer(max_steps: int, **settings: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    silent = {"enable_model_summary": False, "accelerator": "cpu", "devices": 1, "use_distributed_sampler": False}
    return Trainer(max_steps=max_steps, max_epochs=-1, **{**quiet, **silent, **settings})


def train(module: TEMIModule, max_steps: int, **settings: Any) -> TEMIModule:
    build_trainer(max_steps, **settings).fit(module, DataLoader(Pairs(), batch_size=None))
    return module


def test_training_equals_the_same_steps_by_hand() -> None:
    """Warm-up, scaled learning rate, decay on weights alone, frozen last layer, teacher after the update."""
    module = train(build_module(weight_decay=0.1, teacher_momentum=0.9), max_steps=7)

    start = build_module()
    student: ClusteringHeads = start.student
    teacher = {name: weight.detach().clone() for name, weight in student.named_parameters()}
    loss = TEMILoss(start.settings)
    optimizers = {
        name: torch.optim.AdamW([weight], lr=0.02, weight_decay=0.0 if "bias" in name else 0.1)
        for name, weight in student.named_parameters()
    }
    for step in range(7):
        batch = Pairs()[step]
        embeddings = torch.cat([batch.images, batch.neighbours])
        with torch.no_grad():
            teacher_logits = torch.func.functional_call(student, teacher, embeddings)
        student.zero_grad()
        loss(student(embeddings), teacher_logits).mean().backward()
        for name, weight in student.named_parameters():
            if step >= STEPS_PER_EPOCH or name not in ("direction", "gain"):
                optimizers[name].param_groups[0]["lr"] = 0.02 * PAIRS / 256 * min(1, (step + 1) / 8)
                optimizers[name].step()
            teacher[name] = 0.9 * teacher[name] + 0.1 * weight.detach()

    for name, weight in module.student.named_parameters():
        torch.testing.assert_close(weight, student.get_parameter(name), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(module.teacher.get_parameter(name), teacher[name], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(module.objective.cluster_probs, loss.cluster_probs)


class LossRecorder(Callback):
    """The loss of each head at each step, taken from the objective."""

    def __init__(self) -> None:
        self.head_losses: list[Tensor] = []

    def on_fit_start(self, trainer: Trainer, pl_module: TEMIModule) -> None:
        pl_module.objective.register_forward_hook(lambda *args: self.head_losses.append(args[-1].detach()))


def test_best_head_is_that_of_the_last_full_epoch_and_is_logged(tmp_path: Path) -> None:
    recorder = LossRecorder()
    logger = CSVLogger(tmp_path)
    module = train(build_module(), max_steps=2 * STEPS_PER_EPOCH + 2, callbacks=[recorder], logger=logger)
    losses = torch.stack(recorder.head_losses)  # [steps, H]
    torch.testing.assert_close(module.last_epoch_losses, losses[STEPS_PER_EPOCH : 2 * STEPS_PER_EPOCH].mean(0))
    torch.testing.assert_close(module.epoch_losses, losses[2 * STEPS_PER_EPOCH :].sum(0))
    assert module.best_head == int(losses[STEPS_PER_EPOCH : 2 * STEPS_PER_EPOCH].mean(0).argmin())

    with Path(logger.log_dir, "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["temi/best_head"]]
    assert [int(row["step"]) for row in rows] == [STEPS_PER_EPOCH - 1, 2 * STEPS_PER_EPOCH - 1]
    assert float(rows[-1]["temi/best_head"]) == module.best_head
    assert float(rows[-1]["temi/loss_head_2"]) == pytest.approx(float(module.last_epoch_losses[2]))


def test_before_the_first_full_epoch_the_steps_so_far_decide() -> None:
    recorder = LossRecorder()
    module = train(build_module(), max_steps=2, callbacks=[recorder])
    assert module.best_head == int(torch.stack(recorder.head_losses).mean(0).argmin())


def test_resumed_training_equals_uninterrupted(tmp_path: Path) -> None:
    """The checkpoint falls into the middle of an epoch, and is written by a callback at the end of a batch."""
    whole = train(build_module(), max_steps=11)
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=6, save_top_k=-1, filename="{step}")
    train(build_module(), max_steps=6, enable_checkpointing=True, callbacks=[checkpoint])

    resumed = build_module()
    loader = DataLoader(Pairs(start=6), batch_size=None)
    build_trainer(11).fit(resumed, loader, ckpt_path=tmp_path / "step=6.ckpt", weights_only=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name

    loaded = TEMIModule.load_from_checkpoint(tmp_path / "step=6.ckpt")  # which needs no other arguments
    assert (loaded.settings, loaded.steps_per_epoch) == (whole.settings, STEPS_PER_EPOCH)
    assert loaded.state_dict().keys() == whole.state_dict().keys()


def test_groups_are_found_and_the_exported_head_agrees() -> None:
    module = train(build_module(num_clusters=3, lr=0.3, teacher_momentum=0.9), max_steps=200)
    groups = torch.arange(300) % 3
    embeddings = 3 * torch.eye(DIM)[groups] + 0.3 * torch.randn(300, DIM)
    cluster_ids, confidence = module.predict(embeddings)
    assert torch.stack([groups, cluster_ids]).unique(dim=1).shape[1] == 3  # one cluster per group
    assert confidence.mean() > 0.8

    mean, std = torch.arange(DIM).float(), torch.full((DIM,), 2.0)
    head = module.clustering_head(mean, std, {"name": "pixels"})
    assert torch.equal(head.assign(embeddings * std + mean)[0], cluster_ids)


@pytest.mark.parametrize("objective", ["wmi", "pmi", "scan"])
def test_other_objectives_train(objective: str) -> None:
    module = train(build_module(objective=objective), max_steps=6)
    assert module.last_epoch_losses.isfinite().all()


def test_a_broken_embedding_stops_before_the_update_and_is_named() -> None:
    class Broken(Pairs):
        def __getitem__(self, step: int) -> Batch:
            batch = super().__getitem__(step)
            if step == 5:
                batch.neighbours[3, 2] = torch.nan
            return batch

    module, before = build_module(), {}
    keep = Callback()
    keep.on_train_batch_end = lambda *args: before.update(
        {k: v.clone() for k, v in module.student.state_dict().items()}
    )
    with pytest.raises(RuntimeError, match=r"step 5.*\[503\]"):
        build_trainer(10, callbacks=[keep]).fit(module, DataLoader(Broken(), batch_size=None))
    for name, value in module.student.state_dict().items():
        assert torch.equal(value, before[name])


def test_accumulated_gradients_are_refused() -> None:
    with pytest.raises(ValueError, match="accumulate_grad_batches=1"):
        train(build_module(), max_steps=2, accumulate_grad_batches=2)


def test_two_processes_equal_one(tmp_path: Path) -> None:
    build_trainer(10, devices=2, strategy="ddp_fork", callbacks=[SharedPairs(tmp_path)]).fit(build_module())
    one = train(build_module(), max_steps=10)
    for rank in range(2):
        two = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, value in one.state_dict().items():
            torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


class SharedPairs(Callback):
    """Gives each process its share of the pairs, once it knows its rank; keeps what each has at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def setup(self, trainer: Trainer, pl_module: TEMIModule, stage: str) -> None:
        pl_module.train_dataloader = lambda: DataLoader(
            Pairs(rank=trainer.global_rank, world_size=trainer.world_size), batch_size=None
        )

    def on_train_end(self, trainer: Trainer, pl_module: TEMIModule) -> None:
        torch.save(pl_module.state_dict(), self.folder / f"{trainer.global_rank}.pt")
