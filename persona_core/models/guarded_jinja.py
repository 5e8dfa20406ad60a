"""Jinja templates that end: a chat template is anybody's code, and the sandbox limits neither loops nor texts.

Calls, operators and filters pass through hooks of the environment; loops, lists and joined texts through calls that go
into the syntax tree before it is compiled. Each hook counts, looks at the clock, and checks sizes before a step that
could take long.
"""

from __future__ import annotations

import operator
import re
import sys
import time
from collections.abc import Callable, ItemsView, KeysView, ValuesView
from typing import Any, cast

import jinja2
from jinja2 import nodes, pass_context
from jinja2.visitor import NodeTransformer

MAX_STEPS = (
    1_000_000  # turns and calls of one rendering; 1,000 messages with a loop over all before each: 500,000 turns
)
MAX_SECONDS = 10.0  # of processor time of one rendering; real ones take milliseconds
MAX_CHARACTERS = 50_000_000  # of one text; the longest contexts hold 10 million tokens
MAX_ITEMS = 1_000_000  # of one list, with those of the lists in it
MAX_BYTES = 1_000_000_000  # of all that one rendering makes
MAX_BITS = 10_000  # of one integer
MAX_SHORT = 1000  # of characters to strip, separators of JSON, decimal places
MAX_INDENT, MAX_INDENTED = 16, 10_000  # spaces a level of JSON, and values in it

REMOVED_FILTERS = frozenset(
    re.findall(r"\w+", "batch center filesizeformat pprint slice striptags urlencode urlize wordcount wordwrap xmlattr")
)
"""No known chat template has them, and one call can take hours or all memory."""
REMOVED_METHODS = frozenset({"expandtabs", "translate", "maketrans"})
WHOLE_TEXT = frozenset(
    re.findall(
        r"\w+",
        "capitalize count d default e escape first float forceescape format int last length lower replace safe string "
        "tojson trim upper",
    )
)
"""Filters that read a text in one go; the others take it apart, a Python object a character."""

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "*": operator.mul,
    "**": operator.pow,
    "+": operator.add,
    "-": operator.sub,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
}
_METER = " meter"  # no template can write a name with a space
_CONTAINERS = (list, tuple, set, frozenset, KeysView, ItemsView, ValuesView)
_TEXTS = (str, bytes)
_FIELD = re.compile(r"%(?:\(\w*\))?[-+ #0-9.*]*|\{[^{}]*\}")
_NESTED = re.compile(r"%(?:\(\w*\))?[-+ #0-9.]*\*|\{[^{}]*:[^{}]*\{")
_INTERNAL = ("_loop_vars", "_block_vars")  # with which Jinja calls a function in a loop or block
_NUMBER = re.compile(r"\d{1,20}")


class TooMuchWork(jinja2.TemplateError):
    """A template that takes too long, or makes too much."""


class GuardedTemplate:
    """A template of a sandboxed environment with limits.

    Args:
        environment: sandboxed; it stays as it is.
        source: the template.

    Attributes:
        environment: with the limits; what parses the template elsewhere must take this one, which folds no constants.
    """

    def __init__(self, environment: jinja2.Environment, source: str) -> None:
        self.environment = cast(Any, environment.overlay())
        call = self.environment.call

        def checked_call(context: Any, function: Any, *args: Any, **named: Any) -> Any:
            meter: _Meter = context.parent[_METER]
            meter.step()
            if function is _turn:
                return ""
            method = getattr(function, "__wrapped__", function)  # the sandbox wraps str.format
            owner = getattr(method, "__self__", None)
            given = {name: value for name, value in named.items() if name not in _INTERNAL}
            if function is self.environment.globals.get("namespace"):
                _walk([*args, *given.values()])
            if isinstance(owner, (*_TEXTS, int)):
                args = _check_method(method.__name__, owner, args, given)
            return meter.made(call(context, function, *args, **named))

        self.environment.call = checked_call
        self.environment.intercepted_binops = frozenset(_OPERATORS)
        self.environment.call_binop = _operate
        self.environment.filters = {
            name: _guarded(name, function)
            for name, function in environment.filters.items()
            if name not in REMOVED_FILTERS
        }
        self.environment.globals = {name: v for name, v in environment.globals.items() if name != "lipsum"}
        self.environment.concat = lambda pieces: _join(*pieces)
        vars(self.environment).update(guard_turn=_turn, guard_join=_join, guard_made=_same, guard_kept=_kept)
        tree = _Guards().visit(self.environment.parse(source))
        code = self.environment.compile(tree)
        self._template = jinja2.Template.from_code(self.environment, code, self.environment.make_globals(None))

    def render(self, **variables: Any) -> str:
        """As `jinja2.Template.render`.

        Raises:
            TooMuchWork: more than one of the limits of this module.
        """
        length, pieces = 0, []
        for piece in self._template.generate(**{**variables, _METER: _Meter()}):
            length += len(piece)
            _check_length(length)
            pieces.append(piece)
        return "".join(pieces)


class _Meter:
    """What one rendering has used."""

    def __init__(self) -> None:
        self._steps, self._bytes, self._end = 0, 0, time.thread_time() + MAX_SECONDS

    def step(self) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise TooMuchWork(f"It loops and calls more than {MAX_STEPS:,} times.")
        if time.thread_time() > self._end:
            raise TooMuchWork(f"It takes longer than {MAX_SECONDS:g} s.")

    def made(self, value: Any) -> Any:
        """The value, if it is not too large."""
        _check_size(value)
        self._bytes += sys.getsizeof(value)
        if isinstance(value, _CONTAINERS):
            self._bytes += 56 * len(value)  # a short text in each place
        if self._bytes > MAX_BYTES:
            raise TooMuchWork(f"It makes more than {MAX_BYTES:,} bytes of texts and lists.")
        return value


class _Guards(NodeTransformer):
    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("guard_turn", [], node.lineno), lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("guard_join", node.nodes, node.lineno)

    def visit_List(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        is_plain = getattr(node, "ctx", "load") != "load" or all(isinstance(n, nodes.Const) for n in node.items)
        return node if is_plain else _call("guard_made", [node], node.lineno)

    visit_Tuple = visit_Dict = visit_List

    def visit_Assign(self, node: nodes.Assign) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.target, nodes.NSRef):
            node.node = _call("guard_kept", [node.node], node.lineno)
        return node


def _call(name: str, arguments: list[Any], lineno: int) -> nodes.Call:
    function = nodes.EnvironmentAttribute(name, lineno=lineno)
    return nodes.Call(function, arguments, [], None, None, lineno=lineno)


def _turn(**_: Any) -> str:
    return ""


def _same(value: Any, **_: Any) -> Any:
    return value


def _kept(value: Any, **_: Any) -> Any:
    """What a namespace is given; one in another could be shown only by a text that doubles with each level."""
    if isinstance(value, jinja2.utils.Namespace):
        raise TooMuchWork("It puts a namespace into a namespace.")
    return value


def _join(*texts: Any, **_: Any) -> str:
    found = [str(text) for text in texts]
    _check_length(sum(map(len, found)))
    return "".join(found)


def _operate(context: Any, symbol: str, left: Any, right: Any) -> Any:
    meter: _Meter = context.parent[_METER]
    meter.step()
    bits = [n.bit_length() for n in (left, right) if isinstance(n, int)]
    power = bits[0] * abs(right) if symbol == "**" and len(bits) == 2 else 0
    if max([power, *bits]) > MAX_BITS:
        raise TooMuchWork(f"It computes with integers of more than {MAX_BITS:,} bits.")
    if symbol == "*":
        for times, value in ((left, right), (right, left)):
            if isinstance(times, int) and hasattr(value, "__len__"):
                _check_length(times * len(value), MAX_CHARACTERS if isinstance(value, _TEXTS) else MAX_ITEMS)
    elif symbol == "%" and isinstance(left, _TEXTS):
        _check_format(left, right)
    elif symbol == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
        _check_length(len(left) + len(right))
    return meter.made(_OPERATORS[symbol](left, right))


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter with the checks; one that takes the context is never computed when the template is compiled."""
    kind = getattr(getattr(function, "jinja_pass_arg", None), "name", None)

    @pass_context
    def checked(context: Any, value: Any = None, *args: Any, **named: Any) -> Any:
        meter: _Meter = context.parent[_METER]
        meter.step()
        if hasattr(value, "__len__") and name not in WHOLE_TEXT:
            _check_length(len(value), MAX_ITEMS)
        options = [*args, *named.values()]
        if name == "join" and not hasattr(value, "__len__"):
            value = list(value)
        if name in ("join", "replace", "trim", "format"):
            _check_method("strip" if name == "trim" else name, value, args, named, is_filter=True)
        elif name == "tojson":
            _check_size(value)
            _check_length(sum(_size(option) for option in options if isinstance(option, (str, tuple))), MAX_SHORT)
            if any(isinstance(option, (int, str)) and not isinstance(option, bool) for option in options):
                _check_length(_walk(value)[1], MAX_INDENTED)
                _check_widths(options, MAX_INDENT)
        elif name == "indent":
            lines = len(str(value).splitlines()) + 1
            _check_length(lines * max((len(o) if isinstance(o, str) else int(o) for o in options), default=4))
        elif name == "round":
            _check_widths(options, MAX_SHORT)
        elif name == "sum" and any(isinstance(option, _CONTAINERS) for option in options):
            raise TooMuchWork("It adds up lists with sum.")
        first = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}
        return meter.made(function(*([first[kind]] if kind else []), value, *args, **named))

    return checked


def _check_method(
    name: str, owner: Any, args: tuple[Any, ...], named: dict[str, Any], is_filter: bool = False
) -> tuple[Any, ...]:
    """Refuse a call of a method of a text or number that would make too much; the arguments to call it with."""
    if name in REMOVED_METHODS:
        raise TooMuchWork(f"It calls {name}, which can take all memory.")
    given = [*args, *named.values()]
    if name in ("format", "format_map"):
        _check_format(owner, given)
        return args
    if name == "join" and (is_filter or len(args) == 1):
        parts, between = (owner, given) if is_filter else (args[0], [owner])
        if not hasattr(parts, "__len__"):
            parts, args = (found := list(parts)), (found,)
        _check_length(_size(parts) + len(parts) * max(map(_size, between), default=0))
        return args
    texts = [value for value in given if isinstance(value, _TEXTS)]
    if name == "replace" and isinstance(owner, _TEXTS) and texts:
        times = owner.count(texts[0]) if len(args) == len(given) else len(owner) + 1  # type: ignore[arg-type]
        _check_length(len(owner) + times * max(map(len, texts)))
    elif name in ("strip", "lstrip", "rstrip"):
        _check_length(max(map(len, texts), default=0), MAX_SHORT)
    if not is_filter:
        _check_widths(given, MAX_CHARACTERS)
    return args


def _check_format(text: Any, values: Any) -> None:
    """Each field could hold all values, as wide as the numbers in it."""
    text = text.decode("latin-1") if isinstance(text, bytes) else str(text)
    fields, size = _FIELD.findall(text), _size(values)
    widths = [int(number) for field in fields for number in _NUMBER.findall(field)]
    if _NESTED.search(text):  # a width is among the values
        widths += [int(number) * len(fields) for number in _NUMBER.findall(str(values))]
    _check_length(len(text) + sum(widths) + len(fields) * size)


def _check_widths(options: list[Any], limit: int) -> None:
    for option in options:
        if isinstance(option, int) and abs(option) > limit:
            raise TooMuchWork(f"It asks for a width of more than {limit:,}.")


def _check_length(n: int, limit: int = MAX_CHARACTERS) -> None:
    if n > limit:
        raise TooMuchWork(f"It makes a text or list of more than {limit:,} characters or items.")


def _check_size(value: Any) -> None:
    if isinstance(value, (str, bytes, dict, *_CONTAINERS)):
        _check_length(_size(value))


def _size(value: Any) -> int:
    return _walk(value)[0]


def _walk(value: Any) -> tuple[int, int]:
    """Characters of all texts in a value, with one for each item, and the items; too many of them are refused."""
    size, count, left = 0, 0, [value]
    while left:
        one = left.pop()
        count += 1
        size += len(one) if isinstance(one, _TEXTS) else 1
        if isinstance(one, dict):
            left += [*one.keys(), *one.values()]
        elif isinstance(one, _CONTAINERS):
            left += one
        elif isinstance(one, jinja2.utils.Namespace) and one is not value:
            raise TooMuchWork("It puts a namespace into a list.")  # it may be filled later, without end
        _check_length(count + len(left), MAX_ITEMS)
        _check_length(size)
    return size, count
