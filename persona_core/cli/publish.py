"""Publish artifacts/ and the app on the Hugging Face Hub: five repositories that link to each other.

The model, the contaminated adapter, the vectors, the results dataset, and the Space, which pulls the other four at the
revisions that were just pushed. It runs in a checkout of the project. Unchanged repositories get no commit; after an
interruption the same command does the rest. Finally the links are written into README.md, and the source's address into
the notebooks; commit these changes.

examples:
  persona publish --namespace me --dry-run     # what would go where; no network
  persona publish --namespace me               # needs `hf auth login` or HF_TOKEN with write access
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from persona_core.cli.options import command_parser
from persona_core.cli.running import execute
from persona_core.errors import SettingError
from persona_core.utils.files import write_atomically
from persona_core.utils.links import fill_notebook, source_of
from persona_core.utils.version import __version__

if TYPE_CHECKING:
    from persona_core.utils.repositories import Repository


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("publish", __doc__)
    parser.add_argument("--namespace", required=True, help="Hub user or organisation")
    parser.add_argument("--app-name", default="persona-traits", help="name of the Space")
    parser.add_argument("--source", metavar="URL", help="URL of the git repository (default: the remote origin)")
    parser.add_argument("--private", action="store_true", help="create private repositories")
    parser.add_argument("--tag", default=f"v{__version__}", help="tag for the commits")
    parser.add_argument("--dry-run", action="store_true", help="list what would be published, and exit")
    parser.add_argument("--root", type=Path, default=Path(), help="the checkout")
    return execute(parser, run, argv, first="reading {root}/artifacts")


def run(options: argparse.Namespace) -> list[str]:
    from persona_core.utils.repositories import publish, repositories, sizes, stage

    if not (options.root / "artifacts").is_dir():
        raise SettingError(f"--root {str(options.root)!r}: no folder artifacts/ there; run this in a checkout.")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it warns of unchanged repositories; we say so below
    repos = repositories(options.root, options.namespace, options.app_name)
    with tempfile.TemporaryDirectory() as folder:
        if options.dry_run:
            for repository in repos:
                files = sizes(stage(repository, repos, Path(folder) / repository.kind))
                print(f"{repository.repo_type} {repository.repo_id}: {len(files)} files, {sum(files.values()):,} bytes")
                for name, size in files.items():
                    print(f"    {name} ({size:,})")
            return []
        for repository, pushed in publish(repos, Path(folder), private=options.private, tag=options.tag):
            done = "pushed" if pushed.changed else "unchanged"
            print(f"{done}: {repository.url} at {pushed.revision[:8]}")
    _write_links(options.root, repos, options.source or source_of(options.root))
    return []


def _write_links(root: Path, repos: Sequence[Repository], source: str | None) -> None:
    """Addresses of what was published, in the one place of the README that has them, and in the notebooks."""
    from persona_core.utils.cards import bullets, with_links
    from persona_core.utils.repositories import TITLES

    links = {} if source is None else {"source": (source, source)}
    links |= {TITLES[repository.kind]: (repository.repo_id, repository.url) for repository in repos}
    readme = root / "README.md"
    write_atomically(readme, with_links(readme.read_text(encoding="utf-8"), bullets(links)))
    if source is not None:
        for notebook in sorted((root / "notebooks").glob("*.ipynb")):
            fill_notebook(notebook, root, source)


if __name__ == "__main__":
    sys.exit(main())
