"""Leading axes of wide layers against the eigendecomposition of the whole covariance."""

from __future__ import annotations

import numpy as np
import pytest

from mikit.functional.flow.leading_axes import leading_axes
from mikit.functional.flow.moments import centered, principal_axes


def _rows(kind: str, n: int, d: int, dtype: type) -> np.ndarray:
    rng = np.random.default_rng(4)
    noise = rng.standard_normal((n, d))
    rows = {
        "power": noise * np.arange(1, d + 1) ** -0.5,
        "low rank": rng.standard_normal((n, 20)) @ rng.standard_normal((20, d)) + 0.1 * noise,
        "flat": noise,
    }[kind]
    return centered((rows + 3).astype(dtype))


def _dense(rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    values, axes = np.linalg.eigh(rows.astype(np.float64).T @ rows.astype(np.float64))
    return values[::-1][:count], axes[:, ::-1][:, :count]


@pytest.mark.parametrize("kind", ["power", "low rank"])
@pytest.mark.parametrize(("dtype", "within"), [(np.float32, 1e-5), (np.float64, 1e-8)])
def test_they_are_those_of_the_covariance(kind: str, dtype: type, within: float) -> None:
    rows = _rows(kind, 700, 300, dtype)
    found = leading_axes(rows, 8, most=300)
    assert found is not None
    values, axes = _dense(rows, 8)
    np.testing.assert_allclose(found.T @ found, np.eye(8), atol=1e-10)
    # The sine of the largest angle between the two spans.
    assert np.linalg.norm(axes - found @ (found.T @ axes), 2) < within
    np.testing.assert_allclose(((rows @ found) ** 2).sum(axis=0), values, rtol=1e-4)


def test_a_flat_spectrum_is_left_to_the_eigendecomposition() -> None:
    rows = _rows("flat", 1100, 1024, np.float32)
    assert leading_axes(rows, 4, most=256) is None
    _, axes = _dense(rows, 4)
    found = principal_axes(rows, 4)
    assert np.linalg.norm(axes - found @ (found.T @ axes), 2) < 1e-4


def test_wide_layers_take_the_short_way_and_agree() -> None:
    rows = _rows("low rank", 400, 1024, np.float32)
    found = principal_axes(rows, 16)
    _, axes = _dense(rows, 16)
    assert found.dtype == np.float32
    assert found.shape == (1024, 16)
    assert np.linalg.norm(axes - found @ (found.T @ axes), 2) < 1e-4
    np.testing.assert_array_equal(found, principal_axes(rows, 16))


def test_a_layer_that_never_varies_has_axes_all_the_same() -> None:
    found = principal_axes(np.zeros((50, 1024), dtype=np.float32), 3)
    np.testing.assert_allclose(found.T @ found, np.eye(3), atol=1e-6)
