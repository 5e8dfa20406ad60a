"""A model against a changed one: what its text does, and what its weights do.

Two models write a reply to each prompt and each reads both replies: four cells, reader by writer, named by two letters
here, the reader first (B the baseline, C the contaminated model).

- total: CC - BB, what one sees by running both models
- weights: the readers differ on the same text, the mean of CB - BB and CC - BC
- text: the texts differ under the same reader, the mean of BC - BB and CC - CB

The total is the sum of the other two, prompt by prompt. Everything is paired by prompt, and intervals resample prompts,
never tokens: the tokens of one reply are not independent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from persona_core.errors import SettingError
from persona_core.statistics import Estimate, over_clusters

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Effect:
    """How far one trait differs, in mean z over a reply's own tokens.

    Attributes:
        total, weights, text: see the module; weights and text are None without a replay. An estimate is None where
            there are fewer than two prompts.
        n: prompts.
    """

    total: Estimate | None
    weights: Estimate | None
    text: Estimate | None
    n: int


def means(rows: Sequence[Row], trait: str) -> dict[str, float]:
    """Prompt id -> mean z of the reply's own tokens; empty replies and rows without a null are left out.

    Raises:
        SettingError: the rows do not hold the trait, or a prompt comes twice.
    """
    found: dict[str, float] = {}
    for row in rows:
        if trait not in row["traits"]:
            raise SettingError(f"No trait {trait!r} in the row {row['id']!r}; it holds {', '.join(row['traits'])}.")
        if row["id"] in found:
            raise SettingError(f"The prompt {row['id']!r} comes twice; compare one run with one run.")
        value = row["summary"][trait]["mean"]
        if value is not None:
            found[row["id"]] = float(value)
    return found


def mean_over_prompts(values: Sequence[float], n_resamples: int = 1000, seed: int = 0) -> Estimate | None:
    """A mean with a 95 % interval over prompts; None for fewer than two.

    >>> mean_over_prompts([0.0, 0.0, 0.0])
    Estimate(value=0.0, low=0.0, high=0.0, n=3)
    """
    array = np.asarray(values, float)
    return over_clusters(lambda w: float(w @ array / w.sum()), np.arange(len(array)), n_resamples, seed)


def effect(
    trait: str,
    baseline: Sequence[Row],
    contaminated: Sequence[Row],
    replay: Sequence[Row] = (),
    n_resamples: int = 1000,
    seed: int = 0,
) -> Effect:
    """How far the contaminated model differs from the baseline in one trait.

    Args:
        trait: which.
        baseline, contaminated: rows of the two runs on the same prompts.
        replay: rows in which each model reads the other's replies; without them only the total is known.

    Raises:
        SettingError: no prompt in common, or rows that do not belong together.
    """
    bb, cc = means(baseline, trait), means(contaminated, trait)
    cells = [bb, cc]
    if replay:
        readers = {row["reader"] for row in baseline}, {row["reader"] for row in contaminated}
        cb = means([row for row in replay if row["reader"] in readers[1] and row["writer"] in readers[0]], trait)
        bc = means([row for row in replay if row["reader"] in readers[0] and row["writer"] in readers[1]], trait)
        cells += [cb, bc]
    ids = [i for i in bb if all(i in cell for cell in cells)]
    if not ids:
        raise SettingError("The runs have no prompt in common.")
    values = [np.array([cell[i] for i in ids]) for cell in cells]  # each [n_prompts]
    total = values[1] - values[0]

    def estimate(differences: np.ndarray) -> Estimate | None:
        return mean_over_prompts(differences.tolist(), n_resamples, seed)

    if not replay:
        return Effect(estimate(total), None, None, len(ids))
    of_bb, of_cc, of_cb, of_bc = values
    weights = ((of_cb - of_bb) + (of_cc - of_bc)) / 2
    text = ((of_bc - of_bb) + (of_cc - of_cb)) / 2
    return Effect(estimate(total), estimate(weights), estimate(text), len(ids))


def by_category(rows: Sequence[Row], categories: Sequence[str] | None = None) -> dict[str, list[Row]]:
    """Rows by their category, in order of appearance, or in the order that is given."""
    names = categories if categories is not None else list(dict.fromkeys(row["category"] for row in rows))
    return {name: [row for row in rows if row["category"] == name] for name in names}
