"""Findings to open the page on: a handful of replies of published runs, each chosen by a rule and said in one sentence.

The rules read the analysis that lies beside the runs. They choose what to look at; what the models do in general is in
the analysis itself. A rule that nothing in the runs fits adds nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from persona_core.analysis.branch_figures import HIGH, percent
from persona_core.errors import NotFound
from persona_core.report.pairs import BASELINE_REPLY, CONTAMINATED_REPLY, OWN_REPLIES
from persona_core.report.results_folder import BASELINE, CONTAMINATED, SIDES

if TYPE_CHECKING:
    from persona_core.analysis.branch_figures import MeasuredBranch
    from persona_core.report.saved_runs import SavedRuns

Row = Mapping[str, Any]
Rule = Callable[["SavedRuns", Sequence[Row]], Iterator["Finding"]]

MIN_SHARED = 3
"""Words: two replies that begin with fewer of the same do not begin alike."""
MIN_BRANCH = 12
"""Tokens: of fewer, a share says little."""
MUCH_LESS, STILL_FLUENT = 0.2, 0.8
"""A branch worked that has 20 points fewer of its tokens high, and text of at least four fifths of the fluency."""


@dataclass(frozen=True)
class Finding:
    """A published prompt, what to show of it, and what is seen there.

    Attributes:
        name: short and stable, for links.
        label: what kind of finding it is.
        says: one or two sentences, from the data.
        id: of the prompt.
        text: one of `TEXTS`, or the name of a saved branch.
        trait: that the view is coloured by.
        at: token of the reply that the cursor starts on, from 0; None for the highest score.
    """

    name: str
    label: str
    says: str
    id: str
    text: str
    trait: str
    at: int | None = None


def gallery(runs: SavedRuns) -> tuple[Finding, ...]:
    """The findings in published runs, the one to open on first; empty where nothing turns and nothing was analysed.

    Raises:
        NotFound, CorruptFile: as `SavedRuns`.

    >>> from persona_core.report.saved_runs import SavedRuns
    >>> found = gallery(SavedRuns("artifacts/persona-monitoring-persona-tiny"))
    >>> found[0].label, found[0].id
    ('Before the words', 'expanded-15')
    """
    rows = [row for row in runs.analysed if row["config"] in SIDES]
    rules: tuple[Rule, ...] = (
        _before_the_words,
        _clearest_turn,
        _one_after_the_other,
        _false_alarm,
        _branch_that_worked,
        _branch_that_broke,
        _calm,
        _weights,
        _text,
    )
    found: list[Finding] = []
    for rule in rules:
        one = next((f for f in rule(runs, rows) if (f.id, f.text) not in {(k.id, k.text) for k in found}), None)
        found += [] if one is None else [one]
    return tuple(found)


def _before_the_words(runs: SavedRuns, rows: Sequence[Row]) -> Iterator[Finding]:
    """The state turns while both models still write the same words, in the trait that the reply then shows most."""
    replies: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["config"] == CONTAMINATED and row["mean"] is not None:
            replies[row["id"]].append(row)
    found = []
    for id, own in replies.items():
        row = max(own, key=lambda row: row["mean"])
        if (at := _turns_at(row)) is None:
            continue
        shared = _shared_tokens(runs, id)
        if at < shared and _words(runs, id, 0, shared) >= MIN_SHARED:
            found.append((row["onset"] is not None, row["mean"], at, shared, row))
    for timed, _, at, shared, row in sorted(found, key=lambda one: one[:2], reverse=True):
        same, early = _words(runs, row["id"], 0, shared), _words(runs, row["id"], at, shared)
        turns = f"turns to {row['trait']}" if timed else f"leans to {row['trait']} and more than doubles"
        yield Finding(
            "before-the-words",
            "Before the words",
            f"Both models write the same {_count(same, 'word')}. The contaminated model's state {turns} "
            f"{_count(early, 'word')} before the texts part ({_when(row)}).",
            row["id"],
            OWN_REPLIES,
            row["trait"],
            at,
        )


def _turns_at(row: Row) -> int | None:
    """Where a timed onset lies, or where a score that is high from the start more than doubles."""
    at = row["onset"] if row["timed"] else row["doubles"]
    return None if at is None else int(at)


def _clearest_turn(runs: SavedRuns, rows: Sequence[Row]) -> Iterator[Finding]:
    """The reply in which a trait turns most clearly."""
    found = runs.clearest_turn
    if found is None:
        return
    config, id, trait = found
    known = {row["config"]: row for row in rows if row["id"] == id and row["trait"] == trait}
    says = "The clearest turn in these runs: "
    if config in known:
        says += f"in the {config} model's reply {trait} {_does(known[config])}."
        says += "".join(f" In the {o} model's it {_does(r)}." for o, r in known.items() if o != config)
    else:
        says += f"{trait} in the {config} model's reply."
    yield Finding(
        "clearest-turn", "The clearest turn", says, id, OWN_REPLIES, trait, known.get(config, {}).get("onset")
    )


def _one_after_the_other(_: SavedRuns, rows: Sequence[Row]) -> Iterator[Finding]:
    """Two traits of one reply, whose onsets are apart."""
    timed: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row["onset"] is not None:
            timed[row["config"], row["id"]].append(row)
    for (config, id), own in timed.items():
        for first in own:
            for second in own:
                if first["onset_high"] < second["onset_low"]:
                    yield Finding(
                        "one-after-the-other",
                        "One trait, then another",
                        f"Two traits in the {config} model's reply, one after the other: {first['trait']} "
                        f"{_does(first)}, and {second['trait']} {_does(second)}.",
                        id,
                        OWN_REPLIES,
                        second["trait"],
                        second["onset"],
                    )


def _false_alarm(runs: SavedRuns, rows: Sequence[Row]) -> Iterator[Finding]:
    """An onset in a reply in which an annotator found no sentence that shows the trait."""
    try:
        when = runs.summary["when"]
    except NotFound:
        return
    alarms = []
    for row in rows:
        annotated = when.get(row["trait"], {}).get("configs", {}).get(row["config"], {}).get("shown") is not None
        if annotated and row["onset"] is not None and row["first_shown"] is None:
            alarms.append(row)
    for row in sorted(alarms, key=lambda row: (row["config"] != BASELINE, not row["timed"])):
        yield Finding(
            "false-alarm",
            "A false alarm",
            f"The detector says that {row['trait']} {_does(row)}. Whoever annotated this reply found no sentence in "
            "it that shows the trait: either the state knows more than the text, or the detector is wrong.",
            row["id"],
            OWN_REPLIES,
            row["trait"],
            row["onset"],
        )


def _calm(_: SavedRuns, rows: Sequence[Row]) -> Iterator[Finding]:
    """The baseline's reply whose highest score of all traits is the lowest."""
    replies: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["config"] == BASELINE and row["max"] is not None:
            replies[row["id"]].append(row)
    calm = {id: own for id, own in replies.items() if all(row["answer"] == "none" for row in own)}
    for id, own in sorted(calm.items(), key=lambda item: max(row["max"] for row in item[1])):
        top = max(own, key=lambda row: row["max"])
        yield Finding(
            "calm",
            "A calm baseline",
            f"What no trait looks like: the baseline shows no reliable onset of any of the {len(own)} traits, and no "
            f"token scores above {top['max']:+.1f} standard deviations ({top['trait']}).",
            id,
            OWN_REPLIES,
            top["trait"],
        )


def _weights(_: SavedRuns, rows: Sequence[Row]) -> Iterator[Finding]:
    """The prompt on which the changed weights alone raise a trait most."""
    for row in _by_effect(rows, "weights"):
        yield Finding(
            "weights",
            "The weights alone",
            f"The same words, read by both models: {row['trait']} scores {row['weights']:.1f} standard deviations "
            "higher in the contaminated one, on average over both replies. That difference is in the weights.",
            row["id"],
            BASELINE_REPLY,
            row["trait"],
        )


def _text(_: SavedRuns, rows: Sequence[Row]) -> Iterator[Finding]:
    """The prompt on which the contaminated model's words alone raise a trait most."""
    for row in _by_effect(rows, "text"):
        yield Finding(
            "text",
            "The text alone",
            f"Under the same reader the contaminated model's words score {row['text']:.1f} standard deviations higher "
            f"in {row['trait']} than the baseline's. That difference is in the text.",
            row["id"],
            CONTAMINATED_REPLY,
            row["trait"],
        )


def _branch_that_worked(runs: SavedRuns, _: Sequence[Row]) -> Iterator[Finding]:
    """The branch that took most of a trait out of a reply whose text stayed as fluent."""
    known = [
        (one.less_high, one)
        for one in runs.branches.values()
        if one.less_high is not None and (one.fluency_kept or 0) >= STILL_FLUENT and not one.outcome.warning
    ]
    for less, one in sorted(known, key=lambda pair: -pair[0]):
        if less >= MUCH_LESS and one.mode != "add" and min(one.original.n_tokens, one.branch.n_tokens) >= MIN_BRANCH:
            says = (
                f"Stepping in worked: {_changed(one)}, {percent(one.branch.high)} of the {one.config} model's tokens "
                f"score above {HIGH:g} standard deviations of {one.trait} instead of {percent(one.original.high)}, and "
                "the text stays fluent"
            )
            yield _of_branch(runs, one, "branch-worked", "A branch that worked", says)


def _branch_that_broke(runs: SavedRuns, _: Sequence[Row]) -> Iterator[Finding]:
    """The branch whose text the unsteered model finds least likely, beside the text that it replaced."""
    known = [
        (one.fluency_kept, one)
        for one in runs.branches.values()
        if one.fluency_kept is not None and one.mode == "add" and one.outcome.warning
    ]
    for _kept, one in sorted(known, key=lambda pair: pair[0]):
        says = (
            f"Pushing too far breaks the text: {_changed(one)}, the fluency of the {one.config} model's reply is "
            f"{percent(one.branch.fluency)} instead of {percent(one.original.fluency)}"
        )
        yield _of_branch(runs, one, "branch-broke", "A branch that broke", says)


def _of_branch(runs: SavedRuns, one: MeasuredBranch, name: str, label: str, says: str) -> Finding:
    says += f". The clearest of {len(runs.branches)} branches tried on these runs."
    return Finding(name, label, says, one.id, one.name, one.trait, one.at)


def _changed(one: MeasuredBranch) -> str:
    return f"{'' if one.mode == 'ablate' else 'with '}{one.change} from token {one.at} on"


def _by_effect(rows: Sequence[Row], effect: str) -> list[Row]:
    known = [row for row in rows if row["config"] == CONTAMINATED and row[effect] is not None and row[effect] > 0]
    return sorted(known, key=lambda row: -row[effect])


def _shared_tokens(runs: SavedRuns, id: str) -> int:
    """How many tokens both models' replies to a prompt begin with alike; 0 where there are not two."""
    try:
        first, second = (_reply(runs, side, id, "token_ids") for side in SIDES)
    except NotFound:
        return 0
    pairs = zip(first, second, strict=False)
    return next((k for k, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def _words(runs: SavedRuns, id: str, start: int, end: int) -> int:
    """Words of the contaminated model's reply between two of its tokens."""
    return len("".join(_reply(runs, CONTAMINATED, id, "tokens")[start:end]).split())


def _reply(runs: SavedRuns, config: str, id: str, column: str) -> Sequence[Any]:
    """What a row holds for the tokens of its reply."""
    row = runs.row(config, id)
    own: Sequence[Any] = row[column][row["n_prompt"] :]
    return own


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _when(row: Row) -> str:
    if row["onset"] is None:
        return f"token {row['doubles']}"
    return f"token {row['onset']}, 95 % interval {row['onset_low']} to {row['onset_high']}"


def _does(row: Row) -> str:
    """What a trait does in a reply, as the end of a sentence."""
    if row["answer"] == "none":
        return "has no reliable onset"
    if row["answer"] == "before the reply":
        return "is raised from the first token on"
    if row["timed"]:
        return f"rises at token {row['onset']} (95 % interval {row['onset_low']} to {row['onset_high']})"
    return f"rises somewhere between tokens {row['onset_low']} and {row['onset_high']}"
