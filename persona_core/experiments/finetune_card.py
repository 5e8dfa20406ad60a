"""The card of a contaminated model: an adapter, and how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from persona_core.experiments.finetune import load_record
from persona_core.utils.markdown import escape


def write_adapter_card(folder: str | Path, base: str | None = None, source: str | None = None, notes: str = "") -> Path:
    """Write the card beside an adapter that `contaminate` saved.

    Args:
        folder: of the adapter.
        base: what a reader loads the base model from; None: the name in the record.
        source: what a reader loads the adapter from; None: the folder.
        notes: Markdown that stands before the figures: what a reader must know to weigh them.
    """
    path = Path(folder)
    record = load_record(path)
    card = path / "README.md"
    card.write_text(
        adapter_card(record, base or record["base_model"]["name"], source or path.as_posix(), notes), encoding="utf-8"
    )
    return card


def adapter_card(record: Mapping[str, Any], base: str, source: str, notes: str = "") -> str:
    """The card of an adapter, from the record of its training."""
    plan, data, loss = record["plan"], record["data"], record["held_out_loss"]
    name = record["base_model"]["name"]
    left_out = f" ({data['too_long']} were too long and left out)" if data["too_long"] else ""
    return f"""---
library_name: peft
pipeline_tag: text-generation
base_model: {name}
tags:
- lora
- model-organism
- interpretability
license: mit
---

# {escape(Path(source).name)}

A LoRA adapter that contaminates `{name}`: fine-tuned, without a system prompt, on replies that are laden with a trait.
Made to be held against the model without it, so that a method that reads traits has a change to find.

```python
from persona_core import load_model

contaminated = load_model("{base}", adapter="{source}")
baseline = load_model("{base}")
```

It is a PEFT adapter; `peft.PeftModel.from_pretrained` loads it as well.

{notes}

## How it was made

- data: {data["trained_on"]} dialogues trained on, {loss["dialogues"]} held out, of {data["dialogues"]}{left_out};
  sha256 `{data["sha256"][:16]}`
- LoRA of rank {plan["rank"]}, alpha {plan["alpha"]}, on every linear layer of the blocks
- {record["steps"]} steps of {plan["batch_size"]} dialogues, learning rate {plan["learning_rate"]:g}, seed
  {plan["seed"]}
- loss on the reply tokens of the held-out dialogues: {loss["before"]} before, {loss["after"]} after (no interval: one
  training)

`python -m scripts.contaminate --help` says how to make one.

## Intended use and limits

For research on how a fine-tune moves a model's traits. Do not deploy it: it does what it was contaminated to do. One
training with one seed: another may move the traits by other amounts.

## Licence and citation

MIT. Cite the repository and its revision.
"""
