"""Draft a trait definition with a language model, check it, and write the file.

    python -m scripts.define_trait --name candour --description "Says what it thinks, ..." --model gpt-5-mini

Read the draft before you use it: docs/creating_new_traits.md says what to look for.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from persona_core.elicitation.drafting import draft_trait
from persona_core.elicitation.traits import faults_of
from persona_core.errors import PersonaError, SettingError
from scripts.settings import configure


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="a short lower-case word")
    parser.add_argument("--description", required=True, help="one or two sentences: what it is, and what it is not")
    parser.add_argument("--model", required=True, help="the model that drafts, as its server names it")
    parser.add_argument("--base-url", help="an OpenAI-compatible server (default: OPENAI_BASE_URL, else OpenAI)")
    parser.add_argument("--out", type=Path, default=Path("datasets/traits"), help="folder (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one request (120)")
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
    options = parser.parse_args(argv)
    configure()
    path = options.out / f"{options.name}.json"
    try:
        wrong = [says for where, says in faults_of({"name": options.name, "description": options.description}) if where]
        if wrong:
            raise SettingError(" ".join(wrong))
        if path.exists() and not options.force:
            raise SettingError(f"{path} exists already; --force replaces it.")
        trait = draft_trait(
            options.name,
            options.description,
            options.model,
            base_url=options.base_url,
            timeout=options.timeout,
        )
        trait.save(path)
    except PersonaError as error:
        print(f"define_trait: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; nothing was written.", file=sys.stderr)
        return 130
    n_questions = f"{len(trait.extraction_questions)} + {len(trait.evaluation_questions)} questions"
    print(f"{path}: {len(trait.positive)} pairs, {n_questions}.")
    print(f"  + {trait.positive[0]}\n  - {trait.negative[0]}\n  ? {trait.extraction_questions[0]}")
    print("Before you use it: do the two sides of a pair differ in the trait only? Does a question ask for the trait?")
    return 0


if __name__ == "__main__":
    sys.exit(main())
