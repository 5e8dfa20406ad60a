"""Write published runs as a static site: one folder that any web host serves, without Python on the server.

The page opens on the pair of replies with the clearest turn, or on the one that app.json names, beside the vectors. It
has all runs, the analysis, and the vectors' cards. On the Hub it is a static Space: the README.md has the front matter.
A folder that this command wrote is replaced; any other that is not empty is refused.

examples:
  persona export-site artifacts/persona-monitoring-persona-tiny --vectors artifacts/persona-vectors-persona-tiny
  python -m http.server --directory site
  hf upload me/persona-runs site . --repo-type space
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from persona_core.cli.options import command_parser
from persona_core.cli.running import execute


def arguments() -> argparse.ArgumentParser:
    parser = command_parser("export-site", __doc__)
    parser.add_argument("results", help="runs: folder or dataset repository[@revision]")
    parser.add_argument("--out", type=Path, default=Path("site"), help="folder of the site")
    parser.add_argument("--vectors", help="vectors that the runs were read with, for their cards: folder or Hub id")
    parser.add_argument("--title", help="heading of the page")
    return parser


def main(argv: list[str] | None = None) -> int:
    return execute(arguments(), run, argv, first="loading {results}", resumes=False)


def run(options: argparse.Namespace) -> Sequence[str]:
    from persona_core.report.home import TITLE
    from persona_core.report.site import export_site

    site = export_site(options.results, options.out, vectors=options.vectors, title=options.title or TITLE)
    for says in site.left_out:
        print(f"left out: {says}")
    largest = max(site.sizes, key=lambda name: site.sizes[name])
    total, most = (size / 1e6 for size in (sum(site.sizes.values()), site.sizes[largest]))
    print(f"{len(site.sizes)} files, {total:.1f} MB; the largest is {largest}, {most:.1f} MB")
    print(site.folder / "index.html")
    return []


if __name__ == "__main__":
    sys.exit(main())
