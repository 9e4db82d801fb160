"""What people call clusters: a CSV file with the columns `cluster` and `name`, which the page of clusters writes."""

import re
from pathlib import Path

from datamodules.plain_files import read_csv
from datamodules.pseudo_labels.pseudo_labels import PseudoLabels
from storage.errors import UserError

LONGEST = 80  # characters of a name


def names_of(labels: PseudoLabels, file: str | None) -> dict[int, str]:
    """Cluster → its name: those of `file`, else the classes that the clusters were made from; most have none.

    Raises:
        UserError: the file cannot be read, or names a cluster that there is not.
    """
    known = labels.meta.get("cluster_names") or []
    return dict(enumerate(known)) | ({} if file is None else read_cluster_names(Path(file), labels.num_clusters))


def read_cluster_names(path: Path, num_clusters: int) -> dict[int, str]:
    """Cluster → name, of the lines that have one.

    Raises:
        UserError: no such file or columns, no cluster id, two names for one cluster, or one that is too long.
    """
    if not path.is_file():
        raise UserError(f"cluster_names={path}: no such file. The page clusters.html offers one for download.")
    columns = read_csv(path)
    if missing := [name for name in ("cluster", "name") if name not in columns]:
        raise UserError(f"{path}: has no column {missing[0]!r}. A table of the columns cluster and name is expected.")
    names: dict[int, str] = {}
    for text, name in zip(columns["cluster"], map(str.strip, columns["name"]), strict=True):
        if not re.fullmatch(r"\s*\d{1,9}\s*", text, re.ASCII) or int(text) >= num_clusters:
            raise UserError(f"{path}: there is no cluster {text!r}; 0 to {num_clusters - 1} are expected.")
        if not name:
            continue
        if len(name) > LONGEST:
            raise UserError(f"{path}: the name of cluster {text} has {len(name)} characters; up to {LONGEST} fit.")
        if names.setdefault(int(text), name) != name:
            raise UserError(f"{path}: cluster {text} has two names, {names[int(text)]!r} and {name!r}. Keep one.")
    return names
