"""The card of a results dataset: what is in it, what it shows, how it is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from persona_core.analysis.comparison import effect, mean_over_prompts, means
from persona_core.analysis.comparison_results import EFFECTS, Effect
from persona_core.analysis.paired_rows import kind_of_rows
from persona_core.elicitation.prompts import prompt_of
from persona_core.report.results_folder import BRANCHES
from persona_core.traces.dataset import DATA, configs_of, read_results, traits_of
from persona_core.traces.trace import Kind
from persona_core.utils.cards import make_card, usage
from persona_core.utils.files import write_atomically
from persona_core.utils.markdown import escape, interval, table

Row = Mapping[str, Any]
CONFIGS = {
    "baseline": "the baseline model answers the prompts",
    "contaminated": "the contaminated model answers the same prompts",
    "neutral": "the baseline model's replies to neutral prompts: the null for alarms",
    "replay": "each of the two reads the other's replies, by the same token ids",
    "branches": "replies continued from the token at which a trait turns, with that trait changed",
    "transcripts": "conversations held elsewhere, read by the model",
    "imported": "converted from another tool's files; what those do not record is marked as unknown",
}
COLUMNS = """| column | holds |
|---|---|
| `id`, `set`, `category`, `messages`, `prompt`, `response` | the conversation; the same id is the same prompt |
| `reader`, `writer` | the model whose states were read; the model that wrote the reply |
| `tokens`, `roles`, `token_ids`, `special` | one entry per token of prompt and reply; the tokens join to the text |
| `n_prompt`, `n_reply`, `finish` | tokens before the reply; in the reply; why the reply ended |
| `projections` | trait → z at every token, at the trait's best block |
| `specific` | trait → (l - log(1 + Σ exp(l of the other traits)) - mean) / sd: what the other traits do not share |
| `summary` | trait → mean and maximum of the score over the reply, and the index of the maximum: specific, else z |
| `raw`, `norms` | trait → block → projection at every token, in residual-stream units; norm of the state |
| `traits`, `blocks`, `best_block` | what was read, and where |
| `null_mean`, `null_std` | of the raw projection over neutral replies: z = (raw - mean) / sd |
| `log_odds` | trait → slope, offset, mean and sd at each block; l = slope × raw + offset |
| `max_norm` | block → norm above which a token is a sink token, left out of every mean; null: no limit is known |
| `alignment` | "at": the value at a token is that of the state after the model has read it; "before": before it |
| `provenance` | revisions, adapter, vectors, template, sampling, seed, library versions |"""


NOTES = {
    "specific": "A specific score says how much more a token looks like this trait than like neutral text or any of "
    "the other traits; 0 is the mean of the model's neutral tokens, and 1 their standard deviation. z says only how "
    "far from neutral a token lies: it rises with any trait.",
    "z": "z is 0 at the mean of the model's neutral replies, and 1 is their standard deviation. It says how far from "
    "neutral a token lies, not which trait it shows: it rises with any trait.",
}
ANALYSED = "analysis/replies.parquet"
ANALYSIS_HEADING = "## Analysis\n"
COLUMNS_HEADING = "## Columns\n"
ANALYSIS_NOTE = f"""{ANALYSIS_HEADING}
When each trait's score rises, which traits vary together or follow one another, how early they could have been
detected, and how the two models differ. The config `analysis` has a row for each reply and trait: onset with its
interval, alarm, mean, maximum, first visible token, effects of weights and text. All figures are in
`analysis/findings.json`, token-by-token differences in `analysis/differences.parquet`, the strongest sentences in
`analysis/spans.parquet`, the calibrated detectors in `analysis/onset.json`. "No reliable onset" is an answer.
"""


def write_results_card(folder: str | Path, source: str | None = None, notes: str = "") -> Path:
    """Write the card of a results folder, from the rows in it.

    Args:
        folder: with `data/*.parquet`.
        source: what a reader loads it from; None: the folder.
        notes: Markdown before the figures: what a reader must know to interpret them.
    """
    path = Path(folder)
    rows = {config: read_results(path / DATA / f"{config}.parquet") for config in configs_of(path)}
    write_atomically(path / "README.md", results_card(rows, source or path.as_posix(), notes, _fingerprints(path)))
    return path / "README.md"


def refresh_results_card(folder: str | Path) -> None:
    """Update the configs in a card's header to the files in the folder, and mention the analysis; the rest stays.

    Without a card nothing is done.
    """
    from huggingface_hub import DatasetCard

    path = Path(folder) / "README.md"
    if not path.is_file():
        return
    card = DatasetCard.load(path)
    fingerprints = _fingerprints(Path(folder))
    card.data["configs"] = _configs(fingerprints)
    if "analysis" in fingerprints and ANALYSIS_HEADING not in card.text:
        before, columns, after = card.text.partition(COLUMNS_HEADING)
        card.text = f"{before}{ANALYSIS_NOTE}\n{columns}{after}"
    write_atomically(path, str(card))


def _fingerprints(folder: Path) -> dict[str, str]:
    """Of the file of each config of the dataset."""
    files = {config: folder / DATA / f"{config}.parquet" for config in configs_of(folder)}
    if (folder / ANALYSED).is_file():
        files["analysis"] = folder / ANALYSED
    return {config: hashlib.sha256(file.read_bytes()).hexdigest()[:16] for config, file in files.items()}


def _configs(fingerprints: Mapping[str, str | None]) -> list[dict[str, Any]]:
    """The configs of the header, the default one first; with fingerprints where they are known."""
    first = next(iter(fingerprints))
    return [
        {
            "config_name": config,
            **({"default": True} if config == first else {}),
            **({"description": f"sha256 {known}"} if known else {}),
            "data_files": [
                {"split": "train", "path": ANALYSED if config == "analysis" else f"{DATA}/{config}.parquet"}
            ],
        }
        for config, known in fingerprints.items()
    ]


def results_card(
    rows: Mapping[str, Sequence[Row]],
    source: str,
    notes: str = "",
    fingerprints: Mapping[str, str] | None = None,
) -> str:
    """The card of a results dataset.

    Args:
        rows: by config, the default one first.
        source: what a reader loads it from, a folder or a Hub id.
        notes: as in `write_results_card`.
        fingerprints: of the files, by config. They go into the header: `load_dataset` caches a folder's rows by its
            name and a hash of its header, and would return old rows for new files (seen with datasets 5.2).
    """
    from huggingface_hub import DatasetCardData

    first = next(iter(rows))
    traits = traits_of(rows[first])
    n = sum(map(len, rows.values()))
    header = DatasetCardData(
        language=["en"],
        license="mit",
        pretty_name="Persona traits, token by token",
        task_categories=["token-classification"],
        size_categories=["n<1K" if n < 1000 else "1K<n<10K" if n < 10_000 else "10K<n<100K"],
        tags=["persona-vectors", "interpretability", "activation-monitoring"],
        configs=_configs(fingerprints or dict.fromkeys(rows)),
    )
    kind = kind_of_rows([row for own in rows.values() for row in own], traits)
    if rows[first][0]["projections"][traits[0]] is None:
        kind = "raw"
    configs = table(
        ["config", "rows", "what", "reader", "writer"],
        [
            (f"`{config}`", len(own), CONFIGS.get(config, ""), _names(own, "reader"), _names(own, "writer"))
            for config, own in rows.items()
        ],
    )
    return make_card(
        header,
        f"""# Persona traits, token by token

{sum(map(len, rows.values()))} replies, in the configs below, each with the projection of the model's state on
{len(traits)} persona vectors at every token: {", ".join(map(escape, traits))}.
""",
        usage("results", source, config=first, trait=traits[0], kind=kind),
        NOTES.get(kind, ""),
        configs,
        notes,
        _levels(rows, traits, kind),
        _effects(rows, traits, kind),
        ANALYSIS_NOTE if "analysis" in (fingerprints or ()) else "",
        f"{COLUMNS_HEADING}\n{COLUMNS}\n",
        """## Intended use and limits

For research on when and how traits show in a model's states, and for trying methods on documented series. A projection
says what direction a state has, not why; it does not measure intent, and does not justify a verdict on a single reply.
The replies were sampled from a model: they may be wrong, and those to harmful prompts may be unpleasant. There is one
reply per prompt: an interval over prompts covers the choice of prompts and of seeds, not of models.
""",
        """## Licence and citation

MIT. Cite the repository and its revision.
""",
    )


def _names(rows: Sequence[Row], column: str) -> str:
    return ", ".join(dict.fromkeys(escape(row[column] or "unknown") for row in rows))


def _levels(rows: Mapping[str, Sequence[Row]], traits: Sequence[str], kind: Kind) -> str:
    """Mean score of each trait in each config with one reply per prompt; branches were steered, each in its own way."""
    runs = {c: own for c, own in rows.items() if c != BRANCHES}
    single = {c: own for c, own in runs.items() if len({prompt_of(row["id"]) for row in own}) == len(own)}
    if not single:
        return ""
    levels = [
        (escape(trait), *(interval(mean_over_prompts(list(means(own, trait).values())), 2) for own in single.values()))
        for trait in traits
    ]
    return f"""## Levels

Mean {_score(kind, traits)} over the reply tokens without sink tokens, averaged over prompts, with a 95 % interval by
resampling prompts.

{table(["trait", *single], levels)}
"""


def _effects(rows: Mapping[str, Sequence[Row]], traits: Sequence[str], kind: Kind) -> str:
    if not {"baseline", "contaminated"} <= set(rows) or kind == "raw":
        return ""
    if not {row["id"] for row in rows["baseline"]} & {row["id"] for row in rows["contaminated"]}:
        return "## Contaminated against baseline\n\nThe two runs share no prompt, so they are not compared.\n"
    replay = rows.get("replay", ())
    found = {t: effect(t, rows["baseline"], rows["contaminated"], replay, kind=kind) for t in traits}
    known = any(limit is not None for own in rows.values() for row in own for limit in row.get("max_norm") or ())
    heads = ["trait", *EFFECTS, *[f"{name}, with sink tokens" for name in EFFECTS] * known]
    effects = [
        (
            escape(t),
            *(_cell(e, name) for name in EFFECTS),
            *[interval(e.with_sinks.get(name), 2) for name in EFFECTS] * known,
        )
        for t, e in found.items()
    ]
    sinks = (
        f"Sink tokens are left out ({sum(e.n_sinks for e in found.values())} over all traits); an effect that changes "
        "when they are put back is not a result."
        if known
        else "Sink tokens are not known for these vectors."
    )
    outweighed = (
        " A specific score is of one trait against the others too: where one rises, the others fall. A negative effect "
        "is therefore no evidence of less of that trait."
        if kind == "specific"
        else ""
    )
    return f"""## Contaminated against baseline

Difference of the mean {_score(kind, traits)}, paired over {next(iter(found.values())).n} prompts, with 95 % intervals
by resampling prompts. Total: each model reads its own reply. Weights: the two models read the same text. Text: the same
model reads the two texts. The total is the sum of the two. {sinks}{outweighed}

{table(heads, effects)}
"""


def _cell(found: Effect, name: str) -> str:
    changed = " (not a result)" if name in found.changed_by_sinks else ""
    return interval(getattr(found, name), 2) + changed


def _score(kind: Kind, traits: Sequence[str]) -> str:
    """What the figures of a table are of, and against which traits."""
    if kind != "specific":
        return "z (in standard deviations of neutral tokens)"
    others = ", ".join(map(escape, traits))
    return f"specific score (in standard deviations of neutral tokens; each of {others} against the others)"
