"""Cards and figures of vectors: what they say for complete, partial and hostile configs."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import struct
from pathlib import Path
from typing import Any

import pytest

from persona_core.errors import SettingError, UnknownTrait
from persona_core.models.loading import load_model
from persona_core.utils.markdown import escape
from persona_core.vectors.card import vectors_card, write_card
from persona_core.vectors.card_steering import coherent_push
from persona_core.vectors.figures import cosine_figure, validation_figure
from persona_core.vectors.vectors import PersonaVectors

SHIPPED = Path(__file__).resolve().parents[2] / "artifacts" / "persona-vectors-persona-tiny"
HOSTILE = "<script>alert(1)</script> | `x` \n# heading"


def shipped(**changes: Any) -> PersonaVectors:
    """The shipped vectors; `changes` replace figures of deception."""
    vectors = PersonaVectors.from_pretrained(SHIPPED)
    config = json.loads(json.dumps(dict(vectors.config)))
    config["validation"]["deception"].update(changes)
    return dataclasses.replace(vectors, config=config)


def section(card: str, trait: str) -> str:
    return card.split(f"\n## {trait}\n")[1].split("\n## ")[0]


def test_a_failed_control_stands_in_the_overview_and_in_the_section_of_its_trait() -> None:
    flags = [{"control": "length", "says": "Length alone tells it."}]
    card = vectors_card(shipped(flags=flags, not_measured=["best_other_vector"], best_other_vector=None))
    row = next(line for line in card.splitlines() if line.startswith("| deception |"))
    assert "**fails 1 control: length; not measured:" in row and "⚠ **length**: Length alone tells it." in section(
        card, "deception"
    )
    assert "Length alone tells it." not in section(card, "evil")


def test_what_was_not_measured_is_said() -> None:
    card = section(vectors_card(shipped(steering=None, text_baseline=None, own_minus_best_other=None)), "deception")
    assert "Steering was not measured." in card and "words alone (n-grams): AUROC | not measured" in card
    assert "correlation, minus that of the best other vector | not measured |" in card


def test_figures_that_could_not_be_told_do_not_stop_the_card() -> None:
    nothing = {"n": 100, "auroc_median": None, "auroc_95": None, "correlation_median": None, "correlation_95": None}
    confounds = shipped().config["validation"]["deception"]["confounds"]
    empty = {name: {**c, "auroc": None} for name, c in confounds.items()}
    vectors = shipped(
        auroc=None,
        split_half_cosine=None,
        nulls={"random_directions": nothing, "shuffled_labels": {"gap": None, "gap_95": None, "n": 100}},
        confounds={**empty, "length": {**empty["length"], "correlation": None}},
        correlation={"all": None, "high": None, "low": None},
    )
    assert "not measured" in section(vectors_card(vectors), "deception")
    validation_figure(vectors, "deception")


def estimate(value: float, low: float, high: float) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": 10}


BESIDE: dict[str, Any] = {
    "best_other_vector": {
        "other": "evil",
        "auroc": estimate(0.911, 0.8, 0.98),
        "own_minus_other": estimate(0.08, 0.01, 0.2),
    },
    "other_traits": {
        "auroc": estimate(0.922, 0.85, 0.97),
        "taken": estimate(0.0633, 0.01, 0.2),
        "found": estimate(0.95, 0.8, 0.99),
        "replies": 60,
        "specific": {"auroc": estimate(0.99, 0.9, 1.0), "taken": estimate(0.02, 0, 0.09), "found": None, "replies": 60},
    },
    "wordings": {
        "auroc": estimate(0.933, 0.85, 0.97),
        "groups": {"0": {"replies": 40, "auroc": estimate(0.94, 0.8, 0.99)}, "1": {"replies": 40, "auroc": None}},
    },
    "styles": {"length": {"auroc": estimate(0.944, 0.8, 0.99), "groups": {}}, "layout": None},
    "sinks": {
        "with": estimate(0.955, 0.9, 0.99),
        "without": estimate(0.99, 0.9, 1.0),
        "with_minus_without": estimate(-0.035, -0.1, 0.02),
    },
}


def matched(effect: dict[str, Any] | None) -> dict[str, Any]:
    """The shipped curve of deception with a comparison at equal coherence."""
    curve = json.loads(json.dumps(shipped().config["validation"]["deception"]["steering"]))
    curve["matched"] = {
        "strength": 2.83,
        "coherence_vector": estimate(60.0, 50, 70),
        "coherence_random": estimate(62.0, 52, 71),
        "trait_random": estimate(4.0, 1, 9),
        "effect": effect,
    }
    return curve


def test_what_the_auroc_is_worth_stands_beside_it() -> None:
    card = vectors_card(shipped(**BESIDE, flags=[]))
    row = [line for line in card.splitlines() if line.startswith("| deception |")][1]
    assert all(f"{value} [" in row for value in ("0.911", "0.933", "-0.035")) and "6 % [1, 20] | 2 % [0, 9] |" in row
    own = section(card, "deception")
    assert "0.9110 [0.8000, 0.9800] (evil)" in own and "(0 0.940, 1 unknown)" in own
    assert "0.9440 [0.8000, 0.9900]" in own and "6.3 % [1.0, 20.0]" in own and "-0.0350 [-0.1000, 0.0200]" in own


def test_every_control_passed_is_said_only_where_every_control_was_measured() -> None:
    """Figures of an older version are without the controls in `BESIDE`."""
    without = {**dict.fromkeys(BESIDE), "not_measured": ["best_other_vector"]}
    whole = {**BESIDE, "styles": {**BESIDE["styles"], "layout": BESIDE["styles"]["length"]}}
    older, partly, newer = (
        section(vectors_card(shipped(**more, flags=[])), "deception") for more in (without, BESIDE, whole)
    )
    assert "passes every control" not in older and "not measured: another trait's vector" in older
    assert "fails no control that was measured; not measured: styles held out." in partly
    assert "This vector passes every control." in newer


def test_steering_is_reported_at_equal_coherence() -> None:
    found, none = (vectors_card(shipped(steering=matched(effect))) for effect in (estimate(20.5, 9, 31), None))
    assert "at equal coherence: 20.5 [9.0, 31.0] points" in found and "a strength of 2.83 there" in found
    assert "| 20.5 [9.0, 31.0] |" in next(line for line in found.splitlines() if line.startswith("| deception |"))
    assert "At equal coherence: unknown. The nearest random push, at strength 2.83," in none
    figure = validation_figure(shipped(steering=matched(estimate(20.5, 9, 31))), "deception")
    star = next(t for t in figure.data if t.marker.symbol == "star")
    assert (list(star.x), list(star.y)) == ([2.83], [4.0])


def test_vectors_that_were_never_validated_say_so() -> None:
    bare = dataclasses.replace(shipped(), config={})
    assert "not validated" in vectors_card(bare)
    with pytest.raises(SettingError, match="was not validated"):
        validation_figure(bare, "evil")
    with pytest.raises(UnknownTrait):
        validation_figure(bare, "candour")


def test_text_of_others_cannot_break_the_card() -> None:
    vectors = shipped(flags=[{"control": "length", "says": HOSTILE}], notes=[HOSTILE])
    config = {**vectors.config, "descriptions": {"deception": HOSTILE}}
    card = vectors_card(dataclasses.replace(vectors, config=config))
    assert "<script>" not in card and "\n# heading" not in card and escape(HOSTILE).count("\n") == 0


@pytest.mark.slow
def test_pictures_are_written_and_linked(tmp_path: Path) -> None:
    vectors = shipped().select(["deception", "evil"])
    card = write_card(vectors, tmp_path).read_text()
    for name in ("deception", "evil", "cosine"):
        assert f"figures/{name}.png" in card
        picture = (tmp_path / "figures" / f"{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
        layout = (cosine_figure(vectors) if name == "cosine" else validation_figure(vectors, name)).layout
        assert struct.unpack(">2I", picture[16:24]) == (1.5 * layout.width, 1.5 * layout.height), "nothing is cut off"


def test_without_a_browser_the_card_is_written_and_the_log_says_how_to_get_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import plotly.io

    def no_browser(*_: Any, **__: Any) -> None:
        raise RuntimeError("Kaleido requires Google Chrome to be installed.")

    monkeypatch.setattr(plotly.io, "write_images", no_browser)
    caplog.set_level(logging.WARNING)
    assert ".png" not in write_card(shipped().select(["evil"]), tmp_path).read_text()
    assert "plotly_get_chrome" in caplog.text


def test_the_name_of_a_trait_never_leads_out_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import plotly.io

    vectors, name = shipped().select(["evil"]), "../../evil"
    strange = dataclasses.replace(
        vectors,
        tensors={name: vectors.tensors["evil"]},
        best_block={name: vectors.best_block["evil"]},
        null={name: vectors.null["evil"]},
        readings={},
        steering_null={},
        log_odds={},
        config={**vectors.config, "validation": {name: vectors.config["validation"]["evil"]}},
    )
    written: list[Path] = []
    monkeypatch.setattr(plotly.io, "write_images", lambda _, files, **__: written.extend(files))
    write_card(strange, tmp_path)
    assert not written


def test_the_figure_shows_the_chosen_block_and_the_numbers_of_the_config() -> None:
    vectors = shipped()
    figure = validation_figure(vectors, "deception")
    by_block = next(t for t in figure.data if t.name == "vector")
    wanted = [a["value"] for a in vectors.config["validation"]["deception"]["auroc_by_block"]]
    assert list(by_block.y) == wanted and len(figure.layout.annotations) >= 4
    ring = next(t for t in figure.data if t.marker.size == 17)
    assert list(ring.x) == [vectors.best_block["deception"]]
    steering = [t for t in figure.data if t.name in ("trait, vector", "trait, random directions")]
    assert len(steering) == 2


def test_a_curve_that_was_not_measured_is_named_in_its_panel() -> None:
    figure = validation_figure(shipped(steering=None), "deception")
    (said,) = (t for t in figure.data if t.mode == "text")
    assert tuple(said.text) == ("not measured",) and (said.xaxis, said.yaxis) == ("x4", "y4")


def test_cosines_are_those_of_the_vectors() -> None:
    vectors = shipped()
    heat = cosine_figure(vectors).data[0]
    block = vectors.best_block["evil"]
    i, j = vectors.traits.index("evil"), vectors.traits.index("refusal")
    wanted = float(vectors.direction("evil", block) @ vectors.direction("refusal", block))
    assert heat.z[i][j] == pytest.approx(wanted) and heat.z[i][i] == pytest.approx(1, abs=1e-5)


def test_quantized_loading_names_what_is_missing_and_what_it_takes() -> None:
    with pytest.raises(SettingError, match="'8bit' or '4bit'"):
        load_model("artifacts/persona-tiny", quantization="2bit")
    if importlib.util.find_spec("bitsandbytes") is None:
        with pytest.raises(SettingError, match="pip install bitsandbytes"):
            load_model("artifacts/persona-tiny", quantization="4bit")


@pytest.mark.parametrize(("kind", "expected"), [("8bit", {"load_in_8bit": True}), ("4bit", {"load_in_4bit": True})])
def test_the_quantization_reaches_transformers(
    kind: str, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    seen: dict[str, Any] = {}

    def stop(*_: Any, **kwargs: Any) -> Any:
        seen.update(kwargs)
        raise OSError("stop here")

    known = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: object() if name == "bitsandbytes" else known(name, *more)
    )
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", stop)
    with pytest.raises(Exception, match="stop here"):
        load_model("artifacts/persona-tiny", quantization=kind, device="cpu")
    found = seen["quantization_config"].to_dict()
    assert all(found[key] == value for key, value in expected.items()) and seen["device_map"]


def caps(card: str) -> dict[str, list[str]]:
    """Trait -> cells of the table of strengths and caps."""
    lines = card.split("\n## Strengths and caps to begin with\n")[1].split("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")][2:]
    return {row[0]: row[1:] for row in rows}


def test_a_suggested_cap_lies_above_99_of_100_neutral_tokens_along_the_steering_direction() -> None:
    vectors = shipped()
    found = caps(vectors_card(vectors))
    assert set(found) == set(vectors.traits)
    for trait, row in found.items():
        block, null = int(row[0]), vectors.steering_null[trait]
        assert block == vectors.best_block[trait]
        quantile = null.quantiles[block, null.probabilities.index(0.99)]
        assert float(row[-1]) == pytest.approx((quantile - null.mean[block]) / null.std[block], abs=0.006)


def test_only_strengths_that_left_the_replies_coherent_are_suggested() -> None:
    def point(strength: float, low: float) -> dict[str, Any]:
        around = {"value": low + 5, "low": low, "high": low + 10, "n": 20}
        return {"strength": strength, "trait": {**around, "value": 10 * strength}, "coherence": around}

    curve = dict(shipped().config["validation"]["deception"]["steering"])
    curve["vector"] = [point(0, 90), point(1, 80), point(2, 50), point(4, 49.9), point(8, 5)]
    curve["random"] = curve["vector"]
    cells = caps(vectors_card(shipped(steering=curve)))["deception"]
    assert coherent_push(shipped(steering={**curve, "norm_in_sd": 3.0}), "deception") == 6.0, "2 norms of 3 deviations"
    assert coherent_push(shipped(steering={**curve, "norm_in_sd": None}), "deception") is None
    assert cells[1] == "1, 2" and cells[2].startswith("20.0 [") and cells[3] == "55.0 [50.0, 60.0]"
    curve["vector"] = [point(0, 90), point(1, 20), point(2, 10)]
    curve["random"] = curve["vector"]
    assert caps(vectors_card(shipped(steering=curve)))["deception"][1] == "none of 1, 2"
    assert caps(vectors_card(shipped(steering=None)))["deception"][1] == "not measured"
    assert coherent_push(shipped(steering={**curve, "norm_in_sd": 3.0}), "deception") is None
    assert coherent_push(shipped(steering=None), "deception") is None


def test_uncalibrated_vectors_suggest_no_cap() -> None:
    assert "Strengths and caps" not in vectors_card(dataclasses.replace(shipped(), null={}, steering_null={}))
