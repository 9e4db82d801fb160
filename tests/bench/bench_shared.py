"""A machine that others use too: the digits' training alone, and two of them side by side, by how threads wait.

OpenMP's threads spin while they wait for one another. Where another process has the core of one of them, the others
spin for nothing. Run as a script, this file is one such training.
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

OURS = {"GOMP_SPINCOUNT": "1000"}  # `pipeline.settings.machine.prepare_process`
WAYS: Mapping[str, tuple[Mapping[str, str], bool]] = {  # variables, and whether they take turns
    "as OpenMP does by itself": ({}, False),
    "OMP_WAIT_POLICY=PASSIVE": ({"OMP_WAIT_POLICY": "PASSIVE"}, False),
    "GOMP_SPINCOUNT=1000, as every command sets it": (OURS, False),
    "and in turns, as every training is": (OURS, True),
    "OMP_NUM_THREADS=1, without turns": ({**OURS, "OMP_NUM_THREADS": "1"}, False),
}
SECONDS = 15.0


def bench_shared() -> None:
    """Images per second of each training, alone and of two."""
    print(f"{'images/s of each training of the digits':<58} {'alone':>9} {'of two':>9}")
    for what, (environment, in_turns) in WAYS.items():
        (alone,), two = (images_per_second(count, environment, in_turns) for count in (1, 2))
        print(f"{what:<58} {alone:9.0f} {sum(two) / 2:9.0f}      {sum(two) / 2 / alone:6.0%}", flush=True)


def images_per_second(count: int, environment: Mapping[str, str], in_turns: bool) -> list[float]:
    """Of `count` trainings at the same time."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
    }
    command = [sys.executable, __file__, *(["in turns"] if in_turns else [])]
    running = [
        subprocess.Popen(command, env=kept | dict(environment), stdout=subprocess.PIPE, text=True) for _ in range(count)
    ]
    return [float(process.communicate()[0]) for process in running]


def train(in_turns: bool) -> None:
    """Train for some seconds and print how many images a second."""
    import torch

    from callbacks.turns import TakeTurns
    from datamodules.image_datamodule import ImageBatch
    from lightning_modules.diffusion.denoiser import Denoiser
    from lightning_modules.diffusion.network_settings import NetworkSettings
    from lightning_modules.edm_module import EDMModule
    from lightning_modules.training_settings import TrainingSettings

    network = NetworkSettings(model_channels=32, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[4], dropout=0)
    module = EDMModule(Denoiser(network, 8, 1, label_dim=40, augment_dim=9), TrainingSettings(batch_size=128))
    optimizer = torch.optim.Adam(module.denoiser.parameters(), fused=True)
    positions = torch.arange(128)
    batch = ImageBatch(torch.randint(0, 256, (128, 1, 8, 8), dtype=torch.uint8), positions % 40, positions)
    turns = TakeTurns()
    turns.waits = in_turns
    steps, start = -10, 0.0  # the first ten warm up
    while steps <= 0 or time.perf_counter() < start + SECONDS:
        turns.on_train_batch_start()
        module.loss_of(batch).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        turns.on_train_batch_end()
        steps += 1
        if steps == 0:
            start = time.perf_counter()
    print(128 * steps / (time.perf_counter() - start))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    train(in_turns=len(sys.argv) > 1)
