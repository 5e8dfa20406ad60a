"""Steer a model in anybody's loop: `with vectors.steer(model, "sycophancy", strength=-4): model.generate(...)`.

The hooks act in every forward of the model inside the `with`, in whichever thread it runs: a context variable would not
reach a `generate` that a server or a streamer starts in a thread of its own. Runs of a `PersonaMonitor` are the
exception; they have interventions of their own.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Unpack
from weakref import WeakKeyDictionary

import torch
from torch import nn

from persona_core.errors import PersonaWarning, SettingError, UnknownBlock, UnsupportedModel
from persona_core.inference.hooks import in_monitored_run
from persona_core.inference.steering import Intervention, Steer, SteeringOptions
from persona_core.models.blocks import block_output, unwrap
from persona_core.models.language_model import LanguageModel
from persona_core.monitor.forwards import Follower, Forward, blocks_of, calling_loop, is_paused
from persona_core.monitor.steering import prepare
from persona_core.vectors.vectors import PersonaVectors

_acting: WeakKeyDictionary[nn.Module, list[Steer]] = WeakKeyDictionary()


def steers_on(base: nn.Module) -> list[Steer]:
    """What steers a model now."""
    return list(_acting.get(base, ()))


@contextmanager
def steer(
    vectors: PersonaVectors,
    model: Any,
    what: str | Steer | Sequence[Steer],
    **how: Unpack[SteeringOptions],
) -> Iterator[None]:
    """See `PersonaVectors.steer`."""
    blocks = blocks_of(model, vectors)
    if isinstance(what, str):
        steers: Sequence[Steer] = [_of_trait(vectors, what, **how)]
    elif how:
        raise SettingError(f"{next(iter(how))} goes with the name of a trait; a Steer has its own settings.")
    else:
        steers = [what] if isinstance(what, Steer) else list(what)
    changes = prepare(steers, vectors, blocks)
    if not changes:
        raise SettingError("Nothing to steer: name a trait, or give a Steer.")
    if any(s.when == "alarm" for s in steers):
        raise SettingError("when='alarm' needs a monitor with detectors: PersonaMonitor(...).generate(..., steer=...).")
    base = unwrap(model.model if isinstance(model, LanguageModel) else model)
    hooks = _SteeringHooks(base, changes)
    acting = _acting.setdefault(base, [])
    handles: list[Any] = []
    try:
        handles.append(base.register_forward_pre_hook(hooks.before, with_kwargs=True))
        handles.append(base.register_forward_hook(hooks.after, always_call=True))
        for b in sorted(hooks.changes):
            handles.append(blocks.modules[b].register_forward_hook(hooks.at_block(b), prepend=True))
        acting.extend(steers)
        yield
    finally:
        for handle in handles:
            handle.remove()
        for one in steers:
            if one in acting:
                acting.remove(one)
    if not hooks.acted:
        warnings.warn(
            "Nothing was steered: no forward of this model ran inside the `with`. Is it this object that was called?",
            PersonaWarning,
            stacklevel=3,
        )


def _of_trait(vectors: PersonaVectors, trait: str, **how: Unpack[SteeringOptions]) -> Steer:
    vectors.tensor(trait)  # UnknownTrait
    mode = how.setdefault("mode", "add")
    takes = {"add": "strength", "cap": "threshold"}.get(mode)
    amount = [name for name in ("strength", "threshold") if name in how]
    if mode in ("add", "ablate", "cap") and amount != ([takes] if takes else []):
        raise SettingError(f"mode={mode!r} takes {takes or 'no strength and no threshold'}; got {amount or 'neither'}.")
    if "block" not in how and trait not in vectors.best_block:
        raise UnknownBlock(f"The vectors have no best block for {trait!r}; pass block=...")
    defaults: SteeringOptions = {"block": vectors.best_block.get(trait, 0), "unit": "sd", "start": None}
    return Steer(trait, **(defaults | how))


class _SteeringHooks:
    """The hooks of one `with`."""

    def __init__(self, base: nn.Module, changes: Sequence[Intervention]) -> None:
        self.acted = False
        self.changes: dict[int, list[Intervention]] = {}
        for change in changes:
            self.changes.setdefault(change.steer.block, []).append(change)
        starts = [c.steer.start for c in changes if c.steer.start is not None]
        self._follower = Follower(base, checks_rows=False) if starts else None
        self._needs_prompt_end = 0 in starts
        self._entered_by = threading.get_ident()
        self._here = threading.local()  # the forward that runs in a thread

    def before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._here.steered, self._here.forward = None, None
        if is_paused():
            return
        if in_monitored_run():
            if threading.get_ident() == self._entered_by:
                raise SettingError(
                    "A monitor's run takes its own interventions: monitor.generate(..., steer=Steer(...)), outside of "
                    "vectors.steer."
                )
            return
        loop = calling_loop()
        if self._follower is not None:
            self._here.forward = self._follower.begin(args, kwargs, loop)
            self._refuse_parts(self._here.forward)
        self._here.steered = set()

    def _refuse_parts(self, forward: Forward) -> None:
        """The end of a prompt is not known while its parts are read."""
        if self._needs_prompt_end and forward.is_prompt and not forward.is_new and not forward.texts.has_reply:
            raise SettingError(
                "The prompt is read in parts, so start=0 cannot be placed at its end; take start=None (every token) or "
                "start=1, or read the prompt in one forward."
            )

    def at_block(self, block: int) -> Any:
        changes = self.changes[block]
        needs_forward = any(c.steer.start is not None for c in changes)

        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            if is_paused() or in_monitored_run():
                return None
            states = block_output(output)  # [rows, tokens, d_model]
            forward = getattr(self._here, "forward", None)
            if forward is None and needs_forward:
                raise SettingError(
                    "A block ran outside a forward of this model, so the place in the reply is unknown; use start=None."
                )
            index = forward.reply_index if forward is not None else torch.zeros(states.shape[:2], dtype=torch.long)
            with torch.autocast(states.device.type, enabled=False):  # which would round the projection
                for change in changes:
                    states = change.apply(states, index.to(states.device))
            self.acted = True
            if getattr(self._here, "steered", None) is not None:
                self._here.steered.add(block)
            return (states, *output[1:]) if isinstance(output, tuple) else states

        return hook

    def after(self, _module: nn.Module, _args: Any, output: Any) -> None:
        steered, forward = getattr(self._here, "steered", None), getattr(self._here, "forward", None)
        self._here.steered, self._here.forward = None, None
        if output is None or steered is None:  # a forward that failed, or is not steered
            return
        missing = sorted(set(self.changes) - steered)
        if missing:
            raise UnsupportedModel(
                f"The forward ran without the hook of block {missing[0]}, so it was not steered: is it compiled?"
            )
        if self._follower is not None and forward is not None:
            self._follower.commit(forward, output)
