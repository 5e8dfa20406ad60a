"""The errors of the library: one small family, each message names the value and the remedy."""

from __future__ import annotations

from collections.abc import Iterable


class PersonaError(Exception):
    """Base of every error that the library raises on purpose."""


class UnsupportedModel(PersonaError):
    """The model's blocks cannot be read: no decoder, 4-D states, a recurrent state."""


class UnknownTrait(PersonaError):
    """A trait that the vectors or the trace do not hold."""

    def __init__(self, trait: str, known: Iterable[str]) -> None:
        super().__init__(f"Unknown trait {trait!r}. Known traits: {', '.join(known) or 'none'}.")


class UnknownBlock(PersonaError):
    """A block that the model, the vectors or the trace do not hold. Never replaced by a neighbour."""


class VectorsMismatch(PersonaError):
    """Vectors made for a model of another width or another number of blocks."""


class NotCalibrated(PersonaError):
    """A z score was asked for, but the vectors carry no null mean and standard deviation."""


class CorruptFile(PersonaError):
    """A file that is truncated, of another format, or not safe to open."""


class NotFound(PersonaError):
    """No such folder and no such repository, or no such file in it."""


class PromptError(PersonaError):
    """A prompt that cannot be rendered: empty, with an unknown role, or refused by the chat template."""


class ContextOverflow(PromptError):
    """Prompt, or prompt and reply, do not fit into the model's context."""


class NumericalError(PersonaError):
    """The model computed NaN or infinity."""


class SettingError(PersonaError):
    """A setting out of its range: a negative temperature, no token to generate, ..."""


class ServerError(PersonaError):
    """A server (of a judge, or of a model that writes) that cannot be used: no key, no answer, no such model."""


class PersonaWarning(UserWarning):
    """Something that does not stop the run but may explain odd numbers."""
