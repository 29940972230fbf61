"""Information flow: what every layer knows, at every phase of training, and how much of the teacher it recovers."""

from __future__ import annotations

from mikit.flow.data_processing import data_processing_flags
from mikit.flow.divergence_curves import critical_phases, flow_divergences
from mikit.flow.match_of_flow import match_flow
from mikit.flow.match_result import LayerMatch
from mikit.flow.matching import match_layers
from mikit.flow.paths import PathComparison, compare_paths
from mikit.flow.phases import PhaseReading, layer_geometry, read_phases
from mikit.flow.result import Flow
from mikit.flow.suggesting import SuggestedPairs, suggest_pairs
from mikit.flow.tracing import trace

__all__ = [
    "Flow",
    "LayerMatch",
    "PathComparison",
    "PhaseReading",
    "SuggestedPairs",
    "compare_paths",
    "critical_phases",
    "data_processing_flags",
    "flow_divergences",
    "layer_geometry",
    "match_flow",
    "match_layers",
    "read_phases",
    "suggest_pairs",
    "trace",
]
