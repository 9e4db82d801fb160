"""What every command shares: Hydra's entry point, and plain words for a user's mistake."""

import difflib
import functools
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import hydra
import torch
import torch.distributed as dist
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from safetensors import SafetensorError

from callbacks.stop_request import stop_at_once
from pipeline.settings.checks import check_settings, leaves
from pipeline.settings.words import key_of
from storage.errors import ArtifactError, UserError, disk_is_full
from storage.files import remove_abandoned

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# Settings by which Hydra would import and call what they name, before anything here could look at it.
NAMES_CODE = re.compile(
    r"""(?:^|[\s.,{"'+~])_target_["']?\s*[=:]"""  # as a key, wherever it stands
    r"|^[+~]*hydra\.(?:job_logging|hydra_logging|callbacks)\b"
    r"|^[+~]*hydra\.(?:launcher|sweeper)\b.*\$"
    r"|^[+~]*hydra=\s*{"
)


class OwnProcessNeeded(Exception):  # noqa: N818, as nothing is wrong
    """A run of a sweep (`-m`) on several devices: Lightning would start its other processes as the whole sweep."""


def command(task: Callable[[DictConfig], None]) -> Callable[[], None]:
    """Make a command of a function of the composed configuration `configs/<function name>.yaml`.

    A user's mistake (an unknown key or option, a `UserError` of ours) ends in one message on stderr and exit code 2;
    anything else is a fault of the program and keeps its traceback.
    """
    name = task.__name__

    composed = False

    @functools.wraps(task)
    def task_in_plain_words(cfg: DictConfig) -> None:
        nonlocal composed
        composed = True
        try:
            check_settings(cfg, defaults_of(name, HydraConfig.get().runtime.choices))
            remove_abandoned(cfg.cache_dir)
            task(cfg)
        except OwnProcessNeeded:
            run_alone(name)
        except ArtifactError as error:
            fail(f"{error}{how_to_make(error)}")
        except UserError as error:
            fail(str(error))
        except (PermissionError, NotADirectoryError, FileExistsError) as error:
            fail(f"{error.filename}: {error.strerror}. Choose another run_dir= or cache_dir= that can be written to.")
        except (OSError, SafetensorError, RuntimeError, sqlite3.OperationalError) as error:
            if not disk_is_full(error):
                raise
            fail(
                f"the disk took no more ({error}). Free some room, or choose another run_dir= or cache_dir=; what was "
                "written before is whole, and the same command goes on from there."
            )
        except MissingMandatoryValue as error:
            key = str(error.full_key)
            with_make = " (with make: DATA=VALUE)" if key == "dataset.path" else ""
            fail(f"{key} must be given. Type {key}=VALUE{with_make}.\nSee `cedm {name.replace('_', '-')} --help`.")

    entry = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)(task_in_plain_words)

    def run() -> None:
        nonlocal composed
        composed = False
        for typed in filter(NAMES_CODE.search, sys.argv[1:]):
            fail(f"{typed}: this project makes nothing of names in settings. Leave it out.")
        for typed in sys.argv[1:]:
            if typed.startswith("~"):
                fail(f"{typed}: settings can be changed, as key=value, but not taken away. Leave it out.")
        torch.backends.cudnn.allow_tf32 = False  # 32-true is float32 in convolutions too, which GPUs round to ten bits
        os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through to us instead of printing them
        try:
            with stop_at_once():
                entry()
            sys.stdout.flush()
        except BrokenPipeError:
            if composed:
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `--help | head`: nobody reads the rest
        except (HydraException, OmegaConfBaseException) as error:
            if composed:
                raise
            fail(explain_override(error, name))
        except KeyboardInterrupt:
            fail("interrupted", code=130)

    def main() -> None:
        try:
            run()
        except BaseException as error:
            if dist.is_initialized() and dist.get_world_size() > 1:
                leave_at_once(error)
            raise

    return main


MADE_BY = {
    "embeddings": "embed",
    "neighbours": "embed",
    "pseudo-labels": "cluster",
    "clustering-head": "cluster",
    "denoiser": "train",
}


def how_to_make(error: ArtifactError) -> str:
    """The command that makes a missing or damaged artifact, with the settings that were typed."""
    return f" Make it with: {typed_command(MADE_BY[error.kind])}" if error.kind in MADE_BY else ""


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


def run_alone(name: str) -> None:
    """Run the current run of a sweep as if it had been typed by itself, and end with it where it does not end well."""
    with subprocess.Popen(
        [sys.executable, "-m", f"pipeline.commands.{name}", *HydraConfig.get().overrides.task]
    ) as process:
        try:
            code = process.wait()
        except SystemExit:  # SIGTERM came; the run stops in its own way
            process.terminate()
            process.wait()
            raise
    if code:
        sys.exit(code)


def fail(message: str, code: int = 2) -> None:
    """Print one clear message and leave with a non-zero exit code."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(code)


def program() -> str:
    """`cedm` as the user can type it here: the environment's own where it is not on the path."""
    return "cedm" if shutil.which("cedm") else os.path.relpath(Path(sys.executable).with_name("cedm"))


def typed_command(name: str) -> str:
    """Command `name` with those settings of the running one that it knows, to be typed next or before."""
    if not GlobalHydra.instance().is_initialized():  # used as a library
        return f"{program()} {name}"
    typed = (word for word in HydraConfig.get().overrides.task if key_of(word) not in ("run_dir", "overwrite"))
    return shlex.join([program(), name, *understood(name, tuple(typed))])


@functools.cache
def understood(name: str, words: tuple[str, ...]) -> list[str]:
    """The words whose setting or group of options command `name` has, and those that add one (`+key=value`)."""
    if not words:
        return []
    groups = set(composed_of(name, []).hydra.runtime.choices)
    # The options decide which settings there are: clustering=kmeans has no clustering.beta.
    cfg = composed_of(name, [word for word in words if key_of(word) in groups and word[0] not in "+~"])
    keys = [key.split(".") for key, _ in leaves(cfg)]
    known = groups | {".".join(parts[:depth]) for parts in keys for depth in range(1, len(parts) + 1)}
    return [word for word in words if word[0] == "+" or key_of(word) in known]


def explain_override(error: Exception, name: str) -> str:
    """Say which override was wrong, and which right name is nearest."""
    text = str(error).strip()
    if isinstance(error, OverrideParseException):
        return (
            f"{text.splitlines()[0]}\nSettings are typed as key=value, lists as key=[1,2], and a value with spaces, "
            f"commas or = in two kinds of quotes: 'dataset.path=\"/my images/a=b\"'; see `cedm {name} --help`."
        )
    if isinstance(error, MissingConfigException) or "Could not find" in text:
        return unknown_option(text, name)
    unknown_key = re.search(r"Could not override '([^']+)'", text)
    if isinstance(error, ConfigCompositionException) and unknown_key:
        key = unknown_key.group(1).split("@")[0]
        return f"there is no setting {key!r}.{suggest(key, all_keys(name))}\nSee `cedm {name} --help`."
    return text


def unknown_option(text: str, name: str) -> str:
    """The message for `group=option` with an option that has no YAML file."""
    found = re.search(r"'([\w/]+)/([^'/]+)'", text)
    if not found:
        return text
    group, option = found.groups()
    options = sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))
    return f"{group}={option}: there is no such {group}.{suggest(option, options)}\nThere are: {', '.join(options)}."


def suggest(name: str, known: list[str]) -> str:
    """' Did you mean …?' with the nearest known names; by last part too, so that `lr` finds `training.lr`."""
    by_leaf = [key for key in known if key.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
    near = list(dict.fromkeys(by_leaf[:3] + difflib.get_close_matches(name, known, n=3, cutoff=0.7)))[:3]
    return f" Did you mean {' or '.join(near)}?" if near else ""


def all_keys(name: str) -> list[str]:
    """Every setting of a command, with dots, and the names of its config groups."""
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        cfg = hydra.compose(config_name=name)
    return [*config_groups(), *(key for key, _ in leaves(cfg))]


def defaults_of(name: str, choices: Mapping[str, Any]) -> DictConfig:
    """The configuration with the same options chosen in its groups, and nothing else overridden."""
    groups = config_groups()
    return composed_of(name, [f"{group}={choice}" for group, choice in choices.items() if group in groups and choice])


def composed_of(name: str, overrides: list[str]) -> DictConfig:
    """The configuration of a command, composed while another one runs."""
    return GlobalHydra.instance().config_loader().load_configuration(name, overrides, run_mode=RunMode.RUN)


def config_groups() -> list[str]:
    """The folders of options below `configs`."""
    return [path.name for path in CONFIGS.iterdir() if path.is_dir()]
