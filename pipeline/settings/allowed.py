"""What may be said to Hydra: an exact list, since Hydra imports and calls much of what it is told."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf, prod
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf

from storage.errors import UserError

NO_CODE = "settings may not name code to run"
OWN_SETTINGS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.searchpath", "hydra.mode")
# What Lightning adds to the command line of the processes that it starts beside the first.
LIGHTNINGS = re.compile(r"hydra\.job\.name=train_ddp_process_\d+|hydra\.output_subdir=null")
FOLDER = re.compile(r"file://|(?!.*://)", re.S)  # of the search path; pkg://name would import a package
MOST_RUNS = 10_000  # of Hydra's basic sweeper, which writes all of them out before the first
MOST_REFERENCES = 32  # ${…} in a configuration, of which our own files have 7; each can multiply what it refers to


@dataclass(frozen=True)
class Plugin:
    """A launcher or sweeper of Hydra's.

    Attributes:
        target: its class.
        keys: what can be set of it, in one text.
        package: what brings it; '' for Hydra itself.
        forms: what the text of a key has to look like where anything else would be evaluated or run.
        program: what it starts the runs with, where that is a program of the machine.
    """

    target: str
    keys: str = ""
    package: str = ""
    forms: dict[str, str] = field(default_factory=dict)
    program: str = ""


NOTHING = r"(?!)"  # of these keys the value is a command or a function: only null will do
SUBMITIT = "hydra_plugins.hydra_submitit_launcher.submitit_launcher"
LOCAL_KEYS = "submitit_folder timeout_min cpus_per_task gpus_per_node tasks_per_node mem_gb nodes name stderr_to_stdout"
SLURM_KEYS = (
    "partition qos comment constraint exclude gres cpus_per_gpu gpus_per_task mem_per_gpu mem_per_cpu account "
    "signal_delay_s max_num_timeout additional_parameters array_parallelism setup srun_args python"
)
JOBLIB_KEYS = "n_jobs backend prefer require verbose timeout pre_dispatch batch_size temp_folder max_nbytes mmap_mode"
OPTUNA_KEYS = (
    "sampler direction storage study_name n_trials n_jobs max_failure_rate search_space params custom_search_space"
)
PLUGINS = {
    "hydra/launcher": {
        "basic": Plugin("hydra._internal.core_plugins.basic_launcher.BasicLauncher"),
        "joblib": Plugin(
            "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
            JOBLIB_KEYS,
            "hydra-joblib-launcher",
            {"pre_dispatch": r"all|\d+|(\d+ ?\* ?)?n_jobs"},  # which joblib evaluates
        ),
        "submitit_local": Plugin(f"{SUBMITIT}.LocalLauncher", LOCAL_KEYS, "hydra-submitit-launcher"),
        "submitit_slurm": Plugin(
            f"{SUBMITIT}.SlurmLauncher",
            f"{LOCAL_KEYS} {SLURM_KEYS}",
            "hydra-submitit-launcher",
            {"setup": NOTHING, "srun_args": NOTHING, "python": NOTHING},
            "srun",
        ),
    },
    "hydra/sweeper": {
        "basic": Plugin("hydra._internal.core_plugins.basic_sweeper.BasicSweeper", "max_batch_size params"),
        "optuna": Plugin(
            "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper",
            OPTUNA_KEYS,
            "hydra-optuna-sweeper",
            {"custom_search_space": NOTHING, "storage": r"(sqlite|mysql|postgresql)(\+\w+)?://.*"},
        ),
    },
}
SAMPLER = re.compile(r"optuna\.samplers\.[A-Z][A-Za-z]*Sampler")
NO_LOGS = {"version": 1, "root": None, "disable_existing_loggers": False}
UNCHANGED = {  # parts by which Hydra calls or sets what they name, and how `configs/base.yaml` leaves them
    "callbacks": {}, "job_logging": NO_LOGS, "hydra_logging": NO_LOGS, "job.env_set": {}, "job.env_copy": [],
}  # fmt: skip

# Settings are checked as they are composed. These two would make new ones of a text after that.
for _resolver in ("oc.create", "oc.decode"):
    OmegaConf.clear_resolver(_resolver)


def refuse_override(override: Override) -> None:
    """Raise a `UserError` for a word that takes a setting away, or sets what of Hydra's is not on the list."""
    typed = str(override.input_line)
    if override.is_delete():
        raise UserError(f"{typed}: a setting can't be deleted with ~; use key=null.")
    key, package = override.key_or_group, override.package or ""
    if "hydra" in re.split(r"[^\w-]+", package):
        raise UserError(refused_setting(typed))
    if re.split(r"[^\w-]", key)[0] != "hydra" or LIGHTNINGS.fullmatch(typed):
        return
    if key == "hydra.searchpath" and not package:
        value = override.value()
        places = value if isinstance(value, list) else [value]
        if not all(isinstance(place, str) and FOLDER.match(place) for place in places):
            raise UserError(f"{typed}: {NO_CODE}; expected folders, such as hydra.searchpath=[file:///my/configs].")
    elif key in PLUGINS:
        chosen = override.value()
        if not isinstance(chosen, str) or chosen not in PLUGINS[key]:
            raise UserError(f"{typed}: one of {', '.join(PLUGINS[key])} is expected; {NO_CODE}.")
        program = PLUGINS[key][chosen].program
        if program and shutil.which(program) is None:
            raise UserError(f"{typed} needs {program}, which is not on this machine. Run it where {program} is.")
    elif key not in OWN_SETTINGS and not re.match(r"hydra\.(launcher|sweeper)(\.|$)|hydra/sweeper/sampler$", key):
        raise UserError(refused_setting(typed))


def refused_setting(what: str) -> str:
    """The message about a setting of Hydra's that is not on the list."""
    groups = " and ".join(f"{group}={'|'.join(names)}" for group, names in PLUGINS.items())
    own = ", ".join(name for name in OWN_SETTINGS if name != "hydra.mode")
    return f"{what}: not allowed: {NO_CODE}. Of Hydra's own settings there are {groups} with their keys, and {own}."


def refuse_composed(cfg: DictConfig) -> None:
    """Raise a `UserError` for a configuration by which something would be imported, called or evaluated.

    Whatever the way in which it came there: words, defaults lists, packages of files, sweeps.
    """
    container = OmegaConf.to_container(cfg, resolve=False)
    references = sum(value.count("${") for _, value in values(container) if isinstance(value, str))
    if references > MOST_REFERENCES:
        raise UserError(f"{references} references (${{…}}) in the settings, and {MOST_REFERENCES} are allowed.")
    for path, value in values(container):
        if "_target_" in path and not is_plugin(path, value):
            raise UserError(f"{'.'.join(path)}={value}: _target_ is not allowed: {NO_CODE}.")
    for key, expected in UNCHANGED.items():
        if OmegaConf.to_container(OmegaConf.select(cfg.hydra, key), resolve=False) != expected:
            raise UserError(refused_setting(f"hydra.{key}"))
    for group in PLUGINS:
        refuse_plugin(group, OmegaConf.select(cfg, group.replace("/", ".")))


def refuse_many_runs(words: list[str], cfg: DictConfig) -> None:
    """Raise a `UserError` where these words, with what files set of the basic sweeper, are more runs than anyone has.

    Which a file can make of a single run, by `hydra.mode`.
    """
    sweeper = OmegaConf.to_container(cfg.hydra.sweeper, resolve=True)
    if not isinstance(sweeper, dict) or sweeper["_target_"] != PLUGINS["hydra/sweeper"]["basic"].target:
        return
    of_files = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    runs = prod(map(number_of_values, OverridesParser.create().parse_overrides([*of_files, *words])))
    if runs > MOST_RUNS:
        raise UserError(f"a sweep of {runs:,.0f} runs; up to {MOST_RUNS:,} are possible. Give fewer values.")


def number_of_values(override: Override) -> float:
    """How many values a word has for a sweep."""
    sweep = override.value() if override.is_sweep_override() else None
    if isinstance(sweep, RangeSweep):
        return max(0.0, ((sweep.stop or 0) - (sweep.start or 0)) / sweep.step) if sweep.step else inf
    return len(sweep.list) if isinstance(sweep, ChoiceSweep) else 1


def values(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All values of nested dictionaries and lists, each behind the keys that lead to it."""
    if isinstance(node, dict | list):
        pairs = node.items() if isinstance(node, dict) else enumerate(node)
        for key, inner in pairs:
            yield from values(inner, (*path, str(key)))
    else:
        yield path, node


def is_plugin(path: tuple[str, ...], target: object) -> bool:
    """Whether a `_target_` is a launcher or sweeper of Hydra's in its place, or a sampler of Optuna's in its."""
    if path == ("hydra", "sweeper", "sampler", "_target_"):
        return isinstance(target, str) and SAMPLER.fullmatch(target) is not None
    known = PLUGINS.get("/".join(path[:-1]), {})
    return path[-1] == "_target_" and target in {plugin.target for plugin in known.values()}


def refuse_plugin(group: str, node: DictConfig) -> None:
    """Raise a `UserError` for keys of a launcher or sweeper by which it would run what they hold."""
    prefix, chosen = group.replace("/", "."), OmegaConf.to_container(node, resolve=True)
    target = chosen.get("_target_") if isinstance(chosen, dict) else None
    plugin = next((plugin for plugin in PLUGINS[group].values() if plugin.target == target), None)
    if plugin is None:
        raise UserError(f"{prefix}: one of {', '.join(PLUGINS[group])} is expected; {NO_CODE}.")
    for path, value in values(chosen):
        typed, key = f"{prefix}.{'.'.join(path)}={value}", path[0]
        if path[-1] != "_target_" and (key not in plugin.keys.split() or path[-1].startswith("_")):
            known = ", ".join(plugin.keys.split()) or "none"
            raise UserError(f"{typed}: there is no such key; there are {known}, as {NO_CODE}.")
        if value is not None and key in plugin.forms and not re.fullmatch(plugin.forms[key], str(value)):
            raise UserError(f"{typed}: not allowed: {NO_CODE}. Set {prefix}.{key}=null.")
        if any(not text.isprintable() for text in (*path, str(value))):
            raise UserError(f"{typed!r}: holds a line break or another control character.")
