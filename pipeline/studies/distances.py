"""Fréchet distances in a summary of `cedm evaluate`."""

from collections.abc import Mapping, Sequence
from typing import Any

OF_ONE_MODEL = ("path", "sha256", "fingerprint", "labels")  # of the protocol: its model's own, not its study's


def distances_in(summary: Mapping[str, Any]) -> tuple[str, list[float], dict[str, Any]]:
    """(name, a value for each set of sampling seeds, protocol) of the Fréchet distance that was measured.

    Where several were, it is the first one.
    """
    name = next(name for name in summary["scores"] if name.startswith(("fid", "fd")))
    score = summary["scores"][name]
    protocol = {**score["protocol"], "generated": in_common(score["protocol"]["generated"])}
    return name, [float(value) for value in score["sets"]], protocol


def in_common(sets: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all sets of generated images share, whichever model made them, and the seeds of each."""
    shared = {key: value for key, value in sets[0].items() if all(other.get(key) == value for other in sets)}
    seeds = [str(one["seeds"]) for one in sets if "seeds" in one]
    own = {key: value for key, value in shared.items() if key not in OF_ONE_MODEL}
    return own | ({"seeds": seeds} if seeds else {})
