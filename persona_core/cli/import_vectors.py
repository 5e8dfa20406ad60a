"""Import vectors that other tools made, for scores (raw and cosine) and steering.

Formats: PyTorch and safetensors files of [n_blocks, d_model], [n_blocks + 1, d_model] (hidden_states) or [d_model], or
mappings of names or layers to them; GGUF control vectors of llama.cpp and repeng; rows of the decoder of a SAELens SAE.
How each file's rows were understood is printed.

examples:
  persona import-vectors evil=evil_response_avg_diff.pt --blocks 28 --out outputs/imported
  persona import-vectors joy=happy.gguf --blocks 32 --best-block 15 --out outputs/joy
  persona import-vectors lies=gemma-sae --row 1234 --blocks 26 --out outputs/lies
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from persona_core.cli.options import command_parser
from persona_core.cli.running import execute
from persona_core.errors import SettingError

if TYPE_CHECKING:
    from persona_core.monitor.jobs import Failure


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("import-vectors", __doc__)
    parser.add_argument("files", nargs="+", metavar="TRAIT=FILE", help="a file for each trait; a folder for an SAE")
    parser.add_argument("--blocks", type=int, required=True, help="blocks of the model that the vectors are for")
    parser.add_argument(
        "--convention", choices=("blocks", "hidden_states"), help="what rows are; default: by how many there are"
    )
    parser.add_argument("--block", type=int, help="block of a file with a single direction, from 0")
    parser.add_argument("--row", type=int, help="row of an SAE's decoder")
    parser.add_argument("--best-block", type=int, help="block that every trait is read at")
    parser.add_argument("--out", type=Path, required=True, help="folder of the vectors")
    return execute(parser, run, argv, first="loading {files[0]}")


def run(options: argparse.Namespace) -> Sequence[Failure]:
    from persona_core.vectors.importing import import_vectors

    files = dict(_named(file) for file in options.files)
    best = None if options.best_block is None else dict.fromkeys(files, options.best_block)
    vectors, conventions = import_vectors(
        files, options.blocks, convention=options.convention, block=options.block, row=options.row, best_block=best
    )
    for trait, convention in conventions.items():
        print(f"{trait}: read as {convention}, at blocks {list(vectors.blocks)}.")
    vectors.save_pretrained(options.out)
    print(f"Wrote {options.out}: {vectors.n_blocks} blocks × {vectors.d_model}. Without a null: raw and cosine only.")
    if best is None:
        print("No best block: read with --blocks all (the app: PERSONA_BLOCKS=all), or import with --best-block N.")
    return []


def _named(file: str) -> tuple[str, str]:
    trait, equals, path = file.partition("=")
    if not (equals and trait and path):
        raise SettingError(f"{file!r}; expected TRAIT=FILE, such as evil=evil.pt.")
    return trait, path


if __name__ == "__main__":
    sys.exit(main())
