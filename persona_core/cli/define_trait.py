"""Draft a trait definition with a language model, check it, and write the file.

Read the draft before you use it: do the two sides of a pair differ in the trait only? Does no question ask for it?

examples:
  persona define-trait --name candour --description "Says what it thinks, and not more." --model gpt-5-mini
  persona define-trait --name candour --description "..." --model Qwen/Qwen3-8B --base-url http://localhost:8000/v1
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from persona_core.cli.options import command_parser
from persona_core.cli.running import execute
from persona_core.errors import SettingError


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("define-trait", __doc__)
    parser.add_argument("--name", required=True, help="a short lower-case word")
    parser.add_argument("--description", required=True, help="one or two sentences: what it is, and what it is not")
    parser.add_argument("--model", required=True, help="drafting model, by its name on the server")
    parser.add_argument("--base-url", help="OpenAI-compatible server (default: OPENAI_BASE_URL, else OpenAI)")
    parser.add_argument("--out", type=Path, default=Path("datasets/traits"), help="output folder")
    parser.add_argument("--timeout", type=float, default=120.0, help="timeout per request, in seconds")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    return execute(parser, run, argv, first="asking {model}", resumes=False)


def run(options: argparse.Namespace) -> list[str]:
    from persona_core.elicitation.drafting import draft_trait
    from persona_core.elicitation.traits import faults_of

    path = options.out / f"{options.name}.json"
    faults = [says for where, says in faults_of({"name": options.name, "description": options.description}) if where]
    if faults:
        raise SettingError(" ".join(faults))
    if path.exists() and not options.force:
        raise SettingError(f"{path} exists already; --force replaces it.")
    trait = draft_trait(
        options.name, options.description, options.model, base_url=options.base_url, timeout=options.timeout
    )
    trait.save(path)
    n_questions = f"{len(trait.extraction_questions)} + {len(trait.evaluation_questions)} questions"
    print(f"{path}: {len(trait.positive)} pairs, {n_questions}.")
    print(f"  + {trait.positive[0]}\n  - {trait.negative[0]}\n  ? {trait.extraction_questions[0]}")
    print("Before you use it: do the two sides of a pair differ in the trait only? Does no question ask for it?")
    return []


if __name__ == "__main__":
    sys.exit(main())
