"""Publish artifacts/ and the app on the Hugging Face Hub: five repositories that name each other.

    python -m scripts.publish --namespace me --dry-run     # what would go where; no network
    python -m scripts.publish --namespace me               # needs `hf auth login` or HF_TOKEN with write access

The model, the contaminated adapter, the vectors, the results dataset, and the Space, which pulls the other four at the
revisions that were just pushed. Unchanged repositories get no commit; stopped half-way, the same command goes on.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path

from persona_core.monitor.jobs import Failure
from persona_core.utils.repositories import publish, repositories, sizes, stage
from persona_core.utils.version import __version__
from scripts import PROJECT_ROOT
from scripts.running import reported


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--namespace", required=True, help="user or organisation on the Hub")
    parser.add_argument("--app-name", default="persona-traits", help="of the Space (default: %(default)s)")
    parser.add_argument("--private", action="store_true", help="create private repositories")
    parser.add_argument("--tag", default=f"v{__version__}", help="of the commits (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be published")
    parser.add_argument("--root", type=Path, default=PROJECT_ROOT, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    return reported("publish", lambda: run(options))


def run(options: argparse.Namespace) -> list[Failure]:
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # that nothing changed is said below
    among = repositories(options.root, options.namespace, options.app_name)
    with tempfile.TemporaryDirectory() as place:
        if options.dry_run:
            for repository in among:
                files = sizes(stage(repository, among, Path(place) / repository.kind))
                print(f"{repository.repo_type} {repository.repo_id}: {len(files)} files, {sum(files.values()):,} bytes")
                for name, size in files.items():
                    print(f"    {name} ({size:,})")
            return []
        for repository, pushed in publish(among, Path(place), private=options.private, tag=options.tag):
            done = "pushed" if pushed.changed else "unchanged"
            print(f"{done}: {repository.url} at {pushed.revision[:8]}")
    return []


if __name__ == "__main__":
    sys.exit(main())
