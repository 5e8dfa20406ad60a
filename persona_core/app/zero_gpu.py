"""ZeroGPU: on a Space that lends a GPU, work that needs it runs in a forked process.

How `spaces` 0.51 works, and what the code must therefore do (everywhere, to keep a single code path):

1. Models are loaded when the app starts, in its main thread. Until a GPU is lent, "cuda" is emulated in
   that thread only; a model that another thread moves to the GPU fails ("Low-level CUDA init reached").
2. The first call forks the process, and the fork is kept for later calls. It has the models that its parent had at
   that moment, and none that are loaded afterwards.
3. Arguments, and what is returned or yielded, go through pickle. A `PooledModel` is sent as its number and looked up
   in the fork; a lock, an event or a model cannot be sent.
4. An error in the fork arrives without its message. So a `PersonaError` is sent as a value and raised again here.
5. A generator that is closed here ends in the fork at its next item, and closing waits for that. So generators yield
   at every token, if only None, and the stop event stays with the caller, which closes the generator. The fork does not
   wait for its items to be consumed: what it wrote after a Stop is dropped.

Without the package `spaces`, or outside ZeroGPU, `on_gpu` changes nothing.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar, cast

from persona_core.app.settings import AppSettings
from persona_core.errors import PersonaError, ServerError

F = TypeVar("F", bound=Callable[..., Any])


def zero_gpu() -> bool:
    """Whether this is a Space on ZeroGPU."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def on_gpu(function: F) -> F:
    """The function or generator function, run with a GPU if the Space lends one.

    Args:
        function: at module level, with arguments and results that can be pickled. The GPU is requested for as long
            as one run may take (PERSONA_MAX_SECONDS).

    Returns:
        On ZeroGPU, a function that raises `PersonaError` with the message of one in the fork, and `ServerError` with
        ZeroGPU's own (no GPU is free, a visitor's quota is used up); elsewhere the function itself.
    """
    if not zero_gpu():
        return function
    import spaces

    if inspect.isgeneratorfunction(function):

        @wraps(function)
        def in_fork(*args: Any, **kwargs: Any) -> Iterator[Any]:
            try:
                yield from function(*args, **kwargs)
            except PersonaError as error:
                yield _ForkError(str(error))

        lent = spaces.GPU(in_fork, duration=_seconds)

        @wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Iterator[Any]:
            with _zero_gpu_errors(), closing(lent(*args, **kwargs)) as results:
                for result in results:
                    yield _raised_here(result)

        return cast(F, wrapped)

    @wraps(function)
    def in_fork_once(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except PersonaError as error:
            return _ForkError(str(error))

    lent_once = spaces.GPU(in_fork_once, duration=_seconds)

    @wraps(function)
    def wrapped_once(*args: Any, **kwargs: Any) -> Any:
        with _zero_gpu_errors():
            return _raised_here(lent_once(*args, **kwargs))

    return cast(F, wrapped_once)


@dataclass(frozen=True)
class _ForkError:
    """The message of a `PersonaError` in the fork."""

    text: str


def _raised_here(result: Any) -> Any:
    if isinstance(result, _ForkError):
        raise PersonaError(result.text)
    return result


@contextmanager
def _zero_gpu_errors() -> Iterator[None]:
    """ZeroGPU's own errors as ours, which the page shows to the visitor."""
    import gradio as gr  # the model pool, which uses this module, also serves without a page

    try:
        yield
    except gr.Error as error:
        raise ServerError(str(error.message)) from error


def _seconds(*_: Any, **__: Any) -> int:
    """How long to request a GPU; read at each call, after the app has read its .env file."""
    return AppSettings.from_environment().max_seconds
