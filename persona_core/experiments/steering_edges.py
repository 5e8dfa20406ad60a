"""Does steering along trait A make the text show trait B? Compared with replies steered along random directions.

The pitfall. Adding s along A's vector at a block moves the reading of B at that block by s times the cosine of the two
vectors, whatever the text becomes. So the steered replies are read again by their ids, without steering, and B is
measured there. The random arm adds directions of the same norm at the same block, a new one for each steered trait and
seed, and both arms generate with the same seeds.

What remains of it: a steered text that is merely odd raises every z a little ("not neutral"), and a text that shows A
raises the z of B: on the demo model nearly every pair moves. Specific scores leave out what all traits share, but only
a judge of what the text visibly shows is not misled; give one if available.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm import tqdm

from persona_core.analysis.interventional import (
    MEASURES,
    MIN_PROMPTS,
    N_FLIPS,
    InterventionalEffects,
    Measure,
    interventional_effects,
    relative_to_others,
)
from persona_core.errors import NotCalibrated, SettingError, UnknownBlock
from persona_core.inference.sampling import Sampling
from persona_core.inference.steering import Intervention, Steer
from persona_core.models.chat import Messages
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.traces.trace import Kind, Trace
from persona_core.utils.checks import check_integer, is_number
from persona_core.vectors.vectors import PersonaVectors

VisibleTraits = Callable[[Trace], Mapping[str, bool] | None]
"""Which traits a reply visibly shows; None for an incoherent reply, which is excluded from every measure."""

Prompts = Sequence[str | Messages]


@dataclass(frozen=True)
class EdgePlan:
    """The settings of the experiment.

    Attributes:
        strength: in norms of the vector. At 0.85, 41 to 81 % of the demo model's sentences, by trait, were of its
            grammar; at 1.0, 28 to 56 %; at 0.7 too few replies showed even the steered trait.
        strengths: trait -> its strength, where it differs.
        seeds: replies per prompt and arm. With 100 prompts, 2 found none of the three links of the demo world, 5 all.
        sampling: how tokens are chosen.
        batch_size: replies generated or read at once.
        seed: of the first reply and of the random directions.
    """

    strength: float = 0.85
    strengths: Mapping[str, float] = field(default_factory=dict)
    seeds: int = 5
    sampling: Sampling = field(default_factory=lambda: Sampling(max_new_tokens=200, temperature=1.0))
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for strength in (self.strength, *self.strengths.values()):
            if not is_number(strength) or strength == 0:
                raise SettingError(f"strength={strength!r}; expected a number other than 0, in norms of the vector.")
        check_integer("seeds", self.seeds)
        check_integer("batch_size", self.batch_size)

    def of(self, trait: str) -> float:
        """The strength at which a trait is steered, in norms of its vector."""
        return float(self.strengths.get(trait, self.strength))


def validated_strengths(vectors: PersonaVectors) -> dict[str, float]:
    """Trait -> the largest strength at which replies were still coherent when the vectors were validated, in norms.

    Only traits whose steering was validated. Validation uses other questions, so this does not select by the result.
    """
    curves = {t: found.get("steering") or {} for t, found in vectors.config.get("validation", {}).items()}
    return {t: float(c["effect_at"]) for t, c in curves.items() if c.get("effect") is not None and t in vectors.traits}


def steering_edges(
    monitor: PersonaMonitor,
    prompts: Prompts,
    plan: EdgePlan | None = None,
    sources: Sequence[str] | None = None,
    shown: VisibleTraits | None = None,
    progress: bool = True,
    n_flips: int = N_FLIPS,
    n_resamples: int = 1000,
) -> tuple[InterventionalEffects, ...]:
    """What steering each source does to every trait, in its score and in what the text shows.

    Args:
        monitor: model and calibrated vectors.
        prompts: user messages or conversations, without a system prompt.
        plan: strengths, seeds and sampling.
        sources: traits to steer; None: all.
        shown: which traits a reply visibly shows.
        n_flips, n_resamples: for p-values and intervals.

    Returns:
        The tables of mean z, of the mean specific score (without it: mean z minus the other traits', with three traits
        or more), and, with `shown`, of visible traits. Sink tokens are left out of every mean.

    Raises:
        SettingError: too few prompts.
        UnknownTrait, UnknownBlock, NotCalibrated, PromptError.
    """
    plan = plan or EdgePlan()
    names, steered = monitor.vectors.traits, tuple(monitor.vectors.traits if sources is None else sources)
    for trait in (*steered, *plan.strengths):
        monitor.vectors.tensor(trait)
    unknown = [trait for trait in names if trait not in monitor.vectors.null]
    if unknown:
        raise NotCalibrated(f"No null for {', '.join(unknown)}; z scores need calibrated vectors.")
    if len(prompts) < MIN_PROMPTS:
        raise SettingError(f"{len(prompts)} prompts; at least {MIN_PROMPTS} are needed.")
    shape = (len(prompts), plan.seeds, len(names))
    measures: list[Measure] = ["score"]
    measures += ["specific"] if monitor.vectors.has_specific else []
    measures += ["shown"] if shown is not None else []
    measured: dict[Measure, dict[str, dict[str, np.ndarray]]] = {m: {"vector": {}, "random": {}} for m in measures}
    with tqdm(total=2 * len(steered) * plan.seeds * len(prompts), unit="reply", disable=not progress) as bar:
        for source, arms in zip(steered, _directions(monitor, steered, plan), strict=True):
            for arm, changes in arms.items():
                bar.set_description(f"steering {source}, {arm}")
                for measure in measures:
                    measured[measure][arm][source] = np.full(shape, np.nan)
                for k, change in enumerate(changes):
                    for q, trace in enumerate(_steered(monitor, prompts, change, plan, k)):
                        for measure, values in _measured(trace, names, shown).items():
                            measured[measure][arm][source][q, k] = values
                    bar.update(len(prompts))
    if "specific" not in measures and len(names) > 2:
        measured["relative"] = {
            arm: {source: relative_to_others(z, names.index(source)) for source, z in own.items()}
            for arm, own in measured["score"].items()
        }
    options = {"n_flips": n_flips, "n_resamples": n_resamples, "seed": plan.seed}
    return tuple(
        interventional_effects(names, measured[m]["vector"], measured[m]["random"], m, **options)
        for m in MEASURES
        if m in measured
    )


def _directions(monitor: PersonaMonitor, steered: Sequence[str], plan: EdgePlan) -> list[dict[str, list[Intervention]]]:
    """For each steered trait the interventions of both arms, one per seed."""
    generator = torch.Generator().manual_seed(plan.seed)
    found = []
    for trait in steered:
        best = monitor.vectors.best_block.get(trait)
        if best is None:
            raise UnknownBlock(f"{trait!r} has no best block; set one before steering along it.")
        block = monitor.lm.blocks.check(best)
        vector = monitor.vectors.tensor(trait)[block]
        device = monitor.lm.blocks.device(block)
        own, amount = monitor.vectors.direction(trait, block).to(device), plan.of(trait) * float(vector.norm())
        others = torch.randn(plan.seeds, len(vector), generator=generator)
        random = (others / others.norm(dim=1, keepdim=True)).to(device)  # [seeds, d_model]
        steer = Steer(trait, block, strength=amount)
        found.append(
            {
                "vector": [Intervention(steer, own, amount)] * plan.seeds,
                "random": [Intervention(steer, own, amount, along=other) for other in random],
            }
        )
    return found


def _steered(monitor: PersonaMonitor, prompts: Prompts, change: Intervention, plan: EdgePlan, k: int) -> list[Trace]:
    """The replies of one arm and seed, generated with the intervention and read without it, by their ids."""
    written: list[Trace] = []
    for start in range(0, len(prompts), plan.batch_size):
        batch = prompts[start : start + plan.batch_size]
        seeds = [plan.seed + k * len(prompts) + start + row for row in range(len(batch))]
        written += monitor.write(batch, plan.sampling, seeds, [change])
    return monitor.read_batch(written)


def _measured(trace: Trace, names: Sequence[str], shown: VisibleTraits | None) -> dict[Measure, np.ndarray]:
    """Each measure of every trait, `[n_traits]`; empty for an empty or incoherent reply."""
    visible = shown(trace) if shown is not None and trace.reply_positions else None
    if not trace.reply_positions or (shown is not None and visible is None):
        return {}
    found: dict[Measure, np.ndarray] = {"score": _means(trace, names, "z")}
    if trace.has_specific:
        found["specific"] = _means(trace, names, "specific")
    if visible is not None:
        found["shown"] = np.array([float(visible.get(trait, False)) for trait in names])
    return found


def _means(trace: Trace, names: Sequence[str], kind: Kind) -> np.ndarray:
    """Mean score of each trait over the reply tokens without sink tokens, `[n_traits]`; NaN without any."""
    scores = [trace.reply_scores(trait, kind).astype(float) for trait in names]
    return np.array([np.nanmean(z) if np.isfinite(z).any() else np.nan for z in scores])
