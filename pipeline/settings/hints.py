"""What to say of a word that Hydra does not take: which one is wrong, and which right one is nearest."""

import difflib
import re
from collections.abc import Sequence

from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException

from pipeline.running.trainer_settings import OWNED, TrainerSettings
from pipeline.settings.allowed import PLUGINS


def explain_word(error: Exception, name: str, known: Sequence[str]) -> str:
    """The message about an error of Hydra's; `known` are the settings of the command `name`, and its groups."""
    text = str(error).strip()
    if isinstance(error, OverrideParseException):
        return (
            f"{text.splitlines()[0]}\nSettings are key=value, lists key=[1,2], and a value with spaces, commas or = "
            f"stands in two kinds of quotes: 'dataset.path=\"/my images/a=b\"'; see `cedm {name} --help`."
        )
    if isinstance(error, MissingConfigException):
        return unknown_option(error)
    unknown_key = re.search(r"Could not override '([^']+)'", text)
    if isinstance(error, ConfigCompositionException) and unknown_key:
        return unknown_setting(unknown_key.group(1).split("@")[0], known, name)
    return text


def unknown_setting(key: str, known: Sequence[str], name: str) -> str:
    """The message about a setting that there is not: why, or the nearest ones that there are."""
    group, _, argument = key.partition(".")
    if group == TrainerSettings.group and argument in OWNED:
        return f"{key}: this argument of Lightning's Trainer is not for setting: {OWNED[argument]}."
    if key in known:
        return f"{key}: the option of {group} that was chosen has no such setting.\nSee `cedm {name} {group}=… --help`."
    return f"there is no setting {key!r}.{suggest(key, known)}\nSee `cedm {name} --help`."


def unknown_option(error: MissingConfigException) -> str:
    """The message for `group=option` where there is no such option."""
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    plugin = PLUGINS.get(group, {}).get(option)
    if plugin is not None:
        package = plugin.package
        return f"{group}={option}: it is a plugin of Hydra that is not installed here. Run: pip install {package}"
    options = sorted(error.options or ())
    known = f"\nThere are: {', '.join(options)}." if options else ""
    return f"{group}={option}: there is no such {group}.{suggest(option, options)}{known}"


def suggest(name: str, known: Sequence[str]) -> str:
    """' Did you mean …?' with the nearest known names; by last part too, so that `lr` finds `training.lr`."""
    by_leaf = [key for key in known if key.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
    near = list(dict.fromkeys(by_leaf[:3] + difflib.get_close_matches(name, known, n=3, cutoff=0.7)))[:3]
    return f" Did you mean {' or '.join(near)}?" if near else ""
