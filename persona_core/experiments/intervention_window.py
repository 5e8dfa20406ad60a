"""WHERE an intervention would still have helped: a reply regenerated with an intervention from t* - k on.

t* is the position of the first token of the trait in a reply that the model has written. Every reply has its own seed,
which determines the draw at each position, so a second generation with the same seed is identical up to t* - k, and
what follows differs by the intervention alone. For every reply it is checked that the ids before are identical.

`start` is the first token whose choice can change (see `inference.steering`): with k = 0, the trait's first token
itself could still be another.

Arms: "cap" holds the trait's projection at a level of neutral text, "steer" pushes away from the trait, and each has a
random arm, which moves the state by the same amount along a random direction of the same block. "none" is the original
reply.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from tqdm import tqdm

from persona_core.analysis.intervention_statistics import (
    CONTROL,
    Arm,
    Outcome,
    mean_over_groups,
)
from persona_core.analysis.separation import AHEAD
from persona_core.errors import NotCalibrated, SettingError
from persona_core.experiments.window_results import CapSideEffects, InterventionWindow
from persona_core.inference.sampling import Sampling
from persona_core.inference.steering import Intervention, Steer
from persona_core.models.chat import Messages
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.monitor.steering import prepare
from persona_core.traces.trace import Trace
from persona_core.utils.checks import check_integer

logger = logging.getLogger(__name__)

Marker = Callable[[Trace], Sequence[int]]
"""Positions in the reply, from 0, of the tokens that show the trait; empty if it does not."""

Coherence = Callable[[Trace], float | None]
"""0 to 100 for a reply; None if unknown."""

CAP_PROBABILITY = 0.95


@dataclass(frozen=True)
class WindowPlan:
    """The settings of an intervention window.

    Attributes:
        ahead: k, tokens before t*.
        cap: z at which the trait is held; None: the null's 95th percentile.
        strength: of the steering away from the trait, in standard deviations of the null; it is subtracted.
        sampling: for the original and the regenerated replies.
        batch_size: replies generated at once. The random arms use another direction for each batch.
        seed: for the random directions.
    """

    ahead: tuple[int, ...] = AHEAD
    cap: float | None = None
    strength: float = 4.0
    sampling: Sampling = field(default_factory=lambda: Sampling(max_new_tokens=256, temperature=0.7))
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check_integer("batch_size", self.batch_size)
        if not self.ahead or min(self.ahead) < 0 or len(set(self.ahead)) < len(self.ahead):
            raise SettingError(f"ahead={self.ahead!r}; expected distinct numbers of tokens before t*, from 0.")
        if not self.strength > 0:
            raise SettingError(f"strength={self.strength!r}; it is subtracted, so it must be above 0.")


def intervention_window(
    monitor: PersonaMonitor,
    prompts: Sequence[str | Messages],
    trait: str,
    marker: Marker,
    coherence: Coherence,
    plan: WindowPlan | None = None,
    seeds: Sequence[int] | int = 0,
    groups: Sequence[object] | None = None,
    progress: bool = False,
) -> InterventionWindow:
    """Generate replies, find where the trait begins in each, and regenerate them with each arm from each t* - k on.

    Args:
        monitor: the model and calibrated vectors; interventions are at the trait's best block.
        prompts: on which the model may show the trait; replies that do not show it are left out.
        trait: which.
        marker: where a reply shows the trait.
        coherence: of a reply.
        plan: settings; None: the defaults.
        seeds: of each reply, or of the first.
        groups: what the intervals are over; None: the prompts. Give prompt ids if a prompt occurs several times with
            different seeds.
        progress: show a bar.

    Raises:
        SettingError: no reply shows the trait, or the marker returns positions outside a reply.
        UnknownTrait, UnknownBlock, NotCalibrated: as `prepare`.
    """
    plan = plan or WindowPlan()
    group = list(range(len(prompts))) if groups is None else list(groups)
    if len(group) != len(prompts):
        raise SettingError(f"{len(group)} groups for {len(prompts)} prompts; give one for each.")
    changes = _changes(monitor, trait, plan)

    # 1. The original replies, and where the trait begins.
    written = monitor.generate_batch(
        prompts,
        batch_size=plan.batch_size,
        seed=seeds if isinstance(seeds, int) else list(seeds),
        progress=progress,
        **plan.sampling.to_dict(),
    )
    first = {i: shown[0] for i, trace in enumerate(written) if (shown := _shown(trace, marker))}
    if not first:
        raise SettingError(
            f"None of the {len(written)} replies shows {trait!r}, so there is no onset to intervene before."
        )

    # 2. Regenerate from t* - k on, in each arm.
    outcomes: list[Outcome] = []
    n_diverged = 0
    generator = torch.Generator().manual_seed(plan.seed)
    starts = {k: {i: position - k for i, position in first.items() if position >= k} for k in plan.ahead}
    total = len(changes) * sum(map(len, starts.values()))
    with tqdm(total=total, desc=f"window of {trait}", unit="reply", disable=not progress) as bar:
        for k, begins in starts.items():
            for i, start in begins.items():
                outcomes.append(_outcome(written[i], written[i], start, i, group[i], k, "none", marker, coherence))
            for arm, change in changes.items():
                for batch in _parts(list(begins), plan.batch_size):
                    along = _random(change, generator) if arm in CONTROL.values() else None
                    at = [begins[i] for i in batch]
                    again = _again(
                        monitor, [prompts[i] for i in batch], [written[i] for i in batch], change, at, along, plan
                    )
                    for i, start, trace in zip(batch, at, again, strict=True):
                        if _reply(trace)[:start] != _reply(written[i])[:start]:
                            n_diverged += 1
                            continue
                        outcomes.append(_outcome(trace, written[i], start, i, group[i], k, arm, marker, coherence))
                    bar.update(len(batch))
    if n_diverged:
        logger.warning(
            "%d of %d regenerated replies differ before the intervention and are left out: the model's numbers "
            "depend on the batch. Use float32 or batch_size=1.", n_diverged, total,
        )  # fmt: skip
    return InterventionWindow(
        trait=trait,
        block=monitor.vectors.best_block[trait],
        cap=changes["cap"].amount,
        strength=plan.strength,
        n_prompts=len(prompts),
        n_showing=len(first),
        n_diverged=n_diverged,
        first=float(torch.tensor(list(first.values()), dtype=torch.float64).quantile(0.5)),
        outcomes=tuple(outcomes),
    )


def cap_side_effects(
    monitor: PersonaMonitor,
    prompts: Sequence[str | Messages],
    trait: str,
    coherence: Coherence,
    plan: WindowPlan | None = None,
    seeds: Sequence[int] | int = 0,
    progress: bool = False,
) -> CapSideEffects:
    """Generate replies with and without the plan's cap from the first token on, with the same seeds.

    Args:
        monitor, trait, coherence, plan, seeds, progress: as in `intervention_window`.
        prompts: that the model answers neutrally.

    Raises:
        UnknownTrait, UnknownBlock, NotCalibrated: as `prepare`.
    """
    plan = plan or WindowPlan()
    cap = _changes(monitor, trait, plan)["cap"]
    before = monitor.generate_batch(
        prompts,
        batch_size=plan.batch_size,
        seed=seeds if isinstance(seeds, int) else list(seeds),
        progress=progress,
        **plan.sampling.to_dict(),
    )
    capped: list[Trace] = []
    for batch in _parts(list(range(len(prompts))), plan.batch_size):
        capped += _again(
            monitor, [prompts[i] for i in batch], [before[i] for i in batch], cap, [0] * len(batch), None, plan
        )
    same = [float(_reply(a) == _reply(b)) for a, b in zip(capped, before, strict=True)]
    of = range(len(same))
    return CapSideEffects(
        cap.amount,
        mean_over_groups(same, of, (0.0, 1.0)),
        mean_over_groups([coherence(t) for t in capped], of, (0.0, 100.0)),
        mean_over_groups([coherence(t) for t in before], of, (0.0, 100.0)),
        len(same),
    )


# ---- interventions ----


def _changes(monitor: PersonaMonitor, trait: str, plan: WindowPlan) -> dict[Arm, Intervention]:
    """The intervention of each arm, without its random direction."""
    vectors = monitor.vectors
    vectors.tensor(trait)
    if trait not in vectors.best_block:
        raise SettingError(f"{trait!r} has no best block; set one to say where to intervene.")
    block = vectors.best_block[trait]
    if plan.cap is None:
        cap = Steer.cap(trait, block, _percentile(monitor, trait, block))
    else:
        cap = Steer.cap(trait, block, plan.cap, unit="sd")
    steer = Steer(trait, block, strength=-plan.strength, unit="sd")
    capping, pushing = prepare([cap, steer], vectors, monitor.lm.blocks)
    return {"cap": capping, "cap, random": capping, "steer": pushing, "steer, random": pushing}


def _percentile(monitor: PersonaMonitor, trait: str, block: int) -> float:
    null = monitor.vectors.null_of_steering(trait)
    if null is None or CAP_PROBABILITY not in null.probabilities:
        raise NotCalibrated(
            f"The null of {trait!r} has no {CAP_PROBABILITY:g} quantile; calibrate the vectors, or give a cap as z."
        )
    return float(null.quantiles[block, null.probabilities.index(CAP_PROBABILITY)])


def _random(change: Intervention, generator: torch.Generator) -> torch.Tensor:
    """An isotropic unit direction, float32 `[d_model]`, on the device of the trait's."""
    drawn = torch.randn(change.direction.shape, generator=generator)
    return (drawn / drawn.norm()).to(change.direction.device)


def _again(
    monitor: PersonaMonitor,
    prompts: Sequence[str | Messages],
    written: Sequence[Trace],
    change: Intervention,
    starts: Sequence[int],
    along: torch.Tensor | None,
    plan: WindowPlan,
) -> list[Trace]:
    """One batch of regenerated replies, each with its original seed, and the intervention from its own start on."""
    acting = replace(change, starts=torch.tensor(starts), along=along)
    seeds = [int(t.provenance.seed or 0) for t in written]
    found = []
    for trace, start in zip(monitor.write(prompts, plan.sampling, seeds, [acting]), starts, strict=True):
        record = {**change.steer.to_dict(), "start": start} | ({} if along is None else {"along": "random"})
        found.append(trace.replace(provenance=replace(trace.provenance, steering=(record,))))
    return found


# ---- replies ----


def _shown(trace: Trace, marker: Marker) -> list[int]:
    positions = sorted(int(position) for position in marker(trace))
    if positions and not 0 <= positions[0] <= positions[-1] < trace.n_reply:
        raise SettingError(
            f"The marker returned positions {positions[0]} to {positions[-1]} for a reply of {trace.n_reply} tokens; "
            "count from the first token of the reply."
        )
    return positions


def _outcome(
    trace: Trace,
    before: Trace,
    start: int,
    reply: int,
    group: object,
    k: int,
    arm: Arm,
    marker: Marker,
    coherence: Coherence,
) -> Outcome:
    later = [position for position in _shown(trace, marker) if position >= start]
    n_later = len(trace.reply_positions) - start
    return Outcome(
        reply=reply,
        group=group,
        k=k,
        arm=arm,
        shows=float(bool(later)),
        share=len(later) / n_later if n_later > 0 else None,
        coherence=coherence(trace),
        changed=float(_reply(trace) != _reply(before)),
    )


def _reply(trace: Trace) -> tuple[int, ...]:
    return trace.token_ids[trace.n_prompt :]


def _parts(items: Sequence[int], size: int) -> list[list[int]]:
    return [list(items[at : at + size]) for at in range(0, len(items), size)]
