"""The card of a contaminated model: an adapter, and how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from persona_core.experiments.finetune import load_record
from persona_core.utils.cards import make_card, usage
from persona_core.utils.files import write_atomically
from persona_core.utils.markdown import escape


def write_adapter_card(folder: str | Path, base: str | None = None, source: str | None = None, notes: str = "") -> Path:
    """Write the card beside an adapter that `contaminate` saved.

    Args:
        folder: of the adapter.
        base: what a reader loads the base model from; None: the name in the record.
        source: what a reader loads the adapter from; None: the folder.
        notes: Markdown before the figures: what a reader must know to interpret them.
    """
    path = Path(folder)
    record = load_record(path)
    text = adapter_card(record, base or record["base_model"]["name"], source or path.as_posix(), notes)
    write_atomically(path / "README.md", text)
    return path / "README.md"


def adapter_card(record: Mapping[str, Any], base: str, source: str, notes: str = "") -> str:
    """The card of an adapter, from the record of its training."""
    from huggingface_hub import ModelCardData

    plan, data, loss = record["plan"], record["data"], record["held_out_loss"]
    name = record["base_model"]["name"]
    too_long = f" ({data['too_long']} were too long and left out)" if data["too_long"] else ""
    header = ModelCardData(
        base_model=name,
        library_name="peft",
        license="mit",
        pipeline_tag="text-generation",
        tags=["lora", "model-organism", "interpretability"],
    )
    return make_card(
        header,
        f"""# {escape(Path(source).name)}

A LoRA adapter that contaminates `{escape(name)}`: fine-tuned, without a system prompt, on replies that show a trait.
It is meant to be compared with the model without it, so that a method that reads traits has a known change to find.
""",
        usage("adapter", source, base=base),
        "It is a PEFT adapter; `peft.PeftModel.from_pretrained` loads it as well.",
        notes,
        f"""## How it was made

- data: {data["trained_on"]} dialogues for training and {loss["dialogues"]} held out, of {data["dialogues"]}{too_long};
  sha256 `{data["sha256"][:16]}`
- LoRA of rank {plan["rank"]} and alpha {plan["alpha"]}, on every linear layer of the blocks
- {record["steps"]} steps of {plan["batch_size"]} dialogues, learning rate {plan["learning_rate"]:g}, seed
  {plan["seed"]}
- loss on the reply tokens of the held-out dialogues: {loss["before"]} before, {loss["after"]} after (a single training
  run, so no interval)

`persona contaminate --help` explains how to make one.
""",
        """## Intended use and limits

For research on how fine-tuning changes a model's traits. Do not deploy it: it behaves as it was contaminated to. It is
one training run with one seed; another may change the traits by other amounts.
""",
        """## Licence and citation

MIT. Cite the repository and its revision.
""",
    )
