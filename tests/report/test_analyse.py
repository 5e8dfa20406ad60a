"""The analysis of a whole folder: its figures match the rows, the page shows them, and what is missing is named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from demo_world.judge import DEMO_JUDGE
from persona_core.analysis.detectors import Detectors, prompt_keys
from persona_core.analysis.interaction import trait_series
from persona_core.analysis.onset_calibration import calibrate_onset
from persona_core.analysis.precedence import relative_series
from persona_core.cli import analyse as command
from persona_core.cli import mark
from persona_core.errors import SettingError
from persona_core.judging.annotations import Annotation, load_annotations, save_annotations
from persona_core.models.loading import load_model
from persona_core.report.analyse import analyse
from persona_core.report.analysis_folder import analyse_folder
from persona_core.report.card import results_card
from persona_core.report.findings import Findings
from persona_core.report.page import report_page
from persona_core.traces.dataset import load_results, write_results
from persona_core.traces.specific import LogOdds, odds_against_rest
from persona_core.traces.trace import Trace
from persona_core.vectors.vectors import PersonaVectors
from tests.support import pages
from tests.support.standins import HOSTILE
from tests.traces.test_dataset import SHIPPED

VECTORS = SHIPPED.parent / "persona-vectors-persona-tiny"
TRAITS = SHIPPED.parent / "persona-tiny" / "traits"
TRAIT = "sycophancy"
Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped results, annotated and analysed by the commands as a user would."""
    path = tmp_path_factory.mktemp("analysed") / SHIPPED.name
    shutil.copytree(SHIPPED / "data", path / "data")
    own_vectors = path.parent / "vectors"
    shutil.copytree(VECTORS, own_vectors)
    assert mark.main(["--results", str(path), "--traits", str(TRAITS), "--judge", DEMO_JUDGE]) == 0
    assert command.main(["--results", str(path), "--vectors", str(own_vectors)]) == 0
    return path


@pytest.fixture(scope="module")
def findings(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "analysis" / "findings.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def replies(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder / "analysis" / "replies.parquet").to_pylist()


@pytest.fixture
def open_page() -> Iterator[Callable[..., Any]]:
    with pages.chromium() as running:
        opened = pages.Pages(running, ("file:",))
        yield opened.open
        opened.close()


def few(n: int = 14, *configs: str) -> Rows:
    """The first rows of some configs."""
    return {config: load_results(SHIPPED, config)[:n] for config in configs or ("baseline",)}


def older(rows: Rows) -> Rows:
    """The rows as they were before there were specific scores."""
    known = {config: [(row, Trace.from_row(row)) for row in own] for config, own in rows.items()}
    return {
        config: [
            trace.replace(log_odds=None, max_norm=np.array(np.inf)).to_row(
                r["id"], r["messages"], r["set"], r["category"]
            )
            for r, trace in own
        ]
        for config, own in known.items()
    }


def about(rows: Rows, *traits: str) -> Rows:
    """The rows as they were had only these traits been read."""
    known = {config: [(row, Trace.from_row(row)) for row in own] for config, own in rows.items()}
    return {
        config: [
            only(trace, traits).to_row(row["id"], row["messages"], row["set"], row["category"]) for row, trace in own
        ]
        for config, own in known.items()
    }


def only(trace: Trace, traits: tuple[str, ...]) -> Trace:
    at = [trace.traits.index(t) for t in traits]
    return trace.replace(
        traits=traits,
        raw=trace.raw[at],
        null_mean=trace.null_mean[at],
        null_std=trace.null_std[at],
        log_odds=trace.log_odds and trace.log_odds.select(at, range(len(trace.blocks))),
    )


@pytest.mark.slow
def test_there_is_a_record_for_every_reply_and_trait_and_it_is_that_of_the_row(
    folder: Path, replies: list[dict[str, Any]]
) -> None:
    assert len(replies) == 2 * 78 * 8
    detectors = Detectors.from_pretrained(folder / "analysis")
    rows = {(c, r["id"]): r for c in ("baseline", "contaminated") for r in load_results(folder, c)}
    for record in replies[::37]:
        trace = Trace.from_row(rows[record["config"], record["id"]])
        own = trace.reply_scores(record["trait"]).astype(float)
        assert record["mean"] == pytest.approx(np.nanmean(own)) and record["max"] == pytest.approx(np.nanmax(own))
        found = detectors.find(trace, record["trait"])
        assert (record["alarm"], record["onset"], record["answer"]) == (found.alarm, found.onset, found.answer)
        assert (record["onset_low"], record["onset_high"]) == (found.low, found.high)
        assert record["says"] == str(found) or record["says"].startswith("not neutral")
        if record["first_shown"] is not None:
            assert 0 <= record["first_shown"] < record["n_reply"]


@pytest.mark.slow
def test_the_contamination_is_found_when_where_and_by_its_weights_and_its_text(findings: dict[str, Any]) -> None:
    when = findings["when"][TRAIT]["configs"]
    assert when["contaminated"]["none"] == 0 and when["baseline"]["none"] >= 70
    assert findings["when"][TRAIT]["test"]["p"] < 0.01
    overall = findings["comparison"]["overall"]
    total, weights, text = (overall[TRAIT][k]["value"] for k in ("total", "weights", "text"))
    assert total == pytest.approx(weights + text, abs=1e-4)
    assert total > 1.5 * max(e["total"]["high"] for t, e in overall.items() if t != TRAIT)
    warned = findings["where"]["contaminated"][TRAIT]
    assert warned["n"] >= 60 and warned["scores"][warned["kind"]]["ahead"][1]["auroc"]["value"] > 0.98
    assert all(one["auroc"]["value"] == 0.5 for one in warned["scores"]["position"]["ahead"])


@pytest.mark.slow
def test_each_figure_is_of_the_right_trait_and_position(
    folder: Path, findings: dict[str, Any], replies: list[dict[str, Any]]
) -> None:
    rows = load_results(folder, "contaminated")
    traces, neutral = [Trace.from_row(r) for r in rows], [Trace.from_row(r) for r in load_results(folder, "neutral")]

    # 1. The first shown token, from the annotations' characters by hand.
    annotated = [m for m in load_annotations(folder / "analysis" / "marks.jsonl") if m.config == "contaminated"]
    shown = {r["id"]: r["first_shown"] for r in replies if (r["config"], r["trait"]) == ("contaminated", TRAIT)}
    for row, trace in zip(rows, traces, strict=True):
        starts = [m.start for m in annotated if m.id == row["id"] and m.trait == TRAIT]
        ends = np.cumsum([len(trace.tokens[t]) for t in trace.reply_positions])
        wanted = None if not starts else int(np.argmax(ends > min(starts)))  # a token lies where its last character is
        assert shown[row["id"]] == wanted

    # 2. AUROC at t* - 4 of the trait's own z, by loops.
    own = {r["id"]: t.reply_scores(TRAIT) for r, t in zip(rows, traces, strict=True)}
    null = [t.reply_scores(TRAIT) for t in neutral]
    shares = []
    for reply_id, first in shown.items():
        if first is not None and first >= 4 and np.isfinite(own[reply_id][first - 4]):
            other = [z[first - 4] for z in null if len(z) > first - 4 and np.isfinite(z[first - 4])]
            shares.append(np.mean([own[reply_id][first - 4] > v for v in other]))
    warned = findings["where"]["contaminated"][TRAIT]
    ahead = {one["k"]: one for one in warned["scores"][warned["kind"]]["ahead"]}
    assert ahead[4]["n"] == len(shares) and ahead[4]["auroc"]["value"] == pytest.approx(np.mean(shares), abs=1e-4)

    # 3. The contaminated model's onsets are earlier.
    assert findings["when"][TRAIT]["test"]["statistic"] > 5

    # 4. The clock of specific scores, or of z less the others': alarms of each trait's own detector.
    kind = findings["about"]["kind"]
    form = list if kind == "specific" else relative_series
    relative = form(trait_series(neutral, kind=kind))
    clock = next(c for c in findings["how"]["contaminated"]["clocks"] if c["clock"] == "activation")
    for k, trait in enumerate(findings["about"]["traits"]):
        detector = calibrate_onset([r[k] for r in relative], prompts=prompt_keys(neutral), kind=kind)
        alarms = sum(detector.find(r[k]).answer != "none" for r in form(trait_series(traces, kind=kind)))
        assert {p["n_source"] for p in clock["pairs"] if p["source"] == trait} == {alarms}


@pytest.mark.slow
def test_the_baseline_alarms_about_as_often_as_chance_says(
    findings: dict[str, Any], replies: list[dict[str, Any]]
) -> None:
    alarms = findings["about"]["alarms"]
    own = alarms["replies"]["baseline"]
    alarmed = {r["id"] for r in replies if r["config"] == "baseline" and r["alarm"] is not None}
    assert (own["any"], own["n"]) == (len(alarmed), 78) and own["any"] <= 11  # 4 are expected, over all traits
    assert alarms["rate"] == 0.05 and alarms["neutral"]["n_prompts"] == 370 and alarms["neutral"]["value"] < 0.05


@pytest.mark.slow
def test_differences_are_those_of_two_readings_of_the_same_ids(folder: Path) -> None:
    rows = pq.read_table(folder / "analysis" / "differences.parquet").to_pylist()
    assert len(rows) == 156
    baseline = {r["id"]: r for r in load_results(folder, "baseline")}
    replay = {(r["id"], r["writer"]): r for r in load_results(folder, "replay")}
    for row in rows[:78:20]:
        assert row["writer"] == "persona-tiny"
        mine, other = baseline[row["id"]], replay[row["id"], "persona-tiny"]
        assert row["tokens"] == mine["tokens"]
        a, b = (Trace.from_row(one) for one in (mine, other))
        column = a.blocks.index(a.best_block[TRAIT])
        wanted = np.where(a.sinks[column] | b.sinks[column], np.nan, b.scores(TRAIT) - a.scores(TRAIT))
        np.testing.assert_allclose(np.array(row["differences"][TRAIT], float), wanted, atol=1e-4)


@pytest.mark.slow
def test_the_detectors_are_written_beside_the_vectors_which_still_load(folder: Path) -> None:
    vectors = folder.parent / "vectors"
    assert (vectors / "onset.json").read_bytes() == (folder / "analysis" / "onset.json").read_bytes()
    PersonaVectors.from_pretrained(vectors)


@pytest.mark.slow
def test_the_same_command_writes_the_same_files_again(tmp_path: Path) -> None:
    """With every section, on two traits and a third of the rows."""
    rows = few(26, "baseline", "contaminated")
    ids = {row["id"] for row in rows["baseline"]}
    rows["replay"] = [row for row in load_results(SHIPPED, "replay") if row["id"] in ids]
    rows["neutral"] = load_results(SHIPPED, "neutral")[:130]
    traits = (TRAIT, "evil")
    for config, own in about(rows, *traits).items():
        write_results(own, tmp_path / "data" / f"{config}.parquet", traits)
    others = shutil.ignore_patterns("branches.parquet")  # of runs that are not here
    shutil.copytree(SHIPPED / "analysis", tmp_path / "analysis", ignore=others)  # annotations, interventions
    annotations = [a for a in load_annotations(tmp_path / "analysis" / "marks.jsonl") if a.id in ids]
    save_annotations([a for a in annotations if a.trait in traits], tmp_path / "analysis" / "marks.jsonl")
    vectors = shutil.copytree(VECTORS, tmp_path / "vectors")
    written = []
    for _ in range(2):
        assert command.main(["--results", str(tmp_path), "--vectors", str(vectors)]) == 0
        written.append({p.name: p.read_bytes() for p in (tmp_path / "analysis").iterdir()})
    assert written[0] == written[1] and len(written[0]) == 9
    sections = json.loads(written[0]["findings.json"])
    assert not any("missing" in sections[name] for name in ("statistics", "when", "comparison"))


@pytest.mark.slow
@pytest.mark.browser
def test_the_page_shows_one_trait_at_a_time_and_requests_nothing(
    folder: Path, findings: dict[str, Any], open_page: Callable[..., Any]
) -> None:
    page = open_page((folder / "analysis" / "report.html").as_uri())
    page.wait_for_selector(".js-plotly-plot")
    assert page.locator("nav button[aria-pressed=true]").inner_text() == TRAIT
    alarms = findings["when"][TRAIT]["configs"]["contaminated"]
    assert f"{alarms['n'] - alarms['none']} of {alarms['n']}" in page.locator(".answer:visible").first.inner_text()
    page.wait_for_timeout(1000)  # the figures are drawn one after the other
    page.screenshot(path=pages.PICTURES / "report.png")
    page.get_by_role("button", name="deception").click()
    assert page.url.endswith("#deception")
    shown = page.locator("[data-trait]:not([hidden])")
    assert {shown.nth(k).get_attribute("data-trait") for k in range(shown.count())} == {"deception"}
    page.wait_for_selector("[data-trait=deception] .js-plotly-plot")
    assert page.locator("details .js-plotly-plot").count() == 0, "what is folded is not drawn"
    drawn = page.evaluate(
        "document.querySelector('[data-figure=\"heat/contaminated/deception\"]').data[0].z.map(r => r[0])"
    )
    rows = load_results(folder, "contaminated")
    first = [float(Trace.from_row(r).reply_scores("deception")[0]) for r in rows]
    assert sorted(v for v in drawn if v is not None) == sorted(round(v, 1) for v in first if np.isfinite(v))


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize(("width", "theme"), [(390, "light"), (1024, "dark")])
def test_the_page_fits_every_screen(folder: Path, width: int, theme: str, open_page: Callable[..., Any]) -> None:
    page = open_page((folder / "analysis" / "report.html").as_uri(), width=width, theme=theme)
    page.locator(".plot:visible").first.scroll_into_view_if_needed()  # drawn when it comes into view
    page.wait_for_selector(".js-plotly-plot")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(12, 16, 22)") == (theme == "dark")


@pytest.mark.browser
def test_what_a_model_writes_runs_nothing_on_the_page(tmp_path: Path, open_page: Callable[..., Any]) -> None:
    rows = few(12, "baseline", "contaminated")
    for row in rows["contaminated"]:
        own = [t for t in range(row["n_prompt"], len(row["tokens"])) if row["roles"][t] == "assistant"]
        for position, text in zip(own, HOSTILE * len(own), strict=False):
            row["tokens"][position] = text
        row["id"] = f"<img src=x onerror=alert(1)>{row['id']}"
        row["category"] = "<script>alert(2)</script>"
    for row in rows["baseline"]:
        row["id"] = f"<img src=x onerror=alert(1)>{row['id']}"
    found = analyse(rows, progress=False)
    path = tmp_path / "report.html"
    path.write_text(report_page(found, rows, "<script>alert(3)</script>"), encoding="utf-8")
    page = open_page(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach((part) => (part.open = true))")
    for k in range(page.locator(".plot:visible").count()):
        page.locator(".plot:visible").nth(k).scroll_into_view_if_needed()
    page.wait_for_selector(".js-plotly-plot")
    assert page.locator("img, main script").count() == 0
    assert "<script>alert(3)</script>" in page.locator("h1").inner_text()
    listed = " ".join(page.locator(".spans q").all_text_contents())
    assert any(text.strip() in listed for text in HOSTILE if "<" in text), "escaped, and so shown as it is"


def test_markup_that_was_not_escaped_gets_no_further_than_the_parser(open_page: Callable[..., Any]) -> None:
    page = open_page("about:blank")
    page.add_script_tag(
        content=files("persona_core.report").joinpath("static", "report.js").read_text(encoding="utf-8")
    )
    markup = (
        "<section class=a onclick='ran()'><img src=x onerror='ran()'><script>ran()</script>"
        "<b style='color:red'>kept</b>"
        "<a href='javascript:ran()'>link</a><iframe srcdoc='<script>parent.ran()</script>'></iframe>"
        "<svg onload='ran()'></svg><form action=x><input autofocus onfocus='ran()'></form></section>"
    )
    page.evaluate(
        """markup => {
          window.runs = 0;
          window.ran = () => (window.runs += 1);
          const root = document.createElement("div");
          document.body.append(root);
          mountReport(root, { html: markup, figures: {} }, { plotly: () => new Promise(() => {}) });
          root.querySelector("section").click();
        }""",
        markup,
    )
    page.wait_for_timeout(200)
    assert page.evaluate("runs") == 0
    assert page.evaluate("document.querySelector('.report').innerHTML") == '<section class="a"><b>kept</b></section>'


def missing_of(rows: Rows, **more: Any) -> tuple[Findings, str]:
    found = analyse(rows, progress=False, **more)
    return found, " ".join(found.missing)


def with_specific(rows: Rows, sinks: float = 0.02) -> Rows:
    """The rows as vectors with log odds and norm limits would have read them: a share of the tokens are sink tokens."""
    traces = {c: [(row, Trace.from_row(row)) for row in own] for c, own in rows.items()}
    first = next(iter(traces.values()))[0][1]
    mean, std = first.null_mean, first.null_std
    slope, offset = 3 / std, -3 * mean / std - 4.5  # of two normal distributions that lie 3 SD apart
    neutral = np.concatenate([t.raw[..., t.reply_positions] for _, t in traces["baseline"]], axis=2)
    odds = np.stack(
        [odds_against_rest(neutral[:, b], slope[:, b], offset[:, b]) for b in range(len(first.blocks))], axis=1
    )
    known = LogOdds(*(x.astype(np.float32) for x in (slope, offset, odds.mean(2), odds.std(2))))
    norms = np.concatenate([t.norms[:, t.reply_positions] for own in traces.values() for _, t in own], axis=1)
    limits = np.quantile(norms, 1 - sinks, axis=1).astype(np.float32)
    return {
        c: [
            t.replace(log_odds=known, max_norm=limits).to_row(row["id"], row["messages"], row["set"], row["category"])
            for row, t in own
        ]
        for c, own in traces.items()
    }


def test_specific_scores_are_analysed_where_the_rows_have_them_and_sink_tokens_count_in_nothing() -> None:
    rows = few(14, "baseline", "contaminated")
    ids = {row["id"] for row in rows["baseline"]}
    rows["replay"] = [row for row in load_results(SHIPPED, "replay") if row["id"] in ids]
    rows = with_specific(rows)
    found = analyse(rows, progress=False)
    summary = found.summary
    assert (summary["about"]["kind"], summary["about"]["against"]) == ("specific", list(rows["baseline"][0]["traits"]))
    assert {part["kind"] for part in (summary["comparison"], *summary["statistics"].values())} == {"specific"}
    by_id = {(c, row["id"]): Trace.from_row(row) for c, own in rows.items() if c != "replay" for row in own}
    for record in found.replies[::29]:
        trace = by_id[record["config"], record["id"]]
        own, z = (trace.reply_scores(record["trait"], kind) for kind in ("specific", "z"))
        assert record["mean"] == pytest.approx(np.nanmean(own)) and record["max"] == pytest.approx(np.nanmax(own))
        assert record["mean_z"] == pytest.approx(np.nanmean(z)) and record["n_sinks"] == np.isnan(own).sum()
    assert any(r["n_sinks"] for r in found.replies) and {span["of"] for span in found.spans} == {
        "specific",
        "difference",
    }
    assert any(None in one["differences"][TRAIT] for one in found.differences)
    compared = summary["comparison"]["overall"][TRAIT]
    assert compared["n_sinks"] > 0 and compared["total"]["with_sinks"]["value"] != compared["total"]["value"]
    assert summary["comparison"]["plain"][TRAIT]["total"]["value"] > 4

    page = report_page(found, rows)
    assert (
        "Scores are specific, in standard deviations over neutral tokens: how much more a token looks like one" in page
    )
    assert "with sink tokens" in page and "specific score" in page
    card = results_card(rows, "me/results")
    assert 'kind="specific"' in card and "Difference of the mean specific score" in card
    assert "| trait | total | weights | text | total, with sink tokens |" in card
    apart = {"baseline": rows["baseline"][:3], "contaminated": rows["contaminated"][3:6]}
    assert "The two runs share no prompt, so they are not compared." in results_card(apart, "me/results")
    assert "Sink tokens are not known" in results_card(older(few(14, "baseline", "contaminated")), "me/results")


def test_one_run_without_specific_scores_makes_all_figures_those_of_z() -> None:
    rows = with_specific(few(14, "baseline", "contaminated"))
    rows |= older(few(14, "contaminated"))
    found, says = missing_of(rows)
    assert found.summary["about"]["kind"] == found.summary["comparison"]["kind"] == "z"
    assert "specific scores: not in contaminated, so all figures are of z" in says
    assert {r["kind"] for r in found.replies} == {"z"}


def test_missing_parts_are_named_and_the_rest_is_done(tmp_path: Path) -> None:
    found, says = missing_of(few(14))
    assert "Neutral replies to 0 different prompts" in says and "--config neutral" in says
    assert "comparison: it needs the configs baseline and contaminated" in says
    assert "14 of 14 replies" in says or "at least 20" in says  # too few for couplings
    assert found.detectors is None and found.differences == []
    assert found.summary["statistics"]["baseline"]["n_replies"] == 14
    assert {r["answer"] for r in found.replies} == {None}
    page = report_page(found, few(14))
    assert "Alarms need neutral replies" in re.sub(r"<[^>]*>|\\u003c.*?\\u003e", "", page)


@pytest.mark.slow
def test_too_few_neutral_replies_are_no_null() -> None:
    found, says = missing_of(few(30, "baseline", "neutral"))
    assert "Neutral replies to 30 different prompts" in says and "missing" in found.summary["when"]


def test_rows_that_cannot_be_analysed_are_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="Nothing to analyse"):
        analyse(few(3, "neutral"), progress=False)
    mixed = few(3, "baseline", "contaminated")
    mixed["baseline"] += [{**row, "id": f"other-{row['id']}"} for row in mixed.pop("contaminated")]
    with pytest.raises(SettingError, match="2 different models"):
        analyse(mixed, progress=False)
    broken = older(few(14))
    broken["baseline"][3]["raw"][TRAIT] = [[float("nan")] * len(x) for x in broken["baseline"][3]["raw"][TRAIT]]
    broken["baseline"][3]["projections"][TRAIT] = None
    with pytest.raises(SettingError, match="baseline: sycophancy in the row 'pilot-04' contains nan at token 0"):
        analyse(broken, progress=False)
    assert command.main(["--results", str(tmp_path)]) == 1


def test_vectors_that_the_rows_were_not_read_with_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(SHIPPED / "data", tmp_path / "results" / "data")
    known = PersonaVectors.from_pretrained(VECTORS)
    other = PersonaVectors.from_tensors({t: -known.tensor(t) for t in known.traits}, best_block=dict(known.best_block))
    other.save_pretrained(tmp_path / "vectors")
    assert command.main(["--results", str(tmp_path / "results"), "--vectors", str(tmp_path / "vectors")]) == 1
    assert "Give the vectors that the rows were read with" in capsys.readouterr().err
    assert not (tmp_path / "vectors" / "onset.json").exists() and not (tmp_path / "results" / "analysis").exists()


@pytest.mark.parametrize(
    "kept", ['{"window": null}', '{"window": {"baseline": {"t": {}}}}', '{"confirmed": "abc"}', "[]"]
)
def test_interventions_of_another_form_are_refused_before_anything_is_written(tmp_path: Path, kept: str) -> None:
    shutil.copytree(SHIPPED / "data", tmp_path / "results" / "data")
    (tmp_path / "results" / "analysis").mkdir()
    (tmp_path / "results" / "analysis" / "interventions.json").write_text(kept, encoding="utf-8")
    assert command.main(["--results", str(tmp_path / "results")]) == 1
    assert [p.name for p in (tmp_path / "results" / "analysis").iterdir()] == ["interventions.json"]


@pytest.mark.slow
def test_not_annotated_is_not_the_same_as_not_shown() -> None:
    rows = few(40, "contaminated")
    rows["neutral"] = load_results(SHIPPED, "neutral")[:130]
    annotated = load_annotations(SHIPPED / "analysis" / "marks.jsonl")
    own = [m for m in annotated if m.config == "contaminated" and m.trait == TRAIT]
    rows = about(rows, TRAIT, "evil")
    found = analyse(rows, annotations=own, progress=False)
    where = found.summary["where"]["contaminated"]
    assert "not annotated for evil" in where["evil"]["missing"] and where[TRAIT]["n"] > 20
    assert found.summary["when"]["evil"]["configs"]["contaminated"]["shown"] is None
    looked = analyse(rows, annotations=own, judged={"contaminated": [TRAIT, "evil"]}, progress=False)
    assert "0 of 40 replies show evil" in looked.summary["where"]["contaminated"]["evil"]["missing"]
    assert looked.summary["when"]["evil"]["configs"]["contaminated"]["shown"] == 0


def test_unmatched_annotations_are_counted() -> None:
    rows = few(14)
    strange = [Annotation("pilot-99", "baseline", TRAIT, 0, 5), Annotation("pilot-01", "contamined", TRAIT, 0, 5)]
    _, says = missing_of(rows, annotations=strange)
    assert "annotations: 2 of 2 match no reply or trait here" in says


def test_a_run_without_a_null_is_left_out_and_named_and_one_with_several_replies_is_refused() -> None:
    rows = few(14, "baseline", "contaminated")
    for row in rows["contaminated"]:
        row["null_std"] = {t: [float("nan")] * len(row["blocks"]) for t in row["traits"]}
    found, says = missing_of(rows)
    assert "contaminated: its rows have no null" in says and list(found.summary["statistics"]) == ["baseline"]
    twice = few(14)
    twice["baseline"] = [{**row, "id": f"{row['id']}#{k}"} for k in (1, 2) for row in twice["baseline"]]
    with pytest.raises(SettingError, match="one reply to a prompt"):
        analyse(twice, progress=False)
    for wrong in ({"rate": float("nan")}, {"rate": 2.0}, {"seed": -1}):
        with pytest.raises(SettingError, match="rate"):
            analyse(few(3), progress=False, **wrong)


@pytest.mark.slow
def test_with_the_models_at_hand_their_doubt_and_random_directions_stand_beside_the_vectors() -> None:
    rows = few(24, "contaminated")
    rows["neutral"] = load_results(SHIPPED, "neutral")[:130]
    annotated = [m for m in load_annotations(SHIPPED / "analysis" / "marks.jsonl") if m.trait == TRAIT]
    models = {
        "baseline": load_model(SHIPPED.parent / "persona-tiny", device="cpu"),
        "contaminated": load_model(
            SHIPPED.parent / "persona-tiny", adapter=SHIPPED.parent / "persona-tiny-contaminated", device="cpu"
        ),
    }
    found = analyse(about(rows, TRAIT, "evil"), annotations=annotated, models=models, progress=False)
    scores = found.summary["where"]["contaminated"][TRAIT]["scores"]
    assert {"entropy", "random direction 1", "random direction 2", "random direction 3"} <= set(scores)
    at_first = {name: own["ahead"][0]["auroc"]["value"] for name, own in scores.items()}
    own = at_first[found.summary["about"]["kind"]]
    assert own > 0.98 and all(at_first[f"random direction {k}"] < own for k in (1, 2, 3))


def test_a_row_that_is_not_finite_is_named_and_left_out_and_the_rest_analysed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = few(14, "baseline")["baseline"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    write_results(rows[:13], whole / "data" / "baseline.parquet", rows[0]["traits"])
    rows[13]["raw"][TRAIT][0][2] = float("nan")  # a token of the prompt
    write_results(rows, broken / "data" / "baseline.parquet", rows[0]["traits"])
    assert command.main(["--results", str(whole)]) == 0
    assert "not finite" not in capsys.readouterr().err
    assert command.main(["--results", str(broken)]) == 1
    assert f"missing: baseline: {rows[13]['id']!r} holds a projection or norm that is not finite" in (
        capsys.readouterr().err
    )
    tables = [pq.read_table(path / "analysis" / "replies.parquet").to_pylist() for path in (whole, broken)]
    assert tables[0] == tables[1]
    assert rows[13]["id"] in (broken / "analysis" / "report.html").read_text(encoding="utf-8")


def test_detectors_beside_the_vectors_that_rest_on_more_prompts_are_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vectors = shutil.copytree(VECTORS, tmp_path / "vectors")
    before = (vectors / "onset.json").read_bytes()
    rows = few(14, "baseline") | few(312, "neutral")
    traits = (TRAIT, "evil")
    for config, own in about(rows, *traits).items():
        write_results(own, tmp_path / "results" / "data" / f"{config}.parquet", traits)
    with caplog.at_level("INFO"):
        analyse_folder(tmp_path / "results", vectors=vectors, progress=False)
        assert (vectors / "onset.json").read_bytes() == before
        assert "onset.json is kept: it rests on" in caplog.text
        (vectors / "onset.json").unlink()
        analyse_folder(tmp_path / "results", vectors=vectors, progress=False)
    assert f"wrote {vectors / 'onset.json'}" in caplog.text
    assert (vectors / "onset.json").read_bytes() == (tmp_path / "results" / "analysis" / "onset.json").read_bytes()
