"""The diffusion phase against a plain PyTorch loop, and its promises: accumulation, resuming, non-finite losses."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, IterableDataset

from callbacks.schedule import EveryKimg
from callbacks.snapshots import AtomicCheckpointIO, DenoiserFile, PowerAverageFiles, Snapshots, newest_snapshot
from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.network_settings import NetworkSettings
from lightning_modules.edm_module import EDMModule
from lightning_modules.optimizer_settings import OptimizerSettings
from lightning_modules.training_settings import TrainingSettings
from storage.errors import UserError
from storage.philox import Stream, normal

BATCH = 8
NETWORK = NetworkSettings(model_channels=8, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[4], dropout=0.1)


class Batch(NamedTuple):
    images: Tensor
    labels: Tensor
    positions: Tensor


def batch_at(start: int, size: int) -> Batch:
    """Images and labels that depend on the stream position alone."""
    positions = torch.arange(start, start + size)
    images = torch.stack(
        [torch.randint(0, 256, (1, 8, 8), generator=torch.Generator().manual_seed(int(p))) for p in positions]
    )
    return Batch(images.to(torch.uint8), positions % 3, positions)


class TrainingStream(IterableDataset):
    """Micro-batches of `size` images, from image `first` on."""

    def __init__(self, first: int, size: int) -> None:
        self.first, self.size = first, size

    def __iter__(self) -> Iterator[Batch]:
        for start in range(self.first, 10_000, self.size):
            yield batch_at(start, self.size)


def make_module(dropout: float = 0.0, **settings: Any) -> EDMModule:
    torch.manual_seed(0)
    denoiser = Denoiser(replace(NETWORK, dropout=dropout), 8, 1, label_dim=3, augment_dim=9)
    chosen = {"lr": 1e-2, "lr_rampup_kimg": 0.02, "ema_halflife_kimg": 0.01, "ema_rampup_ratio": 0.5, **settings}
    return EDMModule(denoiser, TrainingSettings(batch_size=BATCH, **chosen), OptimizerSettings(betas=[0.8, 0.999]))


def half_precision(initial_scale: float) -> MixedPrecision:
    """float16 with a loss that is scaled by so much at first."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=initial_scale))


def train(
    module: EDMModule,
    steps: int,
    folder: Path,
    accumulate: int = 1,
    every_kimg: float = 1e3,
    initial_scale: float = 0,
    callbacks: Sequence[Callback] = (),
    log_every_n_steps: int = 50,
) -> EDMModule:
    first = 0
    snapshot = newest_snapshot(folder)
    if snapshot is not None:
        first = int(snapshot.stem.split("-")[1]) * BATCH
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        logger=False,
        callbacks=[*callbacks, Snapshots(folder, EveryKimg(every_kimg), keep=9)],
        log_every_n_steps=log_every_n_steps,
        plugins=[AtomicCheckpointIO(), *([half_precision(initial_scale)] if initial_scale else [])],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(TrainingStream(first, BATCH // accumulate), batch_size=None)
    trainer.fit(module, loader, ckpt_path=snapshot, weights_only=True)
    return module


def test_training_equals_a_plain_loop(tmp_path: Path) -> None:
    """Adam, the learning-rate ramp in images (first rate 0) and the EMA, written out by hand."""
    trained = train(make_module(), steps=5, folder=tmp_path)

    module = make_module()
    weights = list(module.denoiser.parameters())
    averages = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.Adam(weights, lr=1e-2, betas=(0.8, 0.999), fused=True)
    for step in range(5):
        nimg = step * BATCH
        optimizer.param_groups[0]["lr"] = 1e-2 * min(nimg / 20, 1)
        loss = module.loss_of(batch_at(nimg, BATCH)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        halflife = min(10, 0.5 * nimg)
        beta = 0.5 ** (BATCH / halflife) if halflife else 0
        averages = [beta * a + (1 - beta) * w.detach() for a, w in zip(averages, weights, strict=True)]

    for ours, plain in zip(trained.denoiser.parameters(), weights, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    for ours, plain in zip(trained.averaged_denoiser.parameters(), averages, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


def test_accumulated_passes_equal_one_large_batch(tmp_path: Path) -> None:
    whole = train(make_module(), steps=3, folder=tmp_path / "whole")
    parts = train(make_module(), steps=3, folder=tmp_path / "parts", accumulate=4)
    for a, b in zip(whole.denoiser.parameters(), parts.denoiser.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_ends_in_the_same_bytes(tmp_path: Path, accumulate: int) -> None:
    """Network dropout included."""
    straight = train(make_module(dropout=0.3), 6, tmp_path / "straight", accumulate)
    train(make_module(dropout=0.3), 3, tmp_path / "broken", accumulate)
    resumed = train(make_module(dropout=0.3), 6, tmp_path / "broken", accumulate)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    a, b = straight.trainer.optimizers[0].state_dict(), resumed.trainer.optimizers[0].state_dict()
    assert all(torch.equal(a["state"][i]["exp_avg_sq"], b["state"][i]["exp_avg_sq"]) for i in a["state"])


def test_a_snapshot_is_enough_to_load_the_module(tmp_path: Path) -> None:
    module = make_module(label_dropout=0.1)
    module.denoiser.cluster_ids, module.denoiser.meta = torch.tensor([0, 4, 7]), {"dataset": "digits"}
    module.denoiser.cluster_frequencies = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    module = EDMModule(module.denoiser, module.settings, module.optimizer_settings, seed=3)
    trained = train(module, 2, tmp_path, every_kimg=0.001)
    loaded = EDMModule.load_from_checkpoint(newest_snapshot(tmp_path))
    for name, value in trained.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert (loaded.settings, loaded.optimizer_settings) == (module.settings, module.optimizer_settings)
    assert (loaded.seed, loaded.denoiser.meta, loaded.objective) == (3, {"dataset": "digits"}, module.objective)
    assert torch.equal(loaded.denoiser.cluster_ids, module.denoiser.cluster_ids)
    assert torch.equal(loaded.averaged_denoiser.cluster_frequencies, module.denoiser.cluster_frequencies)
    assert torch.equal(loaded.loss_of(batch_at(0, BATCH)), trained.loss_of(batch_at(0, BATCH)))


def test_a_non_finite_loss_stops_before_the_update_and_names_the_images(tmp_path: Path) -> None:
    module = make_module()
    with torch.no_grad():
        next(module.denoiser.parameters()).fill_(float("nan"))
    others = [p.detach().clone() for p in list(module.denoiser.parameters())[1:]]
    with pytest.raises(UserError, match=r"not finite at 0 images seen .* images 0, 1, 2, 3, 4, 5, 6, 7\."):
        train(module, 1, tmp_path)
    for now, before in zip(list(module.denoiser.parameters())[1:], others, strict=True):
        assert torch.equal(now, before)
    assert newest_snapshot(tmp_path) is None


class BrokenImage(EDMModule):
    """Its loss of the image at stream position 19 is NaN: in the third step, whichever pass of it that is."""

    def loss_of(self, batch: Any) -> Tensor:
        return super().loss_of(batch).masked_fill(batch.positions == 19, torch.nan)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_update_of_a_non_finite_loss_is_left_out(tmp_path: Path, accumulate: int) -> None:
    module, expected = make_module(), make_module()
    train(expected, 2, tmp_path / "expected", accumulate=accumulate)
    module.__class__ = BrokenImage
    with pytest.raises(UserError, match=r"not finite at 16 images seen \(step 2\).* images 19\."):
        train(module, 3, tmp_path / "broken", accumulate=accumulate)  # no step comes after it
    for name, weight in expected.denoiser.named_parameters():
        assert torch.equal(module.denoiser.get_parameter(name), weight), name

    longer = make_module()
    longer.__class__ = BrokenImage
    with pytest.raises(UserError, match=r"step 2"):
        train(longer, 30, tmp_path / "longer", accumulate=accumulate)
    assert longer.trainer.global_step == 3  # while the fourth is worked on


def test_every_process_stops_before_a_file_of_weights_that_are_not_finite(tmp_path: Path) -> None:
    """Not the one alone that writes it, for which the others would wait in the next step."""
    module, other, always = make_module(), SimpleNamespace(is_global_zero=False), EveryKimg(1)
    always.is_due = lambda *_: True  # type: ignore[method-assign]
    with torch.no_grad():
        next(module.denoiser.parameters()).fill_(float("nan"))
    for callback in (DenoiserFile(tmp_path / "a.safetensors", always, {}), PowerAverageFiles(tmp_path, always)):
        with pytest.raises(UserError, match="not finite"):
            callback.on_train_batch_end(other, module, None, None, 0)  # type: ignore[arg-type]


class Waits(TorchDispatchMode):
    """Counts what makes the processor wait for a GPU: reading a number, and copying one of Python's there."""

    WAITS: ClassVar = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.lift_fresh.default)

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in self.WAITS
        return func(*args, **kwargs or {})


class CountedSteps(Callback):
    """How often each step waits, that of the optimizer included."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.waits = Waits()
        self.waits.__enter__()

    def on_train_batch_end(self, *_: Any) -> None:
        self.waits.__exit__(None, None, None)
        self.counts.append(self.waits.count)


@pytest.mark.parametrize("initial_scale", [0, 64])  # in float32 and float16
def test_a_step_waits_for_the_device_only_where_it_is_logged(tmp_path: Path, initial_scale: float) -> None:
    counted = CountedSteps()
    train(make_module(dropout=0.1), 24, tmp_path, 1, 1e3, initial_scale, [counted], log_every_n_steps=12)
    # The one that is left reads the answer of the step before, which a GPU has had by then. The first step prepares.
    later = counted.counts[1:]
    assert [count == 1 for count in later] == [step % 12 != 11 for step in range(1, 24)], later


def test_the_loss_at_the_end_counts_the_first_steps_no_more_than_others(tmp_path: Path) -> None:
    """Over few steps it is about their mean: an exponential average without the bias of where it starts."""
    losses: list[float] = []

    class Listening(EDMModule):
        def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            losses.append(float(loss.detach()))
            return loss

    module = make_module()
    module.__class__ = Listening
    train(module, steps=4, folder=tmp_path, every_kimg=2 * BATCH / 1000)
    weights = 0.99 ** torch.arange(len(losses) - 1, -1, -1, dtype=torch.float64)
    expected = float((weights * torch.tensor(losses, dtype=torch.float64)).sum() / weights.sum())
    assert float(module.recent_loss) == pytest.approx(expected, rel=1e-5)


def test_several_averages_are_each_what_it_would_be_alone(tmp_path: Path) -> None:
    """Also when resumed; the first one generates, each is saved under a name of its own."""
    settings = {"ema_halflife_kimg": 0.01, "ema_rampup_ratio": None}
    train(make_module(**settings, extra_ema_halflife_kimg=[0.05]), 2, tmp_path / "both")
    both = train(make_module(**settings, extra_ema_halflife_kimg=[0.05]), 4, tmp_path / "both")
    assert list(both.averaged_denoisers) == [0.01, 0.05]
    assert both.averaged_denoiser is both.averaged_denoisers[0.01]
    for kimg, averaged in both.averaged_denoisers.items():
        alone = train(make_module(**{**settings, "ema_halflife_kimg": kimg}), 4, tmp_path / str(kimg))
        for ours, expected in zip(averaged.parameters(), alone.averaged_denoiser.parameters(), strict=True):
            assert torch.equal(ours, expected)


def test_unconditional_training_needs_no_labels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    denoiser = Denoiser(NETWORK, 8, 1, label_dim=0, augment_dim=9)
    module = train(EDMModule(denoiser, TrainingSettings(batch_size=BATCH)), steps=1, folder=tmp_path)
    assert module.averaged_denoiser.label_dim == 0


def test_label_dropout_hides_labels(tmp_path: Path) -> None:
    """With every label hidden, the labels make no difference to the loss."""
    hidden, shown = make_module(label_dropout=1.0), make_module(label_dropout=0.0)
    with torch.no_grad():
        for module in (hidden, shown):
            for parameter in module.denoiser.parameters():
                parameter.add_(0.05)  # away from the last layer's near-zero start
    batch = batch_at(0, BATCH)
    other = batch._replace(labels=(batch.labels + 1) % 3)
    assert torch.equal(hidden.loss_of(batch), hidden.loss_of(other))
    assert not torch.allclose(shown.loss_of(batch), shown.loss_of(other))


def test_augmentation_can_be_turned_off() -> None:
    """At probability 0 images are not even flipped: the loss is that of the plain images."""
    module = make_module(augment_probability=0.0)
    batch = batch_at(0, BATCH)
    seed, positions = module.seed, batch.positions
    images = module.denoiser.encoder.encode(batch.images)
    sigma = module.objective.sigma(normal(seed, Stream.SIGMA, positions))
    noise = normal(seed, Stream.NOISE, positions, images.shape[1:])
    labels = torch.eye(3)[batch.labels]
    per_pixel = module.objective(module.denoiser, images, sigma, noise, labels)
    assert torch.equal(module.loss_of(batch), per_pixel.sum(dim=(1, 2, 3)))


def test_augmentation_needs_a_denoiser_that_is_told_of_it() -> None:
    """Said when the module is made, not at the first batch; without augmentation such a denoiser trains."""
    plain = Denoiser(NETWORK, 8, 1, label_dim=3)
    with pytest.raises(ValueError, match=r"augment_dim=0\. Make it with augment_dim=9"):
        EDMModule(plain)
    module = EDMModule(plain, TrainingSettings(augment_probability=0.0))
    assert module.loss_of(batch_at(0, BATCH)).isfinite().all()


def test_the_number_of_passes_may_change_between_runs(tmp_path: Path) -> None:
    """Stopped after three steps of one pass, resumed with two passes in a step: the same steps, the same images."""
    straight = train(make_module(), 6, tmp_path / "straight")
    train(make_module(), 3, tmp_path / "broken", accumulate=1)
    resumed = train(make_module(), 6, tmp_path / "broken", accumulate=2)
    assert resumed.trainer.global_step == 6
    for a, b in zip(straight.denoiser.parameters(), resumed.denoiser.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4)
    assert newest_snapshot(tmp_path / "broken") == tmp_path / "broken/step-00000006.ckpt"


def test_the_logged_loss_is_that_of_the_whole_step(tmp_path: Path) -> None:
    expected = make_module().loss_of(batch_at(0, BATCH)).mean()
    trained = train(make_module(), steps=1, folder=tmp_path, accumulate=4)
    torch.testing.assert_close(trained.trainer.callback_metrics["train/loss"], expected.detach(), rtol=1e-4, atol=0)
