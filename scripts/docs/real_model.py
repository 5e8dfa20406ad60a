"""Tables of docs/real_model.md: what the scores of a real model are worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from persona_core.utils.markdown import interval, table
from scripts.docs.stored import stored


def headline() -> str:
    """What whitening and specific scores gain, and what false alarms cost."""
    found, alarmed = _stored()["directions"], _stored()["alarms"]
    as_extracted = "labels by reply, shrunk as far as `make_vectors` shrinks"
    by_label = {
        "": (
            "mean difference",
            "whitened, within-class covariance",
            "specific (odds against neutral and the others)",
        ),
        "... labels by reply": (
            None,
            f"whitened, {as_extracted}",
            f"specific, {as_extracted}",
        ),
    }
    rows = []
    for key, name in (
        ("neutral", "AUROC of a trait's tokens against neutral text, mean over 8 traits / worst"),
        ("else", "the same against everything else, other traits included"),
    ):
        for label, columns in by_label.items():
            cells = [found[column][key] if column else None for column in columns]
            rows.append((label or name, *(f"{c['mean']:.3f} / {interval(c['worst'], 3)}" if c else "–" for c in cells)))
    name = "neutral replies to kinds of prompts not in the null with an alarm of any of 8 traits (nominal 5 %)"
    rows.append((name, "–", "–", interval(alarmed["other_kinds"]["any_alarm"], 1, percent=True)))
    heads = ("SmolLM2-135M-Instruct, held-out texts", "z along the mean difference", "z, whitened")
    return table((*heads, "specific (the default)"), rows)


def directions() -> str:
    """AUROC of each direction that was tried, mean and worst trait."""
    rows = []
    for name, found in _stored()["directions"].items():
        cells = [name]
        for against in ("neutral", "else"):
            cells += [f"{found[against]['mean']:.3f}", interval(found[against]["worst"], 3)]
        rows.append(tuple(cells))
    return table(
        ("read along", "against neutral, mean", "worst trait", "against everything else, mean", "worst trait"), rows
    )


def traits() -> str:
    """For each trait, how often its own replies raise an alarm, and how often those of other traits do."""
    found = _stored()["traits"]
    rows = [
        (
            trait,
            interval(found["token_auroc"]["z"][trait], 3),
            interval(found["token_auroc"]["specific"][trait], 3),
            interval(found["found"][trait], 0, percent=True),
            interval(found["taken_for_another"][trait], 1, percent=True),
        )
        for trait in found["found"]
    ]
    return table(
        ("trait", "token AUROC, z", "token AUROC, specific", "alarms on its own replies", "on other traits' replies"),
        rows,
    )


ALARMS = {
    "other_prompts": "other prompts of the same kinds",
    "other_kinds": "kinds of prompts that the null has not seen",
    "tasks_by_an_everyday_null": "tasks (code, maths, poems, ...), null of everyday prompts only",
}


def alarms() -> str:
    """Neutral replies with an alarm, over all traits, and how often no rate is stated."""
    rows = []
    for key, name in ALARMS.items():
        found = _stored()["alarms"][key]
        everyday = found["no_rate_stated_everyday"]
        rows.append(
            (
                name,
                interval(found["any_alarm"], 1, percent=True),
                interval(found["any_alarm_where_a_rate_is_stated"], 1, percent=True),
                interval(found["no_rate_stated"], 0, percent=True),
                interval(everyday, 0, percent=True) if everyday["n"] > 1 else "–",
            )
        )
    return table(
        (
            "neutral replies to",
            "any alarm",
            "any alarm, where a rate is stated",
            "no rate stated",
            "of everyday prompts",
        ),
        rows,
    )


def sinks() -> str:
    """Contaminated minus baseline with sink tokens and without them."""
    rows = []
    for block, by_trait in _stored()["sinks"].items():
        if not isinstance(by_trait, Mapping):
            continue
        for trait, found in by_trait.items():
            rows.append(
                (
                    f"{block}",
                    trait,
                    found["sink_tokens"],
                    interval(found["without_sinks"], 3),
                    interval(found["with_sinks"], 3),
                )
            )
    return table(("block", "trait", "sink tokens", "contaminated minus baseline, z", "with sink tokens put back"), rows)


def couplings() -> str:
    """Edges that are claimed on neutral text, where there are none."""
    n_directions = _stored()["couplings"]["n_directions"]
    rows = [
        (
            "the eight traits" if part == "traits" else f"{n_directions} random directions",
            f"{found['together']} of {found['n_together']}",
            f"{found['lagged']} of {found['n_lagged']}",
        )
        for part, found in _stored()["couplings"]["neutral_halves"].items()
    ]
    return table(("pairs of", "claimed at the same token", "claimed at later tokens"), rows)


def whitening() -> str:
    """Seconds, memory and disk of the covariance, by width."""
    rows = [
        (width, f"{one['seconds_a_block']} s", f"{one['minutes_for_all_blocks']} min", f"{one['megabytes']} MB",
         f"{one['stored_megabytes_a_reply']} MB")
        for width, one in stored("whitening")["widths"].items()
    ]  # fmt: skip
    return table(("width", "one block", "32 blocks", "memory beside the states", "sampled tokens of a reply"), rows)


def natural() -> str:
    """AUROC on natural text, by what a trait's tokens are contrasted with."""
    rows = []
    for contrast, by_kind in stored("natural_texts")["contrasts"].items():
        for kind, found in by_kind.items():
            cells = [
                f"{found[key]['mean']:.3f} / {interval(found[key]['worst'], 3)}"
                for key in ("neutral", "negative", "else", "replies")
            ]
            rows.append((contrast, kind, *cells))
    against = ("against neutral, mean / worst", "against negative", "against all else", "replies against negative ones")
    return table(("the trait's tokens minus", "score", *against), rows)


INSTRUCTED = {
    "texts": "labelled texts",
    "negative": "instructions, read against the other side",
    "neutral": "instructions, read against neutral replies",
}


def instructed() -> str:
    """Vectors from texts and by instruction on each other's held-out set, means over traits."""
    found = stored("instructed_vectors")
    rows = []
    for key, name in INSTRUCTED.items():
        on_replies, on_texts = found["on_instructed_replies"][key], found["on_texts"][key]["z"]
        cells = (on_replies["states"], on_replies["alone"], on_texts["neutral"], on_texts["else"], on_texts["replies"])
        rows.append((name, *(interval(cell["mean"], 3) for cell in cells)))
    limits = ("instructed_replies", "instructed_replies_alone", "neutral", "else", "replies")
    rows.append(("95 % of random directions stay below", *(f"{found['random'][key]['mean']:.3f}" for key in limits)))
    of_texts = ("tokens of texts against neutral ones", "against all else", "whole texts against negative ones")
    return table(("vectors from", "instructed replies", "read without the instruction", *of_texts), rows)


def instructed_findings() -> str:
    """What the two tables show, as far as the intervals go."""
    found = stored("instructed_vectors")
    judge, any_number = found["judged"]["as_it_is"], found["judged"]["any_number"]["auroc"]["mean"]
    on_replies, on_texts = (
        {key: found[of][key] for key in INSTRUCTED} for of in ("on_instructed_replies", "on_texts")
    )  # fmt: skip
    chance, cosine = found["random"], found["cosines"]["negative"]["direction"]

    def beyond(figure: Mapping[str, Any], of: str) -> str:
        limit = chance[of]["mean"]
        says = (
            "more than" if figure["low"] > limit else "less than" if figure["high"] < limit else "not clearly more than"
        )
        return f"{interval(figure, 3)}, {says} random directions ({limit:.3f})"

    own, texts, read = on_replies["negative"], on_replies["texts"], on_texts["negative"]["z"]["neutral"]["mean"]
    states, alone = "instructed_replies", "instructed_replies_alone"
    return (
        f"The judge gives {judge['without_score']} of {judge['replies']} replies no score, as it would rather not "
        f"answer with a number, and keeps {judge['kept']}, so `make_vectors` refuses "
        f"{judge['too_few_for_a_vector']} of {len(judge['by_trait'])} traits; a number read from its answers all the "
        f"same tells the two sides apart with an AUROC of {interval(any_number, 2)}.\n"
        "With the side of the instruction as the label, vectors tell the sides of new replies apart with an AUROC of "
        f"{beyond(own['states']['mean'], states)}; read without the instruction, the same replies give "
        f"{beyond(own['alone']['mean'], alone)}.\n"
        f"On tokens of labelled texts they reach {beyond(read, 'neutral')}, where the vectors from texts reach "
        f"{interval(on_texts['texts']['z']['neutral']['mean'], 3)}; on instructed replies these reach "
        f"{beyond(texts['states']['mean'], states)}, and a steering direction of one kind has a cosine of "
        f"{cosine['mean']:.2f} with its counterpart and of {cosine['others']:.2f} with those of other traits."
    )


def instructed_traits() -> str:
    """For each trait, what the judge kept, and how alike its two vectors are."""
    found = stored("instructed_vectors")
    on_replies, on_texts = found["on_instructed_replies"], found["on_texts"]
    rows = []
    for trait, kept in found["judged"]["as_it_is"]["by_trait"].items():
        rows.append(
            (
                trait,
                ", ".join(f"{kept[side]['kept']} of {kept[side]['judged']}" for side in ("positive", "negative")),
                *(
                    f"{found['cosines']['negative'][of]['by_trait'][trait]:.2f}"
                    for of in ("direction", "reading_direction")
                ),
                interval(on_replies["texts"]["states"]["by_trait"][trait], 3),
                interval(on_replies["negative"]["states"]["by_trait"][trait], 3),
                interval(on_texts["texts"]["z"]["neutral"]["by_trait"][trait], 3),
                interval(on_texts["negative"]["z"]["neutral"]["by_trait"][trait], 3),
            )
        )
    heads = ("trait", "kept by the judge, positive and negative", "cosine, steering", "cosine, reading")
    sets = ("instructed replies: from texts", "by instruction", "labelled texts: from texts", "by instruction")
    return table((*heads, *sets), rows)


def _stored() -> dict[str, Any]:
    found: dict[str, Any] = stored("real_truth")
    return found


TABLES: dict[str, Callable[[], str]] = {
    "real-headline": headline,
    "real-directions": directions,
    "real-traits": traits,
    "real-alarms": alarms,
    "real-sinks": sinks,
    "real-couplings": couplings,
    "real-natural": natural,
    "real-instructed": instructed,
    "real-instructed-findings": instructed_findings,
    "real-instructed-traits": instructed_traits,
    "whitening": whitening,
}
