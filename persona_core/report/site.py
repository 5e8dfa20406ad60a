"""Published runs as a static site: one folder that any web host serves, without Python or code on the server.

```
README.md            front matter of a static Space
index.html           the page; its policy lets it load only its own files
site.json            prompts, texts and what the page opens on; names the maker of the folder
assets/              one script, one style sheet, the page that the HTML export fills in, and plotly.js, which only the
                     figures of the reports fetch
data/runs.json       the explorer's table
data/runs/001.json   a prompt's replies, each as read by either model; fetched when it is opened
data/analysis.json   the analysis, where the results were analysed
data/vectors.json    the vectors' cards, where vectors are given
```

All addresses are relative. The numbers are those that the app shows, bit for bit.
"""

from __future__ import annotations

import html
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from persona_core.errors import CorruptFile, NotFound, SettingError
from persona_core.report import page as report
from persona_core.report.branches import branch_payload
from persona_core.report.explorer import explorer_script, explorer_styles, explorer_template
from persona_core.report.gallery import Finding, gallery
from persona_core.report.home import COLOURS, COLOURS_OF_Z, TITLE, FirstReply, Home, load_home
from persona_core.report.pair_finding import pair_finding
from persona_core.report.pairs import ONE_READING, READINGS, TEXTS, readings_payload
from persona_core.report.results_folder import check_read_with
from persona_core.report.saved_analysis import analysis_content
from persona_core.report.saved_runs import SavedRuns
from persona_core.report.site_card import licence_of, site_card
from persona_core.report.vectors_content import vectors_content
from persona_core.traces.provenance import short_name
from persona_core.traces.view import assets as token_view
from persona_core.traces.view.standalone import inline_json, shell_page
from persona_core.utils.files import read_asset, read_json, write_atomically
from persona_core.utils.hub import split_revision
from persona_core.vectors.vectors import PersonaVectors

logger = logging.getLogger(__name__)

MADE_BY = "persona export-site"
SITE_FILE = "site.json"
OWN = ("README.md", "index.html", "assets", "data", SITE_FILE)
"""What a site consists of; whatever else lies in the folder is left alone."""
LABELS = ("own replies", "baseline's, read by both", "contaminated's, read by both")
"""Of the texts, in the order of `TEXTS`."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'"
)
"""Nothing but the site's own files is loaded, and no script runs that is not one of them. Inline styles, which load
nothing, are plotly.js's; data: pictures are its heat maps, and the icon."""


@dataclass(frozen=True)
class Site:
    """A site that was written.

    Attributes:
        folder: where it lies.
        sizes: bytes of each file, by its path in the folder.
        left_out: pages that it lacks, each with the reason.
    """

    folder: Path
    sizes: Mapping[str, int]
    left_out: tuple[str, ...]


def export_site(
    results: str | Path,
    out: str | Path,
    *,
    vectors: str | Path | None = None,
    title: str = TITLE,
    models: Sequence[str] = (),
    datasets: Sequence[str] = (),
) -> Site:
    """Write the runs of a results folder as a static site.

    Args:
        results: folder or dataset repository, optionally with "@" and a revision.
        out: folder of the site. One that this function wrote is replaced; another that is not empty is refused.
        vectors: the vectors that the runs were read with, for their cards, for what the page opens on and for what it
            says about the model (`app.json`): folder or Hub repository, optionally with "@" and a revision.
        title: heading of the page.
        models, datasets: Hub ids that the card links, besides those that `results` and `vectors` are.

    Returns:
        The folder, its files, and the pages that were left out.

    Raises:
        NotFound: no such results or vectors.
        CorruptFile: unreadable results, analysis or vectors.
        SettingError: `out` holds something else, or the runs were read with other vectors.

    Example:
        >>> export_site("me/persona-monitoring", "site", vectors="me/persona-vectors").sizes  # doctest: +SKIP
    """
    folder = Path(out)
    _check_replaceable(folder)
    runs = SavedRuns(results)
    home = load_home(None if vectors is None else str(vectors), runs)
    known = None if vectors is None else PersonaVectors.from_pretrained(*split_revision(str(vectors)))
    if known is not None:
        rows = (row for config in runs.configs for row in runs.rows(config))
        check_read_with(rows, known, str(vectors), "runs")
    left_out: list[str] = []
    reports: dict[str, Any] = {}
    try:
        reports["analysis"] = analysis_content(runs)
    except NotFound as error:
        left_out.append(f"the analysis: {error}")
    if known is not None:
        reports["vectors"] = vectors_content(known, str(vectors))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as staging:
        staged = Path(staging)
        _write_assets(staged / "assets")
        _write_data(staged, runs, home, title, reports)
        write_atomically(staged / "index.html", _page(runs, home, title))
        source = None if vectors is None else str(vectors)
        card = site_card(title, runs.source, source, known, models, datasets, licence_of(runs.source))
        write_atomically(staged / "README.md", card)
        _replace(folder, staged)
    sizes = {p.relative_to(folder).as_posix(): p.stat().st_size for n in OWN for p in _files(folder / n)}
    return Site(folder, sizes, tuple(left_out))


def _check_replaceable(folder: Path) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        made_by = read_json(folder / SITE_FILE).get("made_by")
    except CorruptFile:  # there is none, or it is another's
        made_by = None
    if made_by != MADE_BY:
        raise SettingError(
            f"--out {str(folder)!r} is not empty, and was not written by {MADE_BY}: nothing there is replaced. Choose "
            "another folder, or empty it."
        )


def _replace(folder: Path, staged: Path) -> None:
    """Move the new site to its place. The file that names the maker is there all the time."""
    folder.mkdir(exist_ok=True)
    for name in OWN:
        old = folder / name
        if old.is_symlink():
            old.unlink()
        elif old.is_dir():
            shutil.rmtree(old)
        shutil.move(staged / name, old)  # copies where the folder is a disk of its own


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


def _write_assets(folder: Path) -> None:
    folder.mkdir()
    parts = (token_view.script(), explorer_script(), report.script(), _asset("site.js"))
    styles = (token_view.styles(), explorer_styles(), report.styles(), _asset("site.css"))
    write_atomically(folder / "site.js", "\n".join(parts))
    write_atomically(folder / "site.css", "\n".join(styles))
    write_atomically(folder / "plotly.min.js", report.plotlyjs())
    # As plain text: it is no page of this site.
    write_atomically(folder / "standalone.txt", shell_page())


def _write_data(folder: Path, runs: SavedRuns, home: Home, title: str, reports: Mapping[str, Any]) -> None:
    table = runs.table()
    first, found = home.first_reply, gallery(runs)
    opening = found[0].id if found else runs.ids[0] if first is None else first.id
    findings = {id: pair_finding(table, id, first.trait if first and id == opening else None) for id in runs.ids}
    files = {id: f"data/runs/{number:03}.json" for number, id in enumerate(runs.ids, 1)}  # an id may be any text
    for id, name in files.items():
        pair = findings[id]
        run = {"id": id, "says": pair.says() if pair else "", **_run(runs, id, found)}
        write_atomically(folder / name, inline_json(run))
    write_atomically(folder / "data" / "runs.json", inline_json(table))
    for name, content in reports.items():
        write_atomically(folder / "data" / f"{name}.json", inline_json(content))
    site = {
        "made_by": MADE_BY,
        "version": 1,
        "title": title,
        "pages": ["runs", *reports],
        "texts": list(LABELS),
        "opening": {
            "id": opening,
            "trait": found[0].trait if found else pair.trait if (pair := findings[opening]) else None,
            "why": "" if found else _why(first),
        },
        "findings": [asdict(one) | {"text": _text_key(one.text)} for one in found],
        "ids": list(files),
        "files": list(files.values()),
    }
    write_atomically(folder / SITE_FILE, inline_json(site))


def _run(runs: SavedRuns, id: str, found: Sequence[Finding]) -> dict[str, Any]:
    """A prompt's replies: "sides", each reading once, and "texts": by key, a payload and which sides it has.

    A branch that a finding is about is a text by its name, with a "label" of its own.
    """
    traces, onsets = runs.traces(id), runs.onsets_of(id)
    sides: list[Any] = []
    texts: dict[str, Any] = {}

    def add(key: str, payload: dict[str, Any], **more: Any) -> None:
        own = payload.pop("sides")
        sides.extend(side for side in own if side not in sides)
        texts[key] = {"payload": payload, "sides": [sides.index(side) for side in own], **more}

    for number, text in enumerate(TEXTS):
        payload, notice = readings_payload(traces, text, onsets, runs.caveats)
        if number and (notice == ONE_READING or not set(READINGS[text]) <= set(traces)):
            continue  # the first text shows what there is
        add(str(number), payload, notice=notice)
    for one in found:
        if one.id == id and (branch := runs.branches.get(one.text)) is not None:
            add(branch.name, branch_payload(runs, branch), notice="", label=branch.change)
    return {"sides": sides, "texts": texts}


def _text_key(text: str) -> str:
    return str(TEXTS.index(text)) if text in TEXTS else text


def _why(first: FirstReply | None) -> str:
    """Over the pair that is shown first, where nothing was found in the runs."""
    return str(first.title) if first is not None and first.title else ""


def _page(runs: SavedRuns, home: Home, title: str) -> str:
    rows = [runs.rows(config)[0] for config in runs.configs]
    readers = " and ".join(dict.fromkeys(short_name(str(row["reader"])) for row in rows))
    specific = home.first_reply is None or home.first_reply.trace.has_specific
    about = (
        f"The replies of {readers} to {len(runs.ids)} prompts, with what {len(runs.traits)} persona vectors read in "
        "the model's state at every token."
    )
    return _asset("site.html").format(
        policy=POLICY,
        title=html.escape(title),
        lede=html.escape(f"{about} {COLOURS if specific else COLOURS_OF_Z}"),
        about=html.escape(home.about),
        token_view=token_view.template(),
        explorer=explorer_template(),
        footer="Stored readings: nothing is computed on a server. A score says which direction a state has, not why.",
    )


def _asset(name: str) -> str:
    return read_asset("persona_core.report", f"static/{name}")
