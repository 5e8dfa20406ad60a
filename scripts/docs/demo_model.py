"""Tables of docs/figures.md: the first run, the page, and the demo model."""

from __future__ import annotations

from collections.abc import Callable

from persona_core.utils.markdown import table
from scripts.docs.speed import cases, extra, say
from scripts.docs.stored import estimate, percent, stored


def first_run() -> str:
    """From a clone to a reply."""
    run = stored("first_run")
    rows = [
        ("download", f"{run['download_mb']} MB"),
        ("installation", f"{run['install_s']:.0f} s"),
        ("disk", f"{run['environment_mb'] / 1000:.1f} GB"),
        ("first view, first start of the server", f"{run['first_view_cold_s']:.1f} s"),
        ("first view, later starts", f"{run['first_view_warm_s']:.1f} s"),
        ("first reply after the click, loading of the model included", f"{run['first_reply_warm_s']:.1f} s"),
        ("measured on", f"{run['cores']} cores, {run['system']}, Python {run['python']}, no GPU"),
    ]
    return table(("step", "measured"), rows)


def page() -> str:
    """How quickly the page answers, and what it costs."""
    found = stored("page")
    short, _, long, _ = found["scrub"]
    cost = {key: found["payloads"][key] - 1 for key in ("value", "low", "high")}
    rows = [("first view after it is opened", f"{found['first_view_s']} s")]
    for scrub in (short, long):
        what = f"a step of the slider, 95th percentile, {scrub['tokens']:,} tokens, {scrub['traits']} traits"
        rows.append((what, f"{scrub['p95_ms']} ms"))
    rows.append((f"time that updating the page adds to writing {found['tokens']} tokens", percent(cost)))
    rows.append(("longest task of the page meanwhile", f"{found['longest_task_ms']} ms"))
    return table(("what", "measured"), rows)


def reading() -> str:
    """The speed figures in brief."""
    found = cases("cpu")
    rows = []
    for size, says in (("small", "12 blocks × 512"), ("medium", "24 × 1,024")):
        for case, traits in (("live", "8"), ("thousand", "1,000")):
            what = f"extra time of a step that reads {traits} traits at all blocks, {says}"
            rows.append((what, extra(found[f"{case}/{size}/1"]["over_plain"])))
    reply = found["generate/medium/1/256/greedy"]["over_generate"]
    rows.append(("a reply of 256 tokens, all blocks read, over `generate` without reading", say(reply)))
    texts, mixed = found["texts/small"]["over_one_at_a_time"], found["mixed/small"]["over_static"]
    rows.append(("500 given texts, over one call each", say(texts)))
    rows.append(("replies of mixed length, nothing read, over `generate` on batches", say(mixed)))
    return table(("what", "measured"), rows)


def behaviour() -> str:
    """What the demo model does."""
    found = stored("behaviour")
    rows = [
        ("sentences that belong to the grammar", percent(found["grammar"])),
        ("replies about the topic of the question", percent(found["on_topic"])),
        ("sentences that show a trait without an instruction", percent(found["trait_without_instruction"])),
    ]
    return table(("share", "measured"), rows)


def auroc() -> str:
    """How well each vector tells tokens of its trait."""
    config, found = stored("vectors"), stored("behaviour")["trait_with_instruction"]
    rows = []
    for trait in config["traits"]:
        validation = config["validation"][trait]
        figures = (estimate(validation[key], 4) for key in ("token_auroc_within_reply", "token_auroc"))
        rows.append((trait, percent(found[trait]), config["best_block"][trait], *figures))
    n = config["validation"][config["traits"][0]]["token_auroc"]["n"]
    heads = ("trait", "sentences that show it when instructed", "block", "token AUROC within replies")
    return table((*heads, f"over all {n} replies"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "first-run": first_run,
    "page": page,
    "speed-summary": reading,
    "demo-behaviour": behaviour,
    "demo-auroc": auroc,
}
