"""What is due when, as a function of the step."""

from types import SimpleNamespace
from typing import Any

import pytest

from callbacks.schedule import AtMostEvery, EveryEpochs, EveryKimg
from pipeline.evaluation.evaluation_settings import EvaluationSettings
from pipeline.running.training import Training


def due_steps(schedule: EveryKimg | EveryEpochs, per_step: dict[str, int], max_steps: int) -> list[int]:
    module = SimpleNamespace(settings=SimpleNamespace(**per_step), **per_step)
    steps = []
    for batch_idx in range(2 * max_steps):  # two accumulated passes per step
        step = (batch_idx + 1) // 2
        trainer = SimpleNamespace(accumulate_grad_batches=2, global_step=step, max_steps=max_steps)
        if schedule.is_due(trainer, module, batch_idx):
            steps.append(step)
    return steps


def test_every_kimg_is_due_when_a_multiple_is_crossed_and_at_the_end() -> None:
    # 300 images per step: 1,000 is crossed at step 4 (1,200), 2,000 at step 7 (2,100), 3,000 reached at step 10
    assert due_steps(EveryKimg(1), {"batch_size": 300}, max_steps=11) == [4, 7, 10, 11]


def test_a_period_below_the_batch_is_due_at_every_step() -> None:
    assert due_steps(EveryKimg(0.1), {"batch_size": 300}, max_steps=3) == [1, 2, 3]


def test_every_epochs() -> None:
    assert due_steps(EveryEpochs(2), {"steps_per_epoch": 3}, max_steps=14) == [6, 12, 14]


def test_at_most_every_so_often_by_the_clock_of_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes 40 s; the other rank's clock is of no account, and all callbacks get the same answer."""
    clock, decided = [0.0], list[bool]()
    monkeypatch.setattr("callbacks.schedule.time.monotonic", lambda: clock[0])
    rank_0, rank_1 = (AtMostEvery(100, EveryKimg(0.1)) for _ in range(2))
    module: Any = SimpleNamespace(settings=SimpleNamespace(batch_size=100))
    due = []
    for step in range(1, 9):
        trainer: Any = SimpleNamespace(accumulate_grad_batches=1, global_step=step, max_steps=8)
        clock[0] = 40.0 * step
        trainer.strategy = SimpleNamespace(broadcast=lambda late: decided.append(late) or late)
        answers = [rank_0.is_due(trainer, module, step - 1) for _ in range(2)]
        clock[0] = 1000.0 * step
        trainer.strategy = SimpleNamespace(broadcast=lambda late: decided[-1])
        answers += [rank_1.is_due(trainer, module, step - 1) for _ in range(2)]
        assert len({*answers}) == 1
        due += [step] * answers[0]
    assert (due, len(decided)) == ([3, 6, 8], 8)


def test_a_number_of_images_that_was_set_keeps_its_meaning() -> None:
    def schedule(**settings: float) -> Any:
        return Training.snapshots_due.func(SimpleNamespace(evaluation=EvaluationSettings(**settings)))

    assert isinstance(schedule(), AtMostEvery)
    assert isinstance(schedule(snapshot_every_kimg=0.5), EveryKimg)
