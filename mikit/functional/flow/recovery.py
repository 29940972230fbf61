"""How much of one layer a Gaussian recovers from another, under noise of a declared size added in closed form.

A layer is centred and divided by its RMS SD. Noise ``σ Z`` makes the information between two layers of deterministic
networks finite; since only second moments enter, the noise is added to the moments (``σ² I``) and never sampled. Each
layer is factored once (:mod:`mikit.functional.flow.moments`); a pair then costs one cross-product per fold, and a
further noise level costs no pass over data.
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
    centred,
    cross_covariance,
    cross_products,
    factor_layer,
    fold_covariances,
    jackknife,
    principal_axes,
)

__all__ = ["Recovery", "recover", "recovered_share", "require_rows"]


ROWS_PER_COLUMN = 5
_PREFERENCE = 1.25


@final
@dataclass(frozen=True)
class Recovery:
    """The Gaussian information of a student layer on a teacher layer at one noise level.

    Attributes:
        noise: Teacher noise ``σ`` in RMS SDs.
        student_noise: Student noise in RMS SDs.
        information: ``in_sample`` freed from the bias of few rows
            (:func:`~mikit.functional.flow.log_determinants.corrected_information`), in nats.
        held_out: Mean held-out log-score over the folds, in nats; below the truth, but where the layers are nearly
            functions of each other.
        in_sample: Plug-in information of all rows, in nats; above the truth, but where the layers are nearly functions
            of each other.
        corrected: ``in_sample - d_eff(T) d_eff(S) / 2n``, in nats: right for independent layers, too low otherwise. It
            prefers narrow layers among equals, which is why layers are matched by it.
        ceiling: The teacher layer's ceiling, freed from the same bias, in nats.
        standard_error: Delete-one-fold jackknife standard error of the share.
        folds: Number of folds.
    """

    noise: float
    student_noise: float
    information: float
    held_out: float
    in_sample: float
    corrected: float
    ceiling: float
    standard_error: float
    folds: int

    @property
    def midpoint(self) -> float:
        """Middle of the bracket from ``held_out`` to ``in_sample``, in nats, to hold ``information`` against."""
        return 0.5 * (self.held_out + self.in_sample)

    @property
    def share(self) -> float:
        """``information`` over the ceiling; NaN for a teacher layer that never varies."""
        return self.information / self.ceiling if self.ceiling > 0 else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """95 % sampling interval of the share, widened to hold the bracket.

        Student's t, with one degree of freedom less than there are folds. With few rows the bracket is the wider of the
        two, and says how much rests on the correction.
        """
        reach = float(student_t.ppf(0.975, self.folds - 1)) * self.standard_error
        ends = (self.held_out, self.in_sample) if self.ceiling > 0 else ()
        shares = [end / self.ceiling for end in ends]
        return min([self.share - reach, *shares]), max([self.share + reach, *shares])


def recover(
    student: LayerFactor, teacher: LayerFactor, cross: Array, *, noise: Sequence[float], student_noise: float = 0.03
) -> tuple[Recovery, ...]:
    """Score how much of the teacher layer a Gaussian recovers from the student layer, at every noise level.

    Formula: with ``t' = t + σ z`` and ``s' = s + σ_s z``, ``held_out`` is the mean over the folds of
    ``E[log q(t' | s') - log q(t')]``, ``q`` the Gaussian with the moments of the other folds; ``in_sample`` is
    ``-½ log|I - C Cᵀ|`` with ``C`` the whitened cross-covariance of all rows. ``information`` is ``in_sample`` without
    the bias that the sampled spectra of both layers and of the joint layer put into it, and the share is
    ``information`` over ``½ Σ log(1 + λ_i / σ²)``, freed from it likewise.

    Args:
        student: Factor of the student layer.
        teacher: Factor of the teacher layer, on the same rows and folds.
        cross: ``cross_products(student_rows, teacher_rows, parts)``, ``(k, d_s, d_t)``, in the features' own units.
        noise: Teacher noise levels ``σ`` in RMS SDs, positive.
        student_noise: Student noise level in RMS SDs, positive. It serves as a ridge.

    Returns:
        One :class:`Recovery` per noise level: an estimate of the information of the Gaussian law with these moments, in
        nats, and of its share of the ceiling. The share is at most 1 in truth, by data processing.

    Raises:
        InputError: If the folds differ, a noise level is not positive, or there are fewer than ``5 (d_t + d_s)`` rows.

    Cost:
        ``O(k d³)`` per noise level, no pass over rows. For width 256 and 5 folds about 20 ms per noise level.

    Pitfalls:
        It sees linear dependence only and is no mutual information of the noiseless layers. The answer depends on
        ``σ``; conclusions should hold for several. Early layers share the input and score high untrained: compare with
        the untrained network. Below ``5 (d_t + d_s)`` rows both ends of the bracket are far off. The correction holds
        for rows whose overall size is about the same (:mod:`mikit.functional.flow.log_determinants`).

    Source:
        Gaussian mutual information and data processing; the correction is the Marchenko-Pastur equation's [known]; the
        bracket is mikit's own.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> s = centred(rng.standard_normal((4000, 4)))
        >>> t = centred(np.array(s @ np.diag([1.0, 1.0, 0.0, 0.0]) + rng.standard_normal((4000, 4)) * [0, 0, 1, 1]))
        >>> parts = [slice(i, i + 1000) for i in range(0, 4000, 1000)]
        >>> found = recover(factor_layer(s, parts), factor_layer(t, parts), cross_products(s, t, parts), noise=[0.3])
        >>> round(found[0].share, 2)  # half of the directions are copies of the student's
        0.5
    """
    _require_noise([*noise, student_noise])
    if not np.array_equal(student.sizes, teacher.sizes) or cross.shape[0] != student.sizes.shape[0]:
        raise InputError(
            f"The student layer has folds of {student.sizes.tolist()} rows and the teacher layer of "
            f"{teacher.sizes.tolist()}; factor both on the same rows and folds."
        )
    require_rows(student.rows, student.width, teacher.width)
    products = np.asarray(cross) / (student.scale * teacher.scale)
    # Matrices of the size of side a are factored. The other side is summed out first, once per level of its noise: once
    # in all where a is the teacher, so a student is preferred only if it is clearly narrower.
    if teacher.width <= _PREFERENCE * student.width:
        a, b, products = teacher, student, products.transpose(0, 2, 1)
    else:
        a, b = student, teacher
    whole = a.axes.T @ cross_covariance(products.sum(0), a.sums.sum(0), b.sums.sum(0), a.rows) @ b.axes
    fit, held_out = fold_covariances(a, b, products)
    fit = a.fit_axes.transpose(0, 2, 1) @ fit @ b.fit_axes
    held_out = a.fit_axes.transpose(0, 2, 1) @ held_out @ b.fit_axes
    degrees = a.rows - 1
    summed: dict[float, tuple[Array, Array, Array]] = {}
    found = []
    for level in noise:
        noise_a, noise_b = (level, student_noise) if a is teacher else (student_noise, level)
        if noise_b not in summed:
            q = whole / np.sqrt(b.spectrum + noise_b**2)
            summed = {noise_b: ((q @ q.T)[None], *_summed_out(b, fit, held_out, noise_b))}
        whole_gram, gram, moved = summed[noise_b]
        scores, fit_information = _fold_scores(a, gram, moved, noise_a)
        in_sample = _information(_lower_root(whole_gram, 1.0 / np.sqrt(a.spectrum + noise_a**2)[None]))[0]
        fit_ceilings = 0.5 * np.log1p(teacher.fit_spectra / level**2).sum(axis=1)
        whitened_a = a.spectrum * (a.rows / degrees) / noise_a**2
        whitened_b = b.spectrum * (b.rows / degrees) / noise_b**2

        def shifted(shifts: Array, noise_a: float = noise_a, noise_b: float = noise_b) -> Array:
            factors = shifts[:, None] * (degrees / a.rows)
            q = whole / np.sqrt(b.spectrum + factors * noise_b**2)[:, None, :]
            own_weights = 1.0 / np.sqrt(a.spectrum + factors * noise_a**2)
            return _information(_lower_root(q @ q.transpose(0, 2, 1), own_weights))

        ceiling = teacher.ceiling(level)
        excess = a.effective_dimension(noise_a) * b.effective_dimension(noise_b) / (2 * a.rows)
        found.append(
            Recovery(
                noise=float(level),
                student_noise=float(student_noise),
                information=corrected_information(whitened_a, whitened_b, shifted, degrees),
                held_out=float((scores * a.sizes).sum() / a.rows),
                in_sample=float(in_sample),
                corrected=float(in_sample) - excess,
                ceiling=ceiling,
                standard_error=jackknife(fit_information / fit_ceilings) if ceiling > 0 else float("nan"),
                folds=len(a.sizes),
            )
        )
    return tuple(found)


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
    """Return :func:`recover` for two arrays of paired rows, dealt into random folds.

    Formula: as :func:`recover`.

    Args:
        student: ``(n, d_s)``.
        teacher: ``(n, d_t)``, rows paired.
        noise: Teacher noise levels in RMS SDs.
        student_noise: Student noise level in RMS SDs.
        folds: Number of folds.
        reduce: Replace a layer with more columns by its first ``reduce`` principal components. The share is then that
            of the components.
        seed: Seed of the deal.

    Returns:
        One :class:`Recovery` per noise level, in nats and as shares.

    Raises:
        InputError: If rows do not match, there are too few of them, or a noise level is not positive.

    Cost:
        ``O(n d² + k d³)``.

    Pitfalls:
        Those of :func:`recover`.

    Source:
        As :func:`recover`.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> t = rng.standard_normal((2000, 3))
        >>> [round(abs(r.share), 2) for r in recovered_share(rng.standard_normal((2000, 3)), t, noise=[0.3])]
        [0.0]
    """
    if student.ndim != 2 or teacher.ndim != 2 or student.shape[0] != teacher.shape[0]:
        raise InputError(
            f"The student's features have shape {student.shape} and the teacher's {teacher.shape}; pass two arrays "
            "(n, d) whose rows are paired."
        )
    if not 2 <= folds <= student.shape[0]:
        raise InputError(f"folds is {folds}; it must lie between 2 and the number of rows, {student.shape[0]}.")
    parts = np.array_split(np.random.default_rng(seed).permutation(student.shape[0]), folds)
    s, t = centred(student), centred(teacher)
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
            f"{n} rows are too few for a student layer of {d_s} columns and a teacher layer of {d_t}: at least "
            f"{ROWS_PER_COLUMN * (d_s + d_t)} are needed (5 per column), or the estimate is far off in both "
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


def _summed_out(b: LayerFactor, fit: Array, held_out: Array, noise: float) -> tuple[Array, Array]:
    """Return per fold ``Q Qᵀ`` and ``Q E Qᵀ - D Qᵀ - Q Dᵀ``: all that the scores need of side b.

    ``Q`` and ``D`` are the fit and held-out cross-moments with b whitened by its noisy fit covariance, ``E`` its own
    held-out moments in those coordinates.
    """
    w = 1.0 / np.sqrt(b.fit_spectra + noise**2)
    q, d = fit * w[:, None, :], held_out * w[:, None, :]
    own = _with_noise(b.held_out, noise) * (w[:, :, None] * w[:, None, :])
    crossed = d @ q.transpose(0, 2, 1)
    moved = (q @ own) @ q.transpose(0, 2, 1)
    moved -= crossed
    moved -= crossed.transpose(0, 2, 1)
    return q @ q.transpose(0, 2, 1), moved


def _fold_scores(a: LayerFactor, gram: Array, moved: Array, noise: float) -> tuple[Array, Array]:
    """Return each fold's held-out ``E[log q(a, b) - log q(a) - log q(b)]`` and its fit part's information.

    In coordinates that whiten a's noisy fit covariance, a given b has covariance ``I - C Cᵀ``, and the held-out
    residual ``a - C b`` has second moments ``A - D Cᵀ - C Dᵀ + C E Cᵀ``.
    """
    w = 1.0 / np.sqrt(a.fit_spectra + noise**2)
    root = _lower_root(gram, w)
    information = _information(root)
    inverse_root = _inverse_of_lower(root)
    precision = inverse_root.transpose(0, 2, 1) @ inverse_root
    own = _with_noise(a.held_out, noise)
    own_trace = (np.einsum("kii->ki", own) * w**2).sum(axis=1)
    own += moved
    precision *= w[:, :, None] * w[:, None, :]
    return information - 0.5 * (np.einsum("kij,kij->k", precision, own) - own_trace), information


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
        raise InputError(
            "At this noise level a direction of one layer is recovered from the other beyond the precision of the "
            "moments. Declare more noise, or store the activations in float64."
        ) from None


def _information(root: Array) -> Array:
    return np.asarray(-np.log(np.einsum("kii->ki", root)).sum(axis=1))


def _inverse_of_lower(root: Array) -> Array:
    """Return the inverses of lower triangular matrices, by halves, so that nearly all of it is matrix products."""
    size = root.shape[-1]
    if size <= 32:
        return np.linalg.inv(root)
    half = size // 2
    out = np.zeros_like(root)
    out[:, :half, :half] = _inverse_of_lower(root[:, :half, :half])
    out[:, half:, half:] = _inverse_of_lower(root[:, half:, half:])
    out[:, half:, :half] = -out[:, half:, half:] @ (root[:, half:, :half] @ out[:, :half, :half])
    return out
