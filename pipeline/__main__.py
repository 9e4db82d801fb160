"""`cedm COMMAND key=value …`, which is `python -m pipeline COMMAND key=value …`."""

import difflib
import sys
from importlib.metadata import version
from pathlib import Path

from pipeline.settings.machine import import_our_own, prepare_process

DISTRIBUTION = "cluster-conditioned-diffusion"


def main() -> None:
    """Run the command that was typed, and end with its exit code."""
    if sys.platform == "win32":
        sys.exit("error: Windows itself is not supported. Install and run this inside WSL.")
    import_our_own(Path(__file__).resolve().parents[1])
    prepare_process()
    sys.exit(run(sys.argv[1:]))


def run(typed: list[str]) -> int:
    """Hand a command line over to the command that it names; the exit code."""
    from pipeline.settings.commands import COMMANDS
    from pipeline.settings.door import leave_at_once, run_command
    from pipeline.settings.help import usage

    name, *words = typed or ["--help"]
    if name in ("-h", "--help", "help"):
        print(usage())
        return 0
    if name == "--version":
        print(f"cedm {version(DISTRIBUTION)}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean `cedm {near[0]}`?\n\n" if near else ""
        print(f"error: there is no command {name!r}. {hint}{usage()}", file=sys.stderr)
        return 2
    try:
        code = run_command(name, words)
    except BaseException as error:
        if several_processes():
            leave_at_once(error)
        raise
    if code and several_processes():
        leave_at_once(SystemExit(code))
    return code


def several_processes() -> bool:
    """Whether this process has joined others in a process group of PyTorch's."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_initialized() and distributed.get_world_size() > 1


if __name__ == "__main__":
    main()
