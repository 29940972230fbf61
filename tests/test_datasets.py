from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from mikit.core.errors import InputError
from mikit.datasets import digits, from_npz


def write_images(path, *, size=16, train=24, test=12, **changed):
    rng = np.random.default_rng(3)
    arrays = {
        "train_images": rng.integers(256, size=(train, size, size, 3), dtype=np.uint8),
        "train_labels": np.arange(train) % 3,
        "test_images": rng.integers(256, size=(test, size, size, 3), dtype=np.uint8),
        "test_labels": np.arange(test) % 3,
    } | changed
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return arrays


def test_digits_are_scikit_learns_and_the_parts_share_nothing():
    data = digits()
    pixels, labels = load_digits(return_X_y=True)
    for part in (data.train, data.test):
        assert torch.equal(part.images.flatten(1), torch.from_numpy(pixels[part.ids] / 16).float())
        assert np.array_equal(part.labels.numpy(), labels[part.ids])
    assert sorted([*data.train.ids, *data.test.ids]) == list(range(1797))


def test_the_split_is_decided_by_its_seed_alone():
    first, again, other = digits(), digits(), digits(seed=1)
    assert np.array_equal(first.train.ids, again.train.ids)
    assert not np.array_equal(first.train.ids, other.train.ids)
    # This very split belongs to every published demo.
    assert first.train.ids[:5].tolist() == [2, 5, 8, 12, 13]
    assert len(digits(train=100).test) == 1697


@pytest.mark.parametrize("train", [0, -1, 1797])
def test_digits_refuses_an_empty_part(train):
    with pytest.raises(InputError, match="neither part is empty"):
        digits(train=train)


def test_per_class_draws_the_same_number_of_every_class():
    part = digits().train
    few, again, other = part.per_class(7, seed=1), part.per_class(7, seed=1), part.per_class(7, seed=2)
    assert few.labels.bincount().tolist() == [7] * 10
    assert np.array_equal(few.ids, again.ids)
    assert not np.array_equal(few.ids, other.ids)
    assert set(few.ids) <= set(part.ids)
    assert torch.equal(few.images, part.images[np.searchsorted(part.ids, few.ids)])


def test_per_class_refuses_what_is_not_there():
    with pytest.raises(InputError, match="Class 0 has 74 images, fewer than the 500"):
        digits().train.per_class(500, seed=0)
    with pytest.raises(InputError, match="at least 1"):
        digits().train.per_class(0, seed=0)


def test_views_are_shifts_of_each_image_by_its_own_offset():
    data = digits()
    images = data.train.images[:64]
    before = images.clone()
    views = data.views(images, generator=torch.Generator().manual_seed(0))
    assert torch.equal(images, before)
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    offsets = set()
    for view, whole in zip(views, padded, strict=True):
        fits = [(i, j) for i in range(3) for j in range(3) if torch.equal(view, whole[:, i : i + 8, j : j + 8])]
        assert fits
        offsets.update(fits)
    assert len(offsets) == 9


def test_views_of_own_images_are_also_mirrored(tmp_path):
    write_images(tmp_path / "own.npz")
    data = from_npz(tmp_path / "own.npz")
    assert (data.shift, data.flip, data.padding) == (4, True, "reflect")
    images = data.train.images
    views = data.views(images, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4), mode="reflect")
    kinds = set()
    for view, whole in zip(views, padded, strict=True):
        windows = [whole[:, i : i + 16, j : j + 16] for i in range(9) for j in range(9)]
        kinds.add((any(torch.equal(view, w) for w in windows), any(torch.equal(view, w.flip(-1)) for w in windows)))
    assert kinds == {(True, False), (False, True)}


def test_views_leave_the_global_random_state_alone():
    state = torch.random.get_rng_state()
    data = digits()
    data.views(data.train.images[:4], generator=torch.Generator().manual_seed(0))
    data.train.per_class(2, seed=0)
    assert torch.equal(state, torch.random.get_rng_state())


def test_from_npz_standardises_by_the_training_part(tmp_path):
    arrays = write_images(tmp_path / "own.npz")
    data = from_npz(tmp_path / "own.npz")
    train, test = (arrays[key].astype(np.float64) for key in ("train_images", "test_images"))
    mean, spread = train.mean((0, 1, 2)), train.std((0, 1, 2), ddof=1)
    expected = ((test - mean) / spread).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(data.test.images.numpy(), expected, atol=1e-5)
    assert data.train.images.shape == (24, 3, 16, 16)
    assert np.array_equal(data.train.ids, np.arange(24))
    assert np.array_equal(data.test.ids, np.arange(24, 36))
    assert (data.name, data.classes, data.channels) == ("own", 3, 3)


def test_from_npz_counts_classes_from_zero(tmp_path):
    write_images(tmp_path / "own.npz", train_labels=np.arange(24) % 3 * 10 + 5, test_labels=np.full(12, 15))
    data = from_npz(tmp_path / "own.npz")
    assert data.train.labels.unique().tolist() == [0, 1, 2]
    assert data.test.labels.unique().tolist() == [1]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"train_images": None}, 'no array "train_images"'),
        ({"test_labels": None}, 'no array "test_labels"'),
        ({"train_images": np.zeros((24, 16, 16, 3))}, '"train_images" has dtype float64'),
        ({"train_images": np.zeros((24, 16, 16), np.uint8)}, r'"train_images" .* shape \(24, 16, 16\)'),
        ({"test_images": np.zeros((12, 3, 16, 16), np.uint8)}, '"test_images" has shape'),
        ({"test_images": np.zeros((0, 16, 16, 3), np.uint8)}, '"test_images" has shape'),
        ({"test_images": np.zeros((12, 8, 8, 3), np.uint8)}, "same height, width and channels"),
        ({"train_labels": np.arange(23)}, '"train_labels" has 23 entries for 24 images'),
        ({"train_labels": np.zeros(24)}, '"train_labels" has dtype float64'),
        ({"train_labels": np.zeros(24, int)}, "only one class|but"),
        ({"test_labels": np.full(12, 7)}, "contains the label 7"),
        ({"train_images": np.zeros((24, 16, 16, 3), np.uint8)}, 'channel 0 of "train_images" is constant'),
        ({"train_labels": np.array([None] * 24)}, '"train_labels" .* cannot be read'),
    ],
)
def test_from_npz_names_the_file_and_the_key(tmp_path, changed, said):
    write_images(tmp_path / "own.npz", **changed)
    with pytest.raises(InputError, match=said) as caught:
        from_npz(tmp_path / "own.npz")
    assert "own.npz" in str(caught.value)


def test_from_npz_refuses_what_is_no_npz(tmp_path):
    with pytest.raises(InputError, match="There is no file"):
        from_npz(tmp_path / "missing.npz")
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(InputError, match=r"text\.npz is not a \.npz file"):
        from_npz(tmp_path / "text.npz")
    write_images(tmp_path / "whole.npz")
    content = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"cut\.npz"):
        from_npz(tmp_path / "cut.npz")
    middle = len(content) // 3
    (tmp_path / "flipped.npz").write_bytes(content[:middle] + bytes(64) + content[middle + 64 :])
    with pytest.raises(InputError, match=r"train_images.*flipped\.npz cannot be read"):
        from_npz(tmp_path / "flipped.npz")


def test_from_npz_refuses_a_bomb_before_reading_it(tmp_path, monkeypatch):
    write_images(tmp_path / "own.npz")
    monkeypatch.setattr("mikit.datasets._LARGEST_FILE", 1000)
    with pytest.raises(InputError, match="unpacks to"):
        from_npz(tmp_path / "own.npz")
