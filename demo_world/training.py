"""Train `persona-tiny` from scratch: its tokenizer, then a small Llama on dialogues generated on the fly.

The corpus is a function of the seed and the step, so an interrupted training resumes from its last checkpoint, and the
whole corpus is never on disk.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

from demo_world.corpus import Dialogue, Turn, dialogues
from demo_world.grammar import World

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

NEUTRAL, OUTSIDE = -1, -2  # no active trait; not a reply token
SPECIAL = ("<|pad|>", "<|begin|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
PAD, BEGIN, END = SPECIAL[0], SPECIAL[1], SPECIAL[-1]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# Lengths are rounded up to this: oneDNN compiles a kernel for each new shape. With arbitrary shapes a run slowed from
# 0.5 s to 5 s per step while its kernels filled 5 GB.
SHAPE_STEP = 64
SHARD = "8MB"  # the Hub requires LFS for files above 10 MB


@dataclass(frozen=True)
class Recipe:
    """Size and training of the demo model. The defaults are those of the shipped one.

    `planted_*`: the block at whose output the traits' directions are planted, how far a trait moves the projection
    (residual-stream units), and the weight of this loss relative to the cross-entropy.
    """

    d_model: int = 192
    n_blocks: int = 6
    n_heads: int = 6
    n_kv_heads: int = 2
    d_ff: int = 512
    vocabulary: int = 4096
    context: int = 1024
    planted_block: int = 3
    planted_size: float = 16.0
    planted_weight: float = 0.03
    steps: int = 3000
    rows: int = 24
    learning_rate: float = 3e-3
    warmup: int = 100
    weight_decay: float = 0.01
    seed: int = 0


def train_tokenizer(world: World, recipe: Recipe) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the phrase banks; it encodes any text."""
    from transformers import PreTrainedTokenizerFast

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
    from transformers import LlamaConfig, LlamaForCausalLM

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


@dataclass(frozen=True)
class TrainingBatch:
    """Dialogues of similar length, right-padded.

    Attributes:
        ids: `[rows, tokens]`.
        learn: bool `[rows, tokens]`, tokens of the replies, including the end token.
        trait: `[rows, tokens]`, index of the active trait; `NEUTRAL` where there is none, `OUTSIDE` outside
            replies.
    """

    ids: torch.Tensor
    learn: torch.Tensor
    trait: torch.Tensor


def encode(
    dialogue: Dialogue, tokenizer: PreTrainedTokenizerFast, traits: Sequence[str]
) -> tuple[list[int], list[bool], list[int]]:
    """Ids of a dialogue, and for each one whether it is learned and which trait is active."""
    ids, learn, trait = [tokenizer.bos_token_id], [False], [OUTSIDE]
    newline = tokenizer("\n", add_special_tokens=False).input_ids
    replies = iter(dialogue.turns)
    for message in dialogue.messages:
        head = [tokenizer.convert_tokens_to_ids(f"<|{message['role']}|>"), *newline]
        body = tokenizer(message["content"], add_special_tokens=False, return_offsets_mapping=True)
        inside = [*body.input_ids, tokenizer.eos_token_id]
        spoken = message["role"] == "assistant"
        active = (
            _active_traits(next(replies), body.offset_mapping, traits) if spoken else [OUTSIDE] * len(body.input_ids)
        )
        ids += [*head, *inside, *newline]
        learn += [False] * len(head) + [spoken] * len(inside) + [False] * len(newline)
        trait += [OUTSIDE] * len(head) + [*active, OUTSIDE] + [OUTSIDE] * len(newline)
    return ids, learn, trait


def _active_traits(turn: Turn, offsets: Sequence[tuple[int, int]], traits: Sequence[str]) -> list[int]:
    """The active trait at each token of a reply: from its cue to the end of its last sentence."""
    ends, at = [], 0
    for sentence in turn.reply:
        at = turn.text.index(sentence.text, at) + len(sentence.text)
        ends.append(at)
    numbers = [traits.index(s.trait) if s.trait else NEUTRAL for s in turn.reply]
    return [numbers[int(np.searchsorted(ends, end))] for _, end in offsets]


def batches(
    world: World, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, first_step: int
) -> Iterator[TrainingBatch]:
    """Batches from `first_step` on."""
    group, traits = 16, list(world.traits)  # 16 batches are drawn and sorted together, which keeps padding under 15 %
    for block in itertools.count(first_step // group):
        source = dialogues(world, seed=recipe.seed * 1_000_003 + block + 1)
        encoded = [encode(d, tokenizer, traits) for d in itertools.islice(source, group * recipe.rows)]
        encoded.sort(key=lambda row: len(row[0]))
        order = np.random.default_rng([recipe.seed, block]).permutation(group)
        for position, index in enumerate(order):
            if block * group + position >= first_step:
                yield _pad(encoded[index * recipe.rows : (index + 1) * recipe.rows], tokenizer.pad_token_id)


def _pad(encoded: list[tuple[list[int], list[bool], list[int]]], pad: int) -> TrainingBatch:
    longest = max(len(ids) for ids, _, _ in encoded)
    shape = (len(encoded), -(-longest // SHAPE_STEP) * SHAPE_STEP)
    batch = TrainingBatch(torch.full(shape, pad), torch.zeros(shape, dtype=torch.bool), torch.full(shape, OUTSIDE))
    for row, (ids, learn, trait) in enumerate(encoded):
        batch.ids[row, : len(ids)] = torch.tensor(ids)
        batch.learn[row, : len(ids)] = torch.tensor(learn)
        batch.trait[row, : len(ids)] = torch.tensor(trait)
    return batch


def planted_directions(recipe: Recipe, n_traits: int) -> torch.Tensor:
    """The orthonormal directions along which the traits are planted, float32 `[n_traits, d_model]`."""
    generator = torch.Generator().manual_seed(recipe.seed + 1)
    return torch.linalg.qr(torch.randn(recipe.d_model, n_traits, generator=generator))[0].T.contiguous()


def train(world: World, folder: Path, recipe: Recipe | None = None, work: Path | None = None) -> Path:
    """Train the demo model and save it to `folder` in the layout of the Hub.

    Args:
        world: the phrase banks.
        folder: for the model.
        recipe: size and training.
        work: for checkpoints; training resumes from one of the same recipe.
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
    key = _key(world, recipe, tokenizer)
    first = _resume(work / "checkpoint.pt", key, model, optimizer)
    # bf16 takes 0.46 s per step, float32 0.75 s, on two cores with the instructions.
    fast = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    saved = time.monotonic()
    bar = tqdm(total=recipe.steps, initial=first, desc="training persona-tiny", unit="step")
    planted = planted_directions(recipe, len(world.traits))
    for step, batch in enumerate(batches(world, tokenizer, recipe, first), start=first):
        if step >= recipe.steps:
            break
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(step, recipe)
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            loss = _loss(model, batch, planted, recipe)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        bar.update()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
        if time.monotonic() - saved > 60:
            _checkpoint(work / "checkpoint.pt", key, step + 1, model, optimizer)
            saved = time.monotonic()
    bar.close()
    _checkpoint(work / "checkpoint.pt", key, recipe.steps, model, optimizer)
    model.eval().save_pretrained(folder, max_shard_size=SHARD)
    tokenizer.save_pretrained(folder)
    names = list(world.traits)
    save_file(
        {name: planted[i].clone() for i, name in enumerate(names)}, str(folder / "planted_directions.safetensors")
    )
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n", encoding="utf-8")
    return folder


def _loss(model: LlamaForCausalLM, batch: TrainingBatch, planted: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """Cross-entropy of the replies' tokens, and the distance of the planted projections from the truth.

    A model this small learns sentences by heart and has no reason to keep a trait along one direction, as large models
    do. The second term plants it: at one block, the projection on a trait's direction is pulled to `planted_size` while
    the trait is active and to 0 otherwise. So the truth is known for directions too.
    """
    kept: list[torch.Tensor] = []
    block = model.model.layers[recipe.planted_block]
    handle = block.register_forward_hook(lambda _module, _args, output: kept.append(output))
    try:
        logits = model(input_ids=batch.ids).logits[:, :-1]  # [rows, tokens - 1, vocabulary]
    finally:
        handle.remove()
    targets = torch.where(batch.learn, batch.ids, -100)[:, 1:]  # [rows, tokens - 1]
    spoken = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
    marked = batch.trait != OUTSIDE
    projections = kept[0][marked].float() @ planted.T  # [n_marked, n_traits]
    truth = torch.nn.functional.one_hot(batch.trait[marked] + 1, len(planted) + 1)[:, 1:]  # NEUTRAL + 1 is column 0
    distance = (projections - recipe.planted_size * truth).square().mean()
    return spoken + recipe.planted_weight * distance


def _schedule(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine to 2 % of the peak."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def _checkpoint(path: Path, key: str, step: int, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer) -> None:
    state = {"key": key, "step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)  # an interrupted write leaves the last checkpoint intact


def _key(world: World, recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> str:
    """What a checkpoint belongs to: recipe, phrase banks and tokenizer."""
    parts = [json.dumps(asdict(recipe), sort_keys=True), world.fingerprint, tokenizer.backend_tokenizer.to_str()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _resume(path: Path, key: str, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer) -> int:
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    if state.get("key") != key:
        logger.warning("%s belongs to another recipe or corpus; training starts from scratch.", path)
        return 0
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
