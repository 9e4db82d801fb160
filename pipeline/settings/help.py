"""`cedm COMMAND --help`: every setting of a command with its value, meaning and range."""

import inspect
from collections.abc import Iterator
from dataclasses import fields, is_dataclass

from omegaconf import DictConfig, OmegaConf

from pipeline.settings.commands import COMMANDS
from pipeline.settings.compose import CONFIGS, spelled
from pipeline.settings.presets import preset_values
from pipeline.settings.schemas import schema_of

VALUE_WIDTH = 44


def usage() -> str:
    """The list of commands, as `cedm --help` shows it."""
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {command.purpose}" for name, command in COMMANDS.items())
    return f"usage: cedm COMMAND key=value …\n\n{lines}\n\n`cedm COMMAND --help` explains a command's settings."


def help_text(name: str, cfg: DictConfig) -> str:
    """The settings of a command as composed from what was typed beside `--help`."""
    choices = cfg.hydra.runtime.choices
    groups = [path.name for path in sorted(CONFIGS.iterdir()) if path.is_dir() and path.name in choices]
    chosen = {group: sorted(option.stem for option in (CONFIGS / group).glob("*.yaml")) for group in groups}
    lines = [
        f"cedm {name}: {COMMANDS[name].purpose}",
        "",
        f"usage: cedm {name} key=value …",
        "Lists are written as [3,17]. A group is chosen by its name, as in dataset=cifar100, and brings its settings",
        "along: add the choice to --help to see them. -m runs a command for several values: seed=1,2.",
        "",
        "groups",
        *(
            f"  {f'{group}={spelled(choices[group])}':<{VALUE_WIDTH}} {', '.join(options)}"
            for group, options in chosen.items()
        ),
        "",
        "settings",
        *describe(cfg, schema_of(COMMANDS[name].schema, cfg)),
        "",
        "preset=laptop and preset=published, for images of your own; what you type wins",
        *(f"  {line}" for line in (inspect.getdoc(preset_values) or "").splitlines() if line.startswith("|")),
    ]
    return "\n".join(lines)


def describe(cfg: DictConfig, schema: DictConfig) -> Iterator[str]:
    """A line for each setting, the command's own first, then group by group."""
    container = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(container, dict)
    own = {key: value for key, value in container.items() if not isinstance(value, dict)}
    groups = {str(key): value for key, value in container.items() if isinstance(value, dict) and key != "hydra"}
    for group, values in {"": own, **groups}.items():
        if group:
            yield ""
        cls = OmegaConf.get_type(schema, group or None)
        known = {one.name: one.metadata.get("about") for one in fields(cls)} if is_dataclass(cls) else {}
        for leaf, value in values.items():
            about = known.get(leaf)
            text = "" if about is None else "; ".join(filter(None, (about.meaning, about.expects())))
            key = f"{group}.{leaf}" if group else str(leaf)
            yield f"  {f'{key}={spelled(value)}':<{VALUE_WIDTH}} {text}".rstrip()
