"""Where the figures of the documentation are stored, and how they are printed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from persona_core.utils.files import read_json
from persona_core.utils.markdown import HasInterval, interval
from scripts import PROJECT_ROOT

MEASURED = PROJECT_ROOT / "benchmarks" / "results"
ARTIFACTS = PROJECT_ROOT / "artifacts"
SOURCES = {
    "behaviour": ARTIFACTS / "persona-tiny" / "behaviour.json",
    "vectors": ARTIFACTS / "persona-vectors-persona-tiny" / "config.json",
    "findings": ARTIFACTS / "persona-monitoring-persona-tiny" / "analysis" / "findings.json",
    "real_vectors": ARTIFACTS / "persona-vectors-smollm2-135m" / "config.json",
    "real_findings": ARTIFACTS / "persona-monitoring-smollm2-135m" / "analysis" / "findings.json",
}
"""All other names are files of `benchmarks/results/`."""
Figure = Mapping[str, Any]


@cache
def stored(name: str) -> Any:
    """Stored results: one of `SOURCES`, or what `python -m benchmarks.NAME` wrote."""
    return read_json(_path(name))


def is_stored(name: str) -> bool:
    return _path(name).is_file()


def _path(name: str) -> Path:
    return SOURCES.get(name, MEASURED / f"{name}.json")


def number(path: str) -> str:
    """A stored number: the results' name, keys and indices into them, and after a bar a format specification.

    >>> number("onset rate | .0%")
    '5 %'
    """
    words, _, spec = (part.strip() for part in path.partition("|"))
    name, *keys = words.split()
    found = stored(name)
    for key in keys:
        found = found[int(key)] if isinstance(found, list) else found[key]
    if isinstance(found, Mapping):
        return percent(found) if spec.endswith("%") else estimate(found, int(spec or 2))
    return format(found, spec).replace("%", " %")


def percent(share: Figure | HasInterval | None) -> str:
    """A share with its interval."""
    return interval(share, percent=True, missing="not defined")


def estimate(found: Figure | HasInterval | None, digits: int = 2) -> str:
    """An estimate with its interval."""
    return interval(found, digits, missing="not defined")
