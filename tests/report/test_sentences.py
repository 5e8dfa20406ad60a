"""The sentences of the report claim no more than the interval allows, and have the right sign."""

from __future__ import annotations

import re
from typing import Any

import pytest

from persona_core.report.answers import answer_how, answer_when, answer_where
from persona_core.report.comparison_figures import effects_table
from persona_core.report.comparison_sentences import against, describe_comparison
from persona_core.report.graph_figures import coupling_matrix, graph_figure
from persona_core.report.sentences import (
    describe_alarms,
    describe_edge,
    describe_graph,
    describe_onsets,
    describe_warning,
    group_reasons,
)
from persona_core.report.terms import explained


def est(value: float, low: float, high: float, **more: Any) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": 40, **more}


def run(n: int, onset: int, before: int, timed: int, shown: int | None) -> dict[str, Any]:
    counts = {"onset": onset, "before the reply": before, "none": n - onset - before}
    return {"n": n, "timed": timed, "shown": shown, **counts}


def test_alarms_stand_beside_chance_and_beside_what_the_text_shows() -> None:
    found: dict[str, Any] = {
        "configs": {"baseline": run(78, 4, 0, 1, None), "contaminated": run(78, 20, 54, 17, 6)},
        "test": {"statistic": 12.9, "p": 0.0005, "q": 0.0005, "n": 78},
        "smallest": 1.25,
    }
    says = describe_onsets("deception", found, 0.05)
    assert (
        "Baseline: 4 of 78 replies raise an alarm on the z of deception; at the rate of neutral replies about 3.9 "
        "would." in says
    )
    assert "1 of 4 onsets can be timed" in says
    assert "Contaminated: 74 of 78" in says and "54 of them at the first token already" in says
    assert "An alarm on z means “not neutral”" in says
    assert "show it in 6 replies. The text does not account for most of these alarms" in says
    assert "the contaminated model's onsets come earlier or more often" in says
    assert "A step of 1.25 SD half-way through a reply is detected at least 80 % of the time" in says
    found["configs"]["contaminated"]["doubles"] = 3
    assert "at the first token already (3 more than double later)" in describe_onsets("deception", found, 0.05)
    found["configs"]["contaminated"]["falls"] = 2
    assert "(2 fall by more than half later, 3 more than double later)" in describe_onsets("deception", found, 0.05)
    found["test"]["q"] = 0.2
    assert "do not differ significantly" in describe_onsets("deception", found, 0.05)
    found["test"] |= {"q": 0.01, "statistic": -3.0}
    assert "later or less often" in describe_onsets("deception", found, 0.05)
    specific = describe_onsets("deception", {**found, "kind": "specific", "rate": 0.008}, 0.05)
    assert "4 of 78 replies raise an alarm on deception; at the rate of neutral replies about 0.6 would." in specific
    assert "not neutral" not in specific
    found["configs"]["contaminated"]["no_rate"] = 9
    assert "For 9 of these replies no rate is known" in describe_onsets("deception", found, 0.05)
    found["configs"]["contaminated"]["shown"] = 70
    assert "account for" not in describe_onsets("deception", found, 0.05)


@pytest.mark.parametrize(
    ("kind", "clock", "value", "says"),
    [
        (
            "together",
            "series",
            0.5,
            "a and b vary together more than in neutral replies: r = 0.70 against 0.40, excess",
        ),
        ("together", "series", -0.5, "a and b vary together less than in neutral replies"),
        ("follows", "series", 0.5, "b varies with a, 4 tokens later, more than in neutral replies (scores, token by"),
        ("follows", "series", -0.5, "b varies with a, 4 tokens later, less than in neutral replies"),
        ("follows", "activation", 0.9, "b follows a, 4 tokens later (onsets of scores): a comes first in 90.0 %"),
        ("confirmed", "behaviour", 0.3, "steering a brings on b: share of replies changed by 30.0 %"),
        ("confirmed", "behaviour", -0.3, "steering a suppresses b: share of replies changed by -30.0 %"),
    ],
)
def test_an_edge_is_worded_by_its_sign(kind: str, clock: str, value: float, says: str) -> None:
    assert describe_edge(edge(kind, clock, value)).startswith(says)


def edge(kind: str, clock: str, value: float) -> dict[str, Any]:
    compared = {"own": est(0.7, 0.6, 0.8), "null": est(0.4, 0.3, 0.5)} if clock == "series" else {}
    lag = 4.0 if kind == "follows" else None
    return {
        "source": "a",
        "target": "b",
        "kind": kind,
        "clock": clock,
        "lag": lag,
        "estimate": est(value, -1, 1),
    } | compared


def graph(**couplings: Any) -> dict[str, Any]:
    pair: dict[str, Any] = {"source": "a", "target": "b", "estimate": est(0.7, 0.6, 0.8), "null": None}
    pair |= {"excess": None, "claimed": False, "significant": False}
    found: dict[str, Any] = {"together": [pair], "lagged": [], "bars": [0.08, 0.08], "missing": None, "control": None}
    found |= {"n_neutral": 390, "n_neutral_prompts": 78}
    return {"nodes": ["a", "b"], "edges": [], "couplings": found | couplings, "clocks": [], "confirmed": []}


def test_what_was_not_measured_is_not_said() -> None:
    says = " ".join(describe_graph(graph()))
    assert "0 of 1 pairs of traits vary together more, or less, than in the 390 neutral replies (to 78 prompts)" in says
    assert "No trait was found to follow another." in says and "was not measured" in says
    assert "Of neutral replies" not in says and "No random directions were read along" in says
    assert "another model's" not in says


def test_couplings_say_that_they_are_of_z_and_why() -> None:
    says = describe_graph(graph())[0]
    assert "Couplings are of z, not of specific scores" in says
    assert "has the other traits subtracted from it, so a coupling of two would be built in" in says


def test_the_strongest_pairs_are_described_and_the_others_counted() -> None:
    found = graph()
    found["edges"] = [edge("together", "series", value) for value in (0.1, -0.9, 0.2, 0.3, 0.4, 0.5, 0.6)]
    says = describe_graph(found)
    assert "-0.90" in says[2] and sum("excess in Fisher's z" in one for one in says) == 5
    assert "The other 2 pairs are in the figure." in says


def test_without_neutral_replies_the_page_says_why_nothing_is_claimed() -> None:
    says = describe_graph(graph(missing="No coupling is claimed: there are no neutral replies"))
    assert says[0] == "No coupling is claimed: there are no neutral replies" and "pairs of traits" not in " ".join(says)


def test_how_often_neutral_text_and_random_directions_would_be_edges_stands_beside_the_edges() -> None:
    found = graph(control={"together": est(0.1, 0.05, 0.17), "lagged": est(0.0, 0.0, 0.01)})
    found["couplings"]["together"][0] |= {"claimed": True, "significant": True}
    found["edges"] = [edge("together", "series", 0.5)]
    found["other_reader"] = True
    counts = {"together": 1, "n_together": 280, "lagged": 0, "n_lagged": 5600, "n_halvings": 10, "n_prompts": 78}
    found["neutral_texts"] = counts
    says = " ".join(describe_graph(found))
    assert "1 of 1 pairs of traits vary together more, or less" in says and "1 pairs differ by more than chance" in says
    assert "1 of 280 pairs at the same token and 0 of 5600 later ones (10 random halvings of 78 prompts)" in says
    assert "Of pairs of random directions, 10 % [5, 17] differ by more than 0.1 as well" in says
    assert "The neutral replies are another model's" in says
    assert "no evidence that one trait causes another" in says and "pull" not in says
    found["neutral_texts"] = {"missing": "too few prompts"}
    assert "random halvings" not in " ".join(describe_graph(found))


def test_couplings_of_an_older_analysis_are_not_claimed() -> None:
    old = graph()
    old["couplings"] = {"together": [{"source": "a", "target": "b", "estimate": est(0.7, 0.6, 0.8), "floor": 0.1}]}
    old["edges"] = [{**edge("together", "behaviour", 0.7), "clock": "series"}]
    says = describe_graph(old)
    assert "run persona analyse again" in says[0] and not any("vary together" in one for one in says)
    assert coupling_matrix(old).data and len(graph_figure(old).data) == 1


def test_any_alarm_stands_beside_the_rate_over_all_traits() -> None:
    replies = {"baseline": {"n": 78, "any": 5, "no_rate": 0}, "contaminated": {"n": 78, "any": 70, "no_rate": 12}}
    neutral = {"value": 0.049, "low": 0.03, "high": 0.08, "n_prompts": 410}
    alarms: dict[str, Any] = {"rate": 0.05, "neutral": neutral, "held_out": {}, "replies": replies}
    says = describe_alarms(alarms)
    assert "Baseline: 5 of 78 replies raise an alarm on at least one trait. Contaminated: 70 of 78" in says
    assert "for 12 of them no rate is known" in says
    assert "Of neutral replies 4.9 % [3.0, 8.0] do (nominal 5 % over all traits together; 410 prompts)." in says
    alarms["held_out"] = {"kinds": est(0.06, 0.04, 0.1)}
    says = describe_alarms(alarms)
    assert "Of replies to kinds of prompts left out of the calibration, 6.0 % [4.0, 10.0] do." in says
    assert describe_alarms(None) == "" == describe_alarms({**alarms, "neutral": None})


def scores(z: dict[str, Any], rival: dict[str, Any]) -> dict[str, Any]:
    def of(auroc: dict[str, Any]) -> dict[str, Any]:
        lead = {"early": est(0.9, 0.8, 1.0), "quantiles": {"0.5": 6.0}}
        return {
            "ahead": [{"k": 4, "n": 40, "auroc": auroc}],
            "threshold": 3.2,
            "rate": 0.05,
            "false_alarms": est(0.05, 0.03, 0.08),
            "alarms_per_1000": est(0.5, 0.3, 0.7),
            "lead": lead,
        }

    found = {"z": of(z), "cusum": of(z), "n-grams": of(rival)}
    return {"n": 40, "first": 12.0, "at_start": 0, "other_reader": False, "scores": found}


def test_a_rival_is_named_where_z_is_not_clearly_above_it() -> None:
    clear = scores(est(0.99, 0.97, 1.0), est(0.6, 0.5, 0.7))
    assert "n-grams" not in describe_warning("evil", clear)
    close = scores(est(0.99, 0.97, 1.0), est(0.96, 0.93, 0.98))
    assert (
        "The AUROC of the z is not clearly above that of (tokens before the trait in parentheses): n-grams (4)"
        in describe_warning("evil", close)
    )
    better = scores(est(0.7, 0.45, 0.9), est(0.99, 0.97, 1.0))
    assert "n-grams (4)" in describe_warning("evil", better)
    nothing = scores(est(0.5, 0.4, 0.6), est(0.5, 0.4, 0.6))
    assert "n-grams" not in describe_warning("evil", nothing)


def test_another_models_null_and_the_start_of_the_reply_are_named_beside_the_figure() -> None:
    found = {**scores(est(0.99, 0.97, 1.0), est(0.6, 0.5, 0.7)), "at_start": 31, "other_reader": True}
    says = describe_warning("evil", found)
    assert "In 31 replies the first token already exceeds it." in says
    assert "another model's" in says and "nominal 5 %" in says and "5 % [3, 8]" in says


def test_a_warning_by_the_specific_score_is_held_against_plain_z_and_says_what_all_traits_raise() -> None:
    found = scores(est(0.97, 0.95, 0.99), est(0.6, 0.5, 0.7))
    found["scores"]["specific"] = found["scores"]["z"]
    found |= {"kind": "specific", "detector": {"rate": 0.0083, "any": est(0.049, 0.03, 0.08)}}
    says = describe_warning("evil", found)
    assert "Its specific score exceeds 3.2 before that token" in says
    assert "The AUROC of the specific score is not clearly above that of" in says and ": z (4)." in says
    assert "alarm in 4.9 % [3.0, 8.0] of neutral replies, on evil in 0.8 %" in says


# ---- the three answers ----


def test_when_is_answered_by_counts_the_middle_onset_and_what_neutral_replies_would_do() -> None:
    found: dict[str, Any] = {
        "kind": "specific",
        "rate": 0.008,
        "configs": {"baseline": run(78, 1, 0, 1, None), "contaminated": run(78, 3, 54, 3, 6)},
    }
    dated: list[dict[str, Any]] = [{"answer": "onset", "onset": n} for n in (40, 10, 20)]
    onsets = {"baseline": dated[:1], "contaminated": [*dated, {"answer": "none", "onset": None}]}
    says = answer_when("<evil>", found, onsets, 0.05)
    assert says.startswith("Baseline: 1 of 78 replies raise an alarm on &lt;evil&gt;; the one onset inside a reply")
    assert "reply is at token 40; in as many neutral replies about 0.6 would." in says
    assert "Contaminated: 57 of 78" in says and "54 of them at the first token already; half of the 3 onsets" in says
    assert "come by token 20" in says and "not neutral" not in says
    found["configs"]["contaminated"]["no_rate"] = 9
    outside = answer_when("evil", found, onsets, 0.05).partition("Contaminated")[2]
    assert "For 9 of them no false-alarm rate is known" in outside and "neutral replies about" not in outside
    plain = answer_when("evil", {**found, "kind": "z"}, onsets, 0.05)
    assert "alarm on the z of evil" in plain and "An alarm on z means “not neutral”" in plain


def test_how_names_the_edges_of_the_trait_and_says_so_where_there_is_none() -> None:
    linked = graph()
    linked["edges"] = [edge("together", "series", 0.5)]
    says = answer_how("a", {"baseline": graph(), "contaminated": linked})
    assert says.startswith("Baseline: no trait varies with a more, or less, than it does in neutral replies")
    assert "Contaminated: a and b vary together more than in neutral replies: r = 0.70 against 0.40" in says
    assert "none of this alone is evidence of a cause" in says
    assert answer_how("c", {"run": linked}).endswith("or to come before it; 1 pairs of other traits are linked.")
    assert answer_how("a", {"baseline": graph(), "contaminated": graph()}).startswith("Baseline and contaminated: no ")
    missing = answer_how("a", {"run": graph(missing="No coupling is claimed: <why>")})
    assert missing.endswith("No coupling is claimed: &lt;why&gt;") and "varies" not in missing
    assert answer_how("a", {"run": {"missing": "too few"}}) == "Run: too few"


def test_where_says_what_the_score_gives_away_and_what_an_intervention_leaves_beside_a_random_one() -> None:
    found = {**scores(est(0.99, 0.97, 1.0), est(0.6, 0.5, 0.7)), "at_start": 31, "other_reader": True}
    says = answer_where("evil", {"baseline": {"missing": "4 of 78 show it."}, "contaminated": found}, {})
    assert says.startswith("Baseline: 4 of 78 show it. Contaminated: 40 replies show evil, first at token 12 (median)")
    assert "crosses the threshold before that in 90 % [80, 100] of them" in says
    assert "(where it crosses at all, 6 tokens before that one, median), and in 5 % [3, 8] of neutral" in says
    assert "In 31 the first token already exceeds it." in says and "another model's" in says
    cells = [
        {"arm": arm, "k": k, "share": est(share, 0, 1), "coherence": est(coherence, 0, 100)}
        for arm, k, share, coherence in (
            ("none", 0, 0.9, 96), ("cap", 0, 0.1, 65), ("cap, random", 0, 0.7, 92), ("cap", 8, 0.02, 60)
        )
    ]  # fmt: skip
    says = answer_where("evil", {}, {"contaminated": {"cells": cells}})
    assert "the trait is in 10 % [0, 100] of the tokens (contaminated) instead of 90 %" in says
    assert "along a random direction leaves 70 %" in says and says.endswith("Coherence falls from 96 to 65 of 100.")


def test_a_term_is_explained_once_in_each_part_and_never_in_a_models_text_or_a_name() -> None:
    markup = (
        "<section><h2>AUROC</h2><p title='AUROC'>AUROC, Fisher&#x27;s z and the AUROC; annulled.</p>"
        '<div data-trait="null" hidden><q>an AUROC</q>AUROC</div></section>'
    )
    page = explained(markup)
    assert page.count("<abbr") == 3 and page.count(">AUROC</abbr>") == 2 and ">Fisher&#x27;s z</abbr>" in page
    assert "<h2>AUROC</h2>" in page and "<q>an AUROC</q>" in page and "annulled" in page and "title='AUROC'" in page
    assert re.sub(r"</?abbr[^>]*>", "", page) == markup


def effect(total: float, q: float, changed: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    one = est(total, total - 0.2, total + 0.2, p=q, q=q, with_sinks=est(total + 1, total + 0.8, total + 1.2))
    found = {"n": 40, "n_sinks": 5, "changed_by_sinks": list(changed), "total": one, "weights": None, "text": None}
    return found | more


def test_only_what_is_significant_differs() -> None:
    assert describe_comparison({"overall": {"a": effect(0.1, 0.4), "b": effect(0.2, 0.2)}}).startswith(
        "No trait differs"
    )
    found: dict[str, Any] = {"overall": {"a": effect(0.1, 0.4), "b": effect(-2.0, 0.001)}}
    says = describe_comparison(found)
    assert says.startswith("1 of 2 traits differs significantly in z, b most: -2.00 [-2.20, -1.80]")
    assert "not neutral" in says, "z does not tell which trait"
    found |= {"kind": "specific", "against": ["a", "b"], "plain": found["overall"]}
    says = describe_comparison(found)
    assert says.startswith("1 of 2 traits differs significantly in the specific score, b most")
    assert "not neutral" not in says and "how much more a token looks like one of a, b than like" in against(found)


def test_a_trait_that_another_outweighs_is_not_said_to_differ() -> None:
    def run(**means: float) -> dict[str, Any]:
        return {"traits": {t: {"mean": est(m, m - 0.1, m + 0.1)} for t, m in means.items()}}

    overall = {"a": effect(50.0, 0.001), "<b>": effect(-20.0, 0.001), "c": effect(-2.0, 0.001)}
    found = {"kind": "specific", "overall": overall, "plain": overall}
    statistics = {
        "baseline": run(a=0.0, **{"<b>": 0.05}, c=3.0),
        "contaminated": run(a=50.0, **{"<b>": -20.0}, c=1.0),
    }
    says = describe_comparison(found, statistics)
    assert says.startswith("2 of 3 traits differ significantly in the specific score, a most")
    assert "Neither model is above neutral in &lt;b&gt;: their specific scores differ because other traits" in says
    assert describe_comparison(found).startswith("3 of 3"), "without means nothing can be said of it"


def test_where_only_z_differs_no_trait_is_named() -> None:
    plain = {"a": effect(3.0, 0.001), "b": effect(2.0, 0.001)}
    found = {"kind": "specific", "overall": {"a": effect(0.1, 0.4), "b": effect(0.0, 0.9)}, "plain": plain}
    says = describe_comparison(found)
    assert says.startswith("The contaminated model is not neutral, but shows no trait in particular: z differs")
    assert "2 of 2 traits, a most: 3.00" in says and says.endswith("but no trait's specific score does.")
    assert describe_comparison({**found, "plain": found["overall"]}).startswith("No trait differs significantly")


def test_an_effect_that_sink_tokens_change_is_no_result() -> None:
    found: dict[str, Any] = {"overall": {"a": effect(3.0, 0.001, ("total",)), "b": effect(1.0, 0.001, ("text",))}}
    says = describe_comparison(found)
    assert says.startswith("1 of 2 traits differs significantly in z, b most")
    assert "No result, because it changes when the sink tokens are put back: a (total); b (text)." in says
    only = describe_comparison({"overall": {"a": effect(3.0, 0.001, ("total",))}})
    assert only.startswith("No trait differs") and "a (total)" in only


def test_the_table_of_effects_shows_each_with_and_without_sink_tokens() -> None:
    found: dict[str, Any] = {"overall": {"<a>": effect(3.0, 0.001, ("total",))}, "kind": "z"}
    table = effects_table(found, ["<a>"])
    assert "3.00 [2.80, 3.20]" in table and "4.00 [3.80, 4.20]" in table and "not a result" in table
    assert "&lt;a&gt;" in table and "<a>" not in table and "Scores are z" in table
    old = {k: v for k, v in effect(3.0, 0.001).items() if k not in ("n_sinks", "changed_by_sinks")}
    old["total"] = {k: v for k, v in old["total"].items() if k != "with_sinks"}
    assert "3.00 [2.80, 3.20]" in effects_table({"overall": {"a": old}}, ["a"])


def test_reasons_are_grouped_and_a_single_one_keeps_its_name() -> None:
    reasons = ["where, x, evil: 6 of 78 replies show evil", "where, x, sloth: 0 of 78 replies show sloth"]
    assert group_reasons(reasons) == reasons
    many = [f"where, x, {t}: 0 of 78 replies show {t}" for t in ("evil", "sloth")]
    assert group_reasons(many) == ["where, x, evil, sloth: 0 of 78 replies show it"]
    assert group_reasons(["when: too few neutral replies"]) == ["when: too few neutral replies"]


def test_a_trait_of_any_name_is_inert() -> None:
    found: dict[str, Any] = {"configs": {"<b>": run(10, 1, 0, 0, None)}, "test": None, "smallest": None}
    assert "<script>" not in describe_onsets("<script>", found, 0.05) and "<b>" not in describe_onsets(
        "<script>", found, 0.05
    )
