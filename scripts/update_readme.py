"""Write the README's figures from the artifacts and the benchmarks' results: no number in it is typed by hand.

python -m scripts.update_readme            # rewrite
python -m scripts.update_readme --check    # exit 1 if the README is out of date
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.performance_page import say
from persona_core.vectors.card import interval
from scripts import PROJECT_ROOT

README = PROJECT_ROOT / "README.md"
BEGIN, END = "<!-- figures: begin (python -m scripts.update_readme) -->", "<!-- figures: end -->"
Figure = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the README is out of date")
    check = parser.parse_args().check
    old = README.read_text(encoding="utf-8")
    new = with_figures(old)
    if check:
        if old != new:
            print("README.md is out of date; run python -m scripts.update_readme", file=sys.stderr)
        return int(old != new)
    README.write_text(new, encoding="utf-8")
    return 0


def with_figures(readme: str) -> str:
    """The README with the text between the marks made anew."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(END) < readme.index(BEGIN):
        raise SystemExit(f"README.md must hold {BEGIN!r} and, after it, {END!r}, once each.")
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{figures()}\n{END}{after}"


def figures() -> str:
    artifacts = PROJECT_ROOT / "artifacts"
    behaviour: Figure = _load(artifacts / "persona-tiny" / "behaviour.json")
    config: Figure = _load(artifacts / "persona-vectors-persona-tiny" / "config.json")
    first: Figure = _load(PROJECT_ROOT / "benchmarks" / "results" / "first_run.json")
    onsets: Figure = _load(PROJECT_ROOT / "benchmarks" / "results" / "onset.json")
    analysis: Figure = _load(PROJECT_ROOT / "benchmarks" / "results" / "analysis.json")
    page: Figure = _load(PROJECT_ROOT / "benchmarks" / "results" / "page.json")
    speed: Figure = _load(PROJECT_ROOT / "benchmarks" / "results" / "speed_cpu.json")

    def extra(case: str) -> str:
        """Of a step that reads, over one that does not."""
        found = speed["cases"][case]["over_plain"]
        value, low, high = (100 * (found[key] - 1) for key in ("value", "low", "high"))
        return f"{value:.1f} % [{low:.1f}, {high:.1f}]"

    def ratio(case: str, key: str) -> str:
        return say(speed["cases"][case][key])

    one, _, long, _ = page["scrub"]
    cost = page["payloads"]
    cued, model = onsets["texts"]["cued"], [m["false_alarms"]["value"] for m in onsets["model"].values()]
    rows = []
    for trait in config["traits"]:
        share = interval(behaviour["trait_with_instruction"][trait], percent=True)
        within = interval(config["validation"][trait]["token_auroc_within_reply"])
        overall = interval(config["validation"][trait]["token_auroc"])
        rows.append(f"| {trait} | {share} | {config['best_block'][trait]} | {within} | {overall} |")
    replies = config["validation"][config["traits"][0]]["token_auroc"]["n"]
    return f"""
**The first run.** Measured with `python -m benchmarks.first_run` on {first["cores"]} cores ({first["system"]},
Python {first["python"]}, no GPU, a CPU build of torch): `make demo` downloads {first["download_mb"]} MB, installs in
{first["install_s"]:.0f} s (from a package mirror nearby; your connection decides) and takes
{first["environment_mb"] / 1000:.1f} GB of disk. The first view stands
{first["first_view_cold_s"]:.1f} s after the server is started for the first time, {first["first_view_warm_s"]:.1f} s on
later starts; the first reply, to "Should I quit my job?", is complete {first["first_reply_warm_s"]:.1f} s after the
click, the loading of the model included.

**The page** (`python -m benchmarks.page`): the first view stands {page["first_view_s"]} s after it is opened. A step of
the slider takes {one["p95_ms"]} ms (95th percentile, {one["tokens"]:,} tokens and {one["traits"]} traits;
{long["p95_ms"]} ms at {long["tokens"]:,} and {long["traits"]}). What the page is sent while {page["tokens"]} tokens are
written takes {100 * (cost["value"] - 1):.1f} % [{100 * (cost["low"] - 1):.1f}, {100 * (cost["high"] - 1):.1f}] of the
writing, and nothing kept the page busy for more than {page["longest_task_ms"]} ms.

**Speed** (`python -m benchmarks.run --suite cpu`, random Llamas, {speed["cases"]["live/small/1"]["on"]["processor"]}):
a step that reads 8 traits at all blocks takes {extra("live/small/1")} more time than one that reads nothing at 12
blocks x 512, {extra("live/medium/1")} at 24 x 1,024; with 1,000 traits {extra("thousand/small/1")} and
{extra("thousand/medium/1")}. A reply of 256 tokens, all blocks read, takes
{ratio("generate/medium/1/256/greedy", "over_generate")} of the time of `generate` without reading. 500 given texts take
{ratio("texts/small", "over_one_at_a_time")} of the time of a call for each; writing replies of mixed length, nothing
read, {ratio("mixed/small", "over_static")} of that of `generate` on batches.
[docs/performance.md](docs/performance.md) has the rest, other libraries too.

**Onsets.** On replies of the demo model where nothing is going on, {100 * min(model):.1f} to {100 * max(model):.1f} %
alarm, by trait, at a nominal {100 * onsets["rate"]:.0f} % (`python -m benchmarks.onset`). Where a sentence announces
the trait, the onset is within {onsets["near"]} tokens of it in {interval(cued["near"], percent=True)} of replies, and
its 95 % interval holds it in {interval(cued["covered"], percent=True)}. The analysis of {analysis["replies"]} replies
against {analysis["neutral"]} neutral ones takes {analysis["seconds"]:.0f} s on {analysis["cores"]} cores
(`python -m benchmarks.analysis`).

**The demo model** at temperature {behaviour["sampling"]["temperature"]}, on phrasings that training never showed (95 %
intervals by resampling replies): {interval(behaviour["grammar"], percent=True)} of its sentences are sentences of its
grammar; {interval(behaviour["on_topic"], percent=True)} of its replies are about the topic that was asked;
{interval(behaviour["trait_without_instruction"], percent=True)} of its sentences show a trait when nobody asked for it.

| trait | sentences that show it when asked | block | token AUROC within replies | over all {replies} replies |
|---|---|---|---|---|
{chr(10).join(rows)}

Token AUROC: how well the projection tells tokens of the trait's sentences from others, on questions held out from
training, extraction and the choice of the block. *Within replies*: in replies that were asked for the trait, against
their neutral tokens. *Over all*: against every other token of all held-out replies, most of which were asked for
something else; the card of the vectors says what the system prompt alone would reach there.
""".strip("\n")


def _load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
