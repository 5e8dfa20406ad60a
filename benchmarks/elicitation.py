"""What pooling while writing costs, against writing alone and against a second pass over the replies.

    python -m benchmarks.elicitation

Three ways over the same batches, alternating, so a busy machine slows all three alike:

- writing alone: the decode loop, nothing read;
- elicit + extract: states pooled while writing, replies and states stored, the vector made from the stored states;
- two passes: the same replies written, then read again one at a time with `output_hidden_states`, and averaged.

And the peak of Python's and numpy's memory during extraction, for more and more replies.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from benchmarks.models import SMALL, TOKENIZER, llama
from persona_core.elicitation.elicit import ElicitationPlan
from persona_core.elicitation.store import Reply, ReplyStore
from persona_core.elicitation.traits import load_traits
from persona_core.elicitation.writing import RequestBatch, sink_limits, write_batch
from persona_core.inference.decode import decode
from persona_core.inference.sampling import Sampling
from persona_core.models.language_model import LanguageModel
from persona_core.vectors.extraction import Sides, mean_difference

RESULTS = Path(__file__).parent / "results" / "elicitation.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, help="batches, each done in all three ways (8)")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lm = llama(*SMALL, n_vocabulary=len(AutoTokenizer.from_pretrained(TOKENIZER)))  # its replies are stored as text
    plan = ElicitationPlan(
        load_traits(["evil"]),
        Sampling(max_new_tokens=96, temperature=1.0),
        rollouts=1,
        evaluation_rollouts=1,
        batch_size=16,
    )
    result = {
        "model": "random-weight Llama, 12 blocks x 512",
        "batch": "16 replies of 96 tokens",
        "rounds": options.rounds,
        "threads": options.threads,
        "machine": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        **times(lm, plan, options.rounds),
        "extraction_peak_mb": memory(),
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    return 0


def times(lm: LanguageModel, plan: ElicitationPlan, rounds: int) -> dict[str, Any]:
    """Seconds of each way, and ratios paired by batch."""
    extraction = [r for r in plan.requests() if r.split == "extraction"]
    batches = [
        RequestBatch(f"batch-{i:05d}", tuple(extraction[i * plan.batch_size : (i + 1) * plan.batch_size]))
        for i in range(rounds + 1)
    ]
    limits = sink_limits(lm, plan)
    seconds: dict[str, list[float]] = {"alone": [], "ours": [], "two passes": []}
    with tempfile.TemporaryDirectory() as folder, ReplyStore(folder) as store:
        for batch in batches:
            started = time.perf_counter()
            write_alone(lm, plan, batch)
            alone = time.perf_counter()
            written = write_batch(lm, plan, batch, limits)
            store.add(batch.name, written.replies, written.states)
            ours = time.perf_counter()
            write_alone(lm, plan, batch)
            second_pass(lm, written.replies)
            twice = time.perf_counter()
            for way, value in zip(seconds, (alone - started, ours - alone, twice - ours), strict=True):
                seconds[way].append(value)
        started = time.perf_counter()
        replies = store.replies()
        positive = [r for r in replies if r.request.side == "positive"] or replies[::2]
        negative = [r for r in replies if r.request.side == "negative"] or replies[1::2]
        states = (store.states(side) for side in (positive, negative, []))
        mean_difference(Sides(*states))
        extraction_share = (time.perf_counter() - started) / len(batches)
    alone_s, ours_s, twice_s = (np.array(values[1:]) for values in seconds.values())  # the first is a warm-up
    return {
        "alone_s": round(float(np.median(alone_s)), 3),
        "elicit_and_extract_over_alone": spread((ours_s + extraction_share) / alone_s),
        "two_passes_over_alone": spread(twice_s / alone_s),
    }


def write_alone(lm: LanguageModel, plan: ElicitationPlan, batch: RequestBatch) -> None:
    prompts = [lm.chat.render(r.messages).token_ids for r in batch.requests]
    for _ in decode(lm, prompts, plan.sampling, [plan.seed + r.index for r in batch.requests]):
        pass


@torch.inference_mode()
def second_pass(lm: LanguageModel, replies: tuple[Reply, ...]) -> np.ndarray:
    means = []
    for reply in replies:
        prompt = lm.chat.render(reply.request.messages).token_ids
        ids = torch.tensor([[*prompt, *reply.token_ids]])
        hidden = lm.model(input_ids=ids, output_hidden_states=True).hidden_states[1:]
        means.append(torch.stack([h[0, len(prompt) :].mean(0) for h in hidden]).numpy())
    return np.stack(means)


def memory() -> dict[str, float]:
    """Peak of what extraction allocates, in MB, by the number of replies (32 blocks x 512)."""
    found = {}
    request = ElicitationPlan(load_traits(["evil"]), rollouts=1).requests()[0]
    for n in (128, 512, 2048):
        with tempfile.TemporaryDirectory() as folder, ReplyStore(folder) as store:
            rng = np.random.default_rng(0)
            for start in range(0, n, 32):
                batch = [Reply(replace(request, index=start + i), "", (), 1, "eos", 0, "m") for i in range(32)]
                store.add(f"b{start}", batch, {"reply_mean": rng.normal(size=(32, 32, 512)).astype(np.float32)})
            replies = store.replies()
            tracemalloc.start()
            half = len(replies) // 2
            mean_difference(Sides(store.states(replies[:half]), store.states(replies[half:]), store.states([])))
            found[str(n)] = round(tracemalloc.get_traced_memory()[1] / 1e6, 1)
            tracemalloc.stop()
    return found


def spread(ratios: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(ratios, [0.25, 0.75])
    return {"median": round(float(np.median(ratios)), 3), "q25": round(float(low), 3), "q75": round(float(high), 3)}


if __name__ == "__main__":
    raise SystemExit(main())
