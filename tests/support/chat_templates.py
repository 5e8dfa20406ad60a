"""Small real tokenizers, trained in memory, with chat templates of every shape that the library has to render.

Two kinds of tokenizer: byte-level BPE (GPT-2, Llama 3, Qwen) and BPE over metaspace text with byte fallback
(Llama 2, Gemma, in the manner of SentencePiece). All put the padding token at id 0, BOS at 1 and EOS at 2, as
tests/support/families.py expects, and stay below its `VOCAB`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
DEFAULT_SYSTEM = "You are a helpful assistant."

_TRAINING_TEXT = [
    "The quick brown fox jumps over the lazy dog. Hello there, how are you today?",
    "You are a helpful assistant. Please answer the question in a few words.",
    "I think that this is the best way to do it, and the rest will follow.",
    "system user assistant model",
    "Thank you! Should I quit my job? It depends on what you want.",
] * 4


def _bos_processor() -> Any:
    return processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, 1)])


@cache
def _byte_level_json(specials: tuple[str, ...]) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[PAD, BOS, EOS, *specials],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TRAINING_TEXT, trainer)
    return str(tokenizer.to_str())


@cache
def _metaspace_json(specials: tuple[str, ...]) -> str:
    # As Llama 2: no pre-tokenizer; spaces become U+2581; one is put before the text and taken away in decoding.
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    named = [PAD, BOS, EOS, "<unk>", *specials]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=318, special_tokens=named + fallback, limit_alphabet=30, show_progress=False, max_token_length=8
    )
    tokenizer.train_from_iterator(_TRAINING_TEXT, trainer)
    # The trainer makes the byte tokens special; in SentencePiece files they are plain vocabulary.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in named]
    return json.dumps(state)


def make_tokenizer(
    template: str | None,
    specials: tuple[str, ...] = (),
    *,
    kind: str = "byte-level",
    adds_bos: bool = False,
    padding_side: str = "right",
    with_pad: bool = True,
) -> PreTrainedTokenizerFast:
    """A trained tokenizer of `kind` ("byte-level" or "metaspace") with the chat template `template`."""
    source = {"byte-level": _byte_level_json, "metaspace": _metaspace_json}[kind](specials)
    tokenizer = Tokenizer.from_str(source)
    if adds_bos:
        own = tokenizer.post_processor
        tokenizer.post_processor = _bos_processor() if own is None else processors.Sequence([own, _bos_processor()])
    names = {"bos_token": BOS, "eos_token": EOS} | ({"pad_token": PAD} if with_pad else {})
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side=padding_side,
        extra_special_tokens=list(specials),
        clean_up_tokenization_spaces=False,
        **names,
    )
    wrapped.chat_template = template
    return wrapped


CHATML = """{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""

# As Qwen 2.5: ChatML that adds a default system prompt.
DEFAULTS = (
    "{%- if messages[0]['role'] != 'system' -%}{{- '<|im_start|>system\\n"
    + DEFAULT_SYSTEM
    + "<|im_end|>\\n' -}}{%- endif -%}"
    + CHATML
)

# As Llama 3.1: BOS inside the template, contents trimmed, and a system header with a date, system prompt or not.
LLAMA3 = """{{- bos_token -}}
{%- if messages[0]['role'] == 'system' -%}
{%- set system = messages[0]['content'] | trim -%}{%- set rest = messages[1:] -%}
{%- else -%}{%- set system = '' -%}{%- set rest = messages -%}{%- endif -%}
{{- '<|head|>system<|tail|>\\n\\nToday Date: 26 Jul 2024\\n\\n' + system + '<|eot|>' -}}
{%- for message in rest -%}
{{- '<|head|>' + message['role'] + '<|tail|>\\n\\n' + message['content'] | trim + '<|eot|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|head|>assistant<|tail|>\\n\\n' -}}{%- endif -%}"""

# As Gemma 2: raises on a system role, wants strict alternation, trims contents, calls the assistant "model".
GEMMA = """{{- bos_token -}}
{%- if messages[0]['role'] == 'system' -%}{{- raise_exception('System role not supported') -}}{%- endif -%}
{%- for message in messages -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') -}}
{%- endif -%}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
{{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}"""

# As the first Mistral templates' many copies: a system message simply matches no branch.
IGNORES_SYSTEM = """{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{{- '[INST] ' + message['content'] + ' [/INST]' -}}
{%- elif message['role'] == 'assistant' -%}{{- ' ' + message['content'] + eos_token -}}
{%- endif -%}{%- endfor -%}"""

# As Mistral 0.3: the system text moves to the head of the last user turn.
SYSTEM_LAST = """{{- bos_token -}}
{%- if messages[0]['role'] == 'system' -%}
{%- set system = messages[0]['content'] + '\\n\\n' -%}{%- set rest = messages[1:] -%}
{%- else -%}{%- set system = '' -%}{%- set rest = messages -%}{%- endif -%}
{%- for message in rest -%}
{%- if message['role'] == 'user' -%}
{{- '[INST] ' + (system if loop.last else '') + message['content'] + '[/INST]' -}}
{%- else -%}{{- ' ' + message['content'] + eos_token -}}{%- endif -%}
{%- endfor -%}"""

# As Qwen 3: earlier replies lose their thoughts.
DROPS_THOUGHTS = """{%- for message in messages -%}
{%- set text = message['content'] -%}
{%- if message['role'] == 'assistant' and '</think>' in text -%}
{%- set text = text.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' + text + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""

# As Llama 3.2, Granite 3.3 and gpt-oss: asks the clock.
DATED = """{{- bos_token -}}Today: {{ strftime_now('%d %b %Y') }}
{% for message in messages -%}
{{- '<|head|>' + message['role'] + '<|tail|>' + message['content'] + '<|eot|>' -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|head|>assistant<|tail|>' -}}{%- endif -%}"""

# As DeepSeek R1's distills: earlier replies lose their thoughts, and the generation prompt opens one.
OPENS_THOUGHT = DROPS_THOUGHTS.replace(
    "{{- '<|im_start|>assistant\\n' -}}{%- endif -%}", "{{- '<|im_start|>assistant\\n<think>\\n' -}}{%- endif -%}"
)

# As Qwen 3: the last reply gets its thought back, an empty one if it has none.
EMPTY_THOUGHT = """{%- for message in messages -%}
{%- set text = message['content'] -%}{%- set thought = '' -%}
{%- if message.reasoning_content is defined -%}{%- set thought = message.reasoning_content -%}
{%- elif '</think>' in text -%}
{%- set thought = text.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}
{%- set text = text.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' and loop.last -%}{{- '<think>\\n' + thought + '\\n</think>\\n\\n' -}}{%- endif -%}
{{- text + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}
{%- if enable_thinking is defined and not enable_thinking -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}
{%- endif -%}"""

# As Nemotron: the last reply stands inside the thought that the template opens.
INSIDE_THOUGHT = """{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' and loop.last -%}{{- '<think>\\n' -}}{%- endif -%}
{{- message['content'].replace('/no_think', '').strip() + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n<think>\\n' -}}{%- endif -%}"""

# As SmolLM 3: a switch in the system text turns thinking off, and is taken out of it.
SWITCHED = """{%- set ns = namespace(thinks=true) -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' and '/no_think' in message['content'] -%}{%- set ns.thinks = false -%}{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' and message.reasoning_content is defined and loop.last -%}
{{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n' -}}{%- endif -%}
{{- (message['content'].replace('/no_think', '') if message['role'] == 'system' else message['content']).rstrip() -}}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}
{%- if not ns.thinks -%}{{- '<think>\\n\\n</think>\\n' -}}{%- endif -%}
{%- endif -%}"""

# As Llama 2: BOS before every question, and the system text in marks of its own inside the first one.
BOS_EACH_TURN = """{%- if messages[0]['role'] == 'system' -%}
{%- set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' -%}{%- set messages = messages[1:] -%}
{%- else -%}{%- set system = '' -%}{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{{- bos_token + '[INST] ' + ((system if loop.first else '') + message['content']) | trim + ' [/INST]' -}}
{%- else -%}{{- ' ' + message['content'] | trim + ' ' + eos_token -}}{%- endif -%}
{%- endfor -%}"""

# As the Alpaca and Vicuna templates that are written over several lines: the source's own indentation is text, and
# stands before a reply but not in the generation prompt.
INDENTED = """{{ bos_token }}
{% for message in messages %}
    {% if message['role'] == 'assistant' %}
    {{ '### Response:\\n' + message['content'] | trim + eos_token }}
    {% else %}
    {{ '### Instruction:\\n' + message['content'] | trim + '\\n\\n' }}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}
{{ '### Response:\\n' }}
{% endif %}"""

# As SmolLM 3 and LFM 2: marks for training stand around what the assistant writes.
TRAINED = CHATML.replace(
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}",
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['role'] == 'assistant' -%}{% generation %}{{- message['content'] + '<|im_end|>' -}}"
    "{% endgeneration %}{%- else -%}{{- message['content'] + '<|im_end|>' -}}{%- endif -%}{{- '\\n' -}}",
)

# As gpt-oss: a reply stands in a channel that the generation prompt does not name; thoughts have one of their own.
CHANNELS = """{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{%- if loop.last and message.thinking is defined -%}
{{- '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' -}}
{%- endif -%}
{{- '<|start|>assistant<|channel|>final<|message|>' + message['content'] + '<|end|>' -}}
{%- else -%}
{{- '<|start|>' + message['role'] + '<|message|>' + message['content'] + '<|end|>' -}}
{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start|>assistant' -}}{%- endif -%}"""

# As Functionary: a reply names its recipient first.
RECIPIENT = """{%- for message in messages -%}
{{- '<|head|>' + message['role'] + '<|tail|>' + ('>>>all\\n' if message['role'] == 'assistant' else '') -}}
{{- message['content'] + '<|eot|>' -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|head|>assistant<|tail|>>>>' -}}{%- endif -%}"""

# As Magistral: marks in brackets, named only where the template explains them.
BRACKETS = (
    """{{- '<|im_start|>system\\nThink first: [THINK]your thoughts[/THINK]Here, your answer.<|im_end|>\\n' -}}"""
    + CHATML
)

# As Command R7B: the prompt closes a thought, and a reply has marks that begin like the thought's.
RESPONSE_MARKS = """{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] -}}
{%- if message['role'] == 'assistant' -%}{{- '<|START_RESPONSE|>' + message['content'] + '<|END_RESPONSE|>' -}}
{%- else -%}{{- message['content'] -}}{%- endif -%}{{- '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant<|START_THINKING|><|END_THINKING|>' -}}{%- endif -%}"""

# Takes blank lines and a switch out of the messages.
EDITS = """{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{{- message['content'].replace('/no_think', '').replace('\\n\\n', '\\n') | trim -}}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""

_IM = ("<|im_start|>", "<|im_end|>")
_CHANNEL = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")
_THINK = ("<think>", "</think>")
_HEADERS = ("<|head|>", "<|tail|>", "<|eot|>")
_TURNS = ("<start_of_turn>", "<end_of_turn>")
_INST = ("[INST]", "[/INST]")


@dataclass(frozen=True)
class Shape:
    """One kind of chat template with a tokenizer that goes with it.

    `n_bos`: how many BOS a right rendering has; 0 where neither template nor tokenizer of that family uses one.
    `takes_system`: whether the template itself renders a system message.
    """

    name: str
    make: Callable[..., PreTrainedTokenizerFast]
    n_bos: int
    takes_system: bool = True


def _shape(name: str, template: str | None, specials: tuple[str, ...], n_bos: int, **kwargs: Any) -> Shape:
    takes_system = kwargs.pop("takes_system", True)

    def make(**more: Any) -> PreTrainedTokenizerFast:
        return make_tokenizer(template, specials, **(kwargs | more))

    return Shape(name, make, n_bos, takes_system)


SHAPES: tuple[Shape, ...] = (
    _shape("chatml", CHATML, _IM, 0),
    _shape("default-system", DEFAULTS, _IM, 0),
    _shape("drops-thoughts", DROPS_THOUGHTS, _IM, 0),
    _shape("llama3", LLAMA3, _HEADERS, 1, adds_bos=True),
    _shape("gemma", GEMMA, _TURNS, 1, adds_bos=True, kind="metaspace", takes_system=False),
    _shape("ignores-system", IGNORES_SYSTEM, _INST, 1, adds_bos=True, kind="metaspace", takes_system=False),
    _shape("system-last", SYSTEM_LAST, _INST, 1, adds_bos=True),
    _shape("dated", DATED, _HEADERS, 1, adds_bos=True),
    _shape("opens-thought", OPENS_THOUGHT, (*_IM, *_THINK), 0),
    _shape("empty-thought", EMPTY_THOUGHT, _IM, 0),
    _shape("channels", CHANNELS, _CHANNEL, 0),
    _shape("recipient", RECIPIENT, _HEADERS, 0),
    _shape("brackets", BRACKETS, _IM, 0),
    _shape("response-marks", RESPONSE_MARKS, _IM, 0),
    _shape("trained", TRAINED, _IM, 0),
    _shape("indented", INDENTED, (), 1, adds_bos=True),
    _shape("none", None, (), 0),
    _shape("none-adds-bos", None, (), 1, adds_bos=True, kind="metaspace"),
)
BY_NAME: dict[str, Shape] = {shape.name: shape for shape in SHAPES}
BY_NAME |= {  # they change the messages, or write a BOS before each of them
    "inside-thought": _shape("inside-thought", INSIDE_THOUGHT, _IM, 0),
    "edits": _shape("edits", EDITS, _IM, 0),
    "bos-each-turn": _shape("bos-each-turn", BOS_EACH_TURN, _INST, 2, adds_bos=True),
    "switched": _shape("switched", SWITCHED, _IM, 0),
}


def tokenizer_for(name: str = "llama3", **kwargs: Any) -> PreTrainedTokenizerFast:
    """The tokenizer of the shape called `name`: `tokenizer_for("chatml", padding_side="left")`."""
    return BY_NAME[name].make(**kwargs)
