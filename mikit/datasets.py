"""Small real data sets for the demo, the notebooks and the scripts: scikit-learn's digits, or your own images."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from mikit.core.errors import InputError

__all__ = ["ImageData", "ImagePart", "digits", "from_npz"]

_DIGITS = 1797
# A small compressed file can declare any size, so the unpacked size is checked before anything is read.
_LARGEST_FILE = 8 * 2**30


@final
@dataclass(frozen=True)
class ImagePart:
    """Labeled images with sample ids.

    Attributes:
        images: Float32 tensor ``(n, c, h, w)``.
        labels: LongTensor ``(n,)`` of class indices.
        ids: Integer array ``(n,)``, unique over all parts of one data set.
    """

    images: Tensor
    labels: Tensor
    ids: np.ndarray

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def rows(self, rows: Tensor) -> ImagePart:
        """Return the part with the samples at ``rows``, in that order."""
        return ImagePart(self.images[rows], self.labels[rows], self.ids[rows.numpy()])

    def per_class(self, count: int, *, seed: int) -> ImagePart:
        """Return ``count`` images of every class, drawn with ``seed``, in their original order.

        Raises:
            InputError: If a class has fewer images.

        Example:
            >>> digits().train.per_class(5, seed=0).labels.bincount().tolist()
            [5, 5, 5, 5, 5, 5, 5, 5, 5, 5]
        """
        if count < 1:
            raise InputError(f"per_class was called with {count} images per class; pass at least 1.")
        generator = torch.Generator().manual_seed(seed)
        chosen = []
        for label in range(int(self.labels.max()) + 1):
            rows = torch.nonzero(self.labels == label)[:, 0]
            if rows.shape[0] < count:
                raise InputError(
                    f"Class {label} has {rows.shape[0]} images, fewer than the {count} per class that were requested."
                )
            chosen.append(rows[torch.randperm(rows.shape[0], generator=generator)[:count]])
        return self.rows(torch.cat(chosen).sort().values)


@final
@dataclass(frozen=True)
class ImageData:
    """A data set in two parts without a common image: one for training, one for testing.

    Attributes:
        name: Name for reports.
        classes: Number of classes.
        train: Images to train on.
        test: Images that no network is trained on; accuracies and activations are measured on them.
        shift: Maximum shift of a training view in pixels, per axis.
        flip: Whether training views are mirrored left to right with probability 1/2.
        padding: Padding of shifted views, a mode of ``torch.nn.functional.pad``: ``"constant"`` (0) or ``"reflect"``.
    """

    name: str
    classes: int
    train: ImagePart
    test: ImagePart
    shift: int
    flip: bool
    padding: str

    @property
    def channels(self) -> int:
        """Number of channels of the images."""
        return int(self.train.images.shape[1])

    def views(self, images: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return randomly shifted, and if ``flip`` is set mirrored, copies of ``images`` ``(n, c, h, w)``.

        Example:
            >>> data = digits()
            >>> data.views(data.train.images[:3], generator=torch.Generator().manual_seed(0)).shape
            torch.Size([3, 1, 8, 8])
        """
        n, _, height, width = images.shape
        reach = self.shift
        padded = pad(images, (reach, reach, reach, reach), mode=self.padding)
        top = torch.randint(2 * reach + 1, (n,), generator=generator)
        left = torch.randint(2 * reach + 1, (n,), generator=generator)
        rows = top[:, None] + torch.arange(height)
        columns = left[:, None] + torch.arange(width)
        if self.flip:
            mirrored = torch.rand(n, generator=generator) < 0.5
            columns = torch.where(mirrored[:, None], columns.flip(1), columns)
        sample = torch.arange(n)[:, None, None]
        # Advanced indices around a slice move to the front: (n, h, w, c).
        return padded[sample, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def digits(*, train: int = 797, seed: int = 0) -> ImageData:
    """Return scikit-learn's 1,797 handwritten digits as images ``(n, 1, 8, 8)`` in ``[0, 1]``.

    The ids are row numbers of ``sklearn.datasets.load_digits``.

    Args:
        train: Number of images in the training part; the other ``1797 - train`` are the test part.
        seed: Seed of the split. The same seed gives the same split on every machine.

    Returns:
        The data set.

    Raises:
        InputError: If one of the parts would be empty.

    Cost:
        Parses a compressed text file of 57 kB.

    Pitfalls:
        Both parts can contain digits of the same writer: the test accuracy is for new images, not for new writers.

    Source:
        The test set of the "Optical Recognition of Handwritten Digits" data (UCI), as scikit-learn ships it.

    Example:
        >>> data = digits()
        >>> data.train.images.shape, data.test.images.shape
        (torch.Size([797, 1, 8, 8]), torch.Size([1000, 1, 8, 8]))
    """
    if not 0 < train < _DIGITS:
        raise InputError(f"train is {train}; it must lie between 1 and {_DIGITS - 1}, so that neither part is empty.")
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy((pixels / 16).astype(np.float32)).reshape(-1, 1, 8, 8)
    whole = ImagePart(images, torch.from_numpy(labels.astype(np.int64)), np.arange(_DIGITS))
    order = torch.from_numpy(np.random.default_rng(seed).permutation(_DIGITS))
    return ImageData(
        name="scikit-learn digits",
        classes=10,
        train=whole.rows(order[:train].sort().values),
        test=whole.rows(order[train:].sort().values),
        shift=1,
        flip=False,
        padding="constant",
    )


def from_npz(path: str | Path) -> ImageData:
    """Return your own images from a ``.npz`` file.

    The file contains ``train_images`` and ``test_images``, uint8 ``(n, h, w, c)``, and ``train_labels`` and
    ``test_labels``, integers ``(n,)``. Images become float32 ``(n, c, h, w)``, standardized by the mean and standard
    deviation of each channel over the training part. The ids number the training part first, then the test part.

    Args:
        path: The file.

    Returns:
        The data set, named after the file.

    Raises:
        InputError: If the file is missing or damaged, a key is missing, or an array has the wrong dtype or shape. The
            message names the file and the key.

    Cost:
        Five times the size of the uint8 images in memory.

    Pitfalls:
        Training views are mirrored. Do not use this function for images whose meaning changes when they are mirrored.

    Example:
        >>> import tempfile
        >>> rng = np.random.default_rng(0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "images.npz"
        ...     parts = {"train": 20, "test": 10}
        ...     np.savez(file, **{f"{part}_images": rng.integers(256, size=(n, 32, 32, 3), dtype=np.uint8)
        ...                       for part, n in parts.items()},
        ...              **{f"{part}_labels": np.arange(n) % 2 for part, n in parts.items()})
        ...     data = from_npz(file)
        >>> data.train.images.shape, data.classes
        (torch.Size([20, 3, 32, 32]), 2)
    """
    file = Path(path)
    arrays = _arrays(file, ("train_images", "train_labels", "test_images", "test_labels"))
    for part in ("train", "test"):
        _require_images(file, f"{part}_images", arrays[f"{part}_images"])
        _require_labels(file, f"{part}_labels", arrays[f"{part}_labels"], arrays[f"{part}_images"].shape[0])
    if arrays["train_images"].shape[1:] != arrays["test_images"].shape[1:]:
        raise InputError(
            f'In {file}, "train_images" contains images of shape {arrays["train_images"].shape[1:]} and "test_images" '
            f"images of shape {arrays['test_images'].shape[1:]}; both must have the same height, width and channels."
        )
    unseen = np.setdiff1d(arrays["test_labels"], arrays["train_labels"])
    if unseen.size:
        raise InputError(f'In {file}, "test_labels" contains the label {unseen[0]}, but "train_labels" does not.')
    names = np.unique(arrays["train_labels"])
    if names.size < 2:
        raise InputError(f'In {file}, "train_labels" contains only one class; at least two are needed.')
    count = arrays["train_images"].shape[0]
    train = torch.from_numpy(arrays["train_images"]).permute(0, 3, 1, 2).float()
    test = torch.from_numpy(arrays["test_images"]).permute(0, 3, 1, 2).float()
    mean, spread = train.mean((0, 2, 3), keepdim=True), train.std((0, 2, 3), keepdim=True)
    if bool((spread == 0).any()):
        channel = int(torch.nonzero(spread.flatten() == 0)[0, 0])
        raise InputError(f'In {file}, channel {channel} of "train_images" is constant; leave that channel out.')
    return ImageData(
        name=file.stem,
        classes=int(names.size),
        train=ImagePart(
            (train - mean) / spread,
            torch.from_numpy(np.searchsorted(names, arrays["train_labels"])),
            np.arange(count),
        ),
        test=ImagePart(
            (test - mean) / spread,
            torch.from_numpy(np.searchsorted(names, arrays["test_labels"])),
            np.arange(count, count + test.shape[0]),
        ),
        shift=4 if min(train.shape[-2:]) >= 16 else 1,
        flip=True,
        padding="reflect",
    )


def _arrays(file: Path, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    if not file.is_file():
        raise InputError(f"There is no file {file}. Pass a .npz file with the keys {', '.join(keys)}.")
    try:
        with zipfile.ZipFile(file) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > _LARGEST_FILE:
            raise InputError(f"{file} unpacks to {size / 2**30:.0f} GiB; the limit is {_LARGEST_FILE >> 30} GiB.")
        with np.load(file, allow_pickle=False) as content:
            missing = [key for key in keys if key not in content.files]
            if missing:
                raise InputError(
                    f'{file} has no array "{missing[0]}". It must contain {", ".join(keys)}; it contains '
                    f"{', '.join(sorted(content.files)) or 'nothing'}."
                )
            arrays = {}
            for key in keys:
                try:
                    arrays[key] = content[key]
                except (ValueError, zipfile.BadZipFile, EOFError, OSError) as cause:
                    raise InputError(f'The array "{key}" in {file} cannot be read: {cause}.') from cause
            return arrays
    except zipfile.BadZipFile as cause:
        raise InputError(f"{file} is not a .npz file, or it is damaged: {cause}.") from cause


def _require_images(file: Path, key: str, images: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 4:
        raise InputError(
            f'In {file}, "{key}" has dtype {images.dtype} and shape {images.shape}; it must be uint8 of shape '
            "(n, height, width, channels)."
        )
    if images.shape[0] == 0 or min(images.shape[1:3]) < 8 or not 1 <= images.shape[3] <= 4:
        raise InputError(
            f'In {file}, "{key}" has shape {images.shape}; it must contain at least one image of at least 8×8 pixels '
            "with 1 to 4 channels, in the order (n, height, width, channels)."
        )


def _require_labels(file: Path, key: str, labels: np.ndarray, images: int) -> None:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(
            f'In {file}, "{key}" has dtype {labels.dtype} and shape {labels.shape}; it must be integers of shape (n,).'
        )
    if labels.shape[0] != images:
        raise InputError(
            f'In {file}, "{key}" has {labels.shape[0]} entries for {images} images; it needs one for each image.'
        )
