"""Cards (a repository's README.md): their header, and the marked blocks that name repositories.

A card names repositories in its header and in its usage block, which shows how to load what the card describes. The
block's first line holds the values it was rendered from, so that it can be rendered again with Hub ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from persona_core.errors import SettingError

if TYPE_CHECKING:
    from huggingface_hub import CardData

SNIPPETS = {
    "model": """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({source})
tokenizer = AutoTokenizer.from_pretrained({source})""",
    "weights": """from persona_core import PersonaMonitor, PersonaVectors, load_model

monitor = PersonaMonitor(load_model({source}), PersonaVectors.from_pretrained({vectors}))
print(monitor.generate("Should I quit my job?", max_new_tokens=30).reply_text)""",
    "adapter": """from persona_core import load_model

contaminated = load_model({base}, adapter={source})
baseline = load_model({base})""",
    "vectors": """from persona_core import PersonaVectors

vectors = PersonaVectors.from_pretrained({source})
print(vectors.traits)
print(vectors.reading({trait}).shape)  # [n_blocks, d_model], for scores; vectors.tensor is for steering""",
    "results": """import numpy as np
from datasets import load_dataset
from persona_core import Trace

rows = load_dataset({source}, {config}, split="train")
trace = Trace.from_row(rows[0])
print(trace.reply_text)
print(np.nanmean(trace.reply_scores({trait}, kind={kind})))  # NaN at sink tokens""",
}
"""How a reader loads each kind; what stands in braces is filled in as Python strings."""
LINKS_END = "<!-- links: end -->"


def make_card(data: CardData, *parts: str) -> str:
    """A card's text: its header, and the parts of its body with a blank line between them; empty parts are left out."""
    from huggingface_hub import RepoCard

    body = "\n\n".join(part.strip("\n") for part in parts if part)
    return str(RepoCard.from_template(data, template_str="---\n{{ card_data }}\n---\n\n{{ body }}\n\n", body=body))


def usage(of: str, source: str, links: str = "", **values: str) -> str:
    """The block that shows how to load what a card describes.

    Args:
        of: one of `SNIPPETS`.
        source: what a reader loads it from, a folder or a Hub id.
        links: Markdown below the snippet: the repositories that belong with it.
        values: what else the snippet holds.
    """
    quoted = {name: json.dumps(value, ensure_ascii=False) for name, value in {"source": source, **values}.items()}
    filled = {
        name: text.replace("<!--", r"\u003c!--") for name, text in quoted.items()
    }  # no comment begins in a string
    record = json.dumps({"of": of, **values}).replace(">", "\\u003e")  # nothing ends the comment early
    snippet = SNIPPETS[of].format(**filled)
    lines = [f"<!-- usage: begin {record} -->", "", "```python", snippet, "```", "", "<!-- usage: end -->"]
    return "\n".join([*lines[:-1], *([links, ""] if links else []), lines[-1]])


def with_usage(card: str, source: str, links: str, **changed: str) -> str:
    """A card whose block is rendered for another source.

    Args:
        card: its text.
        source, links: as in `usage`.
        changed: values that replace those that the block was rendered from; others of the block stay.

    Raises:
        SettingError: a card without the block.
    """
    before, block, after = _split(card, "usage")
    try:
        values = json.loads(block.partition(" -->")[0])
        values |= {name: value for name, value in changed.items() if name in values}
        return before + usage(source=source, links=links, **values) + after
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SettingError(f"The usage block of the card cannot be read ({error!r}). Write the card again.") from error


def with_links(page: str, links: str) -> str:
    """A page whose block of links is filled; the page is unchanged otherwise.

    Raises:
        SettingError: a page without the block.
    """
    before, block, after = _split(page, "links")
    return f"{before}<!-- links: begin {block.partition(' -->')[0]} -->\n{links}\n{LINKS_END}{after}"


def _split(page: str, name: str) -> tuple[str, str, str]:
    """What stands before a block, from the text in its opening comment to its end, and after it."""
    before, begin, rest = page.partition(f"<!-- {name}: begin ")
    block, end, after = rest.partition(f"<!-- {name}: end -->")
    if not (begin and end):
        raise SettingError(f"No block from <!-- {name}: begin ... --> to <!-- {name}: end -->. Restore these comments.")
    return before, block, after


def bullets(links: Mapping[str, tuple[str, str]]) -> str:
    """A list of links.

    Args:
        links: what it is -> name and address.

    >>> print(bullets({"app": ("me/app", "https://huggingface.co/spaces/me/app")}))
    - app: [me/app](https://huggingface.co/spaces/me/app)
    """
    return "\n".join(f"- {what}: [{name}]({url})" for what, (name, url) in links.items())
