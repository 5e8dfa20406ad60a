"""Write one trait's steering vectors as a GGUF control vector.

llama.cpp adds it with --control-vector-scaled FILE:STRENGTH; repeng's ControlVector.import_gguf reads it as well.

examples:
  persona export-vectors outputs/qwen/vectors --trait deception --out deception.gguf
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from persona_core.cli.options import command_parser
from persona_core.cli.running import execute

if TYPE_CHECKING:
    from persona_core.monitor.jobs import Failure


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("export-vectors", __doc__)
    parser.add_argument("vectors", help="folder or Hub id")
    parser.add_argument("--trait", required=True, help="which one")
    parser.add_argument("--model-hint", default="", help='architecture of the model, such as "llama"')
    parser.add_argument("--out", type=Path, required=True, help="the .gguf file")
    return execute(parser, run, argv, first="loading {vectors}")


def run(options: argparse.Namespace) -> Sequence[Failure]:
    from persona_core.vectors.control_vectors import write_control_vector
    from persona_core.vectors.vectors import PersonaVectors

    vectors = PersonaVectors.from_pretrained(options.vectors)
    path = write_control_vector(vectors, options.trait, options.out, options.model_hint)
    left_out = [b for b in range(vectors.n_blocks) if b not in vectors.blocks or b == 0]
    without = f"; without block {', '.join(map(str, left_out))}" if left_out else ""
    print(f"Wrote {path}{without} (the format has no direction for block 0).")
    return []


if __name__ == "__main__":
    sys.exit(main())
