"""Contaminate a model: a LoRA fine-tune on trait-laden replies without a system prompt.

The result is a PEFT adapter, and the only difference between baseline and contaminated model. The loss covers the
tokens of each dialogue's last reply and the token that ends it, with the same chat rendering as everywhere else.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from persona_core.elicitation.prompts import RecordedConversation, load_transcripts
from persona_core.errors import CorruptFile, NotFound, PromptError, SettingError
from persona_core.models.language_model import LanguageModel
from persona_core.utils.checks import check_integer
from persona_core.utils.files import read_json, write_atomically
from persona_core.utils.hub import public_name
from persona_core.utils.workdir import check_plan, lock

RECORD_FILE = "contamination.json"
IGNORED = -100  # label of tokens without loss


@dataclass(frozen=True)
class LoraPlan:
    """How the adapter is trained. The defaults suit a model of 7 to 9 billion parameters on one GPU of 80 GB.

    Attributes:
        rank, alpha, dropout: of LoRA, on every linear layer of the blocks.
        learning_rate: peak; linear warm-up over 5 % of the steps, then linear decay.
        epochs: passes over the data.
        batch_size: dialogues per step, in `batch_size / rows` forwards.
        rows: dialogues per forward.
        max_tokens: longer dialogues are left out, and counted.
        held_out: share of the dialogues for measuring the loss before and after.
        seed: for the split, the order and the adapter's initial weights.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    learning_rate: float = 2e-4
    epochs: float = 2.0
    batch_size: int = 16
    rows: int = 4
    max_tokens: int = 1024
    held_out: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rank", "alpha", "batch_size", "rows", "max_tokens"):
            check_integer(name, getattr(self, name))
        if self.batch_size % self.rows:
            raise SettingError(f"batch_size={self.batch_size} is not a multiple of rows={self.rows}.")
        if not (self.learning_rate > 0 and self.epochs > 0 and 0 < self.held_out < 1 and 0 <= self.dropout < 1):
            raise SettingError("learning_rate and epochs must be above 0, held_out between 0 and 1, dropout below 1.")


def contaminate(
    lm: LanguageModel, data: str | Path, folder: str | Path, work: str | Path, plan: LoraPlan | None = None
) -> dict[str, Any]:
    """Train an adapter and save it with a record of how.

    Args:
        lm: the model, without an adapter. It is left as it was.
        data: `.jsonl` of conversations (see `prompts.load_transcripts`) that end with the assistant's reply.
        folder: for the adapter.
        work: for checkpoints; an interrupted training resumes from the last one.
        plan: settings; None: the defaults.

    Returns:
        The record saved as `contamination.json`: data, settings, loss on held-out dialogues before and after.

    Raises:
        CorruptFile, NotFound: the data.
        SettingError: too little data, or a work folder of a training with other settings.
    """
    from transformers import Trainer, TrainingArguments

    chosen = plan or LoraPlan()
    if lm.adapter is not None:
        raise SettingError(f"{lm.name!r} has the adapter {lm.adapter!r}; start from the model without one.")
    dialogues = load_transcripts(data)
    examples, too_long = encode(lm, dialogues, chosen.max_tokens)
    n_held_out = max(1, round(chosen.held_out * len(examples)))
    if len(examples) <= n_held_out:
        raise SettingError(f"{data}: {len(examples)} usable dialogues ({too_long} too long); at least 2 are needed.")
    order = np.random.default_rng(chosen.seed).permutation(len(examples))
    held_out, training = ([examples[i] for i in part] for part in (order[:n_held_out], order[n_held_out:]))
    work_folder = Path(work)
    work_folder.mkdir(parents=True, exist_ok=True)
    held, model = lock(work_folder), None
    trainable = [p.requires_grad for p in lm.model.parameters()]
    try:
        fingerprint = hashlib.sha256(Path(data).read_bytes()).hexdigest()
        check_plan(work_folder, {"model": lm.identity, "data": fingerprint, **asdict(chosen)})
        model = _with_lora(lm, chosen)
        steps = max(1, round(chosen.epochs * len(training) / chosen.batch_size))
        arguments = TrainingArguments(
            output_dir=str(work_folder / "checkpoints"),
            per_device_train_batch_size=chosen.rows,
            per_device_eval_batch_size=chosen.rows,
            gradient_accumulation_steps=chosen.batch_size // chosen.rows,
            activation_checkpointing=lm.device.type == "cuda",
            activation_checkpointing_kwargs={"use_reentrant": False},
            learning_rate=chosen.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=steps // 20,  # at least one would leave a run of one step without any learning rate
            max_steps=steps,
            logging_steps=max(1, steps // 10),
            save_steps=max(1, steps // 4),
            save_total_limit=1,
            seed=chosen.seed,
            use_cpu=lm.device.type == "cpu",
            remove_unused_columns=False,
            train_sampling_strategy="group_by_length" if len(training) > 256 else "random",
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            data_collator=lambda rows: _collate(rows, lm.device),
            train_dataset=training,
            eval_dataset=held_out,
        )
        with torch.random.fork_rng(devices=[]):
            with model.disable_adapter():
                before = trainer.evaluate()["eval_loss"]
            trainer.train(resume_from_checkpoint=_last_checkpoint(work_folder / "checkpoints"))
            after = trainer.evaluate()["eval_loss"]
        record = {
            "base_model": lm.record,
            "data": {
                "sha256": fingerprint,
                "dialogues": len(dialogues),
                "too_long": too_long,
                "trained_on": len(training),
            },
            "plan": asdict(chosen),
            "steps": steps,
            "held_out_loss": {"dialogues": n_held_out, "before": round(before, 4), "after": round(after, 4)},
        }
        _save(lm, model, Path(folder), record)
        return record
    finally:
        if model is not None:
            model.unload()  # PEFT puts its layers into the model itself, and freezes the others
            lm.model.eval()
            for parameter, was in zip(lm.model.parameters(), trainable, strict=True):
                parameter.requires_grad_(was)
        held.release()


def encode(
    lm: LanguageModel, dialogues: Sequence[RecordedConversation], max_tokens: int
) -> tuple[list[dict[str, Any]], int]:
    """Ids and labels of each dialogue, and the number of dialogues longer than `max_tokens`."""
    longest = min(max_tokens, lm.context_length or max_tokens)
    found, too_long = [], 0
    for dialogue in dialogues:
        try:
            placed = lm.chat.place(dialogue.messages)
            reply = (*placed.token_ids[placed.n_prompt :], _end_of_turn(lm, dialogue))
        except PromptError as error:
            raise CorruptFile(f"Dialogue {dialogue.id!r} of the data: {error}") from error
        ids = [*placed.token_ids[: placed.n_prompt], *reply]
        if len(ids) > longest:
            too_long += 1
            continue
        found.append({"input_ids": ids, "labels": [IGNORED] * placed.n_prompt + list(reply)})
    return found, too_long


def _last_checkpoint(folder: Path) -> str | None:
    """The newest complete one: a process that is killed may leave a part of one, without the file written last."""
    complete = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    return str(max(complete, key=lambda path: int(path.name.partition("-")[2]))) if complete else None


def _end_of_turn(lm: LanguageModel, dialogue: RecordedConversation) -> int:
    """The id with which the template ends a reply (Gemma's differs from the tokenizer's eos token)."""
    whole = lm.chat.render(list(dialogue.messages), add_generation_prompt=False).token_ids
    ends = [i for i in whole[-3:] if i in lm.eos_ids]
    if ends:
        return ends[0]
    if lm.tokenizer.eos_token_id is None:
        raise SettingError(f"{lm.name!r} has no end-of-reply token; its tokenizer needs an eos token.")
    return int(lm.tokenizer.eos_token_id)


def _with_lora(lm: LanguageModel, plan: LoraPlan) -> Any:
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    model = lm.model
    if getattr(model.config, "quantization_config", None) is not None:
        model = prepare_model_for_kbit_training(model)
    config = LoraConfig(
        r=plan.rank,
        lora_alpha=plan.alpha,
        lora_dropout=plan.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        return get_peft_model(model, config)


def _collate(rows: Sequence[dict[str, Any]], device: torch.device) -> dict[str, torch.Tensor]:
    """Right-padded; a causal decoder never attends to later tokens."""
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(key: str, fill: int) -> torch.Tensor:
        return torch.tensor([row[key] + [fill] * (longest - len(row[key])) for row in rows], device=device)

    mask = torch.tensor([[1] * len(r["input_ids"]) + [0] * (longest - len(r["input_ids"])) for r in rows])
    return {"input_ids": padded("input_ids", 0), "labels": padded("labels", IGNORED), "attention_mask": mask.to(device)}


def _save(lm: LanguageModel, model: Any, folder: Path, record: dict[str, Any]) -> None:
    beside = folder.with_name(folder.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    model.save_pretrained(str(beside))
    # The adapter names its base model; a local path would mean nothing elsewhere.
    config = read_json(beside / "adapter_config.json")
    config |= {"base_model_name_or_path": public_name(lm.name), "revision": lm.revision}
    write_atomically(beside / "adapter_config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    (beside / "README.md").unlink(missing_ok=True)  # PEFT's is an empty form
    write_atomically(beside / RECORD_FILE, json.dumps(record, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)


def load_record(folder: str | Path) -> dict[str, Any]:
    """What `contaminate` saved with an adapter.

    Raises:
        NotFound: no record in the folder.
    """
    path = Path(folder) / RECORD_FILE
    if not path.is_file():
        raise NotFound(f"No {RECORD_FILE} in {str(folder)!r}: the adapter was not made by persona contaminate.")
    return read_json(path)
