"""Fill the marked parts of README.md and docs/*.md with stored figures. The prose around them is written by hand.

    python -m scripts.docs            # rewrite the marked parts
    python -m scripts.docs --check    # change nothing; exit 1 if a page is out of date

A table (or a drawing) stands between two comments, each on its own line:

    <!-- table: onset-power -->
    ...
    <!-- end -->

A number inside a sentence names the stored results that it comes from, the path in them, and its format. It must not
begin a line:

    tried on <!-- = onset n_held_out | , -->400<!-- / --> held-out replies
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts import PROJECT_ROOT
from scripts.docs import (
    answers,
    architecture,
    demo_model,
    engines,
    errors,
    guard,
    prompts,
    published_runs,
    real_marks,
    real_model,
    real_vectors,
    speed,
)
from scripts.docs.stored import number

TABLES = (
    answers.TABLES
    | architecture.TABLES
    | demo_model.TABLES
    | engines.TABLES
    | errors.TABLES
    | guard.TABLES
    | prompts.TABLES
    | published_runs.TABLES
    | real_marks.TABLES
    | real_model.TABLES
    | real_vectors.TABLES
    | speed.TABLES
)
INSIDE = r"((?:(?!<!-- ).)*)"  # a marked part ends at the next comment, which must be its end
TABLE = re.compile(rf"^<!-- table: (\S+) -->\n{INSIDE}^<!-- end -->$", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(rf"(?<=[^\n])<!-- = ([^>]+) -->{INSIDE}<!-- / -->", re.DOTALL)  # a comment cannot begin a line


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.docs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a page is out of date")
    check = parser.parse_args(argv).check
    stale = []
    for page in pages():
        old = page.read_text(encoding="utf-8")
        new = fill(old)
        if new != old:
            stale.append(page.relative_to(PROJECT_ROOT).as_posix())
            if not check:
                page.write_text(new, encoding="utf-8")
    if stale and check:
        print(f"Out of date: {', '.join(stale)}. Run python -m scripts.docs.", file=sys.stderr)
    elif stale:
        print(f"Updated {', '.join(stale)}.")
    return int(check and bool(stale))


def pages() -> list[Path]:
    """The pages that may have marked parts."""
    return [PROJECT_ROOT / "README.md", *sorted((PROJECT_ROOT / "docs").glob("*.md"))]


def fill(page: str) -> str:
    """A page with its marked parts up to date.

    Raises:
        ValueError: a marked part that does not end, or a number at the start of a line, where Markdown would take the
            whole line for HTML.

    >>> fill("<!-- table: none -->")
    Traceback (most recent call last):
    ValueError: 1 of the page's tables are marked, but 0 are complete.
    """
    for what, mark, pattern in (("tables", "<!-- table: ", TABLE), ("numbers", "<!-- = ", NUMBER)):
        if (marked := page.count(mark)) != (ended := len(pattern.findall(page))):
            raise ValueError(f"{marked} of the page's {what} are marked, but {ended} are complete.")
    page = TABLE.sub(lambda m: f"<!-- table: {m[1]} -->\n{TABLES[m[1]]()}\n<!-- end -->", page)
    return NUMBER.sub(lambda m: f"<!-- = {m[1]} -->{number(m[1])}<!-- / -->", page)
