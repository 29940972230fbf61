"""Activations: capturing with hooks, readouts (pooling), activation stores, and reading from files."""

from mikit.activations.capturing import CapturedActivations, capture
from mikit.activations.checkpoints import RecordedCheckpoints, find_checkpoints, load_weights, record_checkpoints
from mikit.activations.layer_names import READOUT_NAMES, parse_readout
from mikit.activations.reading import StoredArray, read_array
from mikit.activations.readout import FirstToken, Flatten, Grid, Pool, Projection, Readout, Tokens, Whole
from mikit.activations.recorder import Recorder, phase_schedule
from mikit.activations.recording import collect_activations, record_activations
from mikit.activations.store.hashing import hash_of_array, hash_of_model
from mikit.activations.store.store import ActivationStore

__all__ = [
    "READOUT_NAMES",
    "ActivationStore",
    "CapturedActivations",
    "FirstToken",
    "Flatten",
    "Grid",
    "Pool",
    "Projection",
    "Readout",
    "RecordedCheckpoints",
    "Recorder",
    "StoredArray",
    "Tokens",
    "Whole",
    "capture",
    "collect_activations",
    "find_checkpoints",
    "hash_of_array",
    "hash_of_model",
    "load_weights",
    "parse_readout",
    "phase_schedule",
    "read_array",
    "record_activations",
    "record_checkpoints",
]
