"""The command ``mikit capture``. torch is imported when it runs, not by the help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mikit.cli.options import Json, require_free_json, write_json
from mikit.cli.terminal import Steps, answered, say
from mikit.core.errors import InputError

__all__ = ["capture"]


@answered()
def capture(
    factory: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FACTORY", help="Function that returns the network; the module may lie in this folder."
        ),
    ],
    checkpoints: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the checkpoints.")],
    data: Annotated[
        Path,
        typer.Option(
            metavar="FILE.npz",
            help="images as the network reads them, and if wanted labels, ids and training_ids; or train_images, "
            "train_labels, test_images and test_labels, of which the test part is taken.",
        ),
    ],
    layers: Annotated[
        str, typer.Option(metavar="NAMES", help="Layers to record, with commas between; layer2:pool4 names a readout.")
    ],
    out: Annotated[Path, typer.Option(metavar="STORE", help="Store to make, or to go on with.")],
    pattern: Annotated[
        str,
        typer.Option(metavar="NAME", help="Names of the checkpoints; {phase} is the number of the phase, * anything."),
    ] = "*{phase}",
    key: Annotated[
        str | None, typer.Option(help="Entry of a checkpoint that holds the weights, where it is not found.")
    ] = None,
    readout: Annotated[str, typer.Option(help="What to keep of an activation.")] = "pool",
    network: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the network in figures; that of STORE without.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the run, to be kept with the store.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Rows of a forward pass.")] = 500,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="cpu or cuda.")] = "cpu",
    json_file: Json = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file of --json; a store is never replaced.")
    ] = False,
) -> None:
    """Record the activations of a network at its saved checkpoints; run it again to go on where it was stopped."""
    require_free_json(json_file, overwrite, data)
    names = [name.strip() for name in layers.split(",") if name.strip()]
    with Steps(lines=True) as steps:
        steps.begin("Reading")
        import torch

        from mikit.activations import ActivationStore, hash_of_array
        from mikit.activations.checkpoints import CHECKPOINT_ENDINGS, find_checkpoints, record_checkpoints
        from mikit.cli.inputs import model_from, read_probe

        if device not in ("cpu", "cuda"):
            raise InputError(f'--device is "{device}"; it must be cpu or cuda.')
        if device == "cuda" and not torch.cuda.is_available():
            raise InputError("--device is cuda, but torch sees no CUDA device here. Leave it out to use the CPU.")
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
        seen = 0

        def shown(phase: int, skipped: bool) -> None:
            nonlocal seen
            if seen:
                steps.advance()
            seen += 1

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
            progress=shown,
        )
    notes = store.notes
    accuracy = {str(phase): notes[phase]["accuracy"] for phase in found if "accuracy" in notes[phase]}
    summary = {
        "store": str(out),
        "recorded": list(done.recorded),
        "skipped": list(done.skipped),
        "unmatched": unmatched,
        "layers": list(store.layers),
        "rows": len(probe.ids),
        "accuracy": accuracy,
    }
    if write_json(json_file, summary, overwrite=overwrite):
        return
    say(f"Recorded {len(done.recorded)} phases of {len(store.layers)} layers on {len(probe.ids)} rows in {out}.")
    if done.skipped:
        say(f"Stood there already, from the same weights: {', '.join(map(str, done.skipped))}.")
    if unmatched:
        say(f"Not matched by {pattern}: {', '.join(unmatched)}.")
    if accuracy:
        first, last = min(found), max(found)
        say(f"Accuracy {accuracy[str(first)]:.3f} at phase {first}, {accuracy[str(last)]:.3f} at phase {last}.")
