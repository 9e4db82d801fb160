"""A `DataLoader` whose processes tell a user's mistake in its own words."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset

from storage.errors import UserError


class ImageLoader(DataLoader):
    """Raises the `UserError` that reading a batch ended in, whichever process has read it.

    From a worker, PyTorch would hand it over as the text of a traceback. A worker that the system has killed is a
    `UserError` as well.
    """

    def __init__(self, dataset: Dataset, **arguments: Any) -> None:
        super().__init__(_Told(dataset), **arguments)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches = super().__iter__()
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise UserError(
                    f"a process that loads images has ended ({error}). Most often memory has run out: set fewer of "
                    "them, training.num_workers= or embedding.num_workers=."
                ) from error
            if isinstance(batch, UserError):
                raise batch
            yield batch


class _Told(Dataset):
    """The batches of a data set; in place of one that cannot be read, the `UserError` that says why."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, item: Any) -> Any:
        try:
            return self.dataset[item]
        except UserError as error:
            return UserError(str(error))  # its subclasses do not all go through a pipe
