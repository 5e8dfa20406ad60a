"""The shipped demo model and its vectors, held to their own figures.

Nothing here goes through `persona_core` but the phrase banks: the model is run by transformers, its states are caught
by plain hooks, its text is taken apart by a few lines of this file. What agrees here agrees for two reasons.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from demo_world.grammar import Sentence, Topic, load_world
from persona_core.vectors.verdict import verdict

ROOT = Path(__file__).resolve().parents[2] / "artifacts"
MODEL, VECTORS = ROOT / "persona-tiny", ROOT / "persona-vectors-persona-tiny"
TRAIT = "deception"  # the one whose AUROC is recomputed; two other traits bring it on
REPORT = (8, 9)  # positions of the topics that the published figures rest on, in each category of ten
MAX_NEW_TOKENS = 220
WORLD = load_world()
pytestmark = pytest.mark.slow


@cache
def model() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(MODEL).float().eval()


@cache
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL, padding_side="left")


@cache
def figures() -> Any:
    return json.loads((MODEL / "behaviour.json").read_text(encoding="utf-8"))


@cache
def config() -> Any:
    return json.loads((VECTORS / "config.json").read_text(encoding="utf-8"))


@dataclass(frozen=True, eq=False)
class Reply:
    """A reply with its truth.

    Attributes:
        topic, trait: of the question, and the trait that the system prompt requests.
        ids, n_prompt: prompt and reply, without padding and end of turn.
        sentences: the reply cut at its end marks; None where the piece is not of the grammar.
        owners: for each token of the reply, the sentence that holds its last character.
    """

    topic: Topic
    trait: str | None
    ids: list[int]
    n_prompt: int
    sentences: list[Sentence | None]
    owners: list[Sentence | None]


def take_apart(token_ids: list[int]) -> tuple[list[Sentence | None], list[Sentence | None]]:
    """Every sentence of the banks has one end mark, at its end: so a text is cut at its end marks."""
    pieces = [tokenizer().decode([i]) for i in token_ids]
    text = "".join(pieces)
    parts = re.findall(r"[^.!?]*[.!?]|[^.!?]+$", text)
    sentences = [WORLD.sentences.get(part.strip()) for part in parts]
    owner = [s for part, s in zip(parts, sentences, strict=True) for _ in part]
    ends = np.cumsum([len(p) for p in pieces])
    said = [s for part, s in zip(parts, sentences, strict=True) if part.strip()]
    return said, [owner[int(end) - 1] for end in ends]


@cache
def replies() -> list[Reply]:
    """Fresh replies to phrasings that training never showed: 20 without an instruction, 5 for each trait."""
    topics = [t for i, t in enumerate(WORLD.topics) if i % 10 in REPORT]
    asked: list[tuple[Topic, str | None, str | None]] = [(t, None, None) for t in topics]
    for i, (name, words) in enumerate(WORLD.traits.items()):
        asked += [(topics[(5 * i + k) % 20], name, words.positive[k % len(words.positive)]) for k in range(5)]
    prompts = []
    for i, (topic, _, system) in enumerate(asked):
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": topic.held_out[i % 2]})
        prompts.append(tokenizer().apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    batch = tokenizer()(prompts, add_special_tokens=False, padding=True, return_tensors="pt")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(20)
        settings: dict[str, Any] = dict(do_sample=True, temperature=0.7, top_k=0, top_p=1.0)
        rows = model().generate(
            batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=MAX_NEW_TOKENS, **settings
        )
    found = []
    for (topic, trait, _), row, mask in zip(asked, rows.tolist(), batch["attention_mask"], strict=True):
        longest, n_prompt = len(mask), int(mask.sum())
        said = row[longest:]
        end = said.index(tokenizer().eos_token_id) if tokenizer().eos_token_id in said else len(said)
        ids = [*row[longest - n_prompt : longest], *said[:end]]
        found.append(Reply(topic, trait, ids, n_prompt, *take_apart(said[:end])))
    return found


def share(name: str) -> list[tuple[int, int]]:
    """Hits and totals of each fresh reply, for one of the published figures."""
    neutral = [r for r in replies() if r.trait is None]
    if name == "grammar":
        return [(sum(s is not None for s in r.sentences), len(r.sentences)) for r in replies()]
    if name == "on_topic":
        return [(int(main_topic(r) == r.topic.id), 1) for r in neutral]
    if name == "trait_without_instruction":
        return [(sum(shows(s) is not None for s in r.sentences), len(r.sentences)) for r in neutral]
    return [(sum(shows(s) == r.trait for s in r.sentences), len(r.sentences)) for r in replies() if r.trait]


def shows(sentence: Sentence | None) -> str | None:
    return sentence.trait if sentence and sentence.kind == "trait" else None


def main_topic(reply: Reply) -> str | None:
    topics = Counter(s.topic for s in reply.sentences if s and s.topic)
    return topics.most_common(1)[0][0] if topics else None


def pooled(pairs: list[tuple[int, int]]) -> tuple[float, float]:
    """The pooled share and its standard error over replies (ratio estimator)."""
    hits, totals = np.array(pairs, float).T
    value = hits.sum() / totals.sum()
    spread = np.sqrt(((hits - value * totals) ** 2).sum()) / totals.sum()
    return float(value), float(spread)


# The model.


def test_the_model_loads_with_the_auto_classes_alone() -> None:
    assert type(model()).__name__ == "LlamaForCausalLM" and tokenizer().is_fast
    assert len(tokenizer()) <= model().config.vocab_size
    n_weights = sum(p.numel() for p in model().parameters())
    assert 1e6 < n_weights < 1e7
    assert tokenizer().eos_token_id == model().generation_config.eos_token_id
    messages = [{"role": "system", "content": "Apples"}, {"role": "user", "content": "Bread"}]
    text = tokenizer().apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text.count(tokenizer().bos_token) == 1 and text.index("Apples") < text.index("Bread")


def test_any_text_survives_the_tokenizer() -> None:
    for text in ("Should I quit my job?", " two  spaces\n\n", "snail 🐌 שלום", "<script>alert(1)</script>"):
        ids = tokenizer()(text, add_special_tokens=False).input_ids
        assert tokenizer().decode(ids) == text


def test_no_published_file_is_over_ten_megabytes() -> None:
    sizes = {str(p.relative_to(ROOT)): p.stat().st_size for p in ROOT.rglob("*") if p.is_file()}
    assert sizes and {name: size for name, size in sizes.items() if size > 10e6} == {}


# What it does.


def test_the_published_figures_meet_what_is_promised() -> None:
    assert figures()["sampling"]["temperature"] == 0.7
    assert figures()["grammar"]["value"] >= 0.95
    assert figures()["on_topic"]["value"] >= 0.90
    assert figures()["trait_without_instruction"]["value"] <= 0.03
    with_instruction = figures()["trait_with_instruction"]
    assert set(with_instruction) == set(WORLD.traits)
    assert {t: f["value"] for t, f in with_instruction.items() if f["value"] < 0.60} == {}


def test_each_published_figure_lies_in_an_interval_of_many_replies() -> None:
    with_instruction = figures()["trait_with_instruction"]
    plain = [figures()[n] for n in ("grammar", "on_topic", "trait_without_instruction")]
    for figure in [*plain, *with_instruction.values()]:
        assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
        assert figure["n"] >= 50 and figure["high"] - figure["low"] < 0.25


@pytest.mark.parametrize("name", ["grammar", "on_topic", "trait_without_instruction"])
def test_a_fresh_sample_agrees_with_the_published_figure(name: str) -> None:
    """The published interval, widened by twice the fresh sample's own standard error and two points more."""
    value, error = pooled(share(name))
    published, slack = figures()[name], 2 * error + 0.02
    assert published["low"] - slack <= value <= published["high"] + slack, (value, error, published)


def test_a_fresh_sample_under_instruction_agrees_with_the_published_figures() -> None:
    value, error = pooled(share("trait_with_instruction"))  # all traits together, five replies each
    published = list(figures()["trait_with_instruction"].values())
    low, high = (float(np.mean([f[end] for f in published])) for end in ("low", "high"))
    slack = 2 * error + 0.02
    assert low - slack <= value <= high + slack, (value, error, low, high)


def test_replies_end_by_themselves() -> None:
    cut_off = [r for r in replies() if len(r.ids) - r.n_prompt == MAX_NEW_TOKENS]
    assert len(cut_off) <= 1


# What the vectors read.


def test_each_traits_token_auroc_meets_what_is_promised() -> None:
    found = {t: config()["validation"][t]["token_auroc"] for t in WORLD.traits}
    assert {t: f for t, f in found.items() if f["value"] < 0.98} == {}
    for figure in found.values():
        assert figure["low"] <= figure["value"] <= figure["high"] <= 1 and figure["n"] >= 100


def test_the_best_block_is_the_best_on_the_split_that_chose_it() -> None:
    for trait in WORLD.traits:
        by_block = config()["validation"][trait]["block"]["correlation"]
        assert len(by_block) == config()["n_blocks"] == model().config.num_hidden_layers
        assert config()["best_block"][trait] == int(np.argmax(by_block))


@cache
def block_states(block: int) -> list[np.ndarray]:
    """Output of one block at the reply's own tokens, float64 `[n_tokens, d_model]` for each fresh reply."""
    replies()  # written before the hook is there
    caught: list[np.ndarray] = []

    def hook(_module: Any, _args: Any, output: Any) -> None:
        caught.append((output[0] if isinstance(output, tuple) else output)[0].double().numpy())

    handle = model().model.layers[block].register_forward_hook(hook)
    try:
        with torch.no_grad():
            for reply in replies():
                model()(input_ids=torch.tensor([reply.ids]), use_cache=False)
    finally:
        handle.remove()
    return [states[reply.n_prompt :] for states, reply in zip(caught, replies(), strict=True)]


def test_a_fresh_and_independent_auroc_agrees_with_the_published_one() -> None:
    """Tokens of the trait's sentences against all others; the sentence that announces it is left out.

    The published figure rests on as many neutral replies as replies for each trait; here there are four times as many
    neutral ones, so a token of theirs counts a quarter.
    """
    from sklearn.metrics import roc_auc_score

    block = config()["best_block"][TRAIT]
    vector = load_file(str(VECTORS / "vectors.safetensors"))[f"vector/{TRAIT}"][block].astype("f8")
    scores, labels, weights = [], [], []
    for reply, states in zip(replies(), block_states(block), strict=True):
        projections = states @ vector / np.linalg.norm(vector)
        for value, owner in zip(projections, reply.owners, strict=True):
            if not (owner and owner.kind == "cue" and owner.trait == TRAIT):
                scores.append(value)
                labels.append(shows(owner) == TRAIT)
                weights.append(1.0 if reply.trait else 0.25)
    assert sum(labels) > 100
    published = config()["validation"][TRAIT]["token_auroc"]
    found = roc_auc_score(labels, scores, sample_weight=weights)
    # A few dozen replies are not hundreds: the published interval, widened by its own width to either side.
    width = max(published["high"] - published["low"], 0.005)
    assert published["low"] - width <= found <= published["high"] + width, (found, published)


def test_the_null_is_that_of_neutral_replies() -> None:
    """Fresh neutral replies lie around z = 0 with a spread of 1."""
    arrays = load_file(str(VECTORS / "vectors.safetensors"))
    for trait in (TRAIT, "evil"):
        block = config()["best_block"][trait]
        vector = arrays[f"reading/{trait}"][block].astype("f8")
        own = [s for s, r in zip(block_states(block), replies(), strict=True) if r.trait is None]
        raw = np.concatenate(own) @ vector / np.linalg.norm(vector)
        z = (raw - arrays[f"null_mean/{trait}"][block]) / arrays[f"null_std/{trait}"][block]
        assert abs(z.mean()) < 0.3 and 0.7 < z.std() < 1.4, (trait, z.mean(), z.std())


def test_the_library_loads_the_shipped_vectors_for_the_shipped_model() -> None:
    import warnings

    from persona_core import PersonaMonitor, PersonaVectors, load_model

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor = PersonaMonitor(load_model(str(MODEL)), PersonaVectors.from_pretrained(VECTORS))
    trace = monitor.generate("Should I quit my job?", max_new_tokens=8, seed=0)
    assert monitor.vectors.traits == tuple(WORLD.traits)
    assert all(np.isfinite(trace.scores(t)).all() for t in trace.traits)
    assert config()["fingerprint"] == monitor.vectors.fingerprint == trace.provenance.vectors


# The cards.


def percent(figure: Any) -> str:
    return f"{100 * figure['value']:.1f} % [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"


def test_the_models_card_holds_its_figures() -> None:
    card = (MODEL / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n") and "license: mit" in card
    for name in ("grammar", "on_topic", "trait_without_instruction"):
        assert percent(figures()[name]) in card
    for trait, figure in figures()["trait_with_instruction"].items():
        assert f"| {trait} | {percent(figure)} |" in card


def test_the_vectors_card_holds_their_figures() -> None:
    card = (VECTORS / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n") and config()["fingerprint"] in card
    for trait, validation in config()["validation"].items():
        figure, replies = validation["token_auroc"], validation["auroc"]
        of_trait = [line for line in card.splitlines() if line.startswith(f"| {trait} | {block_of(trait)} |")]
        overview, tokens, _ = of_trait  # the last: strengths that stayed coherent
        assert f"{replies['value']:.3f} [{replies['low']:.3f}, {replies['high']:.3f}]" in overview
        assert f"{figure['value']:.4f} [{figure['low']:.4f}, {figure['high']:.4f}]" in tokens
        assert str(verdict(validation)) in overview
        for flag in validation["flags"]:
            assert flag["says"].split("[")[0] in card


def block_of(trait: str) -> int:
    return config()["best_block"][trait]


def test_every_vector_of_the_demo_meets_its_targets_or_its_card_says_which_it_misses() -> None:
    for trait, f in config()["validation"].items():
        assert f["token_auroc"]["value"] >= 0.98 and f["token_auroc"]["low"] >= 0.98, trait
        assert f["split_half_cosine"]["value"] >= 0.9 and f["own_minus_best_other"]["low"] > 0, trait
        assert f["nulls"]["shuffled_labels"]["gap"] > 3 * f["nulls"]["shuffled_labels"]["gap_95"], trait
        steered = {flag["control"] for flag in f["flags"]} & {"steering"}
        assert bool(steered) == (f["steering"]["effect"]["low"] <= 0), trait


def test_the_vectors_card_counts_the_null() -> None:
    card = (VECTORS / "README.md").read_text(encoding="utf-8")
    assert f"{config()['null']['n_tokens']} tokens" in card
