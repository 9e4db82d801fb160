"""What a kill in the middle of a link leaves of compiled code: libraries that end anywhere."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.settings.compile_cache import VARIABLE

from .conftest import Trials

pytestmark = pytest.mark.faults
COMPILES = """
import sys, torch
from pipeline.settings.compile_cache import keep_compiled_in, with_compile_cache

def run():
    keep_compiled_in(sys.argv[1])
    return torch.compile(lambda x: x.sin() + 1)(torch.zeros(64)).sum().item()

print(with_compile_cache(run))
"""


def compiled(cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", COMPILES, str(cache)]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "TORCHINDUCTOR_COMPILE_THREADS": "1", **environment}
    return subprocess.run(command, cwd=cache.parent, env=environment, capture_output=True, text=True, check=False)


def libraries(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*.so")}


def test_compiled_code_that_is_cut_off(trials: Trials, tmp_path: Path) -> None:
    """Nothing of it is left, or more than half, by which loading would end in a bus error."""
    ours = tmp_path / "cache/compiled"
    assert compiled(tmp_path / "cache").stdout == "64.0\n"
    row = "compiled code cut off by a kill: made again; a compile cache of the user's is left as it is"
    for _, left in trials.each(row, [0, 0.3, 0.6, 0.95], least=2):
        assert libraries(ours)
        for path, content in libraries(ours).items():
            os.truncate(path, int(left * len(content)))
        mine = tmp_path / f"mine-{left}"
        shutil.copytree(ours, mine)
        cut = libraries(mine)
        refused = compiled(tmp_path / "cache", **{VARIABLE: str(mine)})
        assert left or f"UserError: {VARIABLE}={mine}" in refused.stderr  # else it may end in a bus error
        assert cut.items() <= libraries(mine).items()
        again = compiled(tmp_path / "cache")
        assert again.stdout == "64.0\n", again.stderr
