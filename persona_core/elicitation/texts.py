"""Vectors from labelled texts: their plan, and the model's states while it reads each in its place.

The model writes only neutral replies, to `neutral_prompts`; without these, and where no text is neutral, to the texts'
own prompts.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import numpy as np
from tqdm import tqdm

from persona_core.elicitation.drafting import judge_prompt
from persona_core.elicitation.elicit import ElicitationPlan, batches_of, plan_record
from persona_core.elicitation.growing import begin
from persona_core.elicitation.labelled_texts import SPLITS, LabelledText
from persona_core.elicitation.served_reply import ServedReply
from persona_core.elicitation.server import read_batch
from persona_core.elicitation.store import ElicitationRequest, ReplyStore
from persona_core.elicitation.traits import TraitDefinition
from persona_core.elicitation.writing import RequestBatch, sink_limits, write_and_keep
from persona_core.errors import SettingError
from persona_core.models.language_model import LanguageModel

MIN_PROMPTS = 4
"""Prompts that a trait's texts must answer: two to extract from, one to choose the block, one to report on."""
MIN_TEXTS = 4
WRITER = "given"
GIVEN = "labelled texts"
"""What stands in place of the judge's name."""


@dataclass(frozen=True, repr=False)
class TextsPlan(ElicitationPlan):
    """A plan whose replies are given; from `texts_plan`."""

    texts: tuple[LabelledText, ...] = ()
    neutral_prompts: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        content = [
            (t.messages, t.label, t.trait, *([t.shows] if t.shows else []), *([t.split] if t.split else []))
            for t in self.texts
        ]
        digest = hashlib.sha256(json.dumps(content, default=dict).encode()).hexdigest()[:16]
        record = {k: v for k, v in super().to_dict().items() if k != "neutral_prompts" or v}
        return {**record, "texts": {"n": len(self.texts), "fingerprint": digest}}

    def n_choosing(self, trait: TraitDefinition) -> int:
        chosen = {t.prompt for t in self.texts if t.trait == trait.name and t.split == "validation"}
        return len(chosen) or super().n_choosing(trait)

    @property
    def labels_parts(self) -> bool:
        """Whether every positive text says which parts of it show the trait."""
        return all(t.shows for t in self.texts if t.label == "positive")

    @property
    def enough_neutral(self) -> bool:
        """Whether there are as many neutral texts as any trait has negative ones."""
        n = Counter(t.trait for t in self.texts if t.label == "negative")
        return sum(t.label == "neutral" for t in self.texts) >= max(n.values(), default=1)

    def shown(self) -> dict[int, tuple[str, ...]]:
        """Index of a request -> the parts of its reply that show the trait: their tokens stand for the reply."""
        return {r.index: t.shows for r, t in self._numbered() if t is not None and t.shows}

    def requests(self) -> list[ElicitationRequest]:
        """One for each text, in their order; then neutral ones for the model, if no text is neutral."""
        return [request for request, _ in self._numbered()]

    def given(self) -> dict[int, str]:
        """The replies that are given, by index of their request."""
        return {r.index: t.messages[-1]["content"] for r, t in self._numbered() if t is not None}

    def _numbered(self) -> list[tuple[ElicitationRequest, LabelledText | None]]:
        """Each request with the text that answers it; None where the model is to answer."""
        places = {
            (trait.name, question): (split, number)
            for trait in self.traits
            for split, questions in (
                ("extraction", trait.extraction_questions), ("evaluation", trait.evaluation_questions),
            )
            for number, question in enumerate(questions)
        }  # fmt: skip
        neutral = {p: i for i, p in enumerate(dict.fromkeys(t.prompt for t in self.texts if t.label == "neutral"))}
        found: list[tuple[ElicitationRequest, LabelledText | None]] = []
        for text in self.texts:
            if text.trait is not None and (text.trait, text.prompt) not in places:
                continue  # of a trait that was left out
            split, number = ("neutral", neutral[text.prompt]) if text.trait is None else places[text.trait, text.prompt]
            found.append((_request(len(found), split, number, text), text))
        answers = {p: LabelledText((_user(p), _EMPTY), "neutral") for p in self.neutral_prompts}
        if not neutral and not answers:
            answers = {text.prompt: replace(text, label="neutral", trait=None) for text in self.texts}
        for number, text in enumerate(answers.values(), len(neutral)):
            for rollout in range(self.neutral_rollouts):
                request = _request(len(found), "neutral", number, text)
                found.append((replace(request, rollout=rollout), None))
        return found


_EMPTY = {"role": "assistant", "content": ""}


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _request(index: int, split: str, question: int, text: LabelledText) -> ElicitationRequest:
    before = text.messages[:-1]
    users = [m["content"] for m in before if m["role"] == "user"]
    return ElicitationRequest(
        index, split, text.trait, text.label, None, question, 0, system=None, user=users[-1] if users else "",
        conversation=tuple(dict(m) for m in before),
    )  # fmt: skip


def texts_plan(texts: Sequence[LabelledText], traits: Sequence[TraitDefinition] = (), **settings: Any) -> TextsPlan:
    """A plan for labelled texts: half of each trait's prompts to extract from, a quarter to choose the block on, a
    quarter to report on, unless the texts say themselves which they are for. All texts that answer one prompt are on
    one side of that split.

    Args:
        texts: from `load_texts`.
        traits: definitions of these traits, for the descriptions; a trait without one is described by its name.
        settings: as in `ElicitationPlan`; `sampling` and `neutral_rollouts` are those of the model's own neutral
            replies: to `neutral_prompts`, or without these, where no text is neutral, to the texts' prompts.

    Raises:
        SettingError: too few texts or prompts of a trait; the message has the counts.
    """
    known = {trait.name: trait for trait in traits}
    names = dict.fromkeys(text.trait for text in texts if text.trait is not None)
    if not names:
        raise SettingError("The texts are all neutral; label some of them positive and some negative.")
    seed = settings.get("seed", 0)
    found = [_definition(name, [t for t in texts if t.trait == name], known.get(name), seed, names) for name in names]
    return TextsPlan(tuple(found), texts=tuple(texts), **settings)


def _definition(
    name: str, texts: Sequence[LabelledText], known: TraitDefinition | None, seed: int, names: Iterable[str]
) -> TraitDefinition:
    """The trait with the texts' prompts as its questions; `names` are those of all traits in the file."""
    sides = {side: [t for t in texts if t.label == side] for side in ("positive", "negative")}
    prompts = {side: list(dict.fromkeys(t.prompt for t in found)) for side, found in sides.items()}
    counts = ", ".join(f"{len(sides[s])} {s} to {len(prompts[s])} prompts" for s in sides)
    if min(map(len, sides.values())) < MIN_TEXTS or min(map(len, prompts.values())) < MIN_PROMPTS:
        raise SettingError(
            f"Too few labelled texts of {name!r}: {counts}. At least {MIN_TEXTS} of each side are needed, to "
            f"{MIN_PROMPTS} different prompts: some are held out, and a prompt is never on both sides of a split."
            + "".join(f" Did you mean {near!r}?" for near in get_close_matches(name, set(names) - {name}, 1, 0.8))
        )
    parts = _given_split(name, texts) or _random_split(prompts, seed)
    for split, part in zip(SPLITS[:2], map(set, parts), strict=False):
        n = {side: sum(t.prompt in part for t in found) for side, found in sides.items()}
        if min(n.values()) < 2:
            raise SettingError(
                f"Too few labelled texts of {name!r}: {counts}. Its {split} prompts have {n['positive']} positive and "
                f"{n['negative']} negative texts; two of each are needed. Label texts of both sides to at least 6 "
                "prompts, better to 60."
            )
    described = known or TraitDefinition(
        name=name,
        description=f"What the texts labelled {name!r} have in common.",
        positive=(f"Reply as the texts labelled {name} do.",),
        negative=(f"Reply as the texts not labelled {name} do.",),
        extraction_questions=("-",),
        evaluation_questions=("--",),
        judge_prompt=judge_prompt(f"{name}.", f"0: not at all {name}. 100: as {name} as can be."),
    )
    return replace(described, extraction_questions=tuple(parts[0]), evaluation_questions=(*parts[1], *parts[2]))


def _given_split(name: str, texts: Sequence[LabelledText]) -> tuple[list[str], ...] | None:
    """Prompts of a trait for each of `SPLITS`, as its texts say; None where they do not."""
    if not any(t.split for t in texts):
        return None
    splits: dict[str, str] = {}
    for text in texts:
        if text.split is None:
            raise SettingError(
                f"Some texts of {name!r} name a split, but not the one to {text.prompt[:60]!r}. Name one for each text "
                "of a trait, or for none."
            )
        if (other := splits.setdefault(text.prompt, text.split)) != text.split:
            raise SettingError(
                f"The texts of {name!r} to {text.prompt[:60]!r} are in the splits {other} and {text.split}. Put all "
                "texts to one prompt into one split."
            )
    return tuple([p for p, found in splits.items() if found == split] for split in SPLITS)


def _random_split(prompts: Mapping[str, Sequence[str]], seed: int) -> tuple[list[str], ...]:
    """The same by chance; prompts that texts of both sides answer are split apart from the others, and alike."""
    rng = np.random.default_rng(seed)
    parts: tuple[list[str], ...] = ([], [], [])
    shared = set(prompts["positive"]) & set(prompts["negative"])
    both = [p for p in prompts["positive"] if p in shared]
    alone = [[p for p in prompts[side] if p not in shared] for side in ("positive", "negative")]
    for group in (both, *alone):  # each of them split alike, however the file is sorted
        for place, i in enumerate(rng.permutation(len(group))):
            parts[(0, 1, 0, 2)[place % 4]].append(group[int(i)])
    return parts


def read_texts(
    lm: LanguageModel, plan: TextsPlan, store: ReplyStore, progress: bool = True
) -> list[tuple[ElicitationRequest, str]]:
    """Read every text of the plan that the store does not hold yet, and write neutral replies where none are given.

        plan = texts_plan(load_texts("labelled.jsonl"))
        with ReplyStore("outputs/labelled") as store:
            failed = read_texts(lm, plan, store)
            label_replies(store, plan.traits, GIVEN)

    Returns:
        Texts that could not be read, with the reason.

    Raises:
        SettingError: the store was started with other texts, or another model; or texts in it are under wrong labels.
    """
    given, shows = {index: ServedReply(text, WRITER) for index, text in plan.given().items()}, plan.shown()
    # A text's index is its place among the texts, however the folder grows: only the model's own replies are numbered.
    texts, own = ([r for r in plan.requests() if (r.index in given) == is_given] for is_given in (True, False))
    stages = begin(store, plan.traits, own, plan_record(plan, lm))
    _check_places(store, texts, stages)
    added = [[r for r in stage if r.index not in given] for stage in stages]
    batches, max_norm = batches_of([texts, *added], plan.batch_size), None
    failed: list[tuple[ElicitationRequest, str]] = []
    with tqdm(total=sum(len(b.requests) for b in batches), desc="reading", unit="text", disable=not progress) as bar:
        for batch in batches:
            done = bar.n + len(batch.requests)
            missing = RequestBatch(
                store.free_name(batch.name), tuple(r for r in batch.requests if not store.has(r.index))
            )
            if missing.requests:
                max_norm = sink_limits(lm, plan) if max_norm is None else max_norm
                is_given = missing.requests[0].index in given
                bar.set_description("reading" if is_given else "writing neutral replies")
                if is_given:
                    read = read_batch(lm, plan, missing, given, WRITER, max_norm, shows)
                    store.add(missing.name, read.replies, read.states)
                    failed += read.failed
                else:
                    failed += write_and_keep(lm, plan, store, missing, max_norm, bar.update)
            bar.update(done - bar.n)
    return failed


def _check_places(
    store: ReplyStore, texts: Sequence[ElicitationRequest], stages: Sequence[Sequence[ElicitationRequest]]
) -> None:
    """Refuse a folder with texts under wrong labels, as earlier versions left one where a stopped run grew."""
    found = (*(reply.request for reply in store.replies()), *(r for stage in stages for r in stage))
    for r in found:
        place = texts[r.index] if r.index < len(texts) else None
        known = (None, "neutral") if place is None else (place.trait, place.side)
        if (r.trait, r.side) != known or (place is not None and r.messages != place.messages):
            raise SettingError(
                f"The run in {str(store.folder)!r} holds text {r.index} as {r.side} ({r.trait or 'no trait'}), but the "
                "file has another text or label there. Read the texts again, in another folder."
            )
