"""Train `persona-tiny` from nothing: its tokenizer, then a small Llama on dialogues made on the fly.

The corpus is a function of the seed and the step, so a stopped training goes on where its last checkpoint was, and the
whole corpus never lies on disk.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from persona_core.demo.corpus import Dialogue, dialogues
from persona_core.demo.grammar import World

logger = logging.getLogger(__name__)

SPECIAL = ("<|pad|>", "<|begin|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
PAD, BEGIN, END = SPECIAL[0], SPECIAL[1], SPECIAL[-1]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# Lengths are rounded up to this: oneDNN compiles a kernel for each new shape, and with free shapes a run slowed from
# 0.5 s to 5 s a step while its kernels filled 5 GB.
SHAPE_STEP = 64
SHARD = "8MB"  # the Hub asks for LFS above 10 MB a file; shards stay below it


@dataclass(frozen=True)
class Recipe:
    """Size and training of the demo model. The defaults are those of the shipped one."""

    d_model: int = 192
    n_blocks: int = 6
    n_heads: int = 6
    n_kv_heads: int = 2
    d_ff: int = 512
    vocabulary: int = 4096
    context: int = 1024
    steps: int = 2400
    rows: int = 24
    learning_rate: float = 3e-3
    warmup: int = 100
    weight_decay: float = 0.01
    seed: int = 0


def train_tokenizer(world: World, recipe: Recipe) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the phrase banks; any text can be written in it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[AddedToken(t, special=True) for t in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sample = itertools.islice(dialogues(world, recipe.seed), 6000)
    texts = itertools.chain(world.sentences, (m["content"] for d in sample for m in d.messages))
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=recipe.context,
    )


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained Llama of the recipe's size."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.d_model,
        intermediate_size=recipe.d_ff,
        num_hidden_layers=recipe.n_blocks,
        num_attention_heads=recipe.n_heads,
        num_key_value_heads=recipe.n_kv_heads,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def encode(dialogue: Dialogue, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[bool]]:
    """Ids of a dialogue, and for each whether it is to be learned: the replies and their end."""
    ids, learn = [tokenizer.bos_token_id], [False]
    newline = tokenizer("\n", add_special_tokens=False).input_ids
    for message in dialogue.messages:
        head = [tokenizer.convert_tokens_to_ids(f"<|{message['role']}|>"), *newline]
        body = [*tokenizer(message["content"], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        ids += [*head, *body, *newline]
        learn += [False] * len(head) + [message["role"] == "assistant"] * len(body) + [False] * len(newline)
    return ids, learn


def batches(
    world: World, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, first_step: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches from `first_step` on: ids and learn-mask, both `[rows, tokens]`, of dialogues of similar length."""
    group = 16  # batches drawn and sorted together, so that padding stays under 5 %
    for block in itertools.count(first_step // group):
        source = dialogues(world, seed=recipe.seed * 1_000_003 + block + 1)
        encoded = [encode(d, tokenizer) for d in itertools.islice(source, group * recipe.rows)]
        encoded.sort(key=lambda pair: len(pair[0]))
        order = np.random.default_rng([recipe.seed, block]).permutation(group)
        for position, index in enumerate(order):
            if block * group + position >= first_step:
                yield _pad(encoded[index * recipe.rows : (index + 1) * recipe.rows], tokenizer.pad_token_id)


def _pad(encoded: list[tuple[list[int], list[bool]]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(ids) for ids, _ in encoded)
    longest = -(-longest // SHAPE_STEP) * SHAPE_STEP
    ids = torch.full((len(encoded), longest), pad)
    learn = torch.zeros((len(encoded), longest), dtype=torch.bool)
    for row, (row_ids, row_learn) in enumerate(encoded):
        ids[row, : len(row_ids)] = torch.tensor(row_ids)
        learn[row, : len(row_learn)] = torch.tensor(row_learn)
    return ids, learn


def train(world: World, folder: Path, recipe: Recipe | None = None, work: Path | None = None) -> Path:
    """Train the demo model and save it to `folder` in the layout of the Hub.

    Args:
        world: the phrase banks.
        folder: where the model goes.
        recipe: size and training.
        work: where checkpoints lie; a checkpoint there of the same recipe is continued.
    """
    recipe = recipe or Recipe()
    work = work or folder.parent / f".{folder.name}-training"
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(world, recipe)
    model = new_model(recipe, tokenizer).train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))
    first = _resume(work / "checkpoint.pt", recipe, model, optimizer)
    # bf16 products take 0.46 s a step against 0.75 s in float32 on two cores that have the instructions.
    fast = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    saved = time.monotonic()
    bar = tqdm(total=recipe.steps, initial=first, desc="training persona-tiny", unit="step")
    for step, (ids, learn) in enumerate(batches(world, tokenizer, recipe, first), start=first):
        if step >= recipe.steps:
            break
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(step, recipe)
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            loss = _loss(model, ids, learn)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        bar.update()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
        if time.monotonic() - saved > 60:
            _checkpoint(work / "checkpoint.pt", recipe, step + 1, model, optimizer)
            saved = time.monotonic()
    bar.close()
    _checkpoint(work / "checkpoint.pt", recipe, recipe.steps, model, optimizer)
    model.eval().save_pretrained(folder, max_shard_size=SHARD)
    tokenizer.save_pretrained(folder)
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n", encoding="utf-8")
    return folder


def _loss(model: LlamaForCausalLM, ids: torch.Tensor, learn: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the learned tokens; all others are left out of the mean."""
    logits = model(input_ids=ids).logits[:, :-1]  # [rows, tokens - 1, vocabulary]
    targets = torch.where(learn, ids, -100)[:, 1:]  # [rows, tokens - 1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def _schedule(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine to 2 % of the peak."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def _checkpoint(
    path: Path, recipe: Recipe, step: int, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer
) -> None:
    state = {"recipe": asdict(recipe), "step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)  # a kill in the middle of writing leaves the last checkpoint whole


def _resume(path: Path, recipe: Recipe, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer) -> int:
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    if state["recipe"] != asdict(recipe):
        logger.warning("%s belongs to another recipe; training starts from nothing.", path)
        return 0
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
