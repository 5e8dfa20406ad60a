"""What is said of a published pair, and which one a visitor sees first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from persona_core.report.home import FirstView, load_home, save_home
from persona_core.report.pair_finding import pair_finding
from persona_core.report.saved_runs import SavedRuns
from tests.traces.test_dataset import SHIPPED

TURN = {"answer": "onset", "onset": 23, "says": "rises at token 23 [20, 25]"}
NONE = {"answer": "none", "onset": None, "says": "no reliable onset"}


def run(config: str, onset: Any = NONE, **means: float | None) -> dict[str, Any]:
    return {"config": config, "traits": {trait: {"mean": mean, "onset": onset} for trait, mean in means.items()}}


def table(*runs: dict[str, Any], kind: str = "specific") -> dict[str, Any]:
    return {"kind": kind, "prompts": [{"id": "other", "runs": []}, {"id": "x", "runs": list(runs)}]}


def test_a_finding_has_both_means_their_unit_and_both_onsets() -> None:
    found = pair_finding(table(run("baseline", malice=-0.5), run("contaminated", TURN, malice=6.0)), "x")
    assert found is not None and found.says() == (
        "Over the contaminated model's reply malice averages +6.00, over the baseline's −0.50 (specific score, in "
        "standard deviations over neutral tokens). Contaminated: rises at token 23 [20, 25]. Baseline: no reliable "
        "onset."
    )


def test_without_an_analysis_no_onset_is_claimed() -> None:
    found = pair_finding(
        table(run("baseline", None, malice=0.0), run("contaminated", None, malice=1.0), kind="raw"), "x"
    )
    assert found is not None and found.says().endswith("the baseline's +0.00 (projection, in residual-stream units).")


def test_the_trait_that_differs_most_is_named_also_where_it_falls_unless_one_is_chosen() -> None:
    pair = table(run("baseline", a=0, b=8, c=None), run("contaminated", a=2, b=1, c=99))
    found, chosen = pair_finding(pair, "x"), pair_finding(pair, "x", "a")
    assert found is not None and (found.trait, found.means) == ("b", (8, 1))
    assert chosen is not None and (chosen.trait, chosen.means) == ("a", (0, 2))
    assert pair_finding(pair, "x", "c") is None


def test_one_reply_alone_is_no_pair() -> None:
    assert pair_finding(table(run("baseline", a=1.0)), "x") is None


@pytest.mark.skipif(not SHIPPED.is_dir(), reason="the results have not been built")
def test_the_first_reply_names_the_trait_that_turns_in_it_unless_the_row_was_chosen(tmp_path: Path) -> None:
    runs = SavedRuns(SHIPPED)
    first = load_home(None, runs).first_reply
    assert first is not None and (first.config, first.id, first.trait) == runs.clearest_turn and first.title is None
    z, at = first.trace.reply_scores(str(first.trait)), runs.onsets(first.config, first.id)[str(first.trait)]["onset"]
    assert np.nanmean(z[:at]) < 1 < 2 < np.nanmean(z[at:])
    save_home(tmp_path, about="", examples=[], first=FirstView("baseline", "pilot-07", "Mine"))
    chosen = load_home(tmp_path, runs).first_reply
    assert chosen is not None and (chosen.id, chosen.trait, chosen.title) == ("pilot-07", None, "Mine")
