"""`make TARGET VARIABLE=…`: from make's variables to command lines of `cedm`.

The Makefile exports each variable that was set as `CEDM_NAME`, so that no shell reads the values: a path arrives as it
was typed, whatever it holds. `ARGS` alone is split into words, as a shell quotes them.
"""

import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipeline.settings.dataset_names import names_of, plain_name
from pipeline.settings.door import start
from pipeline.settings.words import key_of, word
from storage.control_characters import shown
from storage.errors import UserError

SETTINGS = {
    "BACKBONE": "backbone",
    "CLUSTERING": "clustering",
    "CLUSTERS": "clustering.num_clusters",
    "CONDITIONING": "conditioning",
    "DEVICES": "trainer.devices",
    "ACCELERATOR": "trainer.accelerator",
}
STAGES = {
    "train": ("embed", "cluster", "train"),
    "diffusion": ("train",),
    "auto": ("study",),
    "bound": ("embed", "bound"),
    "assign": ("embed", "assign"),
}
OF_THE_LAST_STAGE = ("run_dir", "overwrite", "head", "bound")  # a run folder is one command's
MADE_BY = {  # what a target is about, and the target that makes it
    "CKPT": ("model", "make train"),
    "RUN": ("study", "make study"),
    "ASSIGNMENTS": ("clustering", "make cluster"),
    "HEAD": ("clustering head", "make cluster"),
}
DEFAULT_DATASET = "digits"
DATASETS = {".zip": "zip", ".npy": "npy", ".npz": "npy", ".h5": "hdf5", ".hdf5": "hdf5"}  # by the suffix of DATA
DATASETS |= dict.fromkeys((".parquet", ".arrow", ".tar"), "hf")


def command_lines(target: str, variables: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    """The commands of a target, in order, each with its words.

    Raises:
        UserError: `ARGS` ends within a quotation, or there is no model, clustering or study that the target is about.
    """
    stages = STAGES.get(target, (target,))
    if target == "bound" and variables.get("ASSIGNMENTS"):
        stages = ("bound",)  # of clusterings that exist
    words = list(target_words(target, variables))
    for stage in stages:
        last = stage == stages[-1]
        yield stage, [word for word in words if last or key_of(word).partition(".")[0] not in OF_THE_LAST_STAGE]


def target_words(target: str, variables: Mapping[str, str]) -> Iterator[str]:
    """The words behind a target's commands."""
    if target in ("generate", "evaluate"):
        model = variables.get("CKPT") or newest(runs_in(variables), "train-*/*/denoiser.safetensors", target, "CKPT")
        yield word("ckpt" if target == "generate" else "generated", model)
    if target == "report":
        run = variables.get("RUN") or newest(runs_in(variables, any_data=True), "study-*/*/summary.json", target, "RUN")
        yield word("run", Path(run).parent if run.endswith("summary.json") else run)
    if target == "assign":  # nothing is clustered, so no neighbours are needed
        runs = runs_in(variables, any_data=True)  # the clustering is of other images
        yield word("head", variables.get("HEAD") or newest(runs, "cluster-*/*/head.safetensors", target, "HEAD"))
        yield "clustering=kmeans"
    assignments = variables.get("ASSIGNMENTS")
    if target == "score" and not assignments:
        assignments = newest(runs_in(variables), "cluster-*/*/pseudo_labels.safetensors", target, "ASSIGNMENTS")
    if target in ("study", "auto"):
        yield "study=auto" if target == "auto" else f"study={variables.get('STUDY') or 'granularity'}"
    if target not in ("generate", "report"):
        yield f"dataset={dataset_of(variables)}"
        if variables.get("EMBEDDINGS"):
            yield word("embeddings", variables["EMBEDDINGS"])
        if variables.get("DATA"):
            yield word("dataset.path", variables["DATA"])
        if assignments and target != "assign":
            yield word("assignments", assignments)
    for name, key in SETTINGS.items():
        known = target not in ("generate", "report") or (target == "generate" and name == "ACCELERATOR")
        if known and variables.get(name):
            yield f"{key}={variables[name]}"
    try:
        yield from shlex.split(variables.get("ARGS", ""))
    except ValueError as error:
        raise UserError(
            f"ARGS={variables['ARGS']}: {error}. Close the quotation, or put a backslash before it."
        ) from error


def dataset_of(variables: Mapping[str, str]) -> str:
    """`DATASET` where it was set, else what `DATA` is: folder, zip, npy, hdf5, hf; else `EMBEDDINGS`, or the digits."""
    data = variables.get("DATA", "")
    if variables.get("DATASET") or not data:
        return variables.get("DATASET") or ("embeddings" if variables.get("EMBEDDINGS") else DEFAULT_DATASET)
    path = Path(data).expanduser()
    if path.suffix.lower() in DATASETS:
        return DATASETS[path.suffix.lower()]
    saved = any((path / name).exists() for name in ("dataset_info.json", "dataset_dict.json"))
    on_the_hub = not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", data) is not None
    return "hf" if saved or on_the_hub or any((*path.glob("*.parquet"), *path.glob("*.tar"))) else "folder"


def runs_in(variables: Mapping[str, str], any_data: bool = False) -> list[Path]:
    """The folders of a data set's runs; of every one's with `any_data`, where none was named."""
    if any_data and not variables.get("DATASET"):
        return [path for path in Path("runs").glob("*") if path.is_dir()]
    if variables.get("DATASET") or not variables.get("DATA"):
        return [Path("runs") / dataset_of(variables)]
    images = str(Path(variables["DATA"]).expanduser())
    return [Path("runs") / name for name in names_of(images, "cache") or [plain_name(images)]]


def newest(folders: Sequence[Path], pattern: str, target: str, variable: str) -> str:
    """The newest file of a pattern below the folders."""
    found = [path for folder in folders for path in folder.glob(pattern)]
    if not found:
        what, maker = MADE_BY[variable]
        raise UserError(
            f"no {what} in {' or '.join(map(str, folders)) or 'runs'}. Run {maker}, or make {target} {variable}=PATH."
        )
    return str(max(found, key=lambda path: path.stat().st_mtime))


def main() -> None:
    """Run the commands of the target that was named; the first that fails ends it."""
    variables = {name.removeprefix("CEDM_"): value for name, value in os.environ.items() if name.startswith("CEDM_")}
    try:
        *before, (last, words) = command_lines(sys.argv[1], variables)
    except UserError as error:
        sys.exit(shown(f"error: {error}"))
    for name, own in before:
        if code := start(name, own, {}):
            sys.exit(code)
    os.execv(sys.executable, [sys.executable, "-m", "pipeline", last, *words])


if __name__ == "__main__":
    main()
