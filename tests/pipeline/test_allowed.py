"""What of Hydra's can be typed, and what a folder of the user's can hold."""

import os
import shlex
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from pipeline.settings.allowed import PLUGINS, refuse_composed, refuse_many_runs
from pipeline.settings.compose import compose_config
from pipeline.settings.loader import MOST_VALUES, written_out
from pipeline.settings.options import options_and_settings, spelled_out
from storage.errors import UserError

from .conftest import TINY_EDM, Cedm

ROOT = Path(__file__).parents[2]


def test_options_are_read_in_one_way_only() -> None:
    options, settings = options_and_settings(["seed=1", "-m", "-cd", "a=b", "x=2", "dataset.path=-1"])
    assert spelled_out(options) == ["--multirun", "--config-dir=a=b"]
    assert settings == ["seed=1", "x=2", "dataset.path=-1"]
    assert spelled_out(options_and_settings(["-c=job", "--resolve"])[0]) == ["--cfg=job", "--resolve"]


@pytest.mark.parametrize(
    "words",
    [["--mult"], ["-mh"], ["-cjob"], ["-m", "-c", "job"], ["--resolve"], ["--cfg=x"], ["--"], ["-cd"], ["--info"]],
)
def test_other_options(words: list[str]) -> None:
    with pytest.raises(UserError):
        options_and_settings(words)


def with_plugin(group: str, name: str, **keys: Any) -> DictConfig:
    """A composed configuration as the plugin would leave it, which need not be installed."""
    container: Any = OmegaConf.to_container(compose_config("train", []))
    container["hydra"][group.rpartition("/")[2]] = {"_target_": PLUGINS[group][name].target, **keys}
    return OmegaConf.create(container)


@pytest.mark.parametrize(
    ("group", "name", "keys"),
    [
        ("hydra/launcher", "joblib", {"n_jobs": 2, "pre_dispatch": "2*n_jobs", "backend": None}),
        ("hydra/launcher", "submitit_local", {"timeout_min": 60, "submitit_folder": "${hydra.sweep.dir}/.submitit/%j"}),
        ("hydra/launcher", "submitit_slurm", {"partition": "gpu", "setup": None, "additional_parameters": {"x": 1}}),
        ("hydra/sweeper", "optuna", {"sampler": {"_target_": "optuna.samplers.TPESampler", "seed": 1}, "n_trials": 2}),
    ],
)
def test_plugins_of_hydra_with_their_keys(group: str, name: str, keys: dict[str, Any]) -> None:
    refuse_composed(with_plugin(group, name, **keys))


@pytest.mark.parametrize(
    ("group", "name", "keys"),
    [
        ("hydra/launcher", "joblib", {"pre_dispatch": "__import__('os').system('touch canary')"}),
        ("hydra/launcher", "joblib", {"x": {"_target_": "os.system"}}),
        ("hydra/launcher", "basic", {"_args_": ["x"]}),
        ("hydra/launcher", "submitit_slurm", {"setup": ["touch canary"]}),
        ("hydra/launcher", "submitit_slurm", {"comment": "a\ntouch canary #"}),
        ("hydra/launcher", "submitit_slurm", {"additional_parameters": {"a\ntouch canary": 1}}),
        ("hydra/sweeper", "optuna", {"custom_search_space": "os.system"}),
        ("hydra/sweeper", "optuna", {"storage": "redis://host"}),
        ("hydra/sweeper", "optuna", {"sampler": {"_target_": "optuna.samplers._base.os.system"}}),
    ],
)
def test_keys_by_which_plugins_run_code(group: str, name: str, keys: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        refuse_composed(with_plugin(group, name, **keys))


def test_a_plugin_that_is_not_installed(cedm: Cedm) -> None:
    result = cedm("train", "-m", "hydra/sweeper=optuna", "seed=1,2")
    assert result.code == 2
    assert "pip install hydra-" in result.err


def test_a_launcher_without_its_program(cedm: Cedm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    result = cedm("train", "-m", "hydra/launcher=submitit_slurm", "seed=1,2")
    assert result.code == 2
    assert "srun" in result.err


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "seeds"), [("joblib", "1,2"), ("submitit_local", "1")])
def test_a_launcher_runs_a_sweep_to_its_end(workplace: Path, launcher: str, seeds: str) -> None:
    words = [f"hydra/launcher={launcher}", *TINY_EDM, "conditioning=none", f"seed={seeds}", "run_dir=out/${seed}"]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "train", "-m", *words],
        cwd=workplace,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    made = sorted(path.parent.name for path in workplace.glob("out/*/denoiser.safetensors"))
    assert made == seeds.split(",")


@pytest.mark.parametrize("place", ["own", "file://own"])
def test_search_path(cedm: Cedm, place: str) -> None:
    Path("own/network").mkdir(parents=True)
    Path("own/network/mine.yaml").write_text("defaults: [ddpmpp_small]\ndropout: 0.23\n")
    result = cedm("train", f"hydra.searchpath=[{place}]", "network=mine", "--cfg", "job")
    assert "dropout: 0.23" in result.out


@pytest.mark.parametrize("place", ["--config-dir={}", "hydra.searchpath=[{}]"])
def test_the_next_command_knows_the_yaml_files_that_the_user_brought(cedm: Cedm, place: str) -> None:
    Path("own files/dataset").mkdir(parents=True)
    Path("own files/dataset/mine.yaml").write_text("name: mine\nkind: digits\nmax_images: 200\n")
    result = cedm("embed", place.format("own files"), "dataset=mine")
    assert result.code == 0, result.err
    _, command, *words = shlex.split(result.out.rpartition("Next: ")[2])
    assert cedm(command, *words, "clustering=kmeans", "clustering.num_clusters=2", "--cfg", "job").code == 0
    missing = cedm("train", place.format("own files"), "dataset=mine")
    _, command, *words = shlex.split(missing.err.rpartition("Make it with: ")[2])
    result = cedm(command, *words, "clustering=kmeans", "clustering.num_clusters=2", "--cfg", "job")
    assert "max_images: 200" in result.out, result.err


def test_resolvers_make_no_settings_of_a_text() -> None:
    assert compose_config("train", ["seed=${oc.env:HOME}"]).cache_dir == "cache"
    for resolver in ("oc.create", "oc.decode"):
        assert not OmegaConf.has_resolver(resolver)


@pytest.mark.parametrize(
    ("words", "params", "runs"),
    [
        (["seed=1,2,3", "training.lr=range(0.0,1.0,0.25)"], None, None),
        (["seed=range(1,1000000000001)"], None, "1,000,000,000,000"),
        (["seed=range(0,200)", "dataset.max_images=shuffle(range(0,100))"], None, "20,000"),
        (["seed=range(1,10,0)"], None, "inf"),
        ([], {"seed": "range(0,1000000)"}, "1,000,000"),
    ],
)
def test_a_sweep_of_more_runs_than_anyone_has(
    words: list[str], params: dict[str, str] | None, runs: str | None
) -> None:
    cfg = with_plugin("hydra/sweeper", "basic", params=params)
    with nullcontext() if runs is None else pytest.raises(UserError, match=f"a sweep of {runs} runs"):
        refuse_many_runs(words, cfg)


def test_values_with_aliases_written_out() -> None:
    def count(text: str) -> int:
        return written_out(yaml.compose(text, Loader=yaml.SafeLoader), {})

    assert count("[1, [2, 3]]") == 5
    assert count("{a: &a [1, 2], b: *a}") == 9
    assert count("x: &x [*x]") > MOST_VALUES
