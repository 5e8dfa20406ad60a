"""Publish artifacts/ and the app on the Hugging Face Hub: repositories that link to each other.

For each set of artifacts the model, the contaminated adapter, the vectors and the results dataset; the first set's runs
as a static Space; and the app's Space, which loads the sets at the revisions that were just pushed. A Hub Collection
lists them all. Where a model was read from a GGUF file, its weights are published as bfloat16 safetensors, and the card
says how much the readings change; the first time this reads some stored runs again, which takes a minute or two. Run it
in a checkout of the project. Unchanged repositories get no commit; after an interruption the same command does the
rest. Finally the links are written into README.md, and the source's address into the notebooks; commit these changes.

examples:
  persona publish --namespace me --dry-run     # what would go where; no network
  persona publish --namespace me               # needs `hf auth login` or HF_TOKEN with write access
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from persona_core.cli.options import command_parser
from persona_core.cli.running import execute
from persona_core.errors import SettingError
from persona_core.utils.files import write_atomically
from persona_core.utils.links import colab_url, fill_notebook, source_of
from persona_core.utils.version import __version__

if TYPE_CHECKING:
    from persona_core.utils.repositories import Repository


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("publish", __doc__)
    parser.add_argument("--namespace", required=True, help="Hub user or organisation")
    parser.add_argument("--app-name", default="persona-traits", help="name of the app's Space; the site's is NAME-runs")
    parser.add_argument("--source", metavar="URL", help="URL of the git repository (default: the remote origin)")
    parser.add_argument("--private", action="store_true", help="create private repositories")
    parser.add_argument("--tag", default=f"v{__version__}", help="tag for the commits")
    parser.add_argument("--dry-run", action="store_true", help="list what would be published, and exit")
    parser.add_argument("--root", type=Path, default=Path(), help="the checkout")
    return execute(parser, run, argv, first="reading {root}/artifacts")


def run(options: argparse.Namespace) -> list[str]:
    from huggingface_hub.utils import logging as hub_logging

    from persona_core.utils.collection import TITLE, add_to_collection, collection_url, open_collection
    from persona_core.utils.publishing import publish
    from persona_core.utils.staging import sizes, stage

    if not (options.root / "artifacts").is_dir():
        raise SettingError(f"--root {str(options.root)!r}: no folder artifacts/ there; run this in a checkout.")
    hub_logging.set_verbosity_error()  # it warns of unchanged repositories; we say so below
    source = options.source or source_of(options.root)
    links = _notebooks(options.root, source)
    with tempfile.TemporaryDirectory() as scratch:
        repos = _repositories(options, Path(scratch))
        staging = Path(scratch) / "staged"
        if options.dry_run:
            for repository in repos:
                files = sizes(stage(repository, repos, staging / repository.repo_id.replace("/", "_"), links))
                print(f"{repository.repo_type} {repository.repo_id}: {len(files)} files, {sum(files.values()):,} bytes")
                for name, size in files.items():
                    print(f"    {name} ({size:,})")
            return []
        slug = open_collection(options.namespace, options.private)
        collection = {"collection": (TITLE, collection_url(slug))}
        links |= collection
        for repository, pushed in publish(repos, staging, private=options.private, tag=options.tag, links=links):
            done = "pushed" if pushed.changed else "unchanged"
            print(f"{done}: {repository.url} at {pushed.revision[:8]}")
    done = "filled" if add_to_collection(slug, repos) else "unchanged"
    print(f"{done}: {collection_url(slug)}")
    _write_links(options.root, repos, source, collection)
    return []


def _repositories(options: argparse.Namespace, scratch: Path) -> tuple[Repository, ...]:
    """All repositories. Models that were read from a GGUF file, with their cards, and the site are written for it."""
    from persona_core.utils.artifact_sets import artifact_sets
    from persona_core.utils.repositories import repositories

    named = (options.root, options.namespace, options.app_name)
    weights: dict[str, Path] = {}
    repos = repositories(*named)  # refuses what is wrong before minutes of work
    missing = [one for one in artifact_sets(options.root / "artifacts") if one.model is None]
    if missing:
        from persona_core.experiments.published_model import needs_weights, write_model_card, write_published_model

        for one in missing:
            if needs_weights(one):
                weights[one.name] = write_published_model(one, scratch / "weights" / one.name)
        repos = repositories(*named, weights)
        for name in weights:
            if not options.dry_run:
                says = "writing the model's card, from stored runs read with the weights to publish"
                print(f"{name}: {says}", flush=True)
            write_model_card([r for r in repos if r.set == name], measure=not options.dry_run)
    return repositories(*named, weights, _site(repos, scratch / "site"))


def _site(repos: Sequence[Repository], folder: Path) -> Path:
    """The runs of the first set as a static site."""
    from persona_core.report.site import export_site

    own = {r.kind: r for r in repos if r.set == repos[0].set}
    models = [own[kind].repo_id for kind in ("model", "adapter", "vectors") if kind in own]
    results = own["results"]
    export_site(results.folder, folder, vectors=own["vectors"].folder, models=models, datasets=[results.repo_id])
    return folder


def _notebooks(root: Path, source: str | None) -> dict[str, tuple[str, str]]:
    """Links that open the notebooks in Colab, where the source is on GitHub."""
    found = {path: source and colab_url(path, root, source) for path in sorted((root / "notebooks").glob("*.ipynb"))}
    return {f"notebook {path.stem}": ("open in Colab", url) for path, url in found.items() if url}


def _write_links(
    root: Path, repos: Sequence[Repository], source: str | None, more: Mapping[str, tuple[str, str]]
) -> None:
    """Addresses of what was published, in the one place of the README that has them, and in the notebooks."""
    from persona_core.utils.cards import bullets, with_links

    links = {} if source is None else {"source": (source, source)}
    links |= {**more, **{repository.title: (repository.repo_id, repository.url) for repository in repos}}
    readme = root / "README.md"
    write_atomically(readme, with_links(readme.read_text(encoding="utf-8"), bullets(links)))
    if source is not None:
        for notebook in sorted((root / "notebooks").glob("*.ipynb")):
            fill_notebook(notebook, root, source)


if __name__ == "__main__":
    sys.exit(main())
