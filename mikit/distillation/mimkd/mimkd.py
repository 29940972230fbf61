"""MIMKD: contrastive distillation, in which critics find the teacher features of an image among those of others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from mikit.distillation.mimkd.contrast import Contrast
from mikit.distillation.mimkd.features import NetworkFeatures, cells, require_same_images
from mikit.distillation.mimkd.information import MIMKDInformation, read_information
from mikit.distillation.mimkd.terms import FeatureWidths, MIMKDOptions, terms_of
from mikit.estimators.base import seeded
from mikit.estimators.fitting import Training

__all__ = ["MIMKD"]

# Small compared with usual learning rates: the student cannot follow a critic that learns much faster than it does.
CRITIC_RATE = 0.01


@final
class MIMKD(nn.Module):
    r"""Contrastive distillation with a global, a local and a feature term, of a vector and maps of each network.

    Formula: minus a weighted sum of the contrastive objectives of learned critics,

    .. math:: L = -\lambda_g\, J(s, t) - \frac{\lambda_l}{|M_l|} \sum_{m \in M_l} \frac1P \sum_k J(S^m_k, t)
              - \frac{\lambda_f}{|M_f|} \sum_{m \in M_f} \frac1P \sum_k J(S^m_k, T^m_k)

    with the vectors ``s, t`` of student and teacher, and the cells :math:`S^m_k, T^m_k` of the maps ``m`` at position
    ``k``. For ``objective="jsd"``, :math:`J = E[-\log(1 + e^{-c(s,t)})] - E[\log(1 + e^{c(s,t')})] + 2 \log 2`, where
    ``t'`` belongs to another image, at the same position.

    Features are mappings from names to tensors (a dictionary, or the result of :func:`mikit.capture`), named tuples, or
    one tensor. The one tensor ``(n, d)`` is the vector, under any name; tensors ``(n, c, h, w)`` are maps, paired by
    name.

    Args:
        vectors: Widths of the student's and of the teacher's vector; None: no global and no local term.
        maps: Channels of both maps by name; the teacher's number is None for a map that only the student has.
        local: Names of the student's maps in the local term. None: the last one.
        global_weight: :math:`\lambda_g`.
        local_weight: :math:`\lambda_l`.
        feature_weight: :math:`\lambda_f`.
        objective: ``"jsd"``; ``"infonce"``, in both directions; or ``"anchored"``
            (:func:`mikit.functional.anchored_infonce`).
        critic: ``"dot"``: the cosine of two embeddings times ``bound``; ``"concat"``: a perceptron on both sides
            together, its score limited to ``± bound``; or a name for each of ``"global"``, ``"local"`` and
            ``"feature"``.
        negatives: ``"all"``: the other images of the batch; ``"shift"``: one of them, by a random cyclic shift, only
            for ``"jsd"``; None: all if the critic is ``"dot"`` or the objective needs them, else one.
        grid: Maps are averaged to at most this many cells in height and in width; None: to the smaller of both maps.
        width: Width of the critics' layers and embeddings.
        bound: Limit of the scores, in nats.
        critic_rate: The learning rate of the critics in :meth:`param_groups`; None: that of the optimizer.

    Shapes:
        Vectors ``(n, d_s)`` and ``(n, d_t)``; maps ``(n, c_s, h_s, w_s)`` and ``(n, c_t, h_t, w_t)``, averaged to one
        grid. Labels ``(n,)``.

    Unit: nats of the objective: of a Jensen-Shannon divergence with ``"jsd"``. They are not nats of mutual information;
    :meth:`information` estimates those.

    Kind: training loss. With ``"jsd"`` it is 0 for critics that distinguish nothing, and at least ``-1.386`` times the
    sum of the weights.

    Raises:
        InputError: If features do not fit each other or the widths of the loss, a term has no features, labels leave
            no negative, or the batch has one image (two for ``"anchored"``).

    Cost:
        ``O(n P width (d_s + d_t + width))`` per term, and ``O(n² P width)`` for all negatives with ``"dot"``. The
        ``n² P`` scores are stored, and computed in blocks beyond four million unless ``labels`` exclude some.
        ``"concat"`` costs ``O(n P width²)`` with one negative and ``n`` times that with all.

    Pitfalls:
        - The value is not the information: even with the best critic it stays above its minimum for any information.
        - Critics and student with a large common learning rate can drive each other to large scores. The bound of the
          scores and the separate rate of the critics prevent that. ``critic_rate=0.01`` suits SGD with momentum; with
          Adam use about 1e-3.
        - The student is standardized by its example features, with one scale for all features. The statistics are not
          updated in training.
        - Images of one class are negatives of each other, so the critics learn to identify images. ``labels`` exclude
          them. Two views of one image are positives: pass the index of the image as its label.
        - With ``labels`` the critic no longer learns the ratio to the product of the marginals; :meth:`information`
          takes no labels.
        - ``"infonce"`` and ``"anchored"`` depend on the batch size; ``"infonce"`` is at most ``log n``.

    Source:
        Shrivastava, Qi and Ordonez (2021), arXiv 2110.15946, for maximizing a bound on the information of global and
        of local features at once; no code was released. The Jensen-Shannon objective is that of the code of Deep
        InfoMax (rdevon/DIM). The form of the terms, the critics, their bound and all defaults are mikit's.

    Example:
        >>> import mikit
        >>> g = torch.Generator().manual_seed(0)
        >>> student = {"stage3": torch.randn(32, 8, 4, 4, generator=g), "pool": torch.randn(32, 8, generator=g)}
        >>> teacher = {"stage3": torch.randn(32, 16, 8, 8, generator=g), "pool": torch.randn(32, 16, generator=g)}
        >>> kd = mikit.MIMKD.between(student, teacher, generator=g)
        >>> kd.names
        ('global', 'local stage3', 'feature stage3')
        >>> optimizer = torch.optim.SGD(kd.param_groups(), lr=0.1, momentum=0.9)
        >>> mikit.check_optimizer(optimizer, kd)
        >>> kd(student, teacher).shape
        torch.Size([])
    """

    recommended_weight = 3.0

    unit = "nats of the objective"
    kind = "training loss"

    def __init__(
        self,
        vectors: tuple[int, int] | None,
        maps: Mapping[str, tuple[int, int | None]] | None = None,
        *,
        local: Sequence[str] | None = None,
        global_weight: float = 1.0,
        local_weight: float = 1.0,
        feature_weight: float = 1.0,
        objective: str = "jsd",
        critic: str | Mapping[str, str] = "dot",
        negatives: str | None = None,
        grid: int | None = 4,
        width: int = 128,
        bound: float = 10.0,
        critic_rate: float | None = CRITIC_RATE,
    ) -> None:
        super().__init__()
        options = MIMKDOptions(
            local=local,
            global_weight=global_weight,
            local_weight=local_weight,
            feature_weight=feature_weight,
            objective=objective,
            critic=critic,
            negatives=negatives,
            grid=grid,
            width=width,
            bound=bound,
            critic_rate=critic_rate,
        )
        self.vectors = vectors
        self.maps = dict(maps or {})
        self.weights = options.weights
        self.critic_rate = critic_rate
        self.grid = grid
        self._widths = FeatureWidths(vectors, self.maps)
        settings = options.contrasts()
        self.keys = terms_of(self._widths, options)
        self.local = tuple(name for term, name in self.keys if term == "local" and name is not None)
        self.contrasts = nn.ModuleList(Contrast(*self._widths.of_term(key), settings[key[0]]) for key in self.keys)

    @classmethod
    def between(
        cls,
        student: Any,
        teacher: Any,
        *,
        local: Sequence[str] | None = None,
        global_weight: float = 1.0,
        local_weight: float = 1.0,
        feature_weight: float = 1.0,
        objective: str = "jsd",
        critic: str | Mapping[str, str] = "dot",
        negatives: str | None = None,
        grid: int | None = 4,
        width: int = 128,
        bound: float = 10.0,
        critic_rate: float | None = CRITIC_RATE,
        generator: torch.Generator | None = None,
    ) -> Self:
        """Build from example features, which set names, widths and the standardization.

        Args:
            student: The student's features: a mapping or named tuple of one vector and maps. A batch of them.
            teacher: The teacher's, with maps under the same names.
            local: As in the class.
            global_weight: As in the class.
            local_weight: As in the class.
            feature_weight: As in the class.
            objective: As in the class.
            critic: As in the class.
            negatives: As in the class.
            grid: As in the class.
            width: As in the class.
            bound: As in the class.
            critic_rate: As in the class.
            generator: Source of the initial critics; torch's global generator if None.
        """
        widths = FeatureWidths.of(*_both(student, teacher))
        with seeded(generator):
            loss = cls(
                widths.vectors,
                widths.maps,
                local=local,
                global_weight=global_weight,
                local_weight=local_weight,
                feature_weight=feature_weight,
                objective=objective,
                critic=critic,
                negatives=negatives,
                grid=grid,
                width=width,
                bound=bound,
                critic_rate=critic_rate,
            )
        with torch.no_grad():
            for contrast, x, y in loss._read(student, teacher):
                contrast.standardized_by(x, y)
        return loss

    @property
    def names(self) -> tuple[str, ...]:
        """The terms, in order: ``"global"``, ``"local <map>"``, ``"feature <map>"``."""
        return tuple(term if name is None else f"{term} {name}" for term, name in self.keys)

    def forward(
        self,
        student: Any,
        teacher: Any,
        *,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the loss of a batch, 0-dim; the teacher gets no gradient.

        Args:
            student: The student's features, of the same layers as the example features.
            teacher: The teacher's.
            labels: Class indices ``(n,)``: images of one label are not negatives of each other.
            generator: Source of the random shifts; torch's global generator if None. In evaluation mode a shift is half
                the batch.
        """
        return self._weighted(
            [contrast(x, y, labels=labels, generator=generator) for contrast, x, y in self._read(student, teacher)]
        )

    @torch.no_grad()
    def terms(self, student: Any, teacher: Any, *, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Return values to log for a batch now and then, 0-dim and without gradient.

        Returns:
            ``loss``; the objective of every term by its name, without its weight, larger is better; and ``chance``: the
            loss of the same critics with the teacher's features of another image, which is above 0 for a critic that
            recognizes pairs. Shifts are half the batch.
        """
        read = self._read(student, teacher)
        was_training = self.training
        self.eval()
        try:
            values = [contrast(x, y, labels=labels) for contrast, x, y in read]
            # A quarter of the batch, not half of it: half is the shift to the negatives in evaluation mode, so the true
            # partner of an image would be its negative.
            moves = len(read[0][1]) // 4 or len(read[0][1]) - 1
            strangers = [contrast(x, y.roll(moves, dims=0), labels=labels) for contrast, x, y in read]
        finally:
            self.train(was_training)
        named = {name: -value for name, value in zip(self.names, values, strict=True)}
        return {"loss": self._weighted(values), **named, "chance": self._weighted(strangers)}

    def information(
        self,
        student: Any,
        teacher: Any,
        *,
        generator: torch.Generator | None = None,
        training: Training | None = None,
    ) -> MIMKDInformation:
        """Estimate the mutual information of the features, in nats, term by term, with fresh critics.

        For each term a critic of the same form is trained from the start with the Jensen-Shannon objective on three
        fifths of the images, stopped early by one fifth, and evaluated on the last fifth, by the bound of Nguyen,
        Wainwright and Jordan and by the mean score. The critics of the loss are not used: a student trained against
        them would look better than it is. For local and feature terms it bounds the information at one position,
        averaged over the positions of the grid. The critic does not see the position, so the bound is looser if the
        dependence differs between positions.

        Args:
            student: The student's features of many images, in evaluation mode.
            teacher: The teacher's of the same images.
            generator: Source of the split and of all randomness in training; None: seed 0.
            training: Training settings; None: at most 600 steps of 256 images.

        Returns:
            One estimate per term; print it for a table.

        Raises:
            InputError: If there are fewer than 20 images, or as in the class.
        """
        generator = generator or torch.Generator().manual_seed(0)
        readings = {}
        for name, (contrast, x, y) in zip(self.names, self._read(student, teacher), strict=True):
            settings = replace(contrast.settings, objective="jsd")
            readings[name] = read_information(settings, x, y, generator=generator, training=training)
        return MIMKDInformation(readings)

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the critics' matrices in one group and their vectors in another, without weight decay.

        The ``lr`` of both is ``critic_rate``, a recommendation: change it in the groups, or pass another rate or None.
        """
        rate = {} if self.critic_rate is None else {"lr": self.critic_rate}
        matrices = [p for p in self.parameters() if p.ndim > 1]
        vectors = [p for p in self.parameters() if p.ndim <= 1]
        return [{"params": matrices, **rate}, {"params": vectors, "weight_decay": 0.0, **rate}]

    def extra_repr(self) -> str:
        """Return the terms and their weights."""
        weighted = ", ".join(f"{name}: {share:g}" for name, share in zip(self.names, self._shares(), strict=True))
        return f"{{{weighted}}}, grid={self.grid}, critic_rate={self.critic_rate}"

    def _weighted(self, values: Sequence[Tensor]) -> Tensor:
        return torch.stack([weight * value for weight, value in zip(self._shares(), values, strict=True)]).sum()

    def _shares(self) -> list[float]:
        """Return the weight of every term; the maps of one kind of term share its weight."""
        counts = [sum(other == term for other, _ in self.keys) for term, _ in self.keys]
        return [self.weights[term] / count for (term, _), count in zip(self.keys, counts, strict=True)]

    def _read(self, student: Any, teacher: Any) -> list[tuple[Contrast, Tensor, Tensor]]:
        """Return the critic, the student's cells and the teacher's cells of every term."""
        students, teachers = _both(student, teacher)
        self._widths.require(students)
        self._widths.require(teachers)
        found = []
        for (term, name), contrast in zip(self.keys, self.contrasts, strict=True):
            assert isinstance(contrast, Contrast)
            size = None
            if name is not None:
                maps = [students.maps[name], *([teachers.maps[name]] if term == "feature" else [])]
                size = self._size(maps)
            x = students.vector if name is None else students.maps[name]
            y = teachers.maps[str(name)] if term == "feature" else teachers.vector
            assert x is not None
            assert y is not None
            found.append((contrast, cells(x, size), cells(y, size)))
        return found

    def _size(self, maps: Sequence[Tensor]) -> tuple[int, int]:
        most = math.inf if self.grid is None else self.grid
        height, width = (int(min(most, *(one.shape[axis] for one in maps), math.inf)) for axis in (2, 3))
        return height, width


def _both(student: Any, teacher: Any) -> tuple[NetworkFeatures, NetworkFeatures]:
    features = NetworkFeatures.read(student, "student"), NetworkFeatures.read(teacher, "teacher")
    require_same_images(*features)
    return features
