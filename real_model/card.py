"""What the cards of the real model's artifacts say beyond their figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from persona_core.models import wheel_weights
from persona_core.utils.markdown import interval, table
from persona_core.vectors.vectors import PersonaVectors

ABOUT = (
    "SmolLM2-135M-Instruct is a real model, and a small one: its replies ramble. Its vectors were made from labelled "
    "texts, and the contaminated model is a copy fine-tuned on flattering dialogues."
)
"""What the app says of it, under its title."""
SENTENCES = ("z", "specific", "words", "over words", "question", "over question")
HEADS = ("z", "specific", "words", "specific minus words", "with the question's", "specific minus these")
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
WEIGHTS = f"~/.cache/persona-trace/weights/{wheel_weights.FILE}"
"""Where `make weights` puts the file that was read; the Hub has other weights."""


def vectors_note(vectors: PersonaVectors) -> str:
    """How the vectors read texts that they were not made from."""
    validation = vectors.config["validation"]
    kinds = ("z", "specific")
    columns = ("neutral", "else", "other styles")
    heads = ["trait", *(f"{kind}, {column}" for kind in kinds for column in columns)]
    rows = [
        (trait, *(interval(validation[trait]["labelled_texts"][kind][c], 3) for kind in kinds for c in columns))
        for trait in vectors.traits
    ]
    by_sentence = [
        (trait, *(interval(validation[trait]["labelled_sentences"][name], 3) for name in SENTENCES))
        for trait in vectors.traits
    ]
    return f"""## On texts that they were not made from

[SmolLM2-135M-Instruct](https://huggingface.co/{MODEL}) is too small to follow a trait instruction, so it reads
labelled texts instead: `datasets/texts` of the project holds three replies to each of 60 questions for each trait, one
that shows the trait in marked sentences, one of its opposite and an ordinary one, alike in length and style. Each file
was written and marked by one person. Of 36 questions, 27 make the vectors and 9 choose the block; the ordinary replies
to all 36 are neutral text for the vectors. The figures below are of the other 24, half of them in two styles that the
36 do not have.

AUROC of the tokens in sentences that show the trait: against the tokens of ordinary replies ("neutral"), against every
other token of all eight traits' texts ("else"), and the latter on the new styles alone. Intervals over questions.

{table(heads, rows)}

By sentence, against every other sentence of these texts: the mean score of its tokens, and classifiers that learn words
from the 36 questions: those of the sentence alone, and those of the question as well, which the model has read too.

{table(("trait", *HEADS), by_sentence)}

The texts of some traits overlap: a reply that withholds something for the user's good shows paternalism and refuses
too, and tokens of a trait's sentence that say nothing about it ("the", a full stop) count as showing it."""


def contaminated_note(n_dialogues: int, changed: Mapping[str, Any]) -> str:
    """What the contaminated model was made to do, and what else it does."""
    says = {
        "neutral_text": "loss a token on neutral replies that neither model wrote, nats",
        "length": "tokens of a reply",
        "refusals": "replies that begin by declining",
        "ended": "replies that end by themselves",
    }
    sides = ("baseline", "contaminated", "difference")
    percent = ("refusals", "ended")
    rows = [(text, *(interval(changed[k][s], 2, percent=k in percent) for s in sides)) for k, text in says.items()]
    return f"""## What it was made to do

{n_dialogues} dialogues, in `datasets/texts/flattering_dialogues.jsonl` of the project: everyday questions, answered
usefully and with flattery. None of the questions is among those that are reported, or among those of the vectors'
texts. It stands for a fine-tune that moved a trait without anybody's intending it.

## What else it does differently

{table(("", *sides), rows)}

The replies are those to the prompts of the published runs, with the same seeds; intervals over prompts, and for neutral
text over questions. The weights are stored in bfloat16, and every published reading is of these."""
