"""Information flow: what every layer knows, at every phase of training, and how much of the teacher it recovers."""

from __future__ import annotations

from mikit.flow.match_of_flow import match_flow
from mikit.flow.match_result import LayerMatch
from mikit.flow.matching import match_layers
from mikit.flow.result import Flow
from mikit.flow.suggesting import SuggestedPairs, suggest_pairs
from mikit.flow.tracing import trace

__all__ = ["Flow", "LayerMatch", "SuggestedPairs", "match_flow", "match_layers", "suggest_pairs", "trace"]
