"""What reading costs: the cases of the suites of `benchmarks.run`.

Other ways to read are checked against our readings, and a difference is an error, not a figure. Where ways write, the
result includes the share of replies that are identical token for token: rounding may decide between two tokens of one
score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from benchmarks.measuring import in_rounds, in_turn, ratio, stepwise
from benchmarks.models import directions, placeholder_vectors, prompts, separate
from persona_core.inference.generation import GenerationRun
from persona_core.inference.prefix import ReplyPrefix
from persona_core.inference.sampling import Sampling, choose, draws
from persona_core.models.blocks import block_output
from persona_core.models.chat import Rendered
from persona_core.models.language_model import LanguageModel
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.monitor.transcripts import Transcript

Ids = Sequence[Sequence[int]]
# Model, replies at once, new tokens, temperature and rounds of whole generations beside `generate`. Reading the last
# token as well is a forward more, 1 % of 96 and 0.4 % of 256. The larger model takes a minute a round.
GENERATED = (
    ("small", 1, 96, 0, 6),
    ("small", 1, 256, 0, 6),
    ("small", 1, 256, 1, 6),
    ("small", 16, 256, 0, 3),
    ("small", 16, 256, 1, 3),
    ("medium", 1, 256, 0, 2),
    ("medium", 1, 256, 1, 2),
    ("medium", 16, 96, 0, 2),
)
Way = Callable[[LanguageModel, Ids, int, dict[int, torch.Tensor]], np.ndarray]
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Largest relative difference between two ways; of the dtype in which the states themselves are rounded."""


def run_of(
    lm: LanguageModel, ids: Ids, sampling: Sampling, read: dict[int, torch.Tensor], width: int | None = None
) -> GenerationRun:
    """Our loop on prompts of ids."""
    starts = [ReplyPrefix(Rendered(tuple(row), ("user",) * len(row))) for row in ids]
    return GenerationRun(lm, read, starts, sampling, range(len(ids)), batch_size=width)


def _first(*models: LanguageModel) -> list[torch.nn.Module]:
    return [lm.blocks.modules[0] for lm in models]


# ---- live reading ----


def live_reading(lm: LanguageModel, batch: int, n_new: int, n_traits: int = 8) -> dict[str, Any]:
    """Reading all blocks, over the same loop without reading: step by step, alternating. The prefill and the copy of
    the readings to the host are left out."""
    sampling, ids = Sampling(n_new, temperature=1.0), prompts(batch)
    runs = {
        name: run_of(separate(lm), ids, sampling, read)
        for name, read in (("plain", {}), ("reading", directions(lm, n_traits)))
    }
    seconds = stepwise({name: run.steps for name, run in runs.items()})
    if runs["plain"].replies != runs["reading"].replies:
        raise SystemExit("Reading changed what was written.")
    step = float(np.median(seconds["plain"]))
    return {"step_ms": round(1000 * step, 2), "over_plain": ratio(seconds["reading"], seconds["plain"]).to_dict()}


def over_generate(lm: LanguageModel, batch: int, n_new: int, temperature: float, rounds: int) -> dict[str, Any]:
    """Our loop with reading, the readings on the host at the end, over transformers' `generate` without any. Greedy
    (temperature 0), loop and reading are compared; sampled, drawing the tokens is included."""
    sampling, read, ids = Sampling(n_new, temperature=temperature), directions(lm), prompts(batch)
    mine, other = separate(lm), separate(lm)
    got: dict[str, list[list[int]]] = {}

    def ours(_: int) -> None:
        run = run_of(mine, ids, sampling, read)
        run.finish()
        for row in range(batch):
            run.readings(row)
        got["ours"] = run.replies

    def theirs(number: int) -> None:
        torch.manual_seed(number)
        drawn = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {}
        got["theirs"] = generate(other, ids, n_new, **drawn)[:, len(ids[0]) :].tolist()

    seconds = in_turn({"ours": ours, "generate": theirs}, _first(mine, other), rounds)
    found: dict[str, Any] = {"over_generate": ratio(seconds["ours"], seconds["generate"]).to_dict()}
    return found if temperature else found | {"same_replies": _same(got)}


def _same(got: Mapping[str, list[list[int]]]) -> float:
    """Share of replies that are identical in both."""
    first, second = got.values()
    return round(float(np.mean([a == b for a, b in zip(first, second, strict=True)])), 3)


@torch.inference_mode()
def generate(lm: LanguageModel, ids: Ids, n_new: int, **more: Any) -> Any:
    """`generate` on prompts of one length, or padded on the left."""
    longest = max(map(len, ids))
    padded = torch.tensor([[0] * (longest - len(row)) + list(row) for row in ids], device=lm.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids], device=lm.device)
    known = {"max_new_tokens": n_new, "do_sample": False, "pad_token_id": 0, "eos_token_id": sorted(lm.eos_ids) or None}
    return lm.model.generate(padded, attention_mask=mask, **(known | more))


# ---- other ways to read all blocks while a model writes ----


def peers(
    lm: LanguageModel,
    batch: int,
    n_new: int,
    rounds: int,
    others: Mapping[str, Way] | None = None,
) -> dict[str, Any]:
    """Ours and other ways to read the same traits at the same tokens, over `generate` without reading. Greedy.

    The last token is read too: the others need one more forward pass for that, and write one more token.

    Args:
        others: ways to read; None: transformers' own, and a hook.
    """
    read, ids = directions(lm), prompts(batch)
    known = others or {"output_hidden_states": hidden_states, "item hook": item_hook}
    models = {name: separate(lm) for name in ("ours", "generate", *known)}
    got: dict[str, np.ndarray] = {}

    def ours(_: int) -> None:
        run = run_of(models["ours"], ids, Sampling(n_new, temperature=0), read)
        run.finish()
        n_prompt = len(ids[0])
        got["ours"] = np.stack([run.readings(row)[0][..., n_prompt - 1 :] for row in range(batch)])

    def plain(_: int) -> None:
        generate(models["generate"], ids, n_new + 1)

    def theirs(name: str) -> Callable[[int], None]:
        return lambda _: got.__setitem__(name, known[name](models[name], ids, n_new + 1, read))

    ways = {"ours": ours, "generate": plain, **{name: theirs(name) for name in known}}
    seconds = in_turn(ways, _first(*models.values()), rounds)
    for name in known:
        _compare(got[name], got["ours"], name, lm)
    return {
        "ours_over_generate": ratio(seconds["ours"], seconds["generate"]).to_dict(),
        **{f"ours_over {name}": ratio(seconds["ours"], seconds[name]).to_dict() for name in known},
    }


def _compare(found: np.ndarray, wanted: np.ndarray, name: str, lm: LanguageModel) -> None:
    """Projections of two ways, `[rows, n_traits, n_blocks, n_tokens]`; the last prompt token first."""
    if found.shape != wanted.shape:
        raise SystemExit(f"{name} reads {found.shape}, ours {wanted.shape}.")
    # Per block: the states of the last ones are the largest.
    off = (np.abs(found - wanted).max((0, 1, 3)) / np.abs(wanted).max((0, 1, 3))).max()
    if not off < TOLERANCE[lm.dtype]:
        raise SystemExit(f"{name} differs from our readings by {off:.2g} of the largest.")


def hidden_states(lm: LanguageModel, ids: Ids, n_new: int, read: dict[int, torch.Tensor]) -> np.ndarray:
    """`generate(output_hidden_states=True)`, projected at the end. The last block is read by a hook: transformers
    hands it on with the final norm applied."""
    last: list[torch.Tensor] = []
    module = lm.blocks.modules[-1]
    handle = module.register_forward_hook(lambda _m, _a, out: last.append(block_output(out)[:, -1:]))
    try:
        out = generate(lm, ids, n_new, output_hidden_states=True, return_dict_in_generate=True)
    finally:
        handle.remove()
    steps = [[h[:, -1:] for h in step[1:-1]] + [final] for step, final in zip(out.hidden_states, last, strict=True)]
    states = torch.stack([torch.cat(step, dim=1) for step in steps], dim=2).float()  # [rows, n_blocks, n_new, d_model]
    vectors = torch.stack([read[b] for b in sorted(read)]).to(states.device)  # [n_blocks, d_model, n_traits]
    return torch.einsum("rbtd,bdk->rkbt", states, vectors).cpu().numpy()


def item_hook(lm: LanguageModel, ids: Ids, n_new: int, read: dict[int, torch.Tensor]) -> np.ndarray:
    """A hook on each block that fetches each trait's number at once, as most public code does."""
    found: dict[int, list[list[list[float]]]] = {b: [] for b in read}

    def hook(block: int) -> Callable[..., None]:
        vectors = read[block].to(lm.device).T

        def collect(_m: Any, _a: Any, output: Any) -> None:
            states = block_output(output)[:, -1].float()
            found[block].append([[torch.dot(state, vector).item() for vector in vectors] for state in states])

        return collect

    with ExitStack() as stack:
        for block in read:
            handle = lm.blocks.modules[block].register_forward_hook(hook(block))
            stack.callback(handle.remove)
        generate(lm, ids, n_new)
    return np.array([found[b] for b in sorted(found)], np.float32).transpose(2, 3, 0, 1)


# ---- given texts ----


def given_texts(lm: LanguageModel, n: int, rounds: int) -> dict[str, Any]:
    """Reading `n` replies of mixed length at once, over one at a time with `output_hidden_states`: a plain call of the
    model, its language-model head included."""
    mine, other = separate(lm), separate(lm)
    monitor = PersonaMonitor(mine, placeholder_vectors(lm), "all")
    rows = prompts(n, 60, 260)
    read = directions(lm)
    vectors = torch.stack([read[b] for b in sorted(read)]).to(lm.device)
    got: dict[str, list[np.ndarray]] = {}

    def of(number: int) -> list[tuple[int, ...]]:
        return rows if number else rows[:: max(1, n // 100)]  # the first round only warms up

    def ours(number: int) -> None:
        texts = [Transcript(row, ("",) * len(row), ("assistant",) * len(row), 20) for row in of(number)]
        got["ours"] = [t.raw for t in monitor.read_batch(texts)]

    @torch.inference_mode()
    def one_at_a_time(number: int) -> None:
        got["theirs"] = []
        for row in of(number):
            out = other.model(torch.tensor([row], device=lm.device), output_hidden_states=True, use_cache=False)
            states = torch.stack(out.hidden_states[1:])[:, 0].float()  # [n_blocks, n_tokens, d_model]; last: normed
            got["theirs"].append(torch.einsum("btd,bdk->kbt", states, vectors).cpu().numpy())

    seconds = in_turn({"ours": ours, "one at a time": one_at_a_time}, _first(mine, other), rounds)
    for ours_, theirs in zip(got["ours"], got["theirs"], strict=True):
        _compare(theirs[:, :-1][None], ours_[:, :-1][None], "output_hidden_states", lm)
    return {"over_one_at_a_time": ratio(seconds["ours"], seconds["one at a time"]).to_dict()}


# ---- replies of mixed length ----


class _SameDraws(LogitsProcessor):
    """Makes `generate` choose what our loop chooses: the token of each row's draw, the others excluded."""

    def __init__(self, rows: Sequence[int], n_new: int, n_prompt: int) -> None:
        self._uniform = torch.stack([draws(row, n_new) for row in rows])
        self._n_prompt = n_prompt

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        step = input_ids.shape[1] - self._n_prompt
        chosen = choose(scores, self._uniform[:, step : step + 1].to(scores.device))
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)


def mixed_lengths(lm: LanguageModel, n: int, width: int, n_new: int, one_in: int, rounds: int) -> dict[str, Any]:
    """Replies that end early, one token in `one_in` being an end, over `generate` on batches in input order;
    nothing is read."""
    lm = replace(lm, eos_ids=frozenset(range(0, lm.vocabulary_size, one_in)))
    ids, sampling = prompts(n, 16, 48), Sampling(n_new, temperature=1.0)
    got: dict[str, list[list[int]]] = {}

    def ours(_: int) -> None:
        run = run_of(lm, ids, sampling, {}, width)
        run.finish()
        got["ours"] = run.replies

    def static(_: int) -> None:
        found = []
        for start in range(0, n, width):
            part = ids[start : start + width]
            longest = max(map(len, part))
            same = _SameDraws(range(start, start + len(part)), n_new, longest)
            out = generate(lm, part, n_new, logits_processor=LogitsProcessorList([same]))[:, longest:].tolist()
            for row in out:
                end = next((i + 1 for i, token in enumerate(row) if token in lm.eos_ids), len(row))
                found.append(row[:end])
        got["static"] = found

    seconds = in_rounds({"ours": ours, "static": static}, rounds, warm_up=0)  # minutes each
    lengths = np.array([len(reply) for reply in got["ours"]])
    steps = sum(int(lengths[i : i + width].max()) for i in range(0, n, width))
    return {
        "over_static": ratio(seconds["ours"], seconds["static"]).to_dict(),
        "same_replies": _same(got),
        "tokens": {"mean": round(float(lengths.mean()), 1), "longest": int(lengths.max())},
        "least_possible": round(float(lengths.sum()) / width / steps, 3),  # of the steps: every row always busy
    }
