"""Jinja templates that end: a chat template is anybody's code, and the sandbox limits neither loops nor texts.

Counters go into the syntax tree before it is compiled: one in the body of each loop, one at each joining of texts.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.visitor import NodeTransformer

MAX_TURNS = 1_000_000  # of all loops of one rendering; 1,000 messages with a loop over all before each take 500,000
MAX_CHARACTERS = 50_000_000  # of one text; the longest contexts hold 10 million tokens
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "*": operator.mul,
    "**": operator.pow,
    "+": operator.add,
    "%": operator.mod,
}
_TURN, _JOIN = "guard_count_turn", "guard_join_texts"


class TooMuchWork(jinja2.TemplateError):
    """A template that loops for too long, or makes too long a text."""


class GuardedTemplate:
    """A template of a sandboxed environment with limits.

    Args:
        environment: sandboxed; it stays as it is.
        source: the template.
    """

    def __init__(self, environment: jinja2.Environment, source: str) -> None:
        self._environment = environment.overlay()
        self._environment.intercepted_binops = frozenset(_OPERATORS)  # type: ignore[attr-defined]
        self._environment.call_binop = _operate  # type: ignore[attr-defined]
        call, center = self._environment.call, self._environment.filters["center"]  # type: ignore[attr-defined]

        def checked_call(context: Any, function: Any, *args: Any, **named: Any) -> Any:
            _check_widths((*args, *named.values()))
            return call(context, function, *args, **named)

        def checked_center(value: str, width: int = 80) -> str:
            _check_widths([width])
            return center(value, width)

        self._environment.call = checked_call  # type: ignore[attr-defined]
        self._environment.filters = {**self._environment.filters, "center": checked_center}
        tree = _Guards().visit(self._environment.parse(source))
        code = self._environment.compile(tree)
        self._template = jinja2.Template.from_code(self._environment, code, self._environment.make_globals(None))

    def render(self, **variables: Any) -> str:
        """As `jinja2.Template.render`.

        Raises:
            TooMuchWork: more than `MAX_TURNS` turns of loops, or a text of more than `MAX_CHARACTERS`.
        """
        turns = 0

        def count_turn() -> None:
            nonlocal turns
            turns += 1
            if turns > MAX_TURNS:
                raise TooMuchWork(f"It loops more than {MAX_TURNS:,} times.")

        length, pieces = 0, []
        for piece in self._template.generate(**{**variables, _TURN: count_turn, _JOIN: _join}):
            length += len(piece)
            _check_length(length)
            pieces.append(piece)
        return "".join(pieces)


class _Guards(NodeTransformer):
    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call(_TURN, []), lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call(_JOIN, node.nodes, node.lineno)


def _call(name: str, arguments: list[Any], lineno: int = 1) -> nodes.Call:
    return nodes.Call(nodes.Name(name, "load", lineno=lineno), arguments, [], None, None, lineno=lineno)


def _join(*texts: Any) -> str:
    found = [str(text) for text in texts]
    _check_length(sum(map(len, found)))
    return "".join(found)


def _operate(_context: Any, symbol: str, left: Any, right: Any) -> Any:
    if symbol == "**" and (abs(right) > 1000 or abs(left) > 1000):
        raise TooMuchWork(f"It raises {left} to the power of {right}.")
    if symbol == "*":
        for times, text in ((left, right), (right, left)):
            if isinstance(times, int) and hasattr(text, "__len__"):
                _check_length(times * len(text))
    elif symbol == "%" and isinstance(left, str):
        _check_widths(map(int, re.findall(r"\d{1,20}", left)))
    elif symbol == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
        _check_length(len(left) + len(right))
    return _OPERATORS[symbol](left, right)


def _check_widths(numbers: Iterable[Any]) -> None:
    for number in numbers:
        if isinstance(number, int):
            _check_length(number)


def _check_length(n: int) -> None:
    if n > MAX_CHARACTERS:
        raise TooMuchWork(f"It makes a text of more than {MAX_CHARACTERS:,} characters.")
