"""Models on the Hugging Face hub: a class with a file of its own is read from `user/model`, and pushed there."""

import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from storage.errors import UserError

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


class OnTheHub(ABC):
    """A model whose class has `save_pretrained` and `_load`: how else it is read and written.

    Its one file says all that there is to know of it, so the hub holds that file, and no second description beside it.
    """

    FILE: ClassVar[str]  # its name in the folder of a run, and in a repository

    @classmethod
    def from_pretrained(cls, name: str | Path, revision: str | None = None) -> Self:
        """The model of a file, of the folder of a run, or of a repository `user/model` on the hub, on the CPU.

        What lies here under that name comes first.

        Args:
            revision: branch, tag or commit of the repository.

        Raises:
            UserError: there is no such file, it is damaged, or it holds something else.
        """
        path = Path(name)
        if path.is_dir():
            path = path / cls.FILE
        elif not path.exists() and REPOSITORY.fullmatch(str(name)) and path.suffix != ".safetensors":
            path = downloaded(str(name), cls.FILE, revision)
        return cls._load(path)

    @classmethod
    @abstractmethod
    def _load(cls, path: Path) -> Self:
        """Read what `save_pretrained` wrote."""

    @abstractmethod
    def save_pretrained(self, path: str | Path, **meta: Any) -> None:
        """Write the file, or the file called `FILE` in a folder; `meta` joins what it says of itself."""

    def push_to_hub(self, repository: str, private: bool = False, token: str | None = None) -> str:
        """Write the file to a repository `user/model`, which is made where there is none; its address.

        Raises:
            UserError: the hub refuses, or cannot be reached.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return push([self.file_at(folder)], repository, private, token)

    @classmethod
    def file_at(cls, path: str | Path) -> Path:
        """The file that a path means: itself, or `FILE` in a folder."""
        return Path(path) if Path(path).suffix == ".safetensors" else Path(path) / cls.FILE


def downloaded(repository: str, file: str, revision: str | None) -> Path:
    """A file of a repository on the hub, in Hugging Face's cache."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except (OSError, ValueError) as error:  # what the hub's errors are
        raise UserError(
            f"{repository}: no such file or folder here, and no {file} of that repository on the hub ({shortly(error)})"
        ) from error


def push(files: Sequence[Path], repository: str, private: bool, token: str | None = None) -> str:
    """Write files to a repository on the hub, which is made where there is none, in one commit; its address.

    Raises:
        UserError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    api, added = HfApi(token=token), [CommitOperationAdd(file.name, file) for file in files]
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.create_commit(url.repo_id, added, commit_message="Upload the model")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{repository}: the hub did not take the model ({shortly(error)}). Log in with `hf auth login` as a user "
            "who may write there."
        ) from error
    return str(url)


def shortly(error: Exception) -> str:
    """The first line of an error that says something."""
    return next((line.strip()[:300] for line in str(error).splitlines() if line.strip()), type(error).__name__)
