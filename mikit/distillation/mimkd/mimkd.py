"""MIMKD: critics tell whose teacher features a student's belong to, for whole images and for places in them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from mikit.core.errors import InputError
from mikit.distillation.mimkd.contrast import Contrast, ContrastSettings
from mikit.distillation.mimkd.features import NetworkFeatures, cells, require_same_images
from mikit.distillation.mimkd.information import MIMKDInformation, read_information
from mikit.estimators.base import seeded
from mikit.estimators.fitting import Training

__all__ = ["MIMKD"]

# Of the critics. Small beside the usual rates of networks: a critic that runs ahead of its student pushes it around.
CRITIC_RATE = 0.01


@final
class MIMKD(nn.Module):
    r"""Mutual-information distillation with a global, a local and a feature term, of a vector and maps of each network.

    Formula: minus a weighted sum of contrastive objectives of learned critics,

    .. math:: L = -\lambda_g\, J(s, t) - \frac{\lambda_l}{|M_l|} \sum_{m \in M_l} \frac1P \sum_k J(S^m_k, t)
              - \frac{\lambda_f}{|M_f|} \sum_{m \in M_f} \frac1P \sum_k J(S^m_k, T^m_k)

    with the vectors ``s, t`` of student and teacher, and the cells :math:`S^m_k, T^m_k` of the maps ``m`` at position
    ``k``. For ``objective="jsd"``, :math:`J = E[-\log(1 + e^{-c(s,t)})] - E[\log(1 + e^{c(s,t')})] + 2 \log 2`, where
    ``t'`` belongs to another image, at the same position.

    Features are mappings from names to tensors (a dictionary, or what :func:`mikit.capture` gives), named tuples, or
    one tensor. The one tensor ``(n, d)`` is the vector, whatever its name; tensors ``(n, c, h, w)`` are maps, paired by
    name.

    Args:
        vectors: Widths of the student's and of the teacher's vector; None: no global and no local term.
        maps: Channels of both maps by name; the teacher's is None for a map that only the student has.
        local: Names of the student's maps that the local term reads. None: the last one.
        global_weight: :math:`\lambda_g`.
        local_weight: :math:`\lambda_l`.
        feature_weight: :math:`\lambda_f`.
        objective: ``"jsd"``; ``"infonce"``, in both directions; or ``"anchored"``
            (:func:`mikit.functional.anchored_infonce`).
        critic: ``"dot"``: the cosine of two embeddings times ``bound``; ``"concat"``: a perceptron that reads both
            sides, its score bent into ``± bound``; or a name for each of ``"global"``, ``"local"`` and ``"feature"``.
        negatives: ``"all"``: the other images of the batch; ``"shift"``: one of them, by a random cyclic shift, for
            ``"jsd"`` alone; None: all where the critic is ``"dot"`` or the objective needs them, else one.
        grid: Maps are averaged to at most this many cells in height and in width; None: to the smaller of both maps.
        width: Width of the critics' layers and embeddings.
        bound: Limit of the scores, in nats.
        critic_rate: The learning rate that :meth:`param_groups` gives the critics; None: the optimiser's own.

    Shapes:
        Vectors ``(n, d_s)`` and ``(n, d_t)``; maps ``(n, c_s, h_s, w_s)`` and ``(n, c_t, h_t, w_t)``, averaged to one
        grid. Labels ``(n,)``.

    Unit: nats of the objective: of a Jensen-Shannon divergence with ``"jsd"``. They are not nats of mutual information;
    :meth:`information` gives those.

    Kind: training loss. With ``"jsd"`` it is 0 for critics that know nothing and ``-1.386`` times the sum of the
    weights at least.

    Raises:
        InputError: If features do not fit each other or what the loss was built for, a term has nothing to read, labels
            leave no negative, or the batch has one image (two for ``"anchored"``).

    Cost:
        ``O(n P width (d_s + d_t + width))`` a term, and ``O(n² P width)`` for all negatives with ``"dot"``. Their
        ``n² P`` scores are kept, and streamed beyond four million unless ``labels`` exclude some. ``"concat"`` costs
        ``O(n P width²)`` with one negative and ``n`` times that with all.

    Pitfalls:
        - The value is not the information: at the best critic and for any information it stays above the floor.
        - Critics and student that share a large rate can drive each other up. The bound of the scores and the critics'
          own rate are there against it. ``critic_rate=0.01`` suits SGD with momentum; with Adam give about 1e-3.
        - The student is standardised by its example features, with one scale for all columns, and is not followed.
        - Images of one class are negatives of each other, so the critics learn which image it is. ``labels`` exclude
          them. Two views of one image are positives: pass the index of the image as its label.
        - With ``labels`` the critic no longer learns the ratio to the product law; :meth:`information` takes none.
        - ``"infonce"`` and ``"anchored"`` depend on the batch size; ``"infonce"`` is worth ``log n`` at most.

    Source:
        Shrivastava, Qi and Ordonez (2021), arXiv 2110.15946: the idea of maximising a bound on the information of
        global and of local features at once; no code was released. The Jensen-Shannon objective is that of the code of
        Deep InfoMax (rdevon/DIM). How the terms are formed, the critics, their bound and all defaults are mikit's.

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
        self.vectors = vectors
        self.maps = dict(maps or {})
        self.weights = {"global": global_weight, "local": local_weight, "feature": feature_weight}
        self.critic_rate = critic_rate
        self.grid = grid
        self._require_settings(critic)
        names = {name: critic if isinstance(critic, str) else critic[name] for name in self.weights}
        self._settings = {
            term: ContrastSettings(
                objective=objective,
                critic=name,
                negatives=negatives,
                width=width,
                bound=bound,
            )
            for term, name in names.items()
        }
        self.local = self._local_maps(local)
        self.keys = self._terms()
        self.contrasts = nn.ModuleList(self._contrast(*key) for key in self.keys)

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
        """Build from example features, which set names, widths and the standardisation.

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
            generator: Where the critics' start comes from; torch's global generator if None.
        """
        own, told = NetworkFeatures.read(student, "student"), NetworkFeatures.read(teacher, "teacher")
        require_same_images(own, told)
        alone = [name for name in told.maps if name not in own.maps]
        if alone:
            raise InputError(
                f"The teacher has the maps {_listed(alone)}, which the student lacks: it has {_listed(own.maps)}. Give "
                "the maps that belong together the same name in both, and leave the others out."
            )
        channels = {
            name: (one.shape[1], told.maps[name].shape[1] if name in told.maps else None)
            for name, one in own.maps.items()
        }
        vectors = None
        if own.vector is not None and told.vector is not None:
            vectors = own.vector.shape[1], told.vector.shape[1]
        elif (own.vector is None) != (told.vector is None):
            raise InputError(
                f"The {'teacher' if told.vector is None else 'student'} has no vector (n, d), and the other network "
                "has one. Pass one for each, such as pooled features, or none."
            )
        with seeded(generator):
            loss = cls(
                vectors,
                channels,
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
                contrast.standardised_by(x, y)
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
            student: The student's features, as those it was built from.
            teacher: The teacher's.
            labels: Class indices ``(n,)``: images of one label are no negatives of each other.
            generator: Where shifts are drawn from; torch's global generator if None. In evaluation mode a shift is half
                the batch.
        """
        values = [contrast(x, y, labels=labels, generator=generator) for contrast, x, y in self._read(student, teacher)]
        return torch.stack([weight * value for weight, value in zip(self._shares(), values, strict=True)]).sum()

    @torch.no_grad()
    def terms(self, student: Any, teacher: Any, *, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Return what to log of a batch now and then, 0-dim and without gradient.

        Returns:
            ``loss``; the objective of every term by its name, unweighted, larger is better; and ``chance``: the loss
            of the same critics with the teacher's features of another image, which a critic that knows pairs keeps
            above 0. Shifts are half the batch.
        """
        read = self._read(student, teacher)
        was_training = self.training
        self.eval()
        try:
            values = [contrast(x, y, labels=labels) for contrast, x, y in read]
            # Not by half of the batch, a negative's shift, which would make negatives of the true pairs.
            moves = len(read[0][1]) // 4 or len(read[0][1]) - 1
            strangers = [contrast(x, y.roll(moves, dims=0), labels=labels) for contrast, x, y in read]
        finally:
            self.train(was_training)
        loss, chance = (
            torch.stack([weight * value for weight, value in zip(self._shares(), found, strict=True)]).sum()
            for found in (values, strangers)
        )
        named = {name: -value for name, value in zip(self.names, values, strict=True)}
        return {"loss": loss, **named, "chance": chance}

    def information(
        self,
        student: Any,
        teacher: Any,
        *,
        generator: torch.Generator | None = None,
        training: Training | None = None,
    ) -> MIMKDInformation:
        """Return what the features know of each other, in nats, term by term: never the loss's own critics.

        For each term a fresh critic of the same form is trained with the Jensen-Shannon objective on three fifths of
        the images, stopped by a fifth, and reported on the last fifth, as the bound of Nguyen, Wainwright and Jordan
        and as the mean score. A student that was trained against its critics would game those. Of local and feature
        terms it bounds the information at a position, averaged over the positions of the grid; the critic is not told
        the position, so it finds less where the positions differ in how they depend.

        Args:
            student: The student's features of many images, in evaluation mode.
            teacher: The teacher's of the same images.
            generator: Which images go where, and all of the training; None: seed 0.
            training: How to train; None: 600 steps of 256 images at most.

        Returns:
            A reading a term; print it for a table.

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
        """Return the critics' matrices in one group and their vectors, undecayed, in another, with their own ``lr``.

        The rate is ``critic_rate``, a suggestion: change it in the groups, or build the loss with another or None.
        """
        own = {} if self.critic_rate is None else {"lr": self.critic_rate}
        matrices = [p for p in self.parameters() if p.ndim > 1]
        vectors = [p for p in self.parameters() if p.ndim <= 1]
        return [{"params": matrices, **own}, {"params": vectors, "weight_decay": 0.0, **own}]

    def extra_repr(self) -> str:
        """Return the terms and their weights."""
        weighted = ", ".join(f"{name}: {share:g}" for name, share in zip(self.names, self._shares(), strict=True))
        return f"{{{weighted}}}, grid={self.grid}, critic_rate={self.critic_rate}"

    def _shares(self) -> list[float]:
        counts = [sum(other == term for other, _ in self.keys) for term, _ in self.keys]
        return [self.weights[term] / count for (term, _), count in zip(self.keys, counts, strict=True)]

    def _read(self, student: Any, teacher: Any) -> list[tuple[Contrast, Tensor, Tensor]]:
        """Return critic and cells of every term."""
        own, told = NetworkFeatures.read(student, "student"), NetworkFeatures.read(teacher, "teacher")
        require_same_images(own, told)
        self._require_built_for(own, 0)
        self._require_built_for(told, 1)
        found = []
        for (term, name), contrast in zip(self.keys, self.contrasts, strict=True):
            assert isinstance(contrast, Contrast)
            if name is None:
                assert own.vector is not None
                x = cells(own.vector)
            else:
                maps = [own.maps[name], *([told.maps[name]] if term == "feature" else [])]
                size = self._size(maps)
                x = cells(own.maps[name], size)
            if term == "feature":
                assert name is not None
                y = cells(told.maps[name], size)
            else:
                assert told.vector is not None
                y = cells(told.vector)
            found.append((contrast, x, y))
        return found

    def _size(self, maps: Sequence[Tensor]) -> tuple[int, int]:
        most = math.inf if self.grid is None else self.grid
        height, width = (int(min(most, *(one.shape[axis] for one in maps), math.inf)) for axis in (2, 3))
        return height, width

    def _require_built_for(self, features: NetworkFeatures, side: int) -> None:
        widths: dict[str, int | None] = {} if self.vectors is None else {"vector": self.vectors[side]}
        widths |= {name: both[side] for name, both in self.maps.items() if both[side] is not None}
        found = {name: tensor.shape[1] for name, tensor in features.tensors.items()}
        if found != widths:
            raise InputError(
                f"The {features.side}'s features have the widths {found}, but this MIMKD was built for {widths}. The "
                "student comes first; build the loss with MIMKD.between from features of the same layers."
            )

    def _local_maps(self, local: Sequence[str] | None) -> tuple[str, ...]:
        """Return the student's maps that the local term reads."""
        if not self.weights["local"]:
            return ()
        chosen = tuple(self.maps)[-1:] if local is None else tuple(local)
        unknown = [name for name in chosen if name not in self.maps]
        if unknown:
            raise InputError(f"local names {_listed(unknown)}, but the student's maps are {_listed(self.maps)}.")
        return chosen

    def _terms(self) -> tuple[tuple[str, str | None], ...]:
        """Return the terms with the map each reads, or say which has nothing to read."""
        shared = [name for name, (_, teacher) in self.maps.items() if teacher is not None]
        missing = {
            "global": self.vectors is None and "a vector (n, d) of each network",
            "local": (self.vectors is None or not self.local) and "a vector of each network and a map of the student",
            "feature": not shared and "a map (n, c, h, w) of each network under one name",
        }
        for term, needed in missing.items():
            if self.weights[term] and needed:
                raise InputError(f"The {term} term needs {needed}. Pass it, or {term}_weight=0 to leave the term out.")
        unread = [name for name in self.maps if name not in self.local]
        unread = [name for name in unread if not (name in shared and self.weights["feature"])]
        if unread:
            raise InputError(
                f"No term reads the maps {_listed(unread)}. Give the teacher's map the same name, name them in local=, "
                "or leave them out."
            )
        terms: list[tuple[str, str | None]] = [("global", None)] if self.weights["global"] else []
        terms += [("local", name) for name in self.local]
        return tuple(terms + [("feature", name) for name in shared if self.weights["feature"]])

    def _contrast(self, term: str, name: str | None) -> Contrast:
        student = self.vectors[0] if name is None and self.vectors else self.maps[str(name)][0]
        teacher = self.maps[str(name)][1] if term == "feature" else self.vectors and self.vectors[1]
        assert teacher is not None
        return Contrast(student, teacher, self._settings[term])

    def _require_settings(self, critic: str | Mapping[str, str]) -> None:
        for term, weight in self.weights.items():
            if not 0 <= weight < math.inf:
                raise InputError(f"{term}_weight is {weight}; it must be finite and cannot be negative.")
        if not any(self.weights.values()):
            raise InputError("All weights are 0, so there is no loss. Leave at least one above 0.")
        if self.grid is not None and self.grid < 1:
            raise InputError(
                f"grid is {self.grid}; maps are averaged to at least one cell. Pass None for no averaging."
            )
        if self.critic_rate is not None and not 0 < self.critic_rate < math.inf:
            raise InputError(f"critic_rate is {self.critic_rate}; it must be positive and finite, or None.")
        if not isinstance(critic, str) and set(critic) != set(self.weights):
            raise InputError(
                f"critic names {_listed(critic)}; name one for each of {_listed(self.weights)}, or pass one string."
            )


def _listed(names: Any) -> str:
    return ", ".join(repr(name) for name in names) or "none"
