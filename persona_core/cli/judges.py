"""The options about a judge, and the judge that they name."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from persona_core.errors import SettingError

if TYPE_CHECKING:
    from persona_core.elicitation.traits import TraitDefinition
    from persona_core.judging.judge import Judge, Question

KINDS = "openai:MODEL, local:MODEL or python:MODULE:NAME"
HELP = (
    "openai:MODEL (needs OPENAI_API_KEY or --judge-url), local:MODEL, or python:MODULE:NAME for your own class or "
    "function that returns a judge"
)


def add_judge(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Options of a judge."""
    parser.add_argument("--judge", required=required, help=HELP)
    group = parser.add_argument_group("judging")
    group.add_argument("--judge-url", help="the judge's server (default: OPENAI_BASE_URL, else OpenAI)")
    group.add_argument("--concurrency", type=int, default=16, help="concurrent requests")
    group.add_argument("--timeout", type=float, default=60.0, help="timeout per request, in seconds")
    group.add_argument("--prices", type=prices, metavar="IN,OUT", help="prices per million input and output tokens")


def prices(text: str) -> tuple[float, float]:
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}; expected two numbers such as 0.15,0.60") from error
    return first, second


def judge_kind(text: str) -> tuple[str, str]:
    """The two parts of `--judge`.

    >>> judge_kind("openai:gpt-5-mini")
    ('openai', 'gpt-5-mini')
    """
    kind, _, name = text.partition(":")
    if (kind in ("openai", "local") and name) or (kind == "python" and all(name.rpartition(":"))):
        return kind, name
    raise SettingError(f"--judge {text!r}; expected {KINDS}.")


def check_judge(options: argparse.Namespace, traits: Sequence[TraitDefinition]) -> None:
    """Find a mistake before anything is generated.

    Args:
        options: those of `add_judge`.
        traits: what will be judged.
    """
    kind, name = judge_kind(options.judge)
    if kind == "openai" and traits:
        from persona_core.utils.openai_client import address, open_client

        open_client(base_url=address(options.judge_url), api_key=None, timeout=options.timeout)
    if kind == "python":
        known: Sequence[str] = getattr(_python_judge(name), "traits", ())
        unknown = [trait.name for trait in traits if known and trait.name not in known]
        if unknown:
            raise SettingError(
                f"--judge {options.judge} cannot judge the trait {unknown[0]!r}, only {', '.join(known)}. "
                "For other traits use --judge openai:MODEL, local:MODEL or python:MODULE:NAME."
            )


def make_judge(options: argparse.Namespace, out: Path | None) -> Judge:
    """The judge of `--judge`; a server's answers are kept in the folder `out`, or only in memory."""
    kind, name = judge_kind(options.judge)
    if kind == "python":
        return _python_judge(name)
    if kind == "openai":
        from persona_core.judging.cache import JudgeCache
        from persona_core.judging.openai import OpenAIJudge

        return OpenAIJudge(
            name,
            base_url=options.judge_url,
            concurrency=options.concurrency,
            timeout=options.timeout,
            prices=options.prices,
            cache=JudgeCache(out and out / "judge_cache.jsonl"),
        )
    from persona_core.judging.local import LocalJudge
    from persona_core.models.loading import load_model

    return LocalJudge(load_model(name, dtype=options.dtype, device=options.device))


def _python_judge(path: str) -> Judge:
    """What MODULE:NAME returns; modules of the working directory are found too."""
    module, _, name = path.rpartition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        judge = getattr(importlib.import_module(module), name)()
    except (ImportError, AttributeError, TypeError) as error:
        raise SettingError(f"--judge python:{path}: {error}. Name a class or function without arguments.") from error
    if not callable(getattr(judge, "score", None)) or not isinstance(getattr(judge, "name", None), str):
        raise SettingError(f"--judge python:{path}: {type(judge).__name__} has no `name` or no method `score`.")
    return judge


def cost_of(judge: Judge, questions: Sequence[Question]) -> str:
    """The estimated cost of judging, for a message."""
    from persona_core.judging.judge import BilledJudge

    return str(judge.estimate(questions)) if isinstance(judge, BilledJudge) else f"{len(questions)} questions, no cost"


def print_bill(judge: Judge) -> None:
    """Print what judging has cost, if anything."""
    from persona_core.judging.judge import BilledJudge

    if isinstance(judge, BilledJudge):
        print(f"Cost of judging: {judge.bill}.")
