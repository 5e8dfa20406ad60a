"""Contaminate a model: a LoRA fine-tune on trait-laden replies without a system prompt.

The data: one JSON object per line, {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", ...}]}; the
last message is what the model learns. The result is a PEFT adapter with its card. A model of 7 to 9 billion parameters
in bfloat16 fits on one GPU of 80 GB with the defaults, and on one of 24 GB with --quantization 4bit --rows 1. The same
command resumes a stopped training from its last checkpoint (four per training).

examples:
  persona contaminate --model artifacts/persona-tiny --data artifacts/persona-tiny-contaminated/dialogues.jsonl \\
      --out outputs/contaminated
  persona contaminate --model Qwen/Qwen2.5-7B-Instruct --data flattery.jsonl --out outputs/flattering \\
      --dtype bfloat16 --device cuda
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from persona_core.cli.options import add_model, add_seed, command_parser, loading
from persona_core.cli.running import execute, load, work_folder

if TYPE_CHECKING:
    from persona_core.monitor.jobs import Failure


def arguments() -> argparse.ArgumentParser:
    parser = command_parser("contaminate", __doc__)
    add_model(parser, adapter=False)
    parser.add_argument("--data", type=Path, required=True, help=".jsonl file of dialogues")
    parser.add_argument("--out", type=Path, required=True, help="output folder for the adapter")
    parser.add_argument("--work", type=Path, help="folder for checkpoints (default: OUT.work)")
    parser.add_argument("--rank", type=int, default=16, help="LoRA rank")
    parser.add_argument("--alpha", type=int, default=32, help="LoRA alpha (scale)")
    parser.add_argument("--dropout", type=float, default=0.0, help="LoRA dropout")
    parser.add_argument("--learning-rate", type=float, default=2e-4, help="peak learning rate; decays linearly")
    parser.add_argument("--epochs", type=float, default=2.0, help="passes over the data")
    parser.add_argument("--batch-size", type=int, default=16, help="dialogues per step")
    parser.add_argument("--rows", type=int, default=4, help="dialogues per forward pass")
    parser.add_argument("--max-tokens", type=int, default=1024, help="longer dialogues are left out")
    add_seed(parser, "random seed for the split, the order and the initial weights")
    return parser


def main(argv: list[str] | None = None) -> int:
    return execute(arguments(), run, argv)


def run(options: argparse.Namespace) -> Sequence[Failure]:
    from persona_core.experiments.finetune import LoraPlan, contaminate
    from persona_core.experiments.finetune_card import write_adapter_card

    plan = LoraPlan(
        rank=options.rank,
        alpha=options.alpha,
        dropout=options.dropout,
        learning_rate=options.learning_rate,
        epochs=options.epochs,
        batch_size=options.batch_size,
        rows=options.rows,
        max_tokens=options.max_tokens,
        seed=options.seed,
    )
    work = work_folder(options.work, options.out, "training")
    record = contaminate(load(loading(options)), options.data, options.out, work, plan)
    write_adapter_card(options.out, base=options.model)
    loss = record["held_out_loss"]
    print(f"Loss on {loss['dialogues']} held-out dialogues: {loss['before']} before, {loss['after']} after.")
    print(f"Adapter: {options.out}")
    return []


if __name__ == "__main__":
    sys.exit(main())
