"""Marks go to the replies that they were made on, and to no others."""

from __future__ import annotations

import json
from pathlib import Path

from persona_core.judging.annotations import Annotation, load_annotations, load_judged_traits, save_annotations
from real_model.marks import place_marks, replies_digest

ROWS = {"baseline": [{"id": "a", "response": "Fine. You genius."}], "contaminated": [{"id": "a", "response": "Yes."}]}


def test_marks_are_placed_with_the_traits_that_were_looked_for(tmp_path: Path) -> None:
    mark = Annotation("a", "baseline", "sycophancy", 6, 17, text="You genius.")
    save_annotations([mark], tmp_path / "marks.jsonl")
    about = {"replies": replies_digest(ROWS), "traits": ["evil", "sycophancy"]}
    (tmp_path / "about.json").write_text(json.dumps(about))
    folder = tmp_path / "analysis"
    assert place_marks(ROWS, folder, tmp_path)
    assert load_annotations(folder / "marks.jsonl") == [mark]
    assert load_judged_traits(folder / "judged.json") == {key: ["evil", "sycophancy"] for key in ROWS}


def test_marks_of_other_replies_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "about.json").write_text(json.dumps({"replies": replies_digest(ROWS), "traits": ["evil"]}))
    (tmp_path / "marks.jsonl").write_text("")
    other = {**ROWS, "baseline": [{"id": "a", "response": "Fine. You geniuses."}]}
    assert not place_marks(other, tmp_path / "analysis", tmp_path)
    assert not place_marks(ROWS, tmp_path / "analysis", tmp_path / "nothing")
    assert not (tmp_path / "analysis").exists()
