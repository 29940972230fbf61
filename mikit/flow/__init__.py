"""Information flow: label information and recovered share of every layer at every phase of training."""

from __future__ import annotations

from mikit.flow.matching.layers import match_layers
from mikit.flow.matching.of_flow import match_flow
from mikit.flow.matching.result import LayerMatch
from mikit.flow.matching.suggesting import SuggestedPairs, suggest_pairs
from mikit.flow.readings.data_processing import data_processing_flags
from mikit.flow.readings.divergence import critical_phases, flow_divergences
from mikit.flow.readings.paths import PathComparison, compare_paths
from mikit.flow.readings.phases import PhaseReading, layer_geometry, read_phases
from mikit.flow.result import Flow
from mikit.flow.tracing.run import trace

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
