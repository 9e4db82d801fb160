"""What is due when, as a function of the step."""

from types import SimpleNamespace

from callbacks.schedule import EveryEpochs, EveryKimg


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
