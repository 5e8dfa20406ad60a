"""What runs a model: the one interface through which replies are written and texts are read.

An engine takes token ids, the directions to read at some blocks, changes to the residual stream and a seed for each
reply; it gives token ids, projections and norms. The decode loop of this room is the engine "transformers";
`persona_core.inference.vllm` holds others. Each is held against it: the same blocks, tokens, seeds and interventions.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from persona_core.inference.batch import DecodeStep
from persona_core.inference.decode import decode
from persona_core.inference.hooks import ResidualTap
from persona_core.inference.prefill import read_rows
from persona_core.inference.readings import Arrays

if TYPE_CHECKING:
    import torch

    from persona_core.inference.pooled_states import PooledStates
    from persona_core.inference.sampling import Sampling
    from persona_core.inference.sections import ReplyFollower
    from persona_core.inference.steering import Intervention
    from persona_core.models.language_model import LanguageModel


@dataclass(frozen=True)
class Readout:
    """What a run reads and changes of the residual stream.

    Attributes:
        directions: block -> unit directions, float32 `[d_model, n_traits]`, the same traits in each; may be empty.
        interventions: changes, in the order in which they act.
        pooled: also takes the states of all blocks.
    """

    directions: Mapping[int, torch.Tensor] = field(default_factory=dict)
    interventions: Sequence[Intervention] = ()
    pooled: PooledStates | None = None


class Engine(Protocol):
    """Runs one model. Runs of several callers do not see each other's states, changes or tokens."""

    def write(
        self,
        lm: LanguageModel,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int],
        readout: Readout,
        n_kept: Sequence[int],
        batch_size: int,
        indices: Sequence[int],
        follower: ReplyFollower | None,
        ended: Collection[int] = (),
    ) -> Generator[DecodeStep]:
        """Continue prompts; arguments, order of the steps and errors are those of `inference.decode.decode`."""
        ...

    def read(
        self,
        lm: LanguageModel,
        rows: Sequence[Sequence[int]],
        n_prompts: Sequence[int],
        readout: Readout,
        batch_tokens: int | None = None,
        progress: bool = False,
    ) -> list[Arrays]:
        """Project every token of given texts; arguments and errors are those of `inference.prefill.read_rows`."""
        ...


class TransformersEngine:
    """The model's own modules in this process."""

    def write(
        self,
        lm: LanguageModel,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int],
        readout: Readout,
        n_kept: Sequence[int],
        batch_size: int,
        indices: Sequence[int],
        follower: ReplyFollower | None,
        ended: Collection[int] = (),
    ) -> Generator[DecodeStep]:
        with ResidualTap(lm.blocks, dict(readout.directions), readout.interventions, readout.pooled) as tap:
            yield from decode(lm, prompts, sampling, seeds, tap, n_kept, batch_size, indices, follower, ended)

    def read(
        self,
        lm: LanguageModel,
        rows: Sequence[Sequence[int]],
        n_prompts: Sequence[int],
        readout: Readout,
        batch_tokens: int | None = None,
        progress: bool = False,
    ) -> list[Arrays]:
        return read_rows(lm, rows, n_prompts, dict(readout.directions), readout.interventions, batch_tokens, progress)


def engine_of(lm: LanguageModel) -> Engine:
    """The engine that runs this model."""
    return TransformersEngine() if lm.engine is None else lm.engine
