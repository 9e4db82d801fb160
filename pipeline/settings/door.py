"""Where a command line comes in: words to typed settings, mistakes to one message, a sweep to runs."""

import errno
import functools
import importlib
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from callbacks.stop_request import TimeIsUp, stop_at_once
from pipeline.settings.commands import maker_of, module_name
from pipeline.settings.compile_cache import with_compile_cache
from pipeline.settings.compose import CONFIGS, compose_config, leaves, to_settings
from pipeline.settings.help import help_text
from pipeline.settings.hints import explain_word
from pipeline.settings.options import options_and_settings, spelled_out
from pipeline.settings.schemas import SharedSettings
from pipeline.settings.words import config_folders, implied, key_of, readable
from storage.errors import ArtifactError, MissingArtifactError, UserError, disk_is_full
from storage.files import CACHE_FOLDERS, remove_abandoned

SWEEP_FAILURES = "CEDM_SWEEP_FAILURES"  # file in which the runs of a sweep, in whatever process, tell that they failed
MAKE_INPUTS = "CEDM_MAKE_INPUTS"  # set for what a run of a sweep starts: make what is missing, instead of telling how


class OwnProcessNeeded(Exception):  # noqa: N818, as nothing is wrong
    """A run of a sweep (`-m`) on several devices: Lightning would start its other processes as the whole sweep."""


def run_command(name: str, words: Sequence[str]) -> int:
    """Run a command as if it had been typed, in this process; its exit code.

    A user's mistake is one message on stderr and exit code 2. Anything else is a fault of the program, and raised.
    """
    typed = sys.argv
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through to us instead of printing them
    try:
        options, given = options_and_settings(words)
        if "--help" in options:
            print(help_text(name, compose_config(name, given)))
            return 0
        sys.argv = [typed[0], *spelled_out(options), *readable(given)]  # what Hydra reads
        codes: list[int] = []
        task = functools.partial(run_task, name, [typed[0], name, *words], codes)
        entry = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=module_name(name))(task)
        if "--multirun" not in options:
            entry()
            return max(codes, default=0)
        with sweep_failures() as failures:
            entry()
            return report_sweep(failures) or max(codes, default=0)
    except (HydraException, OmegaConfBaseException) as error:
        GlobalHydra.instance().clear()
        groups = [path.name for path in CONFIGS.iterdir() if path.is_dir()]
        known = [*groups, *(key for key, _ in leaves(compose_config(name, [])))]
        return tell(explain_word(error, name, known))
    except UserError as error:
        return tell(str(error))
    except KeyboardInterrupt:
        return tell("interrupted", code=130)
    finally:
        sys.argv = typed


def run_task(name: str, argv: list[str], codes: list[int], cfg: DictConfig) -> Any:
    """One run: check the settings, run the command, tell of a mistake; what the command returns, for a sweeper."""
    sys.argv = argv  # a launcher of Lightning's starts further processes with it
    sweep = SWEEP_FAILURES in os.environ and HydraConfig.get().mode == RunMode.MULTIRUN
    code = 1
    try:
        with told_in_words() as outcome:
            settings = to_settings(name, cfg, [key_of(word) for word in typed_words()])
            settings.check_files()
            settings = with_preset(name, settings)
            for folder in CACHE_FOLDERS:  # cache_dir may hold anything else of a user's
                remove_abandoned(Path(settings.cache_dir) / folder)
            run = functools.partial(with_compile_cache, functools.partial(load_command(name), settings))
            with stop_at_once():
                return with_inputs(run, make=sweep or MAKE_INPUTS in os.environ)
        code = outcome[0]
    except OwnProcessNeeded:
        code = start(name, typed_words(), {})
    except TimeIsUp:  # and the training has said so
        code = 0
    except Exception:
        if not sweep:
            raise
        traceback.print_exc()  # the other runs go on
    codes.append(code)
    if sweep and code:
        with Path(os.environ[SWEEP_FAILURES]).open("a") as file:
            file.write(f"{code} {shlex.join(typed_words())}\n")
    return None


def with_preset(name: str, settings: SharedSettings) -> SharedSettings:
    """The settings, with those that follow from a user's own images, which the first process tells."""
    if settings.preset.name == "published" and "preset" not in map(key_of, typed_words()):
        return settings  # and nothing large is imported
    own_images: Any = importlib.import_module("pipeline.running.own_images")  # looks at them with all that is large
    settings = own_images.settled(name, typed_words(), settings)
    own_images.announce_preset(settings)
    return settings


def load_command(name: str) -> Callable[[Any], Any]:
    """The function of a command; its module, and all that it imports, is loaded now and not before."""
    function = getattr(importlib.import_module(f"pipeline.commands.{module_name(name)}"), module_name(name))
    if "torch" in sys.modules:  # 32-true is float32 in convolutions too, which GPUs round to ten bits by default
        sys.modules["torch"].backends.cudnn.allow_tf32 = False
    return function


@contextmanager
def told_in_words() -> Iterator[list[int]]:
    """Print one message for what a user or the machine did wrong in the block; the list holds the exit code then."""
    outcome = [0]
    try:
        yield outcome
    except ArtifactError as error:
        maker, same_file = maker_of(error.kind), [word for word in typed_words() if key_of(word) == "init_from"]
        outcome[0] = tell(f"{error}" if maker is None else f"{error} Make it with: {typed_command(maker, *same_file)}")
    except UserError as error:
        outcome[0] = tell(str(error))
    except (PermissionError, NotADirectoryError, FileExistsError, IsADirectoryError) as error:
        outcome[0] = tell(path_problem(error))
    except (OSError, RuntimeError, ValueError, sqlite3.OperationalError) as error:
        if isinstance(error, OSError) and error.errno == errno.EROFS:
            outcome[0] = tell(path_problem(error))
        elif isinstance(error, BrokenPipeError) or not disk_is_full(error):
            raise
        else:
            outcome[0] = tell(
                f"the disk is full ({error}). Free some room, or set another run_dir= or cache_dir=; what was written "
                "before is whole. Run the same command again to continue."
            )


def path_problem(error: OSError) -> str:
    """What is wrong with a file or folder that cannot be opened: whether it was to be read, or to be written."""
    if error.filename is None:
        return f"{error}. Look at the permissions of the files that the settings name, of run_dir= and of cache_dir=."
    path = Path(os.fsdecode(error.filename))
    problem = f"{path}: {error.strerror}."
    if isinstance(error, IsADirectoryError):
        return f"{problem} A file is expected. Set the path of one."
    if isinstance(error, PermissionError):
        closed = next(filter(is_closed, (path, *path.parents)), None)
        if closed is not None:
            return f"{problem} {closed} cannot be read. Make it readable: chmod -R u+rX {shlex.quote(str(closed))}"
    return f"{problem} It cannot be written. Set another run_dir= or cache_dir= where it lies in one of them."


def is_closed(path: Path) -> bool:
    """Whether a file that is there cannot be read, or a folder not be entered."""
    return os.access(path, os.F_OK) and not os.access(path, os.X_OK if path.is_dir() else os.R_OK)


def tell(message: str, code: int = 2) -> int:
    """Print one clear message; the exit code that goes with it. Of a line as long as a file, both ends."""
    print("error: " + re.sub(r"(.{4000}).{4000,}(.{4000})", r"\1 … \2", message), file=sys.stderr, flush=True)
    return code


def with_inputs(run: Callable[[], Any], make: bool) -> Any:
    """What `run` returns. With `make`, an artifact that it lacks is made first, by the command that makes it."""
    while True:
        try:
            return run()
        except MissingArtifactError as error:
            maker = maker_of(error.kind)
            if not make or maker is None or error.path.exists():
                raise
            code = start(maker, understood(maker, tuple(typed_words())), {MAKE_INPUTS: "1"})
            if code or not error.path.exists():
                raise UserError(f"{error} `cedm {maker}` could not make it: see above.") from error


def start(name: str, words: Sequence[str], environment: dict[str, str]) -> int:
    """Run a command in a process of its own to its end; its exit code."""
    command = [sys.executable, "-m", "pipeline", name, *config_folders(), *words]
    with subprocess.Popen(command, env=os.environ | environment) as process:
        try:
            return process.wait()
        except SystemExit:  # SIGTERM came; the run stops in its own way
            process.terminate()
            process.wait()
            raise


@contextmanager
def sweep_failures() -> Iterator[Path]:
    """The file that the failing runs of a sweep write to, from whichever process a launcher runs them in."""
    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get(SWEEP_FAILURES)
        os.environ[SWEEP_FAILURES] = str(Path(folder) / "failures")
        try:
            yield Path(folder) / "failures"
        finally:
            os.environ.pop(SWEEP_FAILURES)
            if before is not None:
                os.environ[SWEEP_FAILURES] = before


def report_sweep(failures: Path) -> int:
    """List the runs of a sweep that failed; the exit code, 0 where none did."""
    if not failures.exists():
        return 0
    lines = [line.split(" ", 1) for line in failures.read_text().splitlines()]
    listed = "\n".join(f"  exit code {code}: {words}" for code, words in lines)
    return tell(f"{len(lines)} {'run' if len(lines) == 1 else 'runs'} of the sweep failed:\n{listed}", code=1)


def leave_at_once(error: BaseException) -> NoReturn:
    """End this process without the clean-up at exit, where Lightning leaves NCCL's process group.

    That waits for the other ranks, which may be waiting for this one: none would end.
    """
    if not isinstance(error, SystemExit):
        traceback.print_exception(error)
    code = error.code if isinstance(error, SystemExit) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def typed_words() -> list[str]:
    """The settings that the user typed for the running command; none where no command runs."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def program() -> str:
    """`cedm` as the user can type it here: the environment's own where it is not on the path."""
    own = str(Path(sys.executable).with_name("cedm"))
    return "cedm" if shutil.which("cedm") else min(os.path.relpath(own), own, key=len)


def typed_command(name: str, *left_out: str) -> str:
    """Command `name` with those settings of the running one that it knows, to be typed next or before.

    The words `left_out` would be a mistake there.
    """
    own = [word for word in typed_words() if word not in implied(["embeddings=FILE"])]
    chosen = implied(own) if len(own) < len(typed_words()) else []  # which the command will choose again
    others = (word for word in typed_words() if word not in (*chosen, *left_out))
    typed = (word for word in others if key_of(word) not in ("run_dir", "overwrite"))
    return shlex.join([program(), name, *config_folders(), *understood(name, tuple(typed))])


@functools.cache
def understood(name: str, words: tuple[str, ...]) -> list[str]:
    """The words whose setting or group of options command `name` has."""
    if not words:
        return []
    groups = set(compose_config(name, []).hydra.runtime.choices)
    # The options decide which settings there are: clustering=kmeans has no clustering.beta.
    cfg = compose_config(name, [word for word in words if key_of(word) in groups and word[0] != "+"])
    keys = [key.split(".") for key, _ in leaves(cfg)]
    known = groups | {".".join(parts[:depth]) for parts in keys for depth in range(1, len(parts) + 1)}
    return [word for word in words if key_of(word) in known]
