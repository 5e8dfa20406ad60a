"""Tables of how often the methods are wrong, from what the benchmarks measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from persona_core.utils.markdown import table
from scripts.docs.stored import Figure, estimate, percent, stored

SCORES = {
    "specific": "specific score of the trait",
    "z": "z of the trait",
    "cusum": "CUSUM",
    "ngram": "n-grams of the text",
    "entropy": "next-token entropy",
    "last_prompt": "score at the last prompt token",
    "position": "position",
}
CLOCKS = {
    "behaviour": "behaviour",
    "activation": "activation",
    "activation_relative": "activation, less the other traits",
}
SIDES = {"contaminated": "contaminated model", "instructed": "baseline, instructed"}

# ---- when ----


def onset_false_alarms() -> str:
    found = stored("onset")
    series = {f"simulated: {name}": one for name, one in found["simulated"].items()}
    series |= {f"demo model: {trait}": one for trait, one in found["model"]["by_trait"].items()}
    rows = [(name, percent(one["false_alarms"]), percent(one["naive_rule"])) for name, one in series.items()]
    rows.append(("demo model: any of these traits", percent(found["model"]["any_trait"]), ""))
    return table(("series", "false alarms", "naive rule"), rows)


def onset_lengths() -> str:
    rows = [
        (
            *(f"{first} to {end - 1}" for first, end in (one["null"], one["test"])),
            percent(one["alarms"]),
            percent(one["alarms_without_a_rate"]),
        )
        for one in stored("onset")["lengths"]
    ]
    heads = ("neutral replies, tokens", "tested, tokens", "alarms by the length covered", "later, without a rate")
    return table(heads, rows)


def onset_statistics() -> str:
    found = stored("onset")["statistics"]
    rows = [
        (
            texts,
            one["statistic"],
            f"{100 * one['found']:.1f} %",
            *(f"{100 * one['within'][k]:.0f} %" for k in ("2", "4", "8")),
            f"{one['median_delay']:g}",
        )
        for texts, tried in found.items()
        for one in tried
    ]
    heads = ("texts", "statistic", "alarm", "within 2 tokens", "within 4", "within 8", "median delay")
    return table(heads, rows)


def onset_power() -> str:
    steps = stored("onset")["simulated"]["AR(0.65)"]["power"]
    rows = [(size, f"{100 * one['found']:.0f} %", f"{one['delay']:g}") for size, one in steps.items()]
    return table(("step, SD", "found", "median delay, tokens"), rows)


def onset_texts() -> str:
    shares = ("near", "missed", "before_the_reply", "covered", "timed", "another_trait_alarms")
    rows = [
        (
            name,
            one["n"],
            *(percent(one[key]) for key in shares),
            "not defined" if one["distance"] is None else ", ".join(f"{d:g}" for d in one["distance"]),
        )
        for name, one in stored("onset")["texts"].items()
    ]
    heads = ("texts", "replies", "near", "missed", "placed at the first token", "covered", "timed", "another alarms")
    return table((*heads, "distance: 5 %, median, 95 %"), rows)


def onset_intervals() -> str:
    rows = [
        (
            one["form"],
            f"{one['size']:g}",
            *(percent(one[key]) for key in ("answered", "covered", "near")),
            f"{one['width']:g}",
        )
        for one in stored("onset")["intervals"]
    ]
    return table(("form", "size, SD", "onset given", "covered", "near", "median width"), rows)


def onset_cohorts() -> str:
    rows = [
        (trait, *map(percent, one["onsets"]), f"{one['test']['statistic']:.1f}", one["test"]["p"])
        for trait, one in stored("onset")["cohorts"]["contaminated_against_baseline"].items()
    ]
    return table(("trait", "baseline", "contaminated", "log-rank z", "p"), rows)


# ---- how ----


def edges_independent() -> str:
    shares = (
        "lagged_with_q_below_0.05",
        "runs_with_such_a_lag",
        "runs_with_an_edge",
        "naive_r_above_0.3",
        "naive_p_below_0.05",
    )
    rows = [
        (name, f"{one['r']:g}", *(percent(one[key]) for key in shares))
        for kind in ("independent", "shared")
        for name, one in stored("interaction")[kind].items()
    ]
    heads = (
        "series", "shared r", "tests with q ≤ 0.05", "runs with any", "runs with an edge", "plain r > 0.3",
        "plain p < 0.05",
    )  # fmt: skip
    return table(heads, rows)


def edges_random() -> str:
    found = stored("interaction")["couplings"]["sets"]
    shares = ("random", "random_lagged", "traits", "traits_lagged", "traits_differ")
    rows = [(name, one["n_texts"], *(percent(one[key]) for key in shares)) for name, one in found.items()]
    heads = (
        "texts, seed", "n", "random directions", "random, later", "traits", "traits, later", "traits that differ",
    )  # fmt: skip
    return table(heads, rows)


def edges_planted() -> str:
    rows = [
        (r, percent(one["strongest_and_q_below_0.05"]), percent(one["the_only_edge"]))
        for r, one in stored("interaction")["planted_lag"].items()
    ]
    return table(("correlation", "found", "the only edge"), rows)


def edges_cascade() -> str:
    found, rows = stored("interaction"), []
    for name, says in CLOCKS.items():
        runs = [run["clocks"][name] for run in found["cascade"]["runs"]]
        lags = (r["planted"]["lag"] for r in runs)
        rows.append(
            (
                says,
                f"{sum(bool(r['planted']['claimed']) for r in runs)} of {len(runs)}",
                ", ".join(f"{lag['value']:g}" if lag else "none" for lag in lags),
                ", ".join(str(len(r["other_edges"])) for r in runs),
                ", ".join(str(_n_edges(run["clocks"][name])) for run in found["no_cascade"]["runs"]),
            )
        )
    counted = ", ".join(f"{run['counted_lag']:g}" for run in found["cascade"]["runs"])
    rows.append(("sentences of the grammar", "", counted, "", ""))
    return table(("clock", "found", "lag, tokens", "other edges", "edges where none was planted"), rows)


def _n_edges(clock: Figure) -> int:
    planted = clock.get("planted")
    return len(clock["other_edges"]) + bool(planted and planted["claimed"])


def _steering(measure: str) -> list[Figure]:
    """Effects of steering one trait on another."""
    tables = stored("interaction")["steering"]["tables"]
    return [e for t in tables if t["measure"] == measure for e in t["effects"] if e["source"] != e["target"]]


def edges_steering() -> str:
    planted = {tuple(pair) for pair in stored("interaction")["steering"]["planted"]}
    rows = [
        (
            e["source"],
            e["target"],
            "yes" if (e["source"], e["target"]) in planted else "no",
            estimate(e["estimate"], 3),
            f"{e['q']:.3f}",
        )
        for e in _steering("shown")
        if e["significant"] or (e["source"], e["target"]) in planted
    ]
    return table(("steered", "shown", "planted", "effect", "q"), rows)


def edges_steering_counts() -> str:
    measures = (("what the text shows", _steering("shown")), ("mean z", _steering("score")))
    rows = [(says, len(effects), sum(e["significant"] for e in effects)) for says, effects in measures]
    return table(("measure", "pairs", "significant"), rows)


# ---- where ----


def _cued() -> Figure:
    cued: Figure = stored("early_warning")["texts"]["cued"]
    return cued


def _ahead(first: str, last: str | None = None) -> tuple[str, ...]:
    """Heads of a table with a column for each k."""
    ks = (f"k = {one['k']}" for one in _cued()["scores"]["z"]["ahead"])
    return (first, *ks) if last is None else (first, *ks, last)


def _own(scores: Figure) -> Any:
    """Those of the trait's own score: specific, or z where the vectors have no specific scores."""
    return scores["specific"] if "specific" in scores else scores["z"]


def warning_auroc() -> str:
    scores = _cued()["scores"]
    names = SCORES | {n: f"random direction {n.removeprefix('random_')}" for n in scores if n.startswith("random_")}
    rows = [
        (says, *(estimate(one["auroc"]) for one in scores[name]["ahead"]), percent(scores[name]["false_alarms"]))
        for name, says in names.items()
        if name in scores
    ]
    return table(_ahead("score", "false alarms"), rows)


def warning_recall() -> str:
    scores = _cued()["scores"]
    rows = [
        (SCORES[name], *(percent(one["recall"]) for one in scores[name]["ahead"]))
        for name in ("specific", "z", "cusum", "ngram")
        if name in scores
    ]
    return table(_ahead("score"), rows)


def warning_into_cue() -> str:
    rows = [(one["tokens_read"], estimate(one["auroc"], 3)) for one in _own(_cued()["into_the_cue"])]
    return table(("tokens read", "AUROC"), rows)


def warning_before_cue() -> str:
    found = _cued()["before_the_cue"]
    ks = [f"k = {one['k']}" for one in found["z"]["same_place"]]
    rows = [(SCORES[name], *(estimate(k["auroc"]) for k in one["same_place"])) for name, one in found.items()]
    return table(("score", *ks), rows)


def warning_permuted() -> str:
    return table(_ahead("labels"), [("permuted", *(estimate(one) for one in _cued()["permuted"].values()))])


def warning_other_texts() -> str:
    texts = stored("early_warning")["texts"]
    rows = [
        (name, *(estimate(one["auroc"]) for one in _own(texts[name]["scores"])["ahead"]))
        for name in ("uncued", "drift")
    ]
    return table(_ahead("texts"), rows)


def window_share() -> str:
    rows: list[tuple[Any, ...]] = []
    for side, says in SIDES.items():
        for trait, found in stored("early_warning")["window"][side].items():
            for cell in found["cells"]:
                if cell["k"] in (0, 4, 16):
                    difference = (cell["minus_random"] or {}).get("share")
                    rows.append(
                        (
                            f"{says}, {trait}",
                            cell["k"],
                            cell["arm"],
                            cell["n"],
                            percent(cell["share"]),
                            estimate(cell["coherence"], 0),
                            estimate(difference) if difference else "",
                        )
                    )
    heads = ("model and trait", "k", "arm", "replies", "trait's share", "coherence", "share, minus random")
    return table(heads, rows)


def window_untouched() -> str:
    rows = [
        (trait, percent(one["identical"]), estimate(one["coherence"], 1), estimate(one["coherence_before"], 1))
        for trait, one in stored("early_warning")["window"]["untouched"].items()
    ]
    return table(("trait", "identical", "coherence with the cap", "coherence without"), rows)


# ---- intervals ----


def coverage_intervals() -> str:
    found, rows = stored("coverage"), []
    for one in found["intervals"]:
        of_cards = "question" in one["what"] or one["what"].startswith("own minus")
        if of_cards and (one["n"] in (5, 20) or "other" in one["what"]):
            continue  # between the others, and much like "own minus equal"
        others = sorted(one["others"].items(), key=lambda o: abs(o[1]["covered"]["value"] - found["nominal"]))
        nearest = f"{others[0][0]}: {percent(others[0][1]['covered'])}" if others else ""
        rows.append((one["what"], one["kind"], one["n"], percent(one["covered"]), nearest))
    return table(("figure", "data", "n", "covered", "another method"), rows)


def coverage_p_values() -> str:
    rows = [
        (one["what"], one["kind"], one["n"], percent(one["below_0.05"]), f"{one['ks_p']:.2f}")
        for one in stored("coverage")["p_values"]
    ]
    return table(("data", "kind", "n", "p ≤ 0.05", "uniform: p"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "onset-false-alarms": onset_false_alarms,
    "onset-power": onset_power,
    "onset-lengths": onset_lengths,
    "onset-statistics": onset_statistics,
    "onset-texts": onset_texts,
    "onset-intervals": onset_intervals,
    "onset-cohorts": onset_cohorts,
    "edges-independent": edges_independent,
    "edges-random": edges_random,
    "edges-planted": edges_planted,
    "edges-cascade": edges_cascade,
    "edges-steering": edges_steering,
    "edges-steering-counts": edges_steering_counts,
    "warning-auroc": warning_auroc,
    "warning-recall": warning_recall,
    "warning-into-cue": warning_into_cue,
    "warning-before-cue": warning_before_cue,
    "warning-permuted": warning_permuted,
    "warning-other-texts": warning_other_texts,
    "window-share": window_share,
    "window-untouched": window_untouched,
    "coverage-intervals": coverage_intervals,
    "coverage-p-values": coverage_p_values,
}
