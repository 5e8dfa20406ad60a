"""A folder's requests, and adding to them: more rollouts, questions, instructions, traits or neutral replies.

What is there is kept. A request that the folder has answered keeps its index, on which its seed and its scores rest;
what a larger plan adds is numbered on from there and batched by itself. The numbering is written down
(`requests.jsonl`) before anything new is asked, so a run that was killed goes on with the same one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from persona_core.elicitation.record_fields import SERVED_FIELDS
from persona_core.elicitation.store import SERVED_FILE, ElicitationRequest, ReplyStore, as_request
from persona_core.elicitation.traits import TraitDefinition
from persona_core.errors import SettingError
from persona_core.utils.fields import COUNT, COUNT_OR_NULL, Field, check_fields, is_text
from persona_core.utils.files import read_json, read_lines, write_atomically
from persona_core.utils.workdir import PLAN_FILE

REQUESTS_FILE = "requests.jsonl"
DEFINITIONS = "definitions"
COUNTS = (
    "rollouts", "evaluation_rollouts", "neutral_rollouts", "pairs_per_question", "evaluation_pairs_per_question",
)  # fmt: skip
"""Settings of a plan that may grow; None is all pairs."""
PLAN_FIELDS = {
    "traits": Field(
        lambda value: isinstance(value, dict) and all(map(is_text, value.values())),
        "an object of fingerprints",
        needed=False,
    ),
    **dict.fromkeys(COUNTS, replace(COUNT_OR_NULL, needed=False)),
}

Stages = list[tuple[ElicitationRequest, ...]]


def begin(
    store: ReplyStore,
    traits: Sequence[TraitDefinition],
    requests: Sequence[ElicitationRequest],
    record: Mapping[str, Any],
) -> Stages:
    """The plan's requests with the indices that they have in this folder; what a larger plan adds is written down.

    Args:
        traits: of the plan.
        requests: of the plan; indices before the first one's are taken, and never given to a request that is added.
        record: what the folder records about its replies; see `plan_record`.

    Returns:
        The requests in groups: those of the first plan, and those that were added later.

    Raises:
        SettingError: the folder was started with another plan that this one is not an extension of.
    """
    path, now = store.folder / PLAN_FILE, json.loads(json.dumps(record))
    before = read_json(path) if path.is_file() else now
    if before == now:
        store.check_plan(record)
    else:
        check_fields({k: before[k] for k in PLAN_FIELDS if k in before}, PLAN_FIELDS, str(path), remedy="Restore it.")
        _check_growth(store, traits, before, now)
        known, added = _numbered(store, requests)
        lines = [{"stage": k, **asdict(r)} for k, stage in enumerate((known, added)) for r in stage]
        write_atomically(store.folder / REQUESTS_FILE, "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines))
        write_atomically(path, json.dumps(now, indent=2, ensure_ascii=False) + "\n")
    for trait in traits:
        definition = store.folder / DEFINITIONS / f"{trait.name}-{trait.fingerprint}.json"
        if not definition.is_file():
            trait.save(definition)
    return _stages(store) or [tuple(requests)]


def missing_requests(store: ReplyStore | None, requests: Sequence[ElicitationRequest]) -> list[ElicitationRequest]:
    """Those that a folder has not answered; all of them without a folder."""
    return list(requests) if store is None else _numbered(store, requests)[1]


def served_lines(store: ReplyStore) -> Iterator[dict[str, Any]]:
    """What a server has written for the folder: index, text, finish and thought.

    Raises:
        CorruptFile: a line is something else.
    """
    path = store.folder / SERVED_FILE
    for number, line in read_lines(path):
        check_fields(line, SERVED_FIELDS, f"{path}, line {number}")
        yield line


def _stages(store: ReplyStore) -> Stages:
    found: dict[int, list[ElicitationRequest]] = {}
    path = store.folder / REQUESTS_FILE
    for number, line in read_lines(path):
        where = f"{path}, line {number}"
        stage = line.pop("stage", None)
        check_fields({"stage": stage}, {"stage": COUNT}, where)
        found.setdefault(stage, []).append(as_request(line, where))
    return [tuple(found[stage]) for stage in sorted(found)]


def _numbered(
    store: ReplyStore, requests: Sequence[ElicitationRequest]
) -> tuple[list[ElicitationRequest], list[ElicitationRequest]]:
    """The requests that the folder has answered, as they are, and the others with indices of their own."""
    first = min((r.index for r in requests), default=0)
    stored = [reply.request for reply in store.replies() if reply.request.index >= first]
    known = {_identity(r) for r in stored}
    questions = {str(r.messages): r.question for r in stored if r.split == "neutral"}
    unused = min((r.question for r in requests if r.split == "neutral"), default=0)
    earlier = (r.index for stage in _stages(store) for r in stage)
    last = max(first - 1, *(r.index for r in stored), *(line["index"] for line in served_lines(store)), *earlier, -1)
    added: list[ElicitationRequest] = []
    for request in requests:
        if _identity(request) in known:
            continue
        number = request.question
        if request.split == "neutral":  # numbered over all traits' questions, among which new ones may stand anywhere
            number = questions.setdefault(str(request.messages), max(questions.values(), default=unused - 1) + 1)
        added.append(replace(request, index=last + 1 + len(added), question=number))
    return stored, added


def _identity(request: ElicitationRequest) -> tuple[Any, ...]:
    return request.split, request.trait, request.side, request.pair, str(request.messages), request.rollout


def _check_growth(
    store: ReplyStore, definitions: Sequence[TraitDefinition], before: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """Refuse a plan that is not the folder's own with more in it."""
    traits = before.get("traits", {})
    store.check_plan({**now, **{name: before[name] for name in COUNTS if name in before}, "traits": traits})
    folder = str(store.folder)
    for name in COUNTS:
        old, new = before.get(name), now.get(name)
        if new is not None and (old is None or new < old):
            option = f"--{name.replace('_', '-')}"
            keep = f"{option} {old} or more" if old is not None else f"no {option}"
            raise SettingError(
                f"The run in {folder!r} was started with {name} = {old}; now it is {new}. What is there is kept: use "
                f"{keep}, or another folder."
            )
    named = {trait.name: trait for trait in definitions}
    if gone := [name for name in traits if name not in named]:
        raise SettingError(
            f"The run in {folder!r} has the trait {gone[0]!r} too. What is there is kept: name it as well (--traits "
            f"{' '.join([*traits, *(n for n in named if n not in traits)])}), or use another folder."
        )
    for name, fingerprint in traits.items():
        if named[name].fingerprint == fingerprint:
            continue
        path = store.folder / DEFINITIONS / f"{name}-{fingerprint}.json"
        what = _changed(TraitDefinition.load(path), named[name]) if path.is_file() else "its definition"
        if what:
            raise SettingError(
                f"The trait {name!r} is not the one that the run in {folder!r} was started with: {what} changed. "
                "Questions and instructions can be added after the others; for anything else use another folder."
            )


def _changed(old: TraitDefinition, new: TraitDefinition) -> str | None:
    """What of a definition is not as before, apart from what was added at the end of a list."""
    before, after = old.to_dict(), new.to_dict()
    for name, value in before.items():
        now = after[name][: len(value)] if isinstance(value, list) else after[name]
        if now != value:
            return name
    return None
