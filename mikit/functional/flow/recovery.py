"""How much of one layer a Gaussian recovers from another, with noise of a declared size added in closed form.

A layer is centered and divided by its RMS SD. Noise ``σ Z`` makes the information between two layers of deterministic
networks finite. Only second moments are used, so the noise is added to the moments (``σ² I``) and never sampled. Each
layer is factored once (:mod:`mikit.functional.flow.moments`); a pair then costs one cross-product per fold, and a
further noise level costs no pass over the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from scipy.stats import t as student_t

from mikit.core.errors import InputError
from mikit.functional.flow.log_determinants import corrected_information
from mikit.functional.flow.moments import (
    Array,
    LayerFactor,
    centered,
    cross_covariance,
    cross_products,
    factor_layer,
    fold_covariances,
    jackknife,
    principal_axes,
)

__all__ = ["TOO_LITTLE_NOISE", "Recovery", "recover", "recovered_share", "require_rows"]

TOO_LITTLE_NOISE = (
    "At this noise level a direction of one layer is recovered from the other beyond the precision of the moments. "
    "Declare more noise, or store the activations in float64."
)
"""The error message where a covariance is singular in the precision of the features."""

ROWS_PER_COLUMN = 5
_PREFERENCE = 1.25


@final
@dataclass(frozen=True)
class Recovery:
    """The Gaussian information of a student layer about a teacher layer at one noise level, in nats.

    ``held_out`` lies below the true value and ``in_sample`` above it, except where the layers are nearly functions of
    each other. ``information`` is ``in_sample`` with the bias of few samples removed
    (:func:`~mikit.functional.flow.log_determinants.corrected_information`).
    """

    noise: float  # Teacher noise σ, in RMS SDs.
    student_noise: float  # In RMS SDs.
    information: float
    held_out: float  # Mean held-out log-score over the folds.
    in_sample: float  # Plug-in information of all samples.
    # in_sample - d_eff(T) d_eff(S) / 2n: unbiased for independent layers, too low otherwise. Among equals it prefers
    # narrow layers, which is why layers are matched by it.
    corrected: float
    ceiling: float  # Upper limit of the information about the teacher layer, bias-corrected.
    standard_error: float  # Delete-one-fold jackknife standard error of the share.
    folds: int

    @property
    def midpoint(self) -> float:
        """Middle of the bracket from ``held_out`` to ``in_sample``, in nats, to compare ``information`` with."""
        return 0.5 * (self.held_out + self.in_sample)

    @property
    def share(self) -> float:
        """``information`` divided by the ceiling; NaN for a teacher layer that never varies."""
        return self.information / self.ceiling if self.ceiling > 0 else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """95 % sampling interval of the share, widened to contain the bracket.

        Student's t, with one degree of freedom less than there are folds. With few samples the bracket is the wider of
        the two, and shows how much depends on the correction.
        """
        reach = float(student_t.ppf(0.975, self.folds - 1)) * self.standard_error
        ends = (self.held_out, self.in_sample) if self.ceiling > 0 else ()
        shares = [end / self.ceiling for end in ends]
        return min([self.share - reach, *shares]), max([self.share + reach, *shares])


@final
@dataclass(frozen=True)
class _Pair:
    """Two layers and their cross-moments in the eigenbases of both; matrices of the size of side ``a`` are factored."""

    a: LayerFactor
    b: LayerFactor
    whole: Array  # Cross-covariance of all samples.
    fit: Array  # Of the fit part of each fold.
    held_out: Array  # Held-out moments of each fold about the fit means.


def recover(
    student: LayerFactor, teacher: LayerFactor, cross: Array, *, noise: Sequence[float], student_noise: float = 0.03
) -> tuple[Recovery, ...]:
    """Score how much of the teacher layer a Gaussian recovers from the student layer, at every noise level.

    See :func:`recovered_share` for the formula and its limits. Both factors come from the same samples and folds, and
    ``cross`` from ``cross_products``, in the features' own units. ``O(k d³)`` per noise level, without a pass over the
    samples: about 20 ms for width 256 and 5 folds.
    """
    _require_noise([*noise, student_noise])
    if not np.array_equal(student.sizes, teacher.sizes) or cross.shape[0] != student.sizes.shape[0]:
        raise InputError(
            f"The student layer has folds of {student.sizes.tolist()} samples and the teacher layer of "
            f"{teacher.sizes.tolist()}; factor both on the same samples and folds."
        )
    require_rows(student.rows, student.width, teacher.width)
    pair = _paired(student, teacher, cross)
    reduced: dict[float, tuple[Array, Array, Array]] = {}
    found = []
    for level in noise:
        noise_a, noise_b = (level, student_noise) if pair.a is teacher else (student_noise, level)
        if noise_b not in reduced:
            reduced = {noise_b: _summed_out(pair, noise_b)}
        whole_gram, gram, moved = reduced[noise_b]
        scores, fit_information = _fold_scores(pair.a, gram, moved, noise_a)
        weights = 1.0 / np.sqrt(pair.a.spectrum + noise_a**2)
        in_sample = float(_information(_lower_root(whole_gram, weights[None]))[0])
        fit_ceilings = 0.5 * np.log1p(teacher.fit_spectra / level**2).sum(axis=1)
        ceiling = teacher.ceiling(level)
        excess = pair.a.effective_dimension(noise_a) * pair.b.effective_dimension(noise_b) / (2 * pair.a.rows)
        found.append(
            Recovery(
                noise=float(level),
                student_noise=float(student_noise),
                information=_corrected(pair, noise_a, noise_b),
                held_out=float((scores * pair.a.sizes).sum() / pair.a.rows),
                in_sample=in_sample,
                corrected=in_sample - excess,
                ceiling=ceiling,
                standard_error=jackknife(fit_information / fit_ceilings) if ceiling > 0 else float("nan"),
                folds=len(pair.a.sizes),
            )
        )
    return tuple(found)


def _paired(student: LayerFactor, teacher: LayerFactor, cross: Array) -> _Pair:
    products = np.asarray(cross) / (student.scale * teacher.scale)
    # Side b is summed out once per level of its noise. Where a is the teacher that is once in all, since the student's
    # noise is the same for all levels; so the student takes side a only if it is clearly narrower.
    if teacher.width <= _PREFERENCE * student.width:
        a, b, products = teacher, student, products.transpose(0, 2, 1)
    else:
        a, b = student, teacher
    whole = a.axes.T @ cross_covariance(products.sum(0), a.sums.sum(0), b.sums.sum(0), a.rows) @ b.axes
    # In its eigenbasis the covariance of a layer is diagonal whatever the noise, so a further level changes only
    # weights, and no layer is decomposed again.
    fit, held_out = fold_covariances(a, b, products)
    fit = a.fit_axes.transpose(0, 2, 1) @ fit @ b.fit_axes
    held_out = a.fit_axes.transpose(0, 2, 1) @ held_out @ b.fit_axes
    return _Pair(a, b, whole, fit, held_out)


def _corrected(pair: _Pair, noise_a: float, noise_b: float) -> float:
    """Return the in-sample information with the bias of the sampled spectra removed."""
    a, b, degrees = pair.a, pair.b, pair.a.rows - 1

    def plug_in(shifts: Array) -> Array:
        factors = shifts[:, None] * (degrees / a.rows)
        q = pair.whole / np.sqrt(b.spectrum + factors * noise_b**2)[:, None, :]
        return _information(_lower_root(q @ q.transpose(0, 2, 1), 1.0 / np.sqrt(a.spectrum + factors * noise_a**2)))

    whitened_a = a.spectrum * (a.rows / degrees) / noise_a**2
    whitened_b = b.spectrum * (b.rows / degrees) / noise_b**2
    return corrected_information(whitened_a, whitened_b, plug_in, degrees)


def recovered_share(
    student: Array,
    teacher: Array,
    *,
    noise: Sequence[float] = (0.1, 0.3, 1.0),
    student_noise: float = 0.03,
    folds: int = 5,
    reduce: int | None = None,
    seed: int = 0,
) -> tuple[Recovery, ...]:
    """Return how much of a teacher layer a Gaussian recovers from a student layer, at every noise level.

    Formula: with ``t' = t + σ z`` and ``s' = s + σ_s z`` in units of the layers' RMS SDs, ``held_out`` is the mean over
    random folds of ``E[log q(t' | s') - log q(t')]``, where ``q`` is the Gaussian with the moments of the other folds.
    ``in_sample`` is ``-½ log|I - C Cᵀ|`` with ``C`` the whitened cross-covariance of all samples. ``information`` is
    ``in_sample`` minus the bias due to the sampled spectra of both layers and of the joint layer. The share is
    ``information`` divided by ``½ Σ log(1 + λ_i / σ²)``, which is corrected in the same way.

    Args:
        student: Features ``(n, d_s)``.
        teacher: Features ``(n, d_t)`` of the same samples.
        noise: Teacher noise levels ``σ`` in RMS SDs, positive.
        student_noise: Student noise level in RMS SDs, positive. It acts as a ridge penalty.
        folds: Number of folds.
        reduce: Replace a layer with more columns by its first ``reduce`` principal components. The share is then that
            of the components.
        seed: Seed of the random folds.

    Returns:
        One :class:`~mikit.functional.flow.recovery.Recovery` per noise level.

    Unit: nats; ``share`` and ``interval`` are dimensionless.

    Kind: estimate of the information of the Gaussian distribution with these moments, and of its fraction of the
    ceiling. By data processing the true fraction is at most 1.

    Raises:
        InputError: If the samples do not match, a noise level is not positive, or there are fewer than
            ``5 (d_t + d_s)`` samples.

    Cost:
        ``O(n d² + k d³)`` for ``k`` folds, and ``O(k d³)`` per further noise level.

    Pitfalls:
        It detects linear dependence only and is not the mutual information of the noiseless layers. The value depends
        on ``σ``; conclusions should hold for several levels. Early layers share the input and score high untrained:
        compare with the untrained network. Below ``5 (d_t + d_s)`` samples both ends of the bracket are far off. The
        correction assumes samples of about the same overall size (:mod:`mikit.functional.flow.log_determinants`).

    Source:
        Gaussian mutual information and data processing; the correction follows from the Marchenko-Pastur equation;
        the bracket is mikit's own.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> t = rng.standard_normal((2000, 3))
        >>> [round(abs(r.share), 2) for r in recovered_share(rng.standard_normal((2000, 3)), t, noise=[0.3])]
        [0.0]
    """
    if student.ndim != 2 or teacher.ndim != 2 or student.shape[0] != teacher.shape[0]:
        raise InputError(
            f"The student's features have shape {student.shape} and the teacher's {teacher.shape}; pass two arrays (n, "
            "d) whose samples are paired."
        )
    if not 2 <= folds <= student.shape[0]:
        raise InputError(f"folds is {folds}; it must lie between 2 and the number of samples, {student.shape[0]}.")
    parts = np.array_split(np.random.default_rng(seed).permutation(student.shape[0]), folds)
    s, t = centered(student), centered(teacher)
    if reduce is not None:
        s, t = (rows if rows.shape[1] <= reduce else rows @ principal_axes(rows, reduce) for rows in (s, t))
    require_rows(s.shape[0], s.shape[1], t.shape[1])
    return recover(
        factor_layer(s, parts),
        factor_layer(t, parts),
        cross_products(s, t, parts),
        noise=noise,
        student_noise=student_noise,
    )


def require_rows(n: int, d_s: int, d_t: int) -> None:
    """Raise :class:`~mikit.InputError` if there are fewer than ``5 (d_s + d_t)`` rows."""
    if n < ROWS_PER_COLUMN * (d_s + d_t):
        raise InputError(
            f"{n} samples are too few for a student layer of {d_s} features and a teacher layer of {d_t}: at least "
            f"{ROWS_PER_COLUMN * (d_s + d_t)} are needed (5 per feature), or the estimate is far off in both "
            "directions. Record more samples, or reduce the layers to principal components with "
            f"reduce={max(n // (2 * ROWS_PER_COLUMN), 1)} or fewer."
        )


def _require_noise(levels: Sequence[float]) -> None:
    for level in levels:
        if not (np.ndim(level) == 0 and level > 0 and np.isfinite(level)):
            raise InputError(
                f"A noise level is {level!r}; pass positive numbers, in units of the layer's RMS SD. Without noise the "
                "information between two deterministic layers is infinite or undefined."
            )


def _summed_out(pair: _Pair, noise: float) -> tuple[Array, Array, Array]:
    """Return all that the scores need of side b: its Gram matrix of all samples, and two matrices of each fold.

    These are ``Q Qᵀ`` and ``Q E Qᵀ - D Qᵀ - Q Dᵀ``, where ``Q`` and ``D`` are the fit and held-out cross-moments with b
    whitened by its noisy fit covariance, and ``E`` holds its own held-out moments in those coordinates.
    """
    b = pair.b
    whole = pair.whole / np.sqrt(b.spectrum + noise**2)
    w = 1.0 / np.sqrt(b.fit_spectra + noise**2)
    q, d = pair.fit * w[:, None, :], pair.held_out * w[:, None, :]
    moments = _with_noise(b.held_out, noise) * (w[:, :, None] * w[:, None, :])
    crossed = d @ q.transpose(0, 2, 1)
    moved = (q @ moments) @ q.transpose(0, 2, 1)
    moved -= crossed
    moved -= crossed.transpose(0, 2, 1)
    return (whole @ whole.T)[None], q @ q.transpose(0, 2, 1), moved


def _fold_scores(a: LayerFactor, gram: Array, moved: Array, noise: float) -> tuple[Array, Array]:
    """Return each fold's held-out ``E[log q(a, b) - log q(a) - log q(b)]`` and the information of its fit part.

    In coordinates that whiten a's noisy fit covariance, a given b has covariance ``I - C Cᵀ``, and the held-out
    residual ``a - C b`` has second moments ``A - D Cᵀ - C Dᵀ + C E Cᵀ``.
    """
    w = 1.0 / np.sqrt(a.fit_spectra + noise**2)
    root = _lower_root(gram, w)
    information = _information(root)
    inverse_root = _inverse_of_lower(root)
    precision = inverse_root.transpose(0, 2, 1) @ inverse_root
    moments = _with_noise(a.held_out, noise)
    trace = (np.einsum("kii->ki", moments) * w**2).sum(axis=1)
    moments += moved
    precision *= w[:, :, None] * w[:, None, :]
    return information - 0.5 * (np.einsum("kij,kij->k", precision, moments) - trace), information


def _with_noise(moments: Array, noise: float) -> Array:
    out = moments.copy()
    diagonal = np.arange(out.shape[1])
    out[:, diagonal, diagonal] += noise**2
    return out


def _lower_root(gram: Array, weights: Array) -> Array:
    """Return the Cholesky factor of ``I - W Q Qᵀ W`` per fold, ``W`` diagonal."""
    gap = gram * weights[:, :, None]
    gap *= -weights[:, None, :]
    diagonal = np.arange(gap.shape[1])
    gap[:, diagonal, diagonal] += 1.0
    try:
        return np.linalg.cholesky(gap)
    except np.linalg.LinAlgError:
        raise InputError(TOO_LITTLE_NOISE) from None


def _information(root: Array) -> Array:
    return np.asarray(-np.log(np.einsum("kii->ki", root)).sum(axis=1))


def _inverse_of_lower(root: Array) -> Array:
    """Return the inverses of lower triangular matrices."""
    # By halves, so that nearly all of the work is matrix products.
    size = root.shape[-1]
    if size <= 32:
        return np.linalg.inv(root)
    half = size // 2
    out = np.zeros_like(root)
    out[:, :half, :half] = _inverse_of_lower(root[:, :half, :half])
    out[:, half:, half:] = _inverse_of_lower(root[:, half:, half:])
    out[:, half:, :half] = -out[:, half:, half:] @ (root[:, half:, :half] @ out[:, :half, :half])
    return out
