"""Data sets in the formats of Hugging Face's `datasets`, from the hub or a local folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from fedkd.data.arrays import assemble, images, labels
from fedkd.data.dataset import Splits
from fedkd.errors import FedkdError
from fedkd.section import Section

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image

# How each of Pillow's modes is read. Modes of more than 8 bits would lose what they hold.
_READ_AS = {"1": "L", "L": "L", "LA": "L"} | dict.fromkeys(("P", "RGB", "RGBA", "CMYK"), "RGB")


class HuggingFace(Section):
    """A data set of the Hugging Face hub, a folder of images, or one written by save_to_disk.

    Without keys, the columns are found by their features: the one Image, the one ClassLabel.
    The splits "train" and "test" are used; without "test", `test_fraction` of "train" is held
    out. Nothing else is fetched for a local folder, so that works offline.
    """

    name: Literal["huggingface"] = "huggingface"
    path: str
    image_key: str | None = None
    label_key: str | None = None
    client_key: str | None = None
    test_fraction: float = Field(default=0.2, gt=0, lt=1)

    def load(self) -> Splits:
        """Both sets; grey images keep one channel, all others get three.

        Raises: FedkdError where the data cannot be found or read, the columns cannot be told,
        or the images differ in size.
        """
        try:
            import datasets
            import PIL  # noqa: F401  (datasets decodes images with it)
        except ImportError as error:
            raise FedkdError(
                f"data source huggingface: {error}", fix="pip install 'fedkd[huggingface]'"
            ) from None
        with library(self.path):
            train, test = open_tables(self.path)
            x = column(train, self.image_key, datasets.Image, "image_key")
            y = column(train, self.label_key, datasets.ClassLabel, "label_key")
            owners = None
            if self.client_key is not None:
                owner = column(train, self.client_key, datasets.Value, "client_key")
                owners = values(train, owner)
            return assemble(
                _pair(train, x, y, self.path),
                None if test is None else _pair(test, x, y, self.path),
                owners=owners,
                n_classes=getattr(train.features[y], "num_classes", None),
                test_fraction=self.test_fraction,
            )


@contextmanager
def library(path: str) -> Iterator[None]:
    """The library without its progress bars (a global switch), and with its errors as ours."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    if shown:
        datasets.disable_progress_bars()
    try:
        yield
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise FedkdError(
            f"cannot load this data set ({' '.join(str(error).split())})",
            value=path,
            fix="set data.path to a local folder or to a name on the hub",
        ) from error
    finally:
        if shown:
            datasets.enable_progress_bars()


def open_tables(path: str) -> tuple[Dataset, Dataset | None]:
    """The splits "train" and "test"; None where there is no "test"."""
    from datasets import Dataset, load_dataset, load_from_disk

    folder = Path(path).expanduser()
    if any((folder / mark).exists() for mark in ("dataset_dict.json", "state.json")):
        found = load_from_disk(folder)
    else:
        found = load_dataset(str(folder) if folder.is_dir() else path)
    if isinstance(found, Dataset):
        return found, None
    if "train" not in found:
        raise FedkdError("no split 'train' in this data set", value=sorted(found))
    return found["train"], found.get("test")


def column(table: Dataset, wanted: str | None, kind: type, option: str) -> str:
    """The column's name: the one wanted, else the only one whose feature is of that kind."""
    if wanted is None:
        found: list[str] = [
            key for key, feature in table.features.items() if isinstance(feature, kind)
        ]
    else:
        found = [key for key in table.features if key == wanted]
    if len(found) != 1:
        raise FedkdError(
            f"cannot tell which column is the {option.removesuffix('_key')}",
            value=found if wanted is None else wanted,
            allowed=", ".join(table.column_names),
            fix=f"set data.{option}",
        )
    return found[0]


def _pair(table: Dataset, image_key: str, label_key: str, path: str) -> tuple[Tensor, Tensor]:
    import datasets

    decoded = isinstance(table.features[image_key], datasets.Image)
    x = _stack(table[image_key]) if decoded else values(table, image_key)
    return images(x, path), labels(values(table, label_key), path)


def values(table: Dataset, key: str) -> NDArray[Any]:
    """A column as an array [n, …]."""
    return np.asarray(table.select_columns(key).with_format("numpy")[:][key])


def _stack(pictures: Iterable[Image | None]) -> NDArray[np.uint8]:
    """uint8 [n, 1, h, w] if all are grey, else [n, 3, h, w]."""
    arrays = [_pixels(index, picture) for index, picture in enumerate(pictures)]
    channels = max((len(array) for array in arrays), default=1)
    sizes = {array.shape[1:] for array in arrays}
    if len(sizes) > 1:
        raise FedkdError(
            "images differ in size", value=sorted(sizes)[:4], fix="resize them to one height, width"
        )
    return np.stack([np.broadcast_to(array, (channels, *array.shape[1:])) for array in arrays])


def _pixels(index: int, picture: Image | None) -> NDArray[np.uint8]:
    """uint8 [c, h, w], with c of 1 or 3."""
    mode = None if picture is None else picture.mode
    if picture is None or mode not in _READ_AS:
        raise FedkdError(f"image {index} cannot be read", value=mode, allowed=", ".join(_READ_AS))
    array = np.asarray(picture.convert(_READ_AS[mode]))
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
