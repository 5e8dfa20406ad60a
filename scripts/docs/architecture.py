"""The drawing and the table of rooms in docs/architecture.md, made from the imports of the code."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Callable
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import grimp

from persona_core.utils.markdown import table
from scripts import PROJECT_ROOT

LIBRARY = "persona_core"
OUTSIDE = ("demo_world", "real_model", "scripts", "benchmarks")
Graph = dict[str, frozenset[str]]


@cache
def rooms() -> Graph:
    """Each room of the library with the rooms that it imports from, imports inside functions included."""
    code = grimp.build_graph(LIBRARY, cache_dir=None)
    names = sorted(code.find_children(LIBRARY))
    return {
        name.removeprefix(f"{LIBRARY}."): frozenset(
            other.removeprefix(f"{LIBRARY}.")
            for other in names
            if other != name and code.direct_import_exists(importer=name, imported=other, as_packages=True)
        )
        for name in names
    }


def reduced(graph: Graph) -> Graph:
    """The graph without arrows that a longer path implies.

    >>> reduced({"a": frozenset("bc"), "b": frozenset("c"), "c": frozenset()})["a"]
    frozenset({'b'})
    """
    below: dict[str, set[str]] = {}
    for name in TopologicalSorter(graph).static_order():  # raises CycleError where rooms import in a circle
        below[name] = set(graph[name]).union(*(below[other] for other in graph[name]))
    return {name: frozenset(o for o in own if not any(o in below[p] for p in own)) for name, own in graph.items()}


def drawing() -> str:
    """A Mermaid graph: an arrow points from a room to one that it imports from."""
    arrows = [f"    {name} --> {other}" for name, own in sorted(reduced(rooms()).items()) for other in sorted(own)]
    return "\n".join(["```mermaid", "graph TD", *arrows, "```"])


def listing() -> str:
    """What each room is for and what it holds, in the order of the layers, from the bottom up."""
    project = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    layers = next(c["layers"] for c in contracts if c["type"] == "layers")
    order = [name for layer in reversed(layers) if (name := layer.strip("()")) in rooms()]
    rows = [_row(PROJECT_ROOT / LIBRARY / name) for name in order]
    return table(("room", "purpose", "files"), rows)


def outside() -> str:
    """The packages that build on the library."""
    return table(("package", "purpose", "files"), [_row(PROJECT_ROOT / name) for name in OUTSIDE])


def _row(path: Path) -> tuple[str, str, str]:
    """A room's name, the first line of its docstring, and its files."""
    if not path.is_dir():
        return f"`{path.name}.py`", _first_line(path.with_suffix(".py")), ""
    files = [f"`{p.stem if p.is_file() else p.name + '/'}`" for p in sorted(path.iterdir()) if _holds_code(p)]
    return f"`{path.name}/`", _first_line(path / "__init__.py"), ", ".join(files)


def _holds_code(path: Path) -> bool:
    if path.is_dir():
        return (path / "__init__.py").is_file()
    return path.suffix == ".py" and not path.stem.startswith("__")


def _first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.split("\n\n")[0].replace("\n", " ")


def counts() -> str:
    """How many rooms, and arrows between them."""
    graph = rooms()
    arrows, drawn = (sum(map(len, g.values())) for g in (graph, reduced(graph)))
    return table(("rooms and single files", "arrows between them", "of them drawn"), [(len(graph), arrows, drawn)])


TABLES: dict[str, Callable[[], str]] = {
    "rooms-drawing": drawing,
    "rooms": listing,
    "rooms-outside": outside,
    "rooms-counts": counts,
}
