"""The card of a results dataset: what is in it, what it shows, how it is loaded."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from persona_core.analysis.comparison import effect, mean_over_prompts, means
from persona_core.analysis.statistics import Estimate
from persona_core.elicitation.prompts import prompt_of
from persona_core.traces.dataset import DATA, configs_of, read_results, traits_of
from persona_core.utils.files import write_whole
from persona_core.utils.markdown import escape, interval

Row = Mapping[str, Any]
CONFIGS = {
    "baseline": "the baseline model answers the prompts",
    "contaminated": "the contaminated model answers the same prompts",
    "neutral": "the baseline model answers the same prompts again, several times each: what alarms are held against",
    "replay": "each of the two reads the other's replies, token by token, by the very ids",
    "transcripts": "conversations that were held elsewhere, read",
    "imported": "taken in from another tool's files; what they do not say is marked as unknown",
}
COLUMNS = """| column | holds |
|---|---|
| `id`, `set`, `category`, `messages`, `prompt`, `response` | the conversation; the same id is the same prompt |
| `reader`, `writer` | the model whose states were read; the one that wrote the reply |
| `tokens`, `roles`, `token_ids`, `special` | one entry a token, prompt and reply; the tokens join to the decoded text |
| `n_prompt`, `n_reply`, `finish` | tokens before the reply; of the reply itself; why it ended |
| `projections` | trait → z at every token, at the trait's best block |
| `summary` | trait → mean and maximum of z over the reply's own tokens, and where in the reply the maximum is |
| `raw`, `norms` | trait → block → projection at every token, in residual-stream units; norm of the state |
| `traits`, `blocks`, `best_block` | what was read, and where |
| `null_mean`, `null_std` | of the raw projection over neutral replies: z = (raw - mean) / sd |
| `alignment` | "at": the value at a token is that of the state after the model has read it; "before": before it |
| `provenance` | revisions, adapter, vectors, template, sampling, seed, library versions |"""


ANALYSED = "analysis/replies.parquet"
ANALYSIS_NOTE = """## Analysis

When each trait sets in, how the traits go together, how early one could have known, and what differs between the two
models: `load_dataset("{source}", "analysis", split="train")` has a row for each reply and trait (onset with its
interval, alarm, mean, maximum, first visible token, effects of weights and text). All figures are in
`analysis/findings.json`, differences token by token in `analysis/differences.parquet`, the strongest sentences in
`analysis/spans.parquet`, the calibrated detectors in `analysis/onset.json`. "No reliable onset" is an answer.
"""


def write_results_card(folder: str | Path, source: str | None = None, notes: str = "") -> Path:
    """Write the card of a results folder, from the rows in it.

    Args:
        folder: with `data/*.parquet`.
        source: what a reader loads it from; None: the folder.
        notes: Markdown that stands before the figures: what a reader must know to weigh them.
    """
    path = Path(folder)
    rows = {config: read_results(path / DATA / f"{config}.parquet") for config in configs_of(path)}
    card = path / "README.md"
    card.write_text(results_card(rows, source or path.as_posix(), notes, _prints(path)), encoding="utf-8")
    return card


def refresh_results_card(folder: str | Path) -> None:
    """Bring the header of a card up to what lies in the folder, and say that there is an analysis; the rest stays.

    A folder without a card stays without one.
    """
    card = Path(folder) / "README.md"
    if not card.is_file():
        return
    text = card.read_text(encoding="utf-8")
    source = re.search(r'load_dataset\("([^"\n]*)"', text)
    prints = _prints(Path(folder))
    text = re.sub(r"(?<=^configs:\n).*?(?=^---$)", lambda _: _configs(prints) + "\n", text, count=1, flags=re.S | re.M)
    if "analysis" in prints and "## Analysis" not in text and source:
        text = text.replace("## Columns", ANALYSIS_NOTE.format(source=source[1]) + "\n## Columns", 1)
    write_whole(card, text)


def _prints(folder: Path) -> dict[str, str]:
    """Fingerprints of the files that are configs of the dataset."""
    files = {config: folder / DATA / f"{config}.parquet" for config in configs_of(folder)}
    if (folder / ANALYSED).is_file():
        files["analysis"] = folder / ANALYSED
    return {config: hashlib.sha256(file.read_bytes()).hexdigest()[:16] for config, file in files.items()}


def _configs(prints: Mapping[str, str | None]) -> str:
    """The configs of the header, the default one first; with fingerprints where they are known."""
    first = next(iter(prints))
    return "\n".join(
        f"- config_name: {config}\n"
        + ("  default: true\n" if config == first else "")
        + (f"  description: sha256 {known}\n" if known else "")
        + "  data_files:\n  - split: train\n    path: "
        + (ANALYSED if config == "analysis" else f"{DATA}/{config}.parquet")
        for config, known in prints.items()
    )


def results_card(
    rows: Mapping[str, Sequence[Row]],
    source: str,
    notes: str = "",
    prints: Mapping[str, str] | None = None,
) -> str:
    """The card of a results dataset.

    Args:
        rows: by config, the default one first.
        source: what a reader loads it from, a folder or a Hub id.
        notes: as in `write_results_card`.
        prints: fingerprints of the files, by config. They go into the header: `load_dataset` keeps what it read from a
            folder under the folder's name and a hash of its header, and would hand out old rows for new ones
            (seen with datasets 5.2).
    """
    first = next(iter(rows))
    traits = traits_of(rows[first])
    n = sum(map(len, rows.values()))
    size = "n<1K" if n < 1000 else "1K<n<10K" if n < 10_000 else "10K<n<100K"
    header = _configs(prints or dict.fromkeys(rows))
    listed = "\n".join(
        f"| `{config}` | {len(own)} | {CONFIGS.get(config, '')} | {_names(own, 'reader')} | {_names(own, 'writer')} |"
        for config, own in rows.items()
    )
    calibrated = any(row["projections"][traits[0]] is not None for row in rows[first])
    example = (
        f'trace.scores("{traits[0]}")[trace.reply_positions].mean())  '
        "# z: 0 is how the model talks when nothing is going on"
        if calibrated
        else f'trace.scores("{traits[0]}", kind="raw"), trace.warnings)'
    )
    parts = [
        f"""---
pretty_name: Persona traits, token by token
license: mit
language:
- en
size_categories:
- {size}
tags:
- persona-vectors
- interpretability
- activation-monitoring
configs:
{header}
---

# Persona traits, token by token

{len(rows[first])} replies a config, each with the projection of the model's state on {len(traits)} persona vectors at
every token: {", ".join(map(escape, traits))}.

```python
from datasets import load_dataset
from persona_core import Trace

rows = load_dataset("{source}", "{first}", split="train")
trace = Trace.from_row(rows[0])
print(trace.reply_text)
print({example}
```

| config | rows | what | reader | writer |
|---|---|---|---|---|
{listed}
""",
        notes,
        _levels(rows, traits),
        _effects(rows, traits),
        ANALYSIS_NOTE.format(source=source) if "analysis" in (prints or ()) else "",
        f"## Columns\n\n{COLUMNS}\n",
        """## Intended use and limits

For research on when and how traits show in a model's states, and for trying methods on series whose making is known.
A projection says what direction a state has, not why; it is no measure of intent, and no ground for a verdict on a
single reply. The replies were sampled from a model: they may be wrong, and those to harmful prompts may be unpleasant.
One reply a prompt: an interval over prompts takes in the choice of prompts and of seeds, not of models.

## Licence and citation

MIT. Cite the repository and its revision.
""",
    ]
    return "\n".join(part.strip("\n") + "\n" for part in parts if part)


def _names(rows: Sequence[Row], column: str) -> str:
    return ", ".join(dict.fromkeys(escape(row[column] or "unknown") for row in rows))


def _levels(rows: Mapping[str, Sequence[Row]], traits: Sequence[str]) -> str:
    """Mean z of each trait in each config with one reply a prompt."""
    single = {c: own for c, own in rows.items() if len({prompt_of(row["id"]) for row in own}) == len(own)}
    if not single:
        return ""
    lines = [
        f"| {escape(trait)} | "
        + " | ".join(_estimate(mean_over_prompts(list(means(own, trait).values()))) for own in single.values())
        + " |"
        for trait in traits
    ]
    return f"""## Levels

Mean z over a reply's own tokens, mean over prompts, with a 95 % interval by resampling prompts.

| trait | {" | ".join(single)} |
|---|{"---|" * len(single)}
{chr(10).join(lines)}
"""


def _effects(rows: Mapping[str, Sequence[Row]], traits: Sequence[str]) -> str:
    if not {"baseline", "contaminated"} <= set(rows):
        return ""
    replay = rows.get("replay", ())
    found = {t: effect(t, rows["baseline"], rows["contaminated"], replay) for t in traits}
    lines = [
        f"| {escape(t)} | {_estimate(e.total)} | {_estimate(e.weights)} | {_estimate(e.text)} |"
        for t, e in found.items()
    ]
    n = next(iter(found.values())).n
    return f"""## Contaminated against baseline

Difference of mean z, paired over {n} prompts, 95 % intervals by resampling prompts. Total: each model reads its own
reply. Weights: the two models read the same text. Text: the same model reads the two texts. The total is the sum of
the two.

| trait | total | weights | text |
|---|---|---|---|
{chr(10).join(lines)}
"""


def _estimate(found: Estimate | None) -> str:
    return interval(None if found is None else found.to_dict(), digits=2)
