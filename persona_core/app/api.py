"""The app's API: four named endpoints with plain JSON in and out, and tools for MCP clients.

`gradio_client` and `curl` call them by name, with the same inputs and results as the page. They wait in the page's
queue and keep its limits. A client that cancels or disconnects frees the model within a few tokens.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Literal

import gradio as gr
import numpy as np

from persona_core.app.error_messages import public_message, unexpected_message
from persona_core.app.pooled_model import PooledModel
from persona_core.app.requests import chat_messages, length_of, messages_of, seed_of, start_of, steer_of
from persona_core.app.run_controls import MODEL_QUEUE, Deadline
from persona_core.app.served_set import ServedSet
from persona_core.app.streaming import ReplyJob, onsets_of, read_text, stream_replies
from persona_core.errors import PersonaError, SettingError
from persona_core.report.results_folder import BASELINE, CONTAMINATED, SIDES
from persona_core.traces.provenance import short_name
from persona_core.traces.statements import with_not_neutral
from persona_core.traces.trace import UNITS, Kind
from persona_core.utils.hub import split_revision

if TYPE_CHECKING:
    from persona_core.monitor.monitor import PersonaMonitor
    from persona_core.traces.trace import Trace
    from persona_core.vectors.vectors import PersonaVectors

logger = logging.getLogger(__name__)

Record = dict[str, Any]
Message = dict[str, str]
Model = Literal["baseline", "contaminated"]
Action = Literal["add", "remove", "cap", "cap from its alarm on"]


def mcp_available() -> bool:
    """Whether the endpoints can be tools of an MCP server: `pip install gradio[mcp]` was run."""
    return importlib.util.find_spec("mcp") is not None


def build_api(sets: Sequence[ServedSet]) -> None:
    """Add the endpoints to the Blocks that is being built.

    Args:
        sets: the models that may be named.
    """
    api = Api(sets)
    queued = partial(gr.api, concurrency_limit=1, concurrency_id=MODEL_QUEUE)
    queued(_endpoint(api.generate), api_name="generate")
    queued(_endpoint(api.read), api_name="read")
    if any(len(one.models) > 1 for one in sets):
        queued(_endpoint(api.compare), api_name="compare")
    gr.api(_endpoint(api.vectors), api_name="vectors")


class Api:
    """The endpoints. Their docstrings are their documentation, for people and for language models.

    Gradio shows only the first line of an argument's description, so each has one line.
    """

    def __init__(self, sets: Sequence[ServedSet]) -> None:
        self.sets = {one.name: one for one in sets}
        self.settings = sets[0].settings
        self._lock = threading.Lock()
        self._vectors: dict[str, PersonaVectors] = {}

    def generate(
        self,
        prompt: str,
        system: str = "",
        model: Model = "baseline",
        max_new_tokens: int = 128,
        temperature: float = 0.7,
        seed: int = 0,
        trait: str = "",
        action: Action = "add",
        amount: float = 0.0,
        start: int = 0,
        set_name: str = "",
    ) -> Iterator[Record]:
        """Write a reply and read every token of prompt and reply with persona vectors.

        A trait can be steered; "cap from its alarm on" waits for the alarm of the trait's onset detector.
        The result has the keys text (the reply), tokens, ids, roles and n_prompt (tokens before the reply); traits,
        blocks (trait -> block), kind and unit; scores (trait -> one number per token, null if there is none); sinks
        (indices of tokens whose state is far outside the usual range at the block of a trait: they have no score there
        and say nothing); onsets (trait -> its onset, as text) and caveats; finish, seed, reader, writer, warnings and
        notice. The kind is "specific" where the vectors allow it: how much more a token looks like the trait than like
        neutral text or any other trait, in standard deviations of neutral tokens; else "z", which says "not neutral"
        rather than which trait. While the reply is being written, results with "done": false have the text so far.

        Args:
            prompt: What the user says.
            system: System prompt; empty for none.
            model: "baseline" or "contaminated".
            max_new_tokens: Maximum length of the reply in tokens, cut to the app's limit.
            temperature: 0 always takes the most likely token.
            seed: Same seed, same reply.
            trait: A trait to steer, as /vectors lists them; empty for no steering.
            action: add: shift the trait by the amount; remove: project it out; cap: keep it at or below the amount.
            amount: In standard deviations of neutral replies.
            start: Token of the reply from which the steering acts.
            set_name: Which of the app's sets, as /vectors lists them; empty for the first.
        """
        pooled = self._pooled(model, set_name)
        messages = chat_messages((), prompt, system, self.settings.max_prompt_chars)
        options = self._options(max_new_tokens, temperature, seed)
        monitor = pooled.monitor()  # loading does not count towards the run's time
        if trait:
            options["steer"] = steer_of(trait, action, amount, start_of(start), monitor.vectors.best_block)
        deadline = Deadline(self.settings.max_seconds)
        for progress in stream_replies([ReplyJob(pooled, messages, model, options)], deadline):
            (trace,) = progress.traces
            if progress.ended:
                yield record(monitor, trace) | {"notice": deadline.notice or pooled.note, "done": True}
            else:
                yield {"text": trace.reply_text, "done": False}

    def read(self, messages: list[Message], model: Model = "baseline", set_name: str = "") -> Record:
        """Read a given conversation with persona vectors, whoever wrote it. Nothing is generated.
        What the assistant thought before a reply may be given beside its "content", as "reasoning_content".

        Args:
            messages: A list of {"role": "system", "user" or "assistant", "content": text}; the last is the reply.
            model: The reader, "baseline" or "contaminated".
            set_name: Which of the app's sets, as /vectors lists them; empty for the first.

        Returns:
            A record as of /generate.
        """
        pooled = self._pooled(model, set_name)
        trace = read_text(pooled, messages_of(messages, self.settings.max_read_chars))
        return record(pooled.monitor(), trace) | {"notice": pooled.note, "done": True}

    def compare(
        self,
        prompt: str,
        system: str = "",
        max_new_tokens: int = 128,
        temperature: float = 0.7,
        seed: int = 0,
        set_name: str = "",
    ) -> Iterator[Record]:
        """Let both models answer a prompt, and each read the other's answer.

        The result has the keys baseline and contaminated (each model on its own reply), baseline_reads_contaminated and
        contaminated_reads_baseline: the same text read by the other model, token by token, which separates the effect
        of the text from that of the weights. Each value is a record as of /generate.

        Args:
            prompt: What the user says.
            system: System prompt; empty for none.
            max_new_tokens: Maximum length of the reply in tokens, cut to the app's limit.
            temperature: 0 always takes the most likely token.
            seed: The same for both.
            set_name: Which of the app's sets, as /vectors lists them; empty for the first.
        """
        models = {side: self._pooled(side, set_name) for side in SIDES}
        messages = chat_messages((), prompt, system, self.settings.max_prompt_chars)
        options = self._options(max_new_tokens, temperature, seed)
        monitors = {side: pooled.monitor() for side, pooled in models.items()}
        deadline = Deadline(self.settings.max_seconds)
        for progress in stream_replies([ReplyJob(models[side], messages, side, options) for side in SIDES], deadline):
            replies = dict(zip(SIDES, progress.traces, strict=True))
            if not progress.ended:
                yield {side: {"text": trace.reply_text, "done": False} for side, trace in replies.items()}
                continue
            found = {side: record(monitors[side], trace) for side, trace in replies.items()}
            for reader, writer in ((BASELINE, CONTAMINATED), (CONTAMINATED, BASELINE)):
                read = read_text(models[reader], replies[writer])
                found[f"{reader}_reads_{writer}"] = record(monitors[reader], read)
            notice = deadline.notice or models[BASELINE].note
            yield {key: one | {"notice": notice, "done": True} for key, one in found.items()}

    def vectors(self, set_name: str = "") -> Record:
        """The traits that the vectors read, the block of each, and its validation.

        Args:
            set_name: Which of the app's sets; empty for the first.

        Returns:
            fingerprint, n_blocks, d_model, base_model, kind and unit of the scores, models, the names of the app's
            sets, and traits: for each "block", "description", and from its validation "auroc" with its 95 % interval
            and the controls that it "fails".
        """
        one = self._set(set_name)
        known = self._known(one)
        kind: Kind = "specific" if known.has_specific else "z" if known.null else "cosine"
        described, validated = (known.config.get(key, {}) for key in ("descriptions", "validation"))
        traits = {
            trait: {
                "block": known.best_block.get(trait),
                "description": described.get(trait, ""),
                "auroc": validated.get(trait, {}).get("auroc"),
                "fails": [flag["control"] for flag in validated.get(trait, {}).get("flags", ())],
            }
            for trait in known.traits
        }
        return {
            "fingerprint": known.fingerprint,
            "n_blocks": known.n_blocks,
            "d_model": known.d_model,
            "base_model": known.config.get("base_model", {}).get("name"),
            "kind": kind,
            "unit": UNITS[kind],
            "models": list(one.models),
            "sets": list(self.sets),
            "traits": traits,
        }

    def _known(self, one: ServedSet) -> PersonaVectors:
        """The set's vectors; read once, and without the model, which may take minutes to load."""
        from persona_core.vectors.vectors import PersonaVectors

        with self._lock:
            if one.name not in self._vectors:
                self._vectors[one.name] = PersonaVectors.from_pretrained(*split_revision(one.settings.vectors))
            return self._vectors[one.name]

    def _set(self, name: Any) -> ServedSet:
        if name == "":
            return next(iter(self.sets.values()))
        if not isinstance(name, str) or name not in self.sets:
            raise SettingError(f"set_name={str(name)[:80]!r}; this app has {', '.join(map(repr, self.sets))}.")
        return self.sets[name]

    def _pooled(self, model: Any, set_name: Any) -> PooledModel:
        models = self._set(set_name).models
        if not isinstance(model, str) or model not in models:
            raise SettingError(f"model={str(model)[:80]!r}; this app has {', '.join(map(repr, models))}.")
        return models[model]

    def _options(self, max_new_tokens: Any, temperature: Any, seed: Any) -> dict[str, Any]:
        length = length_of(max_new_tokens, self.settings.max_new_tokens)
        return {"max_new_tokens": length, "temperature": temperature, "seed": seed_of(seed)}


def record(monitor: PersonaMonitor, trace: Trace) -> dict[str, Any]:
    """A trace as plain JSON: each trait at its best block, four decimals."""
    kind = trace.default_kind
    columns = sorted({trace.blocks.index(trace.best_block[t]) for t in trace.traits if t in trace.best_block})
    sinks = np.flatnonzero(trace.sinks[columns].any(axis=0))  # [n_sinks]
    reader, writer = trace.provenance.reading_model, trace.provenance.writer
    return {
        "text": trace.reply_text,
        "tokens": list(trace.tokens),
        "ids": [int(i) for i in trace.token_ids],
        "roles": list(trace.roles),
        "n_prompt": trace.n_prompt,
        "traits": list(trace.traits),
        "blocks": {t: int(trace.best_block[t]) for t in trace.traits if t in trace.best_block},
        "kind": kind,
        "unit": UNITS[kind],
        "scores": {t: _numbers(trace.scores_without_sinks(t, kind)) for t in trace.traits},
        "sinks": sinks.tolist(),
        "onsets": {t: onset["says"] for t, onset in with_not_neutral(trace, onsets_of(monitor, trace)).items()},
        "caveats": [] if monitor.detectors is None else list(monitor.detectors.caveats(trace)),
        "warnings": list(trace.warnings),
        "finish": trace.finish,
        "seed": trace.provenance.seed,
        "reader": reader and short_name(reader),
        "writer": writer and short_name(writer),
    }


def _numbers(scores: np.ndarray) -> list[float | None]:  # [n_tokens]
    exact = scores.astype(np.float64).round(4)
    return [float(v) if np.isfinite(v) else None for v in exact]


def _endpoint(function: Callable[..., Any]) -> Callable[..., Any]:
    """A method of `Api` for Gradio: errors as messages, and a result that the documentation calls an object."""
    if inspect.isgeneratorfunction(function):

        @wraps(function)
        def endpoint(*args: Any, **kwargs: Any) -> Iterator[Record]:
            with _error_messages():
                yield from function(*args, **kwargs)

    else:

        @wraps(function)
        def endpoint(*args: Any, **kwargs: Any) -> Record:
            with _error_messages():
                return function(*args, **kwargs)

    # Gradio takes the parameters' types from the hints, but the result's from the signature, where it is a string.
    endpoint.__signature__ = inspect.signature(function).replace(return_annotation=Record)  # type: ignore[attr-defined]
    return endpoint


@contextmanager
def _error_messages() -> Iterator[None]:
    """Errors as messages: ours without paths on the server, of any other only the type."""
    try:
        yield
    except PersonaError as error:
        raise gr.Error(public_message(error), print_exception=False) from error
    except Exception as error:
        logger.exception("An endpoint failed")
        raise gr.Error(unexpected_message("The run", error), print_exception=False) from error
