"""The library's exceptions: one small family; each message names the value and the remedy."""

from __future__ import annotations

from collections.abc import Iterable


class PersonaError(Exception):
    """Base class of every error that the library raises deliberately."""


class UnsupportedModel(PersonaError):
    """The model's blocks cannot be read: no decoder, 4-D states or a recurrent state."""


class UnknownTrait(PersonaError):
    """A trait that the vectors or the trace lack."""

    def __init__(self, trait: str, known: Iterable[str]) -> None:
        super().__init__(f"Unknown trait {trait!r}. Known traits: {', '.join(known) or 'none'}.")


class UnknownBlock(PersonaError):
    """A block that the model, the vectors or the trace lack. No other block is used instead."""


class VectorsMismatch(PersonaError):
    """Vectors made for a model of another width or another number of blocks."""


class NotCalibrated(PersonaError):
    """A z score needs a null mean and standard deviation, which the vectors lack."""


class CorruptFile(PersonaError):
    """A file that is truncated, in another format, or unsafe to open."""


class NotFound(PersonaError):
    """No such folder, repository, revision or file; or one of the wrong kind."""


class PromptError(PersonaError):
    """A prompt that cannot be rendered: empty, with an unknown role, or rejected by the chat template."""


class ContextOverflow(PromptError):
    """The prompt, or prompt and reply together, exceed the model's context length."""


class NumericalError(PersonaError):
    """The model produced NaN or infinity."""


class SettingError(PersonaError):
    """An invalid setting, such as a negative temperature, or settings that contradict each other."""


class ServerError(PersonaError):
    """A server (the Hub, a judge, or one that generates replies) that cannot be used: no key, no answer or no model."""


class PersonaWarning(UserWarning):
    """Something that does not stop a run but may explain odd numbers."""
