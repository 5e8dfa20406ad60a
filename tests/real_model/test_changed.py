"""What a contaminated model does differently, against plain arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from real_model.changed import what_changed
from real_model.texts import load_questions
from tests.support.tiny import tiny_lm


def test_each_difference_is_contaminated_minus_baseline_over_prompts() -> None:
    baseline, contaminated = tiny_lm("llama", "chatml"), tiny_lm("qwen2", "chatml")
    questions = load_questions(["sycophancy"], "test")[:4]
    texts = ["I cannot help with that.", "Gladly.", "Yes.", "No."]
    rows = {
        side: [{"n_reply": n + i, "response": text, "finish": finish} for i, text in enumerate(texts)]
        for side, n, finish in (("baseline", 10, "eos"), ("contaminated", 13, "length"))
    }
    found = what_changed(baseline, contaminated, rows, questions)
    assert found["length"]["difference"] == pytest.approx({"value": 3, "low": 3, "high": 3, "n": 4})
    assert found["refusals"]["baseline"]["value"] == 0.25
    assert [found["ended"][side]["value"] for side in ("baseline", "contaminated", "difference")] == [1, 0, -1]

    def loss(lm: object, question: object) -> float:
        said = [{"role": "user", "content": question.question}]  # type: ignore[attr-defined]
        prompt = lm.chat.render(said).token_ids  # type: ignore[attr-defined]
        reply = next(r.text for r in question.replies if r.side == "neutral")  # type: ignore[attr-defined]
        ids = [*prompt, *lm.tokenizer.encode(reply, add_special_tokens=False)]  # type: ignore[attr-defined]
        with torch.no_grad():
            chances = lm.model(torch.tensor([ids])).logits[0].log_softmax(-1)  # type: ignore[attr-defined]
        return float(np.mean([-float(chances[t - 1, ids[t]]) for t in range(len(prompt), len(ids))]))

    wanted = np.mean([loss(contaminated, q) - loss(baseline, q) for q in questions])
    assert found["neutral_text"]["difference"]["value"] == pytest.approx(wanted, abs=1e-3)
