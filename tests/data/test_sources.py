"""Sources: what is written is what is read, and every kind of damage gets one clear error."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from fedkd.data.arrays import images
from fedkd.data.dataset import NO_LABEL, Dataset, Splits, as_input, split_test, stratified
from fedkd.data.huggingface import HuggingFace
from fedkd.data.idx import Idx, read_idx
from fedkd.data.npz import Npz
from fedkd.data.sources import SOURCES, Digits, Source, load
from fedkd.errors import FedkdError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 4, 5), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    shape = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes((0, 0, 8, array.ndim)) + shape + array.tobytes()


def write_mnist(folder: Path, pack: bool = False, style: str = "{}-{}-idx{}-ubyte") -> None:
    for split, x, y in (("train", PIXELS, LABELS), ("t10k", PIXELS[:2], LABELS[:2])):
        for kind, array in (("images", x), ("labels", y.astype(np.uint8))):
            raw = idx_bytes(array)
            file = folder / style.format(split, kind, array.ndim)
            if pack:
                file, raw = file.with_name(file.name + ".gz"), gzip.compress(raw)
            file.write_bytes(raw)


# --- Dataset ---------------------------------------------------------------------------------


def small(**changes: Any) -> Dataset:
    fields: dict[str, Any] = {
        "x": torch.zeros(3, 1, 2, 2),
        "y": torch.tensor([0, 1, 1]),
        "n_classes": 2,
    }
    return Dataset(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": torch.tensor([0, 2, 1])}, "label of sample 1 is out of range; got 2"),
        ({"y": torch.tensor([0, 1, -1])}, "label of sample 2 is out of range; got -1"),
        ({"y": torch.tensor([0, 1])}, "one label for each of 3"),
        ({"y": torch.tensor([0.0, 1.0, 1.0])}, "y must be int64"),
        ({"x": torch.zeros(3, 2, 2)}, r"x must be \[n, c, h, w\]"),
        ({"x": torch.zeros(0, 1, 2, 2), "y": torch.zeros(0).long()}, "not empty"),
        ({"x": torch.zeros(3, 1, 2, 2).double()}, "wrong dtype"),
        ({"x": torch.full((3, 1, 2, 2), torch.nan)}, "sample 0 of x holds NaN"),
        ({"client_ids": np.array([0, 1])}, "one owner for each of 3"),
        ({"topics": np.array([0, 1, 1]), "n_topics": 2}, "images must have none"),
        ({"y": torch.tensor([0, 1, NO_LABEL])}, "label of sample 2 is out of range; got -100"),
    ],
)
def test_a_wrong_dataset_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FedkdError, match=message):
        small(**changes)


def test_as_input_scales_pixels_only() -> None:
    assert as_input(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [0.0, 1.0]
    floats = torch.tensor([-3.0, 300.0])
    assert as_input(floats) is floats


def test_splits_must_agree() -> None:
    with pytest.raises(FedkdError, match="test samples differ"):
        Splits(small(), small(x=torch.zeros(3, 1, 2, 3)))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0, 1), st.integers(0, 9))
def test_stratified_takes_each_class_in_its_share(
    labels: list[int], share: float, seed: int
) -> None:
    y = np.array(labels)
    count = round(share * len(y))
    ids = stratified(y, count, np.random.default_rng(seed))
    assert len(ids) == count == len(np.unique(ids))
    assert (np.diff(ids) > 0).all()
    exact = np.bincount(y, minlength=5) * count / len(y)
    assert (np.abs(np.bincount(y[ids], minlength=5) - exact) <= 1).all()


def test_split_test_needs_two_samples() -> None:
    with pytest.raises(FedkdError, match="at least 2 samples"):
        split_test(small(x=torch.zeros(1, 1, 2, 2), y=torch.tensor([0])), 0.5)


# --- Digits ----------------------------------------------------------------------------------


def test_digits_are_stratified_and_the_same_every_time() -> None:
    first, second = Digits().load(), Digits().load()
    assert first.train.x.dtype == torch.uint8
    assert first.train.x.shape[1:] == (1, 8, 8)
    assert (len(first.train), len(first.test)) == (1438, 359)
    assert int(first.train.x.min()) == 0
    assert int(first.train.x.max()) == 255
    assert torch.equal(first.test.x, second.test.x)
    shares = torch.bincount(first.test.y) / torch.bincount(torch.cat([first.train.y, first.test.y]))
    assert torch.all((shares - 0.2).abs() < 0.01)


def test_load_is_kept() -> None:
    assert load(Digits()) is load(Digits(test_fraction=0.2))


def test_the_table_and_the_union_agree() -> None:
    images = ["digits", "idx", "npz", "python", "huggingface"]
    texts = ["text", "pydoc", "huggingface-text"]
    assert list(SOURCES) == [*images, *texts]
    for name, row in SOURCES.items():
        path = {"path": "x:y"} if "path" in row.model_fields else {}
        assert type(TypeAdapter(Source).validate_python({"name": name, **path})) is row
    with pytest.raises(ValidationError):
        Digits(test_fraction=1)


# --- IDX -------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize(
    "style", ["{}-{}-idx{}-ubyte", "{}-{}.idx{}-ubyte", "emnist-letters-{}-{}-idx{}-ubyte"]
)
def test_idx_round_trip(tmp_path: Path, pack: bool, style: str) -> None:
    write_mnist(tmp_path, pack, style)
    splits = Idx(path=str(tmp_path)).load()
    assert np.array_equal(splits.train.x.numpy(), PIXELS[:, None])
    assert splits.train.y.tolist() == LABELS.tolist()
    assert np.array_equal(splits.test.x.numpy(), PIXELS[:2, None])
    assert splits.train.n_classes == splits.test.n_classes == 3


def test_emnist_calls_its_second_set_test(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    for file in list(tmp_path.glob("t10k*")):
        file.rename(tmp_path / file.name.replace("t10k", "emnist-letters-test"))
    assert len(Idx(path=str(tmp_path)).load().test) == 2


def test_real_fashion_mnist() -> None:
    splits = load(Idx())
    assert splits.train.x.shape == (60_000, 1, 28, 28)
    assert splits.test.x.shape == (10_000, 1, 28, 28)
    assert torch.bincount(splits.train.y).tolist() == [6000] * 10
    assert float(as_input(splits.train.x).mean()) == pytest.approx(0.2860, abs=1e-4)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (idx_bytes(PIXELS)[:-7], "expected 136 bytes, found 129"),
        (idx_bytes(PIXELS) + b"!", "expected 136 bytes, found 137"),
        (idx_bytes(PIXELS)[:5], "expected 16 bytes, found 5"),
        (idx_bytes(LABELS.astype(np.uint8)), "bad magic number; got '00000801'"),
        (b"", "bad magic number; got ''"),
        (gzip.compress(idx_bytes(PIXELS))[:-9], "corrupt gzip"),
        (gzip.compress(idx_bytes(PIXELS))[:40] + bytes(60), "corrupt gzip"),
    ],
)
def test_damaged_idx_files(tmp_path: Path, raw: bytes, message: str) -> None:
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(raw)
    with pytest.raises(FedkdError, match=message) as caught:
        read_idx(file, 3)
    assert str(file) in str(caught.value)


def test_idx_folder_errors(tmp_path: Path) -> None:
    source = Idx(path=str(tmp_path))
    with pytest.raises(FedkdError, match="apt-get install dataset-fashion-mnist"):
        Idx(path=str(tmp_path / "none")).load()
    with pytest.raises(FedkdError, match=r"exactly one file of train images; got \[\]"):
        source.load()
    write_mnist(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(idx_bytes(LABELS[:4].astype(np.uint8)))
    with pytest.raises(FedkdError, match="6 images, 4 labels"):
        source.load()
    write_mnist(tmp_path, pack=True)
    with pytest.raises(FedkdError, match="packed or unpacked"):
        source.load()


# --- Npz -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 7), (5, 1, 1, 7)),
        ((5, 8, 9), (5, 1, 8, 9)),
        ((5, 3, 8, 9), (5, 3, 8, 9)),
        ((5, 8, 9, 3), (5, 3, 8, 9)),
        ((5, 8, 9, 1), (5, 1, 8, 9)),
        ((5, 1, 8, 3), (5, 1, 8, 3)),
        ((5, 4, 8, 9), (5, 4, 8, 9)),
    ],
)
def test_layouts(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    array = RNG.random(shape)
    tensor = images(array, "here")
    assert tensor.dtype == torch.float32
    assert tuple(tensor.shape) == expected
    if shape[-1] != expected[-1]:
        array = np.moveaxis(array, -1, 1)
    assert np.array_equal(tensor.numpy().ravel(), array.astype(np.float32).ravel())


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(3), "unknown shape"),
        (np.full((2, 2), 256), "neither floats nor pixels"),
        (np.full((2, 2), -1), "neither floats nor pixels"),
        (np.array([["a", "b"]]), "neither floats nor pixels"),
    ],
)
def test_layouts_refused(array: NDArray[Any], message: str) -> None:
    with pytest.raises(FedkdError, match=f"here: x .*{message}|here: x {message}"):
        images(array, "here")


def test_npz_file_with_its_own_test_set_and_owners(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    owners = np.array(["zoe", "ann", "zoe", "ann", "bob", "bob"])
    np.savez(file, x=PIXELS, y=LABELS, x_test=PIXELS[:2], y_test=[4, 0], client=owners)
    splits = Npz(path=str(file)).load()
    assert np.array_equal(splits.train.x.numpy(), PIXELS[:, None])
    assert splits.train.client_ids is not None
    assert splits.train.client_ids.tolist() == [2, 0, 2, 0, 1, 1]
    assert splits.test.y.tolist() == [4, 0]
    assert splits.train.n_classes == 5


def test_npz_file_without_a_test_set(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=PIXELS, y=LABELS)
    splits = Npz(path=str(tmp_path / "a.npz"), test_fraction=0.5).load()
    assert sorted(splits.train.y.tolist()) == sorted(splits.test.y.tolist()) == [0, 1, 2]
    both = torch.cat([splits.train.x, splits.test.x]).flatten(1)
    assert sorted(both.tolist()) == sorted(PIXELS.reshape(6, -1).tolist())


def test_npz_folder_is_one_client_a_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "b.npz", x=PIXELS[:2], y=LABELS[:2])
    np.savez(tmp_path / "a.npz", x=PIXELS[2:], y=LABELS[2:], x_test=PIXELS[:1], y_test=[1])
    splits = Npz(path=str(tmp_path)).load()
    assert splits.train.client_ids is not None
    assert splits.train.client_ids.tolist() == [0, 0, 0, 0, 1, 1]
    assert splits.train.y.tolist() == [*LABELS[2:], *LABELS[:2]]
    assert splits.test.y.tolist() == [1]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": PIXELS}, "no array y"),
        ({"x": PIXELS, "y": LABELS, "x_test": PIXELS}, "no array y_test"),
        ({"x": PIXELS, "y": LABELS[:5]}, "x and y differ in number; got '6 and 5'"),
        ({"x": PIXELS, "y": LABELS / 2}, "y must hold whole numbers"),
        ({"x": PIXELS, "y": LABELS - 1}, "label of sample 0 is out of range; got -1"),
        ({"x": PIXELS, "y": LABELS, "client": [1, 2]}, "one owner for each of 6"),
        ({"x": PIXELS, "y": np.array([None] * 6)}, "pickled objects are never loaded"),
        ({"x": PIXELS, "y": LABELS, "x_test": PIXELS[:, :2], "y_test": LABELS}, "test samples"),
    ],
)
def test_npz_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(FedkdError, match=message):
        Npz(path=str(tmp_path / "a.npz")).load()


def test_npz_paths_refused(tmp_path: Path) -> None:
    with pytest.raises(FedkdError, match=r"no \.npz file in this folder"):
        Npz(path=str(tmp_path)).load()
    with pytest.raises(FedkdError, match="no such file"):
        Npz(path=str(tmp_path / "none.npz")).load()
    np.save(tmp_path / "a.npy", PIXELS)
    for junk in (b"", b"junk", b"PK\x03\x04junk", (tmp_path / "a.npy").read_bytes()):
        (tmp_path / "junk.npz").write_bytes(junk)
        with pytest.raises(FedkdError, match=r"not a readable \.npz"):
            Npz(path=str(tmp_path / "junk.npz")).load()
    np.savez(tmp_path / "junk.npz", x=PIXELS, y=LABELS)
    np.savez(tmp_path / "k.npz", x=PIXELS / 255, y=LABELS)
    with pytest.raises(FedkdError, match="different shape or dtype"):
        Npz(path=str(tmp_path)).load()


# --- Hugging Face ----------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library `datasets`, offline, with its cache in the test's own folder."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets


def pictures(array: NDArray[np.uint8]) -> list[Any]:
    from PIL import Image

    return [Image.fromarray(pixels) for pixels in array]


def saved(hub: Any, path: Path, **columns: Any) -> str:
    known = {
        "picture": hub.Image(),
        "kind": hub.ClassLabel(names=["a", "b", "c", "d"]),
        "who": hub.Value("string"),
    }
    features = hub.Features({key: known[key] for key in columns})
    hub.Dataset.from_dict(columns, features=features).save_to_disk(path)
    return str(path)


def test_saved_set_finds_its_columns(hub: Any, tmp_path: Path) -> None:
    path = saved(hub, tmp_path / "set", picture=pictures(PIXELS), kind=LABELS, who=list("zzaabb"))
    splits = HuggingFace(path=path, client_key="who", test_fraction=0.5).load()
    assert splits.train.n_classes == 4
    assert splits.train.client_ids is not None
    pixel_rows = {tuple(row): i for i, row in enumerate(PIXELS.reshape(6, -1).tolist())}
    for x, y, owner in zip(splits.train.x, splits.train.y, splits.train.client_ids, strict=True):
        index = pixel_rows[tuple(x.flatten().tolist())]
        assert int(y) == LABELS[index]
        assert int(owner) == [2, 2, 0, 0, 1, 1][index]


def test_saved_lists_need_keys(hub: Any, tmp_path: Path) -> None:
    table = hub.Dataset.from_dict({"pixels": PIXELS.tolist(), "label": LABELS})
    hub.DatasetDict(train=table, test=table.select([1])).save_to_disk(tmp_path / "set")
    with pytest.raises(FedkdError, match=r"which column is the image; got \[\]"):
        HuggingFace(path=str(tmp_path / "set")).load()
    with pytest.raises(FedkdError, match="which column is the label; got 'y'; allowed: pixels, la"):
        HuggingFace(path=str(tmp_path / "set"), image_key="pixels", label_key="y").load()
    source = HuggingFace(path=str(tmp_path / "set"), image_key="pixels", label_key="label")
    splits = source.load()
    assert np.array_equal(splits.train.x.numpy(), PIXELS[:, None])
    assert (splits.train.n_classes, splits.test.y.tolist()) == (3, [1])


@pytest.mark.parametrize("colour", [False, True])
def test_image_folder(hub: Any, tmp_path: Path, colour: bool, capfd: Any) -> None:
    array = np.stack([PIXELS] * 3, -1) // [1, 2, 3] if colour else PIXELS
    for split in ("train", "test"):
        for index, picture in enumerate(pictures(array.astype(np.uint8))):
            folder = tmp_path / "set" / split / "abc"[LABELS[index]]
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{index}.png")
    splits = HuggingFace(path=str(tmp_path / "set")).load()
    assert capfd.readouterr() == ("", "")  # no progress bars meanwhile,
    assert not hub.are_progress_bars_disabled()  # and as they were after
    order = np.argsort(LABELS, kind="stable")
    expected = array.transpose(0, 3, 1, 2) if colour else array[:, None]
    assert splits.train.n_classes == 3
    assert splits.test.y.tolist() == LABELS[order].tolist()
    assert np.array_equal(splits.test.x.numpy(), expected[order])


def test_grey_and_colour_together_are_colour(hub: Any, tmp_path: Path) -> None:
    mixed = pictures(PIXELS)
    mixed[0] = mixed[0].convert("RGBA")
    path = saved(hub, tmp_path / "set", picture=mixed, kind=LABELS)
    splits = HuggingFace(path=path).load()
    x = torch.cat([splits.train.x, splits.test.x])
    assert x.shape == (6, 3, 4, 5)
    assert torch.equal(x[:, 0], x[:, 2])


def test_hugging_face_refusals(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ragged = pictures(PIXELS)
    ragged[3] = ragged[3].resize((9, 9))
    path = saved(hub, tmp_path / "ragged", picture=ragged, kind=LABELS)
    with pytest.raises(FedkdError, match=r"differ in size; got \[\(4, 5\), \(9, 9\)\]"):
        HuggingFace(path=path).load()
    deep = pictures(PIXELS.astype(np.uint16))
    path = saved(hub, tmp_path / "deep", picture=deep, kind=LABELS)
    with pytest.raises(FedkdError, match="image 0 cannot be read; got 'I;16'"):
        HuggingFace(path=path).load()
    hub.DatasetDict(dev=hub.Dataset.from_dict({"a": [1]})).save_to_disk(tmp_path / "dev")
    with pytest.raises(FedkdError, match="no split 'train'"):
        HuggingFace(path=str(tmp_path / "dev")).load()
    with pytest.raises(FedkdError, match="cannot load this data set"):
        HuggingFace(path="nobody/nothing").load()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(FedkdError, match=r"pip install 'fedkd\[huggingface\]'"):
        HuggingFace(path=path).load()
