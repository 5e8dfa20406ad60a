"""The part of docs/experiments.md that says how often the methods are wrong, from what the benchmarks have measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from persona_core.vectors.card import interval
from scripts import PROJECT_ROOT

MEASURED = PROJECT_ROOT / "benchmarks" / "results"
Figure = Mapping[str, Any]
SCORES = {
    "z": "z of the trait",
    "cusum": "CUSUM of z",
    "ngram": "n-grams of the text",
    "entropy": "next-token entropy",
    "last_prompt": "z at the last prompt token",
    "position": "position",
}


def sections() -> str:
    """All of them, each from its own file."""
    early = measured("early_warning")
    parts = (onsets(measured("onset")), coupling(measured("interaction")), warning(early), window(early))
    return "\n\n".join((*parts, coverage(measured("coverage"))))


def measured(name: str) -> dict[str, Any]:
    """What `python -m benchmarks.NAME` has written."""
    return json.loads((MEASURED / f"{name}.json").read_text(encoding="utf-8"))


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows)])


def percent(share: Figure | None) -> str:
    """A share with its interval."""
    return "not defined" if share is None else interval(share, percent=True)


def figure(found: Figure | None, digits: int = 2) -> str:
    """A figure with its interval."""
    return "not defined" if found is None else interval(found, digits=digits)


# ---- when ----


def onsets(found: Figure) -> str:
    """How often an onset is wrong."""
    alarms = [
        (f"simulated: {name}", percent(own["false_alarms"]), percent(own["naive_rule"]))
        for name, own in found["simulated"].items()
    ] + [
        (f"demo model: {trait}", percent(own["false_alarms"]), percent(own["naive_rule"]))
        for trait, own in found["model"].items()
    ]
    power = [
        (shift, f"{100 * own['found']:.0f} %", f"{own['delay']:g}")
        for shift, own in found["simulated"]["AR(0.65)"]["power"].items()
    ]
    texts = [
        (
            name,
            own["n"],
            percent(own["near"]),
            percent(own["missed"]),
            percent(own["before_the_reply"]),
            percent(own["covered"]),
            percent(own["timed"]),
            "not defined" if own["distance"] is None else ", ".join(f"{d:g}" for d in own["distance"]),
        )
        for name, own in found["texts"].items()
    ]
    intervals = [
        (one["form"], f"{one['size']:g}", percent(one["answered"]), percent(one["covered"]), percent(one["near"]),
         f"{one['width']:g}")
        for one in found["intervals"]
    ]  # fmt: skip
    same, against = found["cohorts"]["same_model"], found["cohorts"]["twin_against_baseline"]
    cohorts = [
        (trait, *(percent(share) for share in own["onsets"]), f"{own['test']['statistic']:.1f}", own["test"]["p"])
        for trait, own in against.items()
    ]
    return f"""## How often is an onset wrong?

Measured by `python -m benchmarks.onset`. A detector is calibrated on {found["n_nulls"]} neutral replies for a nominal
{100 * found["rate"]:.0f} % of false alarms a reply, and tried on {found["n_held_out"]} others; exact binomial
intervals, a reply as the trial. The naive rule, for contrast: any token above mean + 1 SD of the reply's first three.

{table(("series", "false alarms", "naive rule"), alarms)}

Simulated replies, AR(0.65), 40 to 140 tokens, with a step at token 30. What is found seldom cannot be timed in a single
reply:

{table(("step, SD", "found", "median delay, tokens"), power)}

Texts of the demo world's grammar, read without a system prompt, all traits together. *Near*: the onset is within
{found["near"]} tokens of the first word of the sentence that announces or first shows the trait. *Cued*: a sentence
announces the trait. *From the start*: no neutral sentence before it, so that "before the reply" is right. *Uncued*:
nothing announces it. *Drift*: single sentences of the trait, ever more of them; there is no one onset, and what is
marked is the first of them. *Holds it*: the 95 % interval of the onset holds that word. *Timed*: the interval is at
most 20 tokens wide; otherwise the answer is "too small or too slow to be timed". How a trait rises, for the intervals,
was chosen on other texts.

{
        table(
            (
                "texts",
                "replies",
                "near",
                "missed",
                "said to be from the start",
                "interval holds it",
                "timed",
                "distance: 5 %, median, 95 %",
            ),
            texts,
        )
    }

The same intervals where a rise of known size was added to AR(0.65) noise at a random token. A rise: as the intervals
assume it, over 1 to 10 tokens and with more spread than before.

{table(("form", "size, SD", "onset given", "interval holds it", "near", "median width"), intervals)}

Whole cohorts: the log-rank statistic of the onsets of two runs over the same prompts, its null by swapping the two
answers to a prompt. The baseline against itself, other seeds: {100 * same["below_0.05"]:.1f} % of {same["n_tests"]}
tests have p of at most 0.05. The twin against the baseline, share of replies with an alarm:

{table(("trait", "baseline", "contaminated", "log-rank z", "p"), cohorts)}"""


# ---- how ----


def coupling(found: Figure) -> str:
    """How often an edge between traits is false, and whether a planted one is found."""
    independent = [
        (
            name,
            percent(own["lagged_with_q_below_0.05"]),
            percent(own["runs_with_such_a_lag"]),
            percent(own["runs_with_an_edge"]),
            percent(own["naive_r_above_0.3"]),
            percent(own["naive_p_below_0.05"]),
        )
        for name, own in found["independent"].items()
    ]
    planted = [
        (r, percent(own["strongest_and_q_below_0.05"]), percent(own["the_only_edge"]))
        for r, own in found["planted_lag"].items()
    ]
    clocks = {
        "behaviour": "behaviour",
        "activation": "activation",
        "activation_relative": "activation, less the others",
    }
    rows = []
    for name, says in clocks.items():
        runs = [run["clocks"][name] for run in found["cascade"]["runs"]]
        lags = ", ".join("none" if not r["planted"]["lag"] else f"{r['planted']['lag']['value']:g}" for r in runs)
        claimed = sum(bool(r["planted"]["claimed"]) for r in runs)
        others = ", ".join(str(len(r["other_edges"])) for r in runs)
        false = ", ".join(str(_edges(run["clocks"][name])) for run in found["no_cascade"]["runs"])
        rows.append((says, f"{claimed} of {len(runs)}", lags, others, false))
    counted = ", ".join(f"{run['counted_lag']:g}" for run in found["cascade"]["runs"])
    steering = found["steering"]
    shown = next(t for t in steering["tables"] if t["measure"] == "shown")
    scores = next(t for t in steering["tables"] if t["measure"] == "score")
    pairs = {tuple(pair) for pair in steering["planted"]}
    effects = [e for e in shown["effects"] if e["source"] != e["target"]]
    confirmed = [
        (e["source"], e["target"], "yes" if (e["source"], e["target"]) in pairs else "no", figure(e["estimate"], 3),
         f"{e['q']:.3f}")
        for e in effects
        if e["significant"] or (e["source"], e["target"]) in pairs
    ]  # fmt: skip
    moved = [e for e in scores["effects"] if e["source"] != e["target"]]
    r = found["cascade"]
    return f"""## How often is an edge between traits false?

Measured by `python -m benchmarks.interaction`. Simulated runs of {found["n_replies"]} replies, {found["n_traits"]}
traits that have nothing to do with each other: share of the lagged tests with q of at most 0.05 after
Benjamini-Hochberg, runs with any, and runs with an edge, which must also be larger than what words alone do (0.1).
Beside them what is often done: a plain correlation of two raw series.

{
        table(
            (
                "series",
                "tests with q <= 0.05",
                "runs with any",
                "runs with an edge",
                "plain r above 0.3",
                "plain p < 0.05",
            ),
            independent,
        )
    }

A coupling planted at a lag of 8 tokens, AR(0.65): it is the strongest, at the right lag and in the right direction, and
has q of at most 0.05; it is the one edge that is claimed.

{table(("correlation", "found", "the only edge"), planted)}

A cascade planted in texts of the demo world ({r["source"]} brings on {r["target"]}), mixed with neutral texts and texts
of other traits, three sets. Counted in the grammar's own sentences, {r["target"]} comes {counted} tokens after
{r["source"]}. *Behaviour*: when the text first shows a trait. *Activation*: when its score rises. Every vector also
knows "not neutral", so on plain z all traits rise together; less the mean of the others, the order comes out.

{table(("clock", "found", "lag, tokens", "other edges", "edges where none was planted"), rows)}

Steering, the baseline without a system prompt, {steering["prompts"]} prompts with {
        steering["seeds"]
    } replies each, each
against random directions of the same norm: share of replies that visibly show the target, vector minus random arm. Of
{len(effects)} pairs, these are significant or planted. By mean z {sum(e["significant"] for e in moved)} of {len(moved)}
pairs are significant: scores alone confirm nothing, and only what the text shows becomes an edge.

{table(("steered", "shown", "planted", "effect", "q"), confirmed)}"""


def _edges(clock: Figure) -> int:
    planted = clock.get("planted")
    return len(clock["other_edges"]) + bool(planted and planted["claimed"])


# ---- where ----


def warning(found: Figure) -> str:
    """How early, and whether the vector is needed for it."""
    cued = found["texts"]["cued"]
    ks = [one["k"] for one in cued["scores"]["z"]["ahead"]]

    def row(says: str, own: Figure) -> tuple[str, ...]:
        return (says, *(figure(one["auroc"]) for one in own["ahead"]), percent(own["false_alarms"]))

    rows = [row(says, cued["scores"][name]) for name, says in SCORES.items()]
    rows += [row(f"random direction {n[7:]}", own) for n, own in cued["scores"].items() if n.startswith("random_")]
    recall = [
        (says, *(percent(one["recall"]) for one in cued["scores"][name]["ahead"]))
        for name, says in list(SCORES.items())[:3]
    ]
    before = [
        (SCORES[name], *(figure(one["auroc"]) for one in own["same_place"]))
        for name, own in cued["before_the_cue"].items()
    ]
    before_ks = [one["k"] for one in cued["before_the_cue"]["z"]["same_place"]]
    others = [
        (name, *(figure(one["auroc"]) for one in found["texts"][name]["scores"]["z"]["ahead"]))
        for name in ("uncued", "drift")
    ]
    into = [(one["tokens_read"], figure(one["auroc"], 3)) for one in cued["into_the_cue"]["z"]]
    permuted = ", ".join(f"{v['value']:.2f} [{v['low']:.2f}, {v['high']:.2f}]" for v in cued["permuted"].values())
    z = cued["scores"]["z"]
    lead = z["lead"]["quantiles"]
    return f"""## How early could one have known?

Measured by `python -m benchmarks.early_warning` on {cued["n_texts"]} texts of the demo world in which a sentence
announces the trait {cued["lead"]["0.5"]:g} tokens (median) before the first sentence that shows it. AUROC k tokens
before that first token, against neutral replies *at the same place*, so that position by itself is 0.50; the last
column is the share of neutral replies with an alarm that the threshold had not seen, nominal 5 %.

{table(("score", *(f"k = {k}" for k in ks), "false alarms"), rows)}

Alarm by then, at that threshold. z: first alarms {lead["0.5"]:g} tokens ahead in the median,
{z["alarms_per_1000"]["value"]:.1f} alarms per 1,000 neutral tokens.

{table(("score", *(f"k = {k}" for k in ks)), recall)}

Into the announcing sentence, after so many of its tokens (z):

{table(("tokens read", "AUROC"), into)}

Before the announcing sentence there is nothing to know; k counts from its first token.

{table(("score", *(f"k = {k}" for k in before_ks)), before)}

With the labels "trait" and "neutral" dealt out anew, z, the same k: {permuted} (middle 95 % of the permutations).

Where nothing announces the trait (uncued), and where single sentences of it come ever more often (drift), z:

{table(("texts", *(f"k = {k}" for k in ks)), others)}"""


def window(found: Figure) -> str:
    """What is left of a trait when a model is held in time."""
    rows = []
    for source, says in (("twin", "contaminated model"), ("asked", "baseline that is asked for it")):
        for trait, own in found["window"][source].items():
            for cell in own["cells"]:
                if cell["k"] in (0, 4, 16):
                    difference = (cell["minus_random"] or {}).get("share")
                    rows.append(
                        (f"{says}, {trait}", cell["k"], cell["arm"], cell["n"], percent(cell["share"]),
                         figure(cell["coherence"], 0), figure(difference) if difference else "")
                    )  # fmt: skip
    untouched = [
        (trait, percent(own["identical"]), figure(own["coherence"], 1), figure(own["coherence_before"], 1))
        for trait, own in found["window"]["untouched"].items()
    ]
    return f"""## Can one still step in?

The same command. A reply that shows the trait is written again with the same seed, held from k tokens before its first
sentence on: capped at the null's 95th percentile, or pushed away by 4 SD, each beside the same change along a random
direction. Share of the tokens from there on that belong to the trait, and coherence (0 to 100).

{table(("model", "k", "arm", "replies", "trait's share", "coherence", "share, minus random"), rows)}

The cap on the baseline's neutral replies to the 78 prompts, from the first token on: replies that stay the same to the
last token, and coherence with and without it. A neutral token lies above the 95th percentile in one of twenty cases.

{table(("trait", "identical", "coherence", "without"), untouched)}"""


# ---- intervals ----


def coverage(found: Figure) -> str:
    """How often the intervals hold the truth."""
    rows = []
    for one in found["intervals"]:
        best = max(
            one["others"].items(), key=lambda item: -abs(item[1]["covered"]["value"] - found["nominal"]), default=None
        )
        tried = "" if best is None else f"{best[0]}: {percent(best[1]['covered'])}"
        rows.append((one["what"], one["kind"], one["n"], percent(one["covered"]), tried))
    uniform = [
        (one["what"], one["kind"], one["n"], percent(one["below_0.05"]), f"{one['ks_p']:.2f}")
        for one in found["p_values"]
    ]
    return f"""## Do the intervals hold?

Measured by `python -m benchmarks.coverage`: {found["n_datasets"]} simulated data sets each, how often the 95 % interval
holds the true value. n counts prompts (or replies). In the last column the nearest of other methods that were tried.
Very skewed effects, rare shares and AUROCs over few replies fall clearly short of 93 %; a few others lie just below it.

{table(("figure", "data", "n", "holds the truth", "another method"), rows)}

p-values of the sign flips where nothing differs: share of at most 0.05, and p of a Kolmogorov-Smirnov test against
uniform. Flipping signs takes differences to be symmetric; where they are very skewed it finds too much.

{table(("data", "kind", "n", "p <= 0.05", "uniform: p"), uniform)}
"""
