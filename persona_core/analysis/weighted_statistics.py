"""Statistics of a run as functions of how often each reply counts, `[n_replies]`: what bootstrap and jackknife need.

With z_it of reply i at token t, d_it = z_it minus the mean of its reply, and n_i its tokens; NaN is a token without a
score (a sink token), which no sum counts, though the positions of the others stay as they are:

- drift: 100 * sum d_it (t - mean t of i) / sum (t - mean t of i)^2, so that differences in level add no slope
- autocorrelation: r = (sum d_it d_i,t+1 / pairs of neighbours) / (sum d^2 / sum n_i), corrected for the means that were
  taken out: r is too low by (1 + rho) / n for replies of n tokens on average, so (r n + 1) / (n - 1)
- token share: the covariance of a token's z with the mean z of the same token id in *other* prompts, over the variance
  of z. For noise that is 0 on average, with either sign; the R^2 of means that include the token itself would be the
  number of token ids over the number of tokens. Its interval is a jackknife over prompts: a prompt that a bootstrap
  draws twice displaces another one, which biases the share downwards (0.43 came out as 0.34 to 0.40).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Statistic = Callable[[np.ndarray], float]


def drift(z: Sequence[np.ndarray]) -> Statistic:
    """Slope over positions within replies, in SD per 100 tokens; NaN if no reply has two tokens.

    >>> drift([np.array([5.0, 5.1, 5.2]), np.array([0.0, 0.1])])(np.ones(2))
    10.0...
    """
    at = [np.flatnonzero(np.isfinite(s)) for s in z]
    offsets = [t - t.mean() for t in at]
    products = np.array([float(p @ s[t]) for p, s, t in zip(offsets, z, at, strict=True)])
    squares = np.array([float(p @ p) for p in offsets])
    return ratio(100 * products, squares)


def autocorrelation(z: Sequence[np.ndarray]) -> Statistic:
    """At a lag of one token, pooled over replies; NaN if nothing varies or no reply has two tokens."""
    centred = [np.nan_to_num(s - np.nanmean(s)) for s in z]
    products = np.array([float(d[:-1] @ d[1:]) for d in centred])
    squares = np.array([float(d @ d) for d in centred])
    known = [np.isfinite(s) for s in z]
    n = np.array([k.sum() for k in known], float)
    neighbours = np.array([(k[:-1] & k[1:]).sum() for k in known], float)

    def of(w: np.ndarray) -> float:
        total, pairs, replies = float(w @ n), float(w @ neighbours), float(w.sum())
        if not w @ squares > 0 or not pairs > 0:
            return float("nan")
        r = (w @ products / pairs) / (w @ squares / total)
        average = total / replies
        return float((r * average + 1) / (average - 1))

    return of


def token_share(z: Sequence[np.ndarray], tokens: Sequence[np.ndarray], groups: np.ndarray) -> Statistic:
    """Share of the variance of z explained by the token id, predicted from other groups only; see the module.

    Tokens that occur in no other group count as unexplained, so the share is a lower bound for short runs.

    Args:
        z, tokens: for each reply, `[n_tokens]`.
        groups: which prompt each reply answers, `[n_replies]`, from 0.
    """
    n_groups = int(groups.max()) + 1
    group = np.repeat(groups, [len(s) for s in z])
    flat, token = np.concatenate(z), np.concatenate(tokens)
    kept = np.isfinite(flat)
    flat, group, token = flat[kept], group[kept], np.unique(token[kept], return_inverse=True)[1]
    # One entry for each token id in each group: its count, and the sum of z.
    pairs, at = np.unique(group * (token.max() + 1) + token, return_inverse=True)
    of_group, of_token = np.divmod(pairs, token.max() + 1)
    count = np.bincount(at).astype(float)  # [n_pairs]
    total = np.bincount(at, flat)
    sums, squares, n = (np.bincount(group, x, minlength=n_groups) for x in (flat, flat**2, np.ones(len(flat))))
    first = np.unique(groups, return_index=True)[1]  # all replies of a group share its weight

    def of(w: np.ndarray) -> float:
        weights = w[first]  # [n_groups]
        if not weights @ n > 0:
            return float("nan")
        mean = weights @ sums / (weights @ n)
        variance = weights @ squares - mean**2 * (weights @ n)
        if not variance > 1e-12 * (weights @ squares):
            return float("nan")
        w_pair, centred = weights[of_group], total - mean * count
        others = np.bincount(of_token, w_pair * count)[of_token] - w_pair * count
        guess = np.bincount(of_token, w_pair * centred)[of_token] - w_pair * centred
        guess = np.divide(guess, others, out=np.zeros_like(guess), where=others > 0.5)
        return float((w_pair * centred) @ guess / variance)

    return of


def ratio(over: np.ndarray, under: np.ndarray) -> Statistic:
    def of(w: np.ndarray) -> float:
        whole = float(w @ under)
        return float(w @ over) / whole if whole > 0 else float("nan")

    return of


def root(statistic: Statistic) -> Statistic:
    return lambda w: float(np.sqrt(statistic(w)))


def spread(values: np.ndarray, w: np.ndarray) -> float:
    n = float(w.sum())
    if n <= 1:
        return float("nan")
    d = values - w @ values / n
    return float(np.sqrt(w @ d**2 / (n - 1)))
