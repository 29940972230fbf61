"""The command ``mikit capture``; it imports torch when it runs, not for the help."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from mikit.cli.options import Json, require_free_json, write_json
from mikit.cli.terminal import Steps, answered, say

__all__ = ["capture"]


@answered()
def capture(
    factory: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FACTORY", help="Function that returns the network; the module can be in this folder."
        ),
    ],
    checkpoints: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the checkpoints.")],
    data: Annotated[
        Path,
        typer.Option(
            metavar="FILE.npz",
            help="images as inputs of the network, and optionally labels, ids and training_ids; or train_images, "
            "train_labels, test_images and test_labels, of which the test part is used.",
        ),
    ],
    layers: Annotated[
        str,
        typer.Option(metavar="NAMES", help="Layers, separated by commas; layer2:pool4 includes a readout."),
    ],
    out: Annotated[Path, typer.Option(metavar="STORE", help="Store to make or to resume.")],
    pattern: Annotated[
        str,
        typer.Option(metavar="NAME", help="Names of the checkpoints; {phase} matches the phase, * anything."),
    ] = "*{phase}",
    key: Annotated[
        str | None, typer.Option(help="Key of the state dict in a checkpoint, if it is not found automatically.")
    ] = None,
    readout: Annotated[str, typer.Option(help="How activations are pooled.")] = "pool",
    network: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the network in figures; by default that of STORE.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the run, stored with the activations.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples per forward pass.")] = 500,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="cpu or cuda.")] = "cpu",
    json_file: Json = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file of --json; a store is never replaced.")
    ] = False,
) -> None:
    """Record the activations of a network at its saved checkpoints; run it again to resume."""
    require_free_json(json_file, overwrite, data)
    names = [name.strip() for name in layers.split(",") if name.strip()]
    with Steps(lines=True) as steps:
        steps.begin("Reading")
        from mikit.activations import ActivationStore, hash_of_array
        from mikit.activations.checkpoints import CHECKPOINT_ENDINGS, find_checkpoints, record_checkpoints
        from mikit.cli.inputs import model_from, read_probe, require_device

        require_device(device)
        found = find_checkpoints(checkpoints, pattern)
        others = [entry for entry in sorted(checkpoints.iterdir()) if entry.suffix in CHECKPOINT_ENDINGS]
        unmatched = [entry.name for entry in others if entry not in found.values()]
        probe = read_probe(data)
        model = model_from(factory).to(device)
        store = ActivationStore(
            out, network=network or out.resolve().name, seed=seed, data_hash=hash_of_array(probe.images)
        )
        if probe.training_ids is not None:
            store.set_training_ids(probe.training_ids)
        steps.begin(f"Recording {len(found)} phases", total=len(found))
        started = 0

        def advance(phase: int, skipped: bool) -> None:
            nonlocal started
            if started:
                steps.advance()
            started += 1

        done = record_checkpoints(
            model,
            found,
            store,
            probe.images,
            ids=probe.ids,
            layers=names,
            labels=probe.labels,
            readout=readout,
            batch=batch,
            key=key,
            progress=advance,
        )
    notes = store.notes
    summary = {
        "store": str(out),
        "recorded": list(done.recorded),
        "skipped": list(done.skipped),
        "unmatched": unmatched,
        "layers": list(store.layers),
        "rows": len(probe.ids),
        "accuracy": {str(phase): notes[phase]["accuracy"] for phase in found if "accuracy" in notes[phase]},
    }
    if not write_json(json_file, summary, overwrite=overwrite):
        _show(summary, pattern)


def _show(summary: Mapping[str, Any], pattern: str) -> None:
    recorded, layers, accuracy = summary["recorded"], summary["layers"], summary["accuracy"]
    say(f"Recorded {len(recorded)} phases of {len(layers)} layers on {summary['rows']} samples in {summary['store']}.")
    if summary["skipped"]:
        say(f"Already recorded from the same weights: {', '.join(map(str, summary['skipped']))}.")
    if summary["unmatched"]:
        say(f"Not matched by {pattern}: {', '.join(summary['unmatched'])}.")
    if accuracy:
        phases = list(accuracy)
        first, last = phases[0], phases[-1]
        say(f"Accuracy {accuracy[first]:.3f} at phase {first}, {accuracy[last]:.3f} at phase {last}.")
