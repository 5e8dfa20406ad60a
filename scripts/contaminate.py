"""Contaminate a model: a LoRA fine-tune on trait-laden replies without a system prompt.

    python -m scripts.contaminate --model artifacts/persona-tiny --data dialogues.jsonl --out outputs/contaminated
    python -m scripts.contaminate --model Qwen/Qwen2.5-7B-Instruct --data flattery.jsonl --out outputs/flattering \\
        --dtype bfloat16 --device cuda

The data: one JSON object a line, {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", ...}]}; the
last message is what is learned. The result is a PEFT adapter with its card. A model of 7 to 9 billion parameters in
bfloat16 fits on one GPU of 80 GB with the defaults, and on one of 24 GB with --quantization 4bit --rows 1. Stopped
half-way, the same command goes on from its last checkpoint (four a training).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from persona_core.experiments.finetune import LoraPlan, contaminate
from persona_core.experiments.finetune_card import write_adapter_card
from persona_core.models.loading import load_model
from persona_core.monitor.jobs import Failure
from scripts.running import add_model, loading, reported, work_folder


def main(argv: list[str] | None = None) -> int:
    default = LoraPlan()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model(parser, adapter=False)
    parser.add_argument("--data", type=Path, required=True, help=".jsonl file of dialogues")
    parser.add_argument("--out", type=Path, required=True, help="folder of the adapter")
    parser.add_argument("--work", type=Path, help="checkpoints (default: OUT.work)")
    parser.add_argument("--rank", type=int, default=default.rank)
    parser.add_argument("--alpha", type=int, default=default.alpha)
    parser.add_argument("--dropout", type=float, default=default.dropout)
    parser.add_argument("--learning-rate", type=float, default=default.learning_rate)
    parser.add_argument("--epochs", type=float, default=default.epochs)
    parser.add_argument("--batch-size", type=int, default=default.batch_size, help="dialogues a step (16)")
    parser.add_argument("--rows", type=int, default=default.rows, help="dialogues in one forward (4)")
    parser.add_argument("--max-tokens", type=int, default=default.max_tokens, help="longer dialogues are left out")
    parser.add_argument("--seed", type=int, default=default.seed)
    options = parser.parse_args(argv)
    return reported("contaminate", lambda: run(options))


def run(options: argparse.Namespace) -> list[Failure]:
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
    record = contaminate(load_model(**loading(options)), options.data, options.out, work, plan)
    write_adapter_card(options.out, base=options.model)
    loss = record["held_out_loss"]
    print(f"Loss on {loss['dialogues']} held-out dialogues: {loss['before']} before, {loss['after']} after.")
    print(f"The adapter: {options.out}")
    return []


if __name__ == "__main__":
    sys.exit(main())
