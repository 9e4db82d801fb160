"""`cedm COMMAND key=value …`: hands over to `python -m pipeline.COMMAND key=value …`."""

import difflib
import importlib
import os
import sys
import traceback
from importlib.metadata import version

DISTRIBUTION = "cluster-conditioned-diffusion"
COMMANDS = {
    "embed": "images → embeddings and nearest neighbours, in the cache",
    "cluster": "embeddings → pseudo-labels (TEMI, k-means, given labels, random groups, CLIP)",
    "score": "cluster ids → use of the clusters, agreement with labels, pictures",
    "assign": "a trained clustering head and new images → pseudo-labels",
    "bound": "embeddings → how many clusters are worth having",
    "train": "images and pseudo-labels → an EDM diffusion model",
    "generate": "a trained model → images",
    "evaluate": "generated images and a data set → FID, FDD, KID, … and copies of training images",
    "study": "a question → the runs that answer it, tables, plots, a report",
    "report": "a run or a study → one HTML page",
    "import-edm": "a published EDM snapshot (.pkl) → a denoiser file",
}


def usage() -> str:
    """The list of commands, as `cedm --help` shows it."""
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {purpose}" for name, purpose in COMMANDS.items())
    return f"usage: cedm COMMAND key=value …\n\n{lines}\n\n`cedm COMMAND --help` shows a command's settings."


def run_command(name: str, words: list[str]) -> int:
    """Run a command in this process, as if typed; its exit code."""
    function = name.replace("-", "_")
    before, sys.argv = sys.argv, [name, *words]
    try:
        getattr(importlib.import_module(f"pipeline.commands.{function}"), function)()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        sys.argv = before
    return 0


def main() -> None:
    """Replace this process by the command's own, so that DDP relaunches the right program."""
    name, *overrides = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "help"):
        print(usage())
        return
    if name == "--version":
        print(f"cedm {version(DISTRIBUTION)}")
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean `cedm {near[0]}`?\n\n" if near else ""
        sys.exit(f"error: there is no command {name!r}. {hint}{usage()}")
    os.execv(sys.executable, [sys.executable, "-m", f"pipeline.commands.{name.replace('-', '_')}", *overrides])


if __name__ == "__main__":
    main()
