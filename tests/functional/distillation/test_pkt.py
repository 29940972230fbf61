"""Probabilistic knowledge transfer against naive loops, gradients, invariances and the released form."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.distillation.pkt import affinity, pkt

Drawn = Callable[[int], tuple[Tensor, Tensor]]
STRIPS = [None, 1, 3, 7]
EVERY = list(itertools.product(["cosine", "student", "combined"], ["kl", "jeffreys"], [False, True]))


def _rows(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _pair(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    teacher = _rows(n, 4, seed)
    return teacher[:, :3].tanh() + 0.3 * _rows(n, 3, seed + 1), teacher


def _wide_pair(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return rows that are read through their Gram matrices."""
    student, teacher = _pair(n, seed)
    return student @ _rows(3, 2 * n + 1, seed + 8) - 1, teacher @ _rows(4, 3 * n, seed + 9) + 0.5


def _kernel(a: list[float], b: list[float], kernel: str) -> float:
    if kernel == "cosine":
        size = math.hypot(*a) * math.hypot(*b)
        return 0.5 * (math.fsum(p * q for p, q in zip(a, b, strict=True)) / size + 1)
    return 1 / (1 + math.sqrt(math.dist(a, b) ** 2 + 1e-6))


def _probabilities(rows: Tensor, kernel: str, diagonal: bool) -> list[list[float]]:
    points = rows.tolist()
    table = [[_kernel(a, b, kernel) * (diagonal or a is not b) for b in points] for a in points]
    return [[k / math.fsum(row) for k in row] for row in table]


def _by_loops(student: Tensor, teacher: Tensor, kernel: str, divergence: str, diagonal: bool) -> float:
    if kernel == "combined":
        return sum(_by_loops(student, teacher, one, divergence, diagonal) for one in ("cosine", "student"))
    q, p = (_probabilities(rows, kernel, diagonal) for rows in (student, teacher))
    pairs = [(p[i][j], q[i][j]) for i in range(len(p)) for j in range(len(p)) if diagonal or i != j]
    if divergence == "kl":
        return math.fsum(a * math.log(a / b) for a, b in pairs) / len(p)
    return math.fsum((a - b) * (math.log(a) - math.log(b)) for a, b in pairs) / len(p)


def _in_double(student: Tensor, teacher: Tensor, divergence: str) -> Tensor:
    """Return the divergence under the cosine kernel in plain float64 operations on whole matrices."""
    apart = 1 - torch.eye(student.shape[0], dtype=torch.float64)
    units = (rows.double() / rows.double().norm(dim=1, keepdim=True) for rows in (student, teacher))
    kernels = [(unit @ unit.T + 1) * apart for unit in units]
    q, p = (kernel / kernel.sum(dim=1, keepdim=True) + (1 - apart) for kernel in kernels)
    return ((p if divergence == "kl" else p - q) * (p.log() - q.log())).sum(dim=1).mean()


@pytest.mark.parametrize("drawn", [_pair, _wide_pair])
@pytest.mark.parametrize("strip", STRIPS)
@pytest.mark.parametrize(("kernel", "divergence", "diagonal"), EVERY)
def test_the_value_equals_the_naive_loop(
    kernel: str, divergence: str, diagonal: bool, strip: int | None, drawn: Drawn
) -> None:
    student, teacher = drawn(7)
    student[1], teacher[4] = 2 * student[0], teacher[3]  # one direction twice, one point twice
    value = pkt(student, teacher, kernel=kernel, divergence=divergence, diagonal=diagonal, strip=strip)
    assert value.item() == pytest.approx(_by_loops(student, teacher, kernel, divergence, diagonal), abs=1e-12)


@pytest.mark.parametrize("drawn", [_pair, _wide_pair])
@pytest.mark.parametrize("strip", STRIPS)
@pytest.mark.parametrize("kernel", ["cosine", "student"])
@pytest.mark.parametrize("diagonal", [False, True])
def test_the_whole_matrix(kernel: str, diagonal: bool, strip: int | None, drawn: Drawn) -> None:
    _, rows = drawn(7)
    rows[2] = rows[0]
    expected = torch.tensor(_probabilities(rows, kernel, diagonal), dtype=torch.float64)
    found = affinity(rows.requires_grad_(), kernel=kernel, diagonal=diagonal, strip=strip)
    assert torch.allclose(found, expected, atol=1e-13)
    assert not found.requires_grad
    assert affinity(rows.half(), kernel=kernel).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(affinity(rows, kernel=kernel, diagonal=diagonal), expected, atol=1e-13)


@pytest.mark.parametrize("drawn", [_pair, _wide_pair])
@pytest.mark.parametrize(("kernel", "divergence", "diagonal"), EVERY)
def test_gradients(kernel: str, divergence: str, diagonal: bool, drawn: Drawn) -> None:
    student, teacher = drawn(5)
    student[1] = student[0]
    inputs = student.requires_grad_(), teacher.requires_grad_()

    def of(s: Tensor, t: Tensor, strip: int | None = 3) -> Tensor:
        return pkt(s, t, kernel=kernel, divergence=divergence, diagonal=diagonal, strip=strip)

    assert torch.autograd.gradcheck(of, inputs)
    both = torch.autograd.grad(of(*inputs), inputs)
    for strip in (None, 1, 4):
        (alone,) = torch.autograd.grad(of(student, teacher.detach(), strip), student)
        assert torch.allclose(alone, both[0], atol=1e-13)
        (alone,) = torch.autograd.grad(of(student.detach(), teacher, strip), teacher)
        assert torch.allclose(alone, both[1], atol=1e-13)


@pytest.mark.parametrize("kernel", ["cosine", "student", "combined"])
@pytest.mark.parametrize("divergence", ["kl", "jeffreys"])
@pytest.mark.parametrize("strip", STRIPS)
def test_the_released_form(kernel: str, divergence: str, strip: int | None) -> None:
    student, teacher = _pair(7)
    expected = 0.0
    for one in ("cosine", "student") if kernel == "combined" else (kernel,):
        q, p = (_probabilities(rows, one, diagonal=True) for rows in (student, teacher))
        for a, b in ((p[i][j], q[i][j]) for i in range(7) for j in range(7)):
            ratio = (a + 1e-7) / (b + 1e-7)
            expected += a * math.log(ratio) / 49 if divergence == "kl" else (a - b) * math.log(a / b) / 49
    value = pkt(student, teacher, kernel=kernel, divergence=divergence, compat="pkth", strip=strip)
    assert value.item() == pytest.approx(expected, abs=1e-14)
    inputs = student[:5].clone().requires_grad_(), teacher[:5].clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s, t: pkt(s, t, kernel=kernel, divergence=divergence, compat="pkth", strip=strip), inputs
    )


def test_the_epsilon_of_the_released_form_is_the_only_difference_but_for_scale() -> None:
    student, teacher = _pair(20)
    ours = pkt(student, teacher, diagonal=True).item() / 20
    released = pkt(student, teacher, compat="pkth").item()
    assert released == pytest.approx(ours, rel=1e-4)
    assert released != pytest.approx(ours, rel=1e-9)
    exactly = pkt(student, teacher, divergence="jeffreys", diagonal=True).item() / 20
    assert pkt(student, teacher, divergence="jeffreys", compat="pkth").item() == pytest.approx(exactly, rel=1e-12)


@pytest.mark.parametrize("divergence", ["kl", "jeffreys"])
@pytest.mark.parametrize("closeness", [1.0, 0.1, 0.01, 0.001])
def test_nearly_flat_kernels_keep_their_digits_in_single_precision(closeness: float, divergence: str) -> None:
    features, weights, other = _rows(512, 128, 2), _rows(128, 128, 3) / 128**0.5, _rows(128, 128, 4) / 128**0.5
    teacher = torch.relu(features @ weights + 0.5).float()
    student = torch.relu(features @ (weights + closeness * other) + 0.5).float().requires_grad_()
    value = pkt(student, teacher, divergence=divergence)
    value.backward()
    exact = student.detach().double().requires_grad_()
    expected = _in_double(exact, teacher, divergence)
    expected.backward()
    # 1e-3 to 1e-9 nats, of probabilities of 1/511. Ratios are rounded by 1e-7 and differ from 1 by the root.
    assert value.item() == pytest.approx(expected.item(), rel=1e-4 if closeness == 0.001 else 1e-5)
    assert student.grad is not None
    assert exact.grad is not None
    assert (student.grad - exact.grad).norm() < 1e-6 / expected.sqrt() * exact.grad.norm()


@pytest.mark.parametrize("divergence", ["kl", "jeffreys"])
@pytest.mark.parametrize("diagonal", [False, True])
def test_the_student_kernel_in_single_precision(diagonal: bool, divergence: str) -> None:
    samples = [rows.float() for rows in _pair(300)]
    results = []
    for dtype in (torch.float32, torch.float64):
        student, teacher = (rows.to(dtype, copy=True).requires_grad_() for rows in samples)
        value = pkt(student, teacher, kernel="student", diagonal=diagonal, divergence=divergence)
        results.append((value.double(), *(part.double() for part in torch.autograd.grad(value, (student, teacher)))))
    for found, exact in zip(*results, strict=True):
        # A row's own entry, 1e3 from the root, must not enter by its rounding.
        assert (found - exact).norm() < 2e-6 * exact.norm()


@pytest.mark.parametrize("kernel", ["cosine", "student"])
def test_rows_far_from_the_origin(kernel: str) -> None:
    student, teacher = (torch.cat([rows] * 3, dim=1).float() + 1e4 for rows in _pair(200))
    value = pkt(student, teacher, kernel=kernel).item()
    exact = pkt(student.double(), teacher.double(), kernel=kernel).item()
    if kernel == "student":
        assert value == pytest.approx(exact, rel=1e-5)
    else:  # seen from the origin all directions are one, within the rounding of the cosines: 1e-7, squared
        assert abs(exact) < 1e-13
        assert abs(value) < 1e-12


def test_half_precision_is_computed_in_single() -> None:
    student, teacher = (rows.bfloat16() for rows in _pair(40))
    for kernel in ("cosine", "student"):
        exact = pkt(student.double(), teacher.double(), kernel=kernel).item()
        assert pkt(student, teacher, kernel=kernel).dtype == torch.float32
        assert pkt(student, teacher, kernel=kernel).item() == pytest.approx(exact, rel=1e-5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert pkt(student.float(), teacher.float(), kernel=kernel).item() == pytest.approx(exact, rel=1e-5)
    leaf = student.clone().requires_grad_()
    pkt(leaf, teacher, kernel="combined").backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == torch.bfloat16
    assert leaf.grad.isfinite().all()
    large = pkt(student * 2.0**100, teacher).item()  # whose squares are out of range
    assert large == pytest.approx(pkt(student, teacher).item(), rel=1e-6)


@pytest.mark.parametrize("kernel", ["cosine", "student"])
@pytest.mark.parametrize("divergence", ["kl", "jeffreys"])
def test_few_rows(kernel: str, divergence: str) -> None:
    student, teacher = _pair(3)
    value = pkt(student, teacher, kernel=kernel, divergence=divergence).item()
    assert value == pytest.approx(_by_loops(student, teacher, kernel, divergence, False), abs=1e-14)
    # With one other row there is nothing to choose between.
    assert abs(pkt(student[:2], teacher[:2], kernel=kernel, divergence=divergence).item()) < 1e-14


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("divergence", ["kl", "jeffreys"])
def test_opposite_directions(dtype: torch.dtype, divergence: str) -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(40, 30, generator=generator, dtype=dtype)
    student[1::2] = -3 * student[::2]
    student.requires_grad_()
    teacher = torch.randn(40, 30, generator=generator, dtype=dtype)
    for first, second in ((student, teacher), (teacher, student)):
        value = pkt(first, second, divergence=divergence)
        value.backward()
        assert value.isfinite()
        assert value > 0
    assert student.grad is not None
    assert student.grad.isfinite().all()
    # Sixteen epsilons of the cosine in place of 0: the logarithm of one in about forty probabilities.
    assert pkt(student, teacher).item() < -math.log(16 * torch.finfo(dtype).eps) / 39 + 0.1
    against_all = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [-2.0, -2.0]], dtype=dtype)
    assert affinity(against_all)[0].tolist() == pytest.approx([0, 0.5, 0.5], abs=1e-5)
    assert abs(pkt(against_all[:2], teacher[:2]).item()) < 1e-5


def test_rows_of_zeros() -> None:
    student, teacher = _pair(6)
    student[2] = 0
    student[3] = 0
    student.requires_grad_()
    pkt(student, teacher, kernel="cosine").backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert not student.grad[2:4].any()
    assert student.grad[0].any()
    for diagonal in (False, True):
        found = affinity(student, diagonal=diagonal)
        assert torch.allclose(found.sum(dim=1), torch.ones(6, dtype=torch.float64))
        assert torch.allclose(found[2, [0, 1, 3, 4, 5]], torch.tensor(1 / (5 + diagonal), dtype=torch.float64))
    nothing = torch.zeros(6, 3, requires_grad=True)
    for kernel in ("cosine", "student"):
        pkt(nothing, teacher, kernel=kernel).backward()
    assert nothing.grad is not None
    assert nothing.grad.isfinite().all()


def test_wide_rows_of_zeros_and_of_any_length() -> None:
    student, teacher = _wide_pair(6)
    plain = pkt(student, teacher).item()
    lengths = torch.tensor([[1e-15], [1.0], [1e15], [3.0], [1e-4], [1e3]])
    assert pkt(lengths * student.float(), teacher.float()).item() == pytest.approx(plain, rel=1e-5)
    student[2:4] = 0
    student.requires_grad_()
    pkt(student, teacher, kernel="combined").backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    of_cosine = torch.autograd.grad(pkt(student, teacher), student)[0]
    assert not of_cosine[2:4].any()
    assert of_cosine[0].any()
    found = affinity(student)
    assert torch.allclose(found[2, [0, 1, 3, 4, 5]], torch.tensor(1 / 5, dtype=torch.float64))


@pytest.mark.parametrize("kernel", ["cosine", "student", "combined"])
def test_wide_rows_in_single_precision(kernel: str) -> None:
    samples = [torch.relu(rows @ _rows(rows.shape[1], 3000, 4) + 0.5) for rows in _pair(64)]
    results = []
    for dtype in (torch.float32, torch.float64):
        student, teacher = (rows.float().to(dtype).requires_grad_() for rows in samples)
        value = pkt(student, teacher, kernel=kernel, divergence="jeffreys")
        results.append((value.double(), *(part.double() for part in torch.autograd.grad(value, (student, teacher)))))
    for found, exact in zip(*results, strict=True):
        # Rows lie on a surface of few columns: what is left of sums 50 times as large is rounded as those are.
        assert (found - exact).norm() < (1e-6 if kernel == "cosine" else 2e-5) * exact.norm()
    offset = pkt(*(rows.float() + 1e4 for rows in samples), kernel="student").item()
    exact = pkt(*((rows.float() + 1e4).double() for rows in samples), kernel="student").item()
    assert offset == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize(("kernel", "divergence", "diagonal"), EVERY)
def test_invariances(kernel: str, divergence: str, diagonal: bool) -> None:
    def of(s: Tensor, t: Tensor) -> float:
        return pkt(s, t, kernel=kernel, divergence=divergence, diagonal=diagonal).item()

    student, teacher = _pair(25)
    value = of(student, teacher)
    assert value > 1e-3
    order = torch.randperm(25, generator=torch.Generator().manual_seed(0))
    assert of(student[order], teacher[order]) == pytest.approx(value, rel=1e-12)
    assert of(student[order], teacher) > 1.3 * value
    turn = torch.linalg.qr(_rows(3, 3, 5)).Q
    assert of(student @ turn, teacher) == pytest.approx(value, rel=1e-12)
    assert abs(of(teacher @ torch.linalg.qr(_rows(4, 4, 6)).Q, teacher)) < 1e-14
    lengths = _rows(25, 1, 7).exp()
    scaled, shifted = of(lengths * student, 3 * teacher), of(student + 2, teacher - 1)
    assert (scaled == pytest.approx(value, rel=1e-12)) == (kernel == "cosine")
    assert (shifted == pytest.approx(value, rel=1e-12)) == (kernel == "student")


def test_jeffreys_is_both_directions() -> None:
    student, teacher = _pair(25)
    for kernel in ("cosine", "student"):
        there, back = pkt(student, teacher, kernel=kernel), pkt(teacher, student, kernel=kernel)
        assert pkt(student, teacher, kernel=kernel, divergence="jeffreys").item() == pytest.approx(
            (there + back).item(), rel=1e-12
        )
        assert there.item() != pytest.approx(back.item(), rel=1e-3)


@pytest.mark.parametrize("kernel", ["cosine", "student"])
def test_the_size_of_the_batch(kernel: str) -> None:
    """Every row twice is the same neighbourhood, counted over twice as many rows."""
    student, teacher = (rows.repeat(16, 1) for rows in _pair(32))
    whole = pkt(student, teacher, kernel=kernel, diagonal=True).item()
    assert pkt(student[:32], teacher[:32], kernel=kernel, diagonal=True).item() == pytest.approx(whole, rel=1e-9)
    released = pkt(student, teacher, kernel=kernel, compat="pkth").item()
    once = pkt(student[:32], teacher[:32], kernel=kernel, compat="pkth").item()
    assert released == pytest.approx(once / 16, rel=1e-3)
    large, small = (sum(pkt(*_pair(n, seed), kernel=kernel).item() for seed in range(0, 20, 2)) / 10 for n in (400, 50))
    assert large == pytest.approx(small, rel=0.15)


def test_bad_input_is_refused() -> None:
    student, teacher = _pair(6)
    with pytest.raises(InputError, match=r"student has shape \(6,\)"):
        pkt(student[:, 0], teacher)
    with pytest.raises(InputError, match="teacher has 1 samples"):
        pkt(student, teacher[:1])
    with pytest.raises(InputError, match="6 samples"):
        pkt(student, teacher[:5])
    with pytest.raises(InputError, match='kernel is "rbf"; it must be cosine, student or combined'):
        pkt(student, teacher, kernel="rbf")
    with pytest.raises(InputError, match='divergence is "tv"'):
        pkt(student, teacher, divergence="tv")
    with pytest.raises(InputError, match='compat is "PKT"'):
        pkt(student, teacher, compat="PKT")
    with pytest.raises(InputError, match="strip is 0"):
        pkt(student, teacher, strip=0)
    with pytest.raises(InputError, match='kernel is "combined"'):
        affinity(student, kernel="combined")
    with pytest.raises(InputError, match="x has 1 samples"):
        affinity(student[:1])


@pytest.mark.slow
@pytest.mark.parametrize("drawn", [_pair, _wide_pair])
@pytest.mark.parametrize("kernel", ["cosine", "combined"])
def test_the_compiler_takes_it_whole(kernel: str, drawn: Drawn) -> None:
    student, teacher = drawn(40)
    student.requires_grad_()
    compiled = torch.compile(lambda s: pkt(s, teacher, kernel=kernel), fullgraph=True, backend="aot_eager")
    plain = pkt(student, teacher, kernel=kernel)
    assert compiled(student).item() == pytest.approx(plain.item(), rel=1e-12)
    (one,), (other,) = (torch.autograd.grad(value, student) for value in (compiled(student), plain))
    assert torch.allclose(one, other, atol=1e-14)
