"""Data sets: what is read, in which order, and what a missing or damaged one says."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
from pathlib import Path

import numpy
import pytest
import torch

for package in ("PIL", "sklearn", "torchvision"):
    pytest.importorskip(package)

from PIL import Image  # noqa: E402
from sdnet.data import TrainingBatches, load_data  # noqa: E402
from sdnet.data.cifar import CIFAR10_CLASSES  # noqa: E402
from sdnet.data.decode import read_picture  # noqa: E402
from sdnet.data.encoded import WINDOW, Shards  # noqa: E402
from sdnet.data.fashion_mnist import DEBIAN  # noqa: E402
from sdnet.errors import DataError  # noqa: E402
from sdnet.training.recipe import DataRecipe  # noqa: E402


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SDNET_CACHE", str(folder))
    return folder


def save(path: Path, value: int, size: tuple[int, int] = (32, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size[1], size[0]), (value, 0, 255 - value)).save(path)


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """A CIFAR-10 of two training pictures and one test picture per class; the red value tells them apart."""
    root = tmp_path / "cifar10"
    for label, name in enumerate(CIFAR10_CLASSES):
        for number in range(2):
            save(root / "train" / name / f"{number}.png", 10 * label + number)
        save(root / "test" / name / "0.png", 10 * label + 5)
    return root


def load(name: str, root: Path | None, **options):
    return load_data(DataRecipe(name=name, root=root, pad=0, flip=False, **options), seed=0)


def assert_is_small_cifar(root: Path) -> None:
    data = load("cifar10", root)
    images, labels = data.test[range(10)]
    assert data.classes == CIFAR10_CLASSES and len(data.train) == 20
    assert labels.tolist() == list(range(10))
    assert images[:, 0, 0, 0].tolist() == [10 * label + 5 for label in range(10)]


def test_cifar_is_read_from_a_folder_and_from_the_folder_above(cifar: Path) -> None:
    assert_is_small_cifar(cifar)
    assert_is_small_cifar(cifar.parent)


def test_cifar_is_read_from_an_archive(cifar: Path) -> None:
    path = cifar.parent / "pictures.tar.xz"
    with tarfile.open(path, "w:xz") as archive:
        archive.add(cifar, "cifar10")
    assert_is_small_cifar(path)


def test_pictures_are_decoded_once(cifar: Path, cache: Path) -> None:
    load("cifar10", cifar)
    made = sorted(path.stat().st_mtime_ns for path in cache.rglob("*.npy"))
    assert_is_small_cifar(cifar)
    assert made and made == sorted(path.stat().st_mtime_ns for path in cache.rglob("*.npy"))


def test_new_files_are_noticed(cifar: Path) -> None:
    assert len(load("cifar10", cifar).train) == 20
    save(cifar / "train" / "cat" / "new.png", 1)
    assert len(load("cifar10", cifar).train) == 21


def test_an_unreadable_picture_is_named(cifar: Path) -> None:
    (cifar / "train" / "cat" / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"train/cat/1\.png is no readable picture"):
        load("cifar10", cifar)


def test_sixteen_bits_of_grey_become_eight() -> None:
    content = io.BytesIO()
    Image.fromarray(numpy.array([[0, 255, 256], [0x7FFF, 0x8000, 0xFFFF]], dtype=numpy.uint16)).save(content, "png")
    found = read_picture(content.getvalue(), "x.png")
    assert found.shape == (2, 3, 3) and found[..., 1].tolist() == [[0, 0, 1], [127, 128, 255]]


def test_what_cannot_be_opened_is_named(cifar: Path) -> None:
    (cifar / "train" / "cat" / "link.png").symlink_to(cifar / "nowhere.png")
    with pytest.raises(DataError, match=r"cat/link\.png cannot be read: No such file"):
        load("cifar10", cifar)


def test_a_picture_too_large_to_be_one_is_named(cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # Of 1024; the error comes at twice of it.
    with pytest.raises(DataError, match=r"\.png is no readable picture: Image size .* exceeds limit"):
        load("cifar10", cifar)


def test_a_folder_with_a_pictures_name_is_a_folder(cifar: Path) -> None:
    (cifar / "train" / "cat" / "folder.png").mkdir()
    assert_is_small_cifar(cifar)


def test_a_picture_outside_of_the_classes_is_named(cifar: Path) -> None:
    path = cifar.parent / "pictures.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(cifar / "train" / "cat" / "0.png", "1.png")
    with pytest.raises(DataError, match=r"pictures\.tar: 1\.png does not lie in <split>/<class>/"):
        load("cifar10", path)


def test_ten_classes_are_no_cifar100(cifar: Path) -> None:
    with pytest.raises(DataError, match="train has 10 classes, cifar100 has 100"):
        load("cifar100", cifar)


def test_a_picture_of_another_size_is_named(cifar: Path) -> None:
    save(cifar / "train" / "cat" / "1.png", 3, (31, 32))
    with pytest.raises(DataError, match=r"cat/1\.png has 31x32 pixels, expected 32x32"):
        load("cifar10", cifar)


def test_a_class_without_pictures_is_named(cifar: Path) -> None:
    shutil.rmtree(cifar / "test" / "dog")
    with pytest.raises(DataError, match="test has no pictures of dog"):
        load("cifar10", cifar)


def test_an_interrupted_download_is_named(cifar: Path) -> None:
    path = cifar.parent / "pictures.tar.xz"
    with tarfile.open(path, "w:xz") as archive:
        archive.add(cifar, "cifar10")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"pictures\.tar\.xz is damaged"):
        load("cifar10", path)


def test_torchvisions_folder_is_named_where_it_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cifar-100-python.*--data.download true"):
        load("cifar100", tmp_path)


def test_digits_need_nothing() -> None:
    data = load("digits", None)
    images, labels = data.test[range(300)]
    assert images.shape == (300, 3, 16, 16) and images.max() == 255 and len(labels.unique()) == 10


def idx(array: numpy.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + numpy.array(array.shape, dtype=">i4").tobytes()
    return gzip.compress(header + array.astype(numpy.uint8).tobytes())


def write_fashion(folder: Path) -> None:
    for split, count in (("train", 4), ("t10k", 3)):
        images = numpy.arange(count * 28 * 28).reshape(count, 28, 28) % 256
        (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (folder / f"{split}-labels-idx1-ubyte.gz").write_bytes(idx(numpy.arange(count)))


def test_fashion_mnist_is_read_from_its_files(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    images, labels = load("fashion_mnist", tmp_path).test[[0, 2]]
    assert labels.tolist() == [0, 2]
    assert torch.equal(images[0, 1], (torch.arange(784) % 256).view(28, 28).byte())


@pytest.mark.skipif(not DEBIAN.exists(), reason="needs Debian's dataset-fashion-mnist")
def test_debians_fashion_mnist_is_found() -> None:
    data = load("fashion_mnist", None)
    assert len(data.train) == 60000 and len(data.test) == 10000


@pytest.mark.parametrize("kept", [0, 30, -5])
def test_a_damaged_fashion_mnist_is_named(kept: int, tmp_path: Path) -> None:
    write_fashion(tmp_path)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz is"):
        load("fashion_mnist", tmp_path)


def test_a_missing_fashion_mnist_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="dataset-fashion-mnist"):
        load("fashion_mnist", tmp_path)


# Pictures that stay encoded.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        for label, name in enumerate(("cat", "dog")):
            for number in range(5):
                save(tmp_path / split / name / f"{number}.jpeg", 100 * label + 20 * number, (40, 50 + number))
    return tmp_path


def shards(folder: Path, count: int, each: int) -> None:
    webdataset = pytest.importorskip("webdataset")
    folder.mkdir()
    for shard in range(count):
        with webdataset.TarWriter(str(folder / f"{shard:03}.tar")) as writer:
            for number in range(each):
                buffer = io.BytesIO()
                Image.new("RGB", (40, 36), (shard, 10 * number, 0)).save(buffer, "png")
                key = f"{shard}_{number}"
                writer.write({"__key__": key, "png": buffer.getvalue(), "cls": 100 * shard + number})


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    shards(tmp_path / "train", 3, 4)
    shards(tmp_path / "val", 1, 4)
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_gives_the_same_crops_from_any_batch_on(workers: int, folder: Path) -> None:
    data = load("image_folder", folder, size=24)
    whole = list(TrainingBatches(data.train, 3, 0).epoch(1))
    rest = list(TrainingBatches(data.train, 3, workers).epoch(1, first=1))
    assert whole[0][0].shape == (3, 3, 24, 24) and data.classes == ("cat", "dog")
    for (images, labels), (expected, expected_labels) in zip(rest, whole[1:], strict=True):
        assert torch.equal(images, expected) and torch.equal(labels, expected_labels)


def test_a_folders_crops_change_with_the_epoch(folder: Path) -> None:
    train = load("image_folder", folder, size=24).train
    generator = numpy.random.default_rng(0)
    Image.fromarray(generator.integers(256, size=(40, 50, 3), dtype=numpy.uint8)).save(folder / "train/cat/0.jpeg")
    assert not torch.equal(train[(0, [0])][0], train[(1, [0])][0])


def test_a_folder_is_cropped_for_any_seed(folder: Path) -> None:
    recipe = DataRecipe(name="image_folder", root=folder, size=24)
    pixels = numpy.random.default_rng(0).integers(256, size=(40, 50, 3), dtype=numpy.uint8)
    Image.fromarray(pixels).save(folder / "train/cat/3.jpeg")
    crops = [load_data(recipe, seed).train[(2, [3])][0] for seed in (0, 4, 4, 2**32 - 1)]
    assert torch.equal(crops[1], crops[2])
    assert not torch.equal(crops[0], crops[1]) and not torch.equal(crops[1], crops[3])


def test_shards_of_one_name_size_and_time_have_their_own_index(sharded: Path) -> None:
    """Of 4 pictures each, in blocks of 10 KiB; the second has other labels."""
    (sharded / "train" / "001.tar").replace(sharded / "val" / "000.tar")
    for split in ("train", "val"):
        os.utime(sharded / split / "000.tar", (1e9, 1e9))
    data = load("shards", sharded, size=24)
    assert data.test[range(4)][1].tolist() == [100, 101, 102, 103]


def test_shards_give_their_pictures_and_labels(sharded: Path) -> None:
    images, labels = load("shards", sharded, size=24).test[range(4)]
    assert labels.tolist() == [0, 1, 2, 3]
    assert images[:, 1, 0, 0].tolist() == [0, 10, 20, 30]


def test_an_epoch_of_shards_has_every_picture_and_reads_few_shards_at_a_time(tmp_path: Path) -> None:
    shards(tmp_path / "many", 2 * WINDOW + 1, 3)
    source = Shards(tmp_path / "many", num_classes=10000)
    order = source.order(seed=0, epoch=0)
    assert sorted(order) == list(range(len(source)))
    first = source.shard[order[: 3 * WINDOW]]
    assert len(set(first)) == WINDOW and list(first) != sorted(first)
    assert list(order) != list(source.order(seed=0, epoch=1))


def test_a_limit_leaves_pictures_of_all_classes_of_cifar(cifar: Path) -> None:
    data, again = (load("cifar10", cifar, limit=8) for _ in range(2))
    images, labels = data.train[0, range(8)]
    assert len(data.train) == len(data.test) == 8 and len(set(labels.tolist())) >= 6
    assert torch.equal(images, again.train[0, range(8)][0])
    whole, all_labels = load("cifar10", cifar).train[0, range(20)]
    for image, label in zip(images, labels):
        assert any(torch.equal(image, one) and label == other for one, other in zip(whole, all_labels))


def test_a_limit_leaves_pictures_of_every_class_of_a_folder(folder: Path) -> None:
    data, whole = (load("image_folder", folder, size=24, limit=limit) for limit in (4, None))
    assert len(data.train) == len(data.test) == 4 and sorted(data.train.order(0)) == [0, 1, 2, 3]
    assert data.train[0, range(4)][1].tolist() == [0, 0, 1, 1]
    images, labels = data.test[range(4)]
    expected, _ = whole.test[[0, 2, 5, 7]]
    assert torch.equal(images, expected) and labels.tolist() == [0, 0, 1, 1]


def test_a_limit_leaves_pictures_of_every_shard(sharded: Path) -> None:
    data = load("shards", sharded, size=24, limit=6)
    assert sorted(data.train.order(0)) == [0, 1, 2, 3, 4, 5] and len(data.test) == 4
    assert data.train[0, range(6)][1].tolist() == [0, 2, 100, 102, 200, 202]


def test_shards_have_as_many_classes_as_the_recipe_says(sharded: Path) -> None:
    assert len(load("shards", sharded, size=24, classes=300).classes) == 300
    with pytest.raises(DataError, match=r"train has the label 203, expected 0 to data\.classes - 1 = 202"):
        load("shards", sharded, size=24, classes=203)


def test_a_label_below_zero_is_named(tmp_path: Path) -> None:
    shards(tmp_path / "train", 1, 2)
    with tarfile.open(tmp_path / "train" / "000.tar", "w") as archive:
        for name, content in (("a.png", b"x"), ("a.cls", b"-1")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with pytest.raises(DataError, match="has the label -1, expected 0 to"):
        load("shards", tmp_path, size=24)


def test_a_truncated_shard_is_named(sharded: Path) -> None:
    path = sharded / "train" / "001.tar"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(DataError, match=r"001\.tar is damaged"):
        load("shards", sharded)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_picture_in_a_folder_is_named_by_any_worker(workers: int, folder: Path) -> None:
    train = load("image_folder", folder, size=24).train
    for path in (folder / "train" / "dog").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"^\S+train/dog/\d\.jpeg is no readable picture") as raised:
        list(TrainingBatches(train, 5, workers).epoch(0))
    assert "Traceback" not in str(raised.value)


@pytest.mark.parametrize("name, message", [("image_folder", "<class>/<file>"), ("shards", r"\*\.tar")])
def test_a_missing_folder_says_what_belongs_there(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load(name, tmp_path / "nowhere")
    assert os.listdir(tmp_path) == []
