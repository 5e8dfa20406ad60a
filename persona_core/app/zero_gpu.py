"""ZeroGPU: work that needs the GPU runs in a process that is forked for it, where the Space lends one.

How `spaces` 0.51 does it, and what that asks of the code (so everywhere, for the sake of one way):

1. Models are loaded when the app starts, in its main thread. Until a GPU is lent, "cuda" is an emulation that holds in
   that thread only; a model that another thread moves to the GPU fails ("Low-level CUDA init reached").
2. The first call forks the process, and the fork is kept for later calls. It has the models that its parent had at
   that moment; one that is loaded afterwards is not there.
3. Arguments, and what is returned or yielded, go through pickle. A `ModelDesk` goes by its number and is found again in
   the fork; a lock, an event or a model cannot go.
4. An error of the fork comes back without its words. So a `PersonaError` crosses as a value and is raised again here.
5. A generator that is closed here ends in the fork at its next item, and closing waits for that. So generators yield
   at every token, if only None, and whatever a press on Stop sets stays with the caller, which closes the generator.
   The fork does not wait for its items to be taken: what it wrote after a Stop is dropped.

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

import gradio as gr

from persona_core.app.settings import AppSettings
from persona_core.errors import PersonaError, ServerError

F = TypeVar("F", bound=Callable[..., Any])


def zero_gpu() -> bool:
    """Whether this is a Space on ZeroGPU."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def on_gpu(function: F) -> F:
    """The function or generator function, run with a GPU where the Space lends one.

    Args:
        function: of the module's level; its arguments and results can be pickled. A GPU is asked for as long as one
            run may take (PERSONA_MAX_SECONDS).

    Returns:
        On ZeroGPU, a function that raises `PersonaError` with the words of one in the fork, and `ServerError` with
        those of ZeroGPU (no GPU is free, a visitor's time is used up); elsewhere the function itself.
    """
    if not zero_gpu():
        return function
    import spaces

    if inspect.isgeneratorfunction(function):

        @wraps(function)
        def there(*args: Any, **kwargs: Any) -> Iterator[Any]:
            try:
                yield from function(*args, **kwargs)
            except PersonaError as error:
                yield _Failed(str(error))

        lent = spaces.GPU(there, duration=_seconds)

        @wraps(function)
        def here(*args: Any, **kwargs: Any) -> Iterator[Any]:
            with _in_words(), closing(lent(*args, **kwargs)) as results:
                for result in results:
                    yield _checked(result)

        return cast(F, here)

    @wraps(function)
    def there_once(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except PersonaError as error:
            return _Failed(str(error))

    lent_once = spaces.GPU(there_once, duration=_seconds)

    @wraps(function)
    def here_once(*args: Any, **kwargs: Any) -> Any:
        with _in_words():
            return _checked(lent_once(*args, **kwargs))

    return cast(F, here_once)


@dataclass(frozen=True)
class _Failed:
    """What a `PersonaError` of the fork said."""

    text: str


def _checked(result: Any) -> Any:
    if isinstance(result, _Failed):
        raise PersonaError(result.text)
    return result


@contextmanager
def _in_words() -> Iterator[None]:
    """ZeroGPU's own errors as ours: pages show those to the visitor."""
    try:
        yield
    except gr.Error as error:
        raise ServerError(str(error.message)) from error


def _seconds(*_: Any, **__: Any) -> int:
    """How long a GPU is asked for; read at each call, after the app has read its .env file."""
    return AppSettings.from_environment().max_seconds
