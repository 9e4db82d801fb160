"""Trainings side by side on the same cores: each in its turn, and none waits for ever."""

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from filelock import FileLock, Timeout
from lightning import Trainer

from callbacks.turns import TakeTurns, have_no_room


def wait_until_somebody_queues(turns: TakeTurns) -> None:
    probe = FileLock(turns.queue.lock_file, blocking=False)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            with probe:
                time.sleep(0.001)
        except Timeout:
            return
    raise AssertionError("nobody stands in the queue")


def test_two_trainings_alternate(tmp_path: Path) -> None:
    seen: list[str] = []
    first, second = TakeTurns(tmp_path), TakeTurns(tmp_path)

    def passes(turns: TakeTurns, name: str) -> None:
        for number in range(3):
            if turns is second or number:
                turns.on_train_batch_start()
            seen.append(f"{name} begins")
            if turns is first or number < 2:
                wait_until_somebody_queues(turns)
            seen.append(f"{name} ends")
            turns.on_train_batch_end()

    first.on_train_batch_start()
    other = threading.Thread(target=passes, args=(second, "second"))
    other.start()
    passes(first, "first")
    other.join()
    assert seen == ["first begins", "first ends", "second begins", "second ends"] * 3


def test_a_suspended_training_holds_up_another_once(tmp_path: Path) -> None:
    suspended, going_on = TakeTurns(tmp_path), TakeTurns(tmp_path, patience=0.05)
    suspended.on_train_batch_start()
    going_on.on_train_batch_start()
    going_on.on_train_batch_end()
    assert not going_on.waits
    suspended.on_train_batch_end()
    third = TakeTurns(tmp_path, patience=0.05)
    third.on_train_batch_start()
    going_on.on_train_batch_start()  # at once, though it is not its turn
    assert third.waits


def test_a_training_that_fails_gives_its_turn_back(tmp_path: Path) -> None:
    failing, other = TakeTurns(tmp_path), TakeTurns(tmp_path, patience=0.05)
    failing.on_train_batch_start()
    failing.on_exception()
    other.on_train_batch_start()
    assert other.waits


def test_no_place_for_lock_files_stops_no_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    turns = TakeTurns(tmp_path / "file")
    turns.on_train_batch_start()
    turns.on_train_batch_end()
    assert not turns.waits


@pytest.mark.parametrize(
    ("device", "ranks", "threads", "cores", "expected"),
    [
        ("cpu", 1, 2, 2, True),
        ("cpu", 1, 4, 8, False),  # as many threads again have their own cores
        ("cpu", 1, 1, 1, False),  # one thread waits for no other
        ("cpu", 2, 2, 2, False),  # ranks wait for one another inside a pass
        ("cuda", 1, 2, 2, False),
    ],
)
def test_turns_are_for_threads_without_room(
    monkeypatch: pytest.MonkeyPatch, device: str, ranks: int, threads: int, cores: int, expected: bool
) -> None:
    monkeypatch.setattr("callbacks.turns.available_cores", lambda: list(range(cores)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    strategy = SimpleNamespace(root_device=torch.device(device))
    assert have_no_room(cast(Trainer, SimpleNamespace(strategy=strategy, world_size=ranks))) is expected
