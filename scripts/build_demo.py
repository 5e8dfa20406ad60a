"""Build the demo world from scratch: the model, its vectors, and what the app opens with.

    python -m scripts.build_demo
    python -m scripts.build_demo --cards    # seconds: rewrite the cards from the stored figures

About 40 minutes on two cores. The same command resumes a build that was stopped.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from demo_world.build import DemoPlan, build, write_cards
from demo_world.training import Recipe
from persona_core.cli.options import HelpFormatter
from persona_core.cli.running import configure
from persona_core.errors import PersonaError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"), help="output folder for the artifacts")
    parser.add_argument("--work", type=Path, default=Path("outputs/build_demo"), help="checkpoints and stamps")
    parser.add_argument("--model", type=Path, help="use this trained model instead of training one")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="training steps")
    parser.add_argument("--seed", type=int, default=0, help="random seed for corpus and weights")
    parser.add_argument("--threads", type=int, default=None, help="threads for torch (default: all cores)")
    parser.add_argument("--cards", action="store_true", help="only rewrite the cards of existing artifacts")
    arguments = parser.parse_args()
    configure()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    plan = DemoPlan(recipe=replace(Recipe(), steps=arguments.steps, seed=arguments.seed), model=arguments.model)
    started = time.monotonic()
    try:
        if arguments.cards:
            write_cards(arguments.artifacts, plan, draw=False)
            print(f"Wrote the cards under {arguments.artifacts}.")
            return 0
        build(arguments.artifacts, arguments.work, plan)
    except PersonaError as error:
        print(f"build_demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nStopped. The same command resumes from {arguments.work}.", file=sys.stderr)
        return 130
    print(f"Built under {arguments.artifacts} in {(time.monotonic() - started) / 60:.1f} minutes.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
