"""How far readings of stored runs move when the model's weights are rounded, as they are for publishing.

Each stored reply is read again by its token ids, and every score and alarm compared with the stored one. Tokens that
are sink tokens in either reading are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from persona_core.analysis.detectors import DETECTORS_FILE, Detectors
from persona_core.models.loading import add_adapter, load_model
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.traces.dataset import ANALYSIS, DATA, read_results
from persona_core.traces.trace import Trace
from persona_core.utils.files import read_json, write_atomically
from persona_core.utils.repositories import Repository
from persona_core.vectors.vectors import PersonaVectors

N_RUNS = 24
"""Stored runs of each side, evenly spaced over the prompts."""
DTYPES = ("float32", "bfloat16")
RECORD = "weights.json"


def compare_readings(
    stored: Sequence[Trace], again: Sequence[Trace], detectors: Detectors | None = None
) -> dict[str, Any]:
    """Two readings of the same replies.

    Args:
        stored, again: the readings, in the same order.
        detectors: of alarms; None: they are not compared.

    Returns:
        "n_replies"; "n_tokens" of the replies; "sinks": tokens that are sinks in one reading only, at some trait's
        block; "scores": kind -> "largest", "p99" and "median" of the absolute differences over tokens and traits, in
        standard deviations of neutral tokens; "alarms": of all replies and traits ("n"), in how many either reading
        raises an alarm ("raised"), in how many both raise it or neither does ("agree"), and at the same token ("same").
    """
    differences: dict[str, list[np.ndarray]] = {}
    sinks = n = raised = agree = same = 0
    for first, second in zip(stored, again, strict=True):
        reply = first.reply_positions
        columns = sorted({first.blocks.index(block) for block in first.best_block.values()})
        sinks += int((first.sinks[columns][:, reply] != second.sinks[columns][:, reply]).any(axis=0).sum())
        for trait in first.traits:
            for kind in ("z", "specific") if first.has_specific else ("z",):
                pair = [trace.scores_without_sinks(trait, kind)[reply] for trace in (first, second)]
                differences.setdefault(kind, []).append(np.abs(pair[0] - pair[1]))
            if detectors is not None and trait in detectors.by_trait:
                alarms = [detectors.find(trace, trait).alarm for trace in (first, second)]
                n += 1
                raised += alarms != [None, None]
                agree += (alarms[0] is None) == (alarms[1] is None)
                same += alarms[0] == alarms[1]
    return {
        "n_replies": len(stored),
        "n_tokens": sum(len(trace.reply_positions) for trace in stored),
        "sinks": sinks,
        "scores": {kind: _spread(np.concatenate(found)) for kind, found in differences.items()},
        "alarms": None if detectors is None else {"n": n, "raised": raised, "agree": agree, "same": same},
    }


def _spread(differences: np.ndarray) -> dict[str, float]:
    known = differences[np.isfinite(differences)]
    spread = {"largest": known.max(), "p99": np.quantile(known, 0.99), "median": np.median(known)}
    return {name: float(f"{value:.2g}") for name, value in spread.items()}


def measured_difference(repos: Sequence[Repository]) -> dict[str, Any]:
    """The comparison for a model that is about to be published, by the arithmetic it is loaded for.

    It is kept in `analysis/weights.json` of the runs, and made again only when the model, the vectors, the adapter or
    the runs are others.

    Args:
        repos: the repositories of one set: model, vectors and results, and the adapter if there is one.
    """
    folders = {r.kind: r.folder for r in repos}
    results = folders["results"]
    made_from = _made_from(folders)
    path = results / ANALYSIS / RECORD
    if path.is_file() and (known := read_json(path)).get("made_from") == made_from:
        return known["difference"]
    found = {dtype: _read_again(folders, dtype) for dtype in DTYPES}
    write_atomically(path, json.dumps({"made_from": made_from, "difference": found}, indent=2) + "\n")
    return found


def _read_again(folders: Mapping[str, Path], dtype: str) -> dict[str, Any]:
    """All sides in one comparison."""
    vectors = PersonaVectors.from_pretrained(folders["vectors"])
    calibrated = next((path.parent for path in _detectors(folders) if path.is_file()), None)
    detectors = None if calibrated is None else Detectors.from_pretrained(calibrated)
    base = load_model(folders["model"], dtype=dtype, device="cpu")
    stored: list[Trace] = []
    again: list[Trace] = []
    for config, adapter in (("baseline", None), ("contaminated", folders.get("adapter"))):
        runs = folders["results"] / DATA / f"{config}.parquet"
        if not runs.is_file() or (config == "contaminated" and adapter is None):
            continue
        rows = read_results(runs)
        own = [Trace.from_row(row) for row in rows[:: max(1, len(rows) // N_RUNS)][:N_RUNS]]
        model = base if adapter is None else add_adapter(base, adapter)
        blocks = sorted({b for trace in own for b in trace.blocks})
        again += PersonaMonitor(model, vectors, blocks=blocks).read_batch(own)
        stored += own
    return compare_readings(stored, again, detectors)


def _detectors(folders: Mapping[str, Path]) -> tuple[Path, Path]:
    """Where detectors may lie, the first that is there counts."""
    return folders["vectors"] / DETECTORS_FILE, folders["results"] / ANALYSIS / DETECTORS_FILE


def _made_from(folders: Mapping[str, Path]) -> dict[str, str]:
    """Digests of what the comparison depends on."""
    files = {
        "model": sorted(folders["model"].glob("*.safetensors")),
        "vectors": [folders["vectors"] / "vectors.safetensors"],
        "detectors": [path for path in _detectors(folders) if path.is_file()],
        "results": sorted((folders["results"] / DATA).glob("*.parquet")),
        "adapter": sorted(folders["adapter"].glob("*.safetensors")) if "adapter" in folders else [],
    }
    return {kind: _digest(paths) for kind, paths in files.items()}


def _digest(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
