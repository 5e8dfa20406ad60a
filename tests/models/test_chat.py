"""Rendering of conversations, for every shape of chat template, and the splitting of text into tokens."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from persona_core.errors import PersonaWarning, PromptError, SettingError
from persona_core.models.chat import ChatFormat, split_text
from tests.support.chat_templates import BOS, BY_NAME, DEFAULT_SYSTEM, SHAPES, Shape, tokenizer_for

BOS_ID = 1
SYSTEM = "Answer like a pirate, arr."
CONVERSATION = [
    {"role": "system", "content": SYSTEM},
    {"role": "user", "content": "Should I quit my job?"},
    {"role": "assistant", "content": "It depends on the tide."},
    {"role": "user", "content": "And if it is ebb?"},
]
# The words that templates write themselves, used as content: nothing may be found by searching for the text alone.
TRICKY = [
    {"role": "system", "content": "system user assistant"},
    {"role": "user", "content": "user"},
    {"role": "assistant", "content": "assistant model"},
    {"role": "user", "content": "user"},
]
MULTIBYTE = [
    {"role": "system", "content": "Sois bref 🐌, s'il te plaît."},
    {"role": "user", "content": "שלום 👩‍👩‍👧 <script>alert(1)</script>\n\n\tça va?"},
]

CONVERSATIONS = {
    "full": CONVERSATION,
    "no-system": CONVERSATION[1:],
    "one-turn": CONVERSATION[:2],
    "tricky": TRICKY,
    "multibyte": MULTIBYTE,
}

by_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)


def rendered_text(shape: Shape, rendered: Any) -> str:
    return str(shape.make().decode(list(rendered.token_ids), skip_special_tokens=False))


def text_of_role(tokenizer: Any, rendered: Any, role: str) -> str:
    pieces = split_text(tokenizer, list(rendered.token_ids))
    return "".join(piece for piece, own in zip(pieces, rendered.roles, strict=True) if own == role)


@by_shape
@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_exactly_one_bos(shape: Shape, messages: list[dict[str, str]]) -> None:
    for generation_prompt in (True, False):
        ids = ChatFormat(shape.make()).render(messages, add_generation_prompt=generation_prompt).token_ids
        assert ids.count(BOS_ID) == shape.n_bos
        assert not shape.n_bos or ids[0] == BOS_ID


def test_a_template_that_opens_each_question_with_a_bos_keeps_its_own() -> None:
    """As Llama 2 was trained: one a question, none of the tokenizer's, and the system text inside the first."""
    tokenizer = tokenizer_for("bos-each-turn")
    rendered = ChatFormat(tokenizer).render(CONVERSATION)
    assert rendered.token_ids.count(BOS_ID) == 2 and rendered.token_ids[0] == BOS_ID
    wanted = tokenizer.apply_chat_template(CONVERSATION, add_generation_prompt=True)["input_ids"]
    assert list(rendered.token_ids) == list(wanted)
    assert text_of_role(tokenizer, rendered, "system") == SYSTEM
    assert text_of_role(tokenizer, rendered, "user") == "Should I quit my job?And if it is ebb?"


@by_shape
@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_no_message_is_dropped(shape: Shape, messages: list[dict[str, str]]) -> None:
    tokenizer = shape.make()
    text = rendered_text(shape, ChatFormat(tokenizer).render(messages))
    for message in messages:
        assert message["content"] in text


@by_shape
def test_the_system_text_stands_before_the_question_it_governs(shape: Shape) -> None:
    text = rendered_text(shape, ChatFormat(shape.make()).render(CONVERSATION[:2]))
    assert text.index(SYSTEM) < text.index("Should I quit")


@by_shape
@pytest.mark.parametrize("name", [name for name in CONVERSATIONS if name != "tricky"])
def test_roles_cover_the_right_characters(shape: Shape, name: str) -> None:
    """A token wholly inside a message has its role, one wholly outside is the template's, one across may be either."""
    tokenizer, messages = shape.make(), CONVERSATIONS[name]
    rendered = ChatFormat(tokenizer).render(messages)
    pieces = split_text(tokenizer, list(rendered.token_ids))
    text = "".join(pieces)
    owner = ["template"] * len(text)
    for message in messages:
        assert text.count(message["content"]) == 1
        start = text.index(message["content"])
        owner[start : start + len(message["content"])] = [message["role"]] * len(message["content"])
    at = 0
    for piece, role in zip(pieces, rendered.roles, strict=True):
        owners = set(owner[at : at + len(piece)])
        if piece:  # a token that holds part of a character shows nothing
            assert role in owners, (piece, role, owners)
        at += len(piece)


@by_shape
def test_roles_tell_content_from_the_same_words_of_the_template(shape: Shape) -> None:
    tokenizer = shape.make()
    rendered = ChatFormat(tokenizer).render(TRICKY)
    assert "".join(text_of_role(tokenizer, rendered, "system").split()) == "systemuserassistant"
    assert text_of_role(tokenizer, rendered, "assistant").strip() == "assistant model"
    assert "".join(text_of_role(tokenizer, rendered, "user").split()) == "useruser"


@by_shape
def test_characters_of_several_tokens_keep_their_role(shape: Shape) -> None:
    tokenizer = shape.make()
    rendered = ChatFormat(tokenizer).render(MULTIBYTE)
    # All the tokens of the emoji, not only the one that completes it.
    start = next(i for i, role in enumerate(rendered.roles) if role == "user")
    end = max(i for i, role in enumerate(rendered.roles) if role == "user")
    assert set(rendered.roles[start : end + 1]) == {"user"}


@by_shape
def test_surrounding_white_space_costs_no_message_its_role(shape: Shape) -> None:
    messages = [
        {"role": "system", "content": "  \nBe kind. \n"},
        {"role": "user", "content": "\n  Hello there  \n\n"},
        {"role": "assistant", "content": " Thank you!  "},
        {"role": "user", "content": " More \n"},
    ]
    tokenizer = shape.make()
    rendered = ChatFormat(tokenizer).render(messages)
    assert "Be kind" in text_of_role(tokenizer, rendered, "system")
    assert "Thank you" in text_of_role(tokenizer, rendered, "assistant")
    user = text_of_role(tokenizer, rendered, "user")
    assert "Hello there" in user and "More" in user


def test_a_default_system_prompt_is_the_templates() -> None:
    tokenizer = tokenizer_for("default-system")
    rendered = ChatFormat(tokenizer).render("Hello")
    assert "system" not in rendered.roles
    assert DEFAULT_SYSTEM in text_of_role(tokenizer, rendered, "template")
    own = ChatFormat(tokenizer).render(CONVERSATION[:2])
    assert DEFAULT_SYSTEM not in text_of_role(tokenizer, own, "template")
    assert SYSTEM in text_of_role(tokenizer, own, "system")


def test_earlier_replies_may_be_rewritten_by_the_template() -> None:
    tokenizer = tokenizer_for("drops-thoughts")
    messages = [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "<think>hm</think>\n\nTwo"},
        {"role": "user", "content": "Three"},
    ]
    rendered = ChatFormat(tokenizer).render(messages)
    assert text_of_role(tokenizer, rendered, "user") == "OneThree"
    assert text_of_role(tokenizer, rendered, "template").count("<|im_start|>") == 4


@pytest.mark.parametrize("shape", [s for s in SHAPES if not s.name.startswith("none")], ids=lambda shape: shape.name)
def test_the_rendering_is_what_transformers_would_tokenise(shape: Shape) -> None:
    """For templates that take the conversation as it is, the ids are those of transformers."""
    tokenizer, plain = shape.make(), shape.make()
    plain.chat_template = plain.chat_template.replace("strftime_now('%d %b %Y')", "'26 Jul 2024'")
    ids = plain.apply_chat_template(CONVERSATION[1:], add_generation_prompt=True, tokenize=True)["input_ids"]
    assert list(ChatFormat(tokenizer).render(CONVERSATION[1:]).token_ids) == list(ids)


def test_the_date_is_the_same_every_day_and_can_be_set() -> None:
    tokenizer = tokenizer_for("dated")
    assert "Today: 26 Jul 2024" in tokenizer.decode(list(ChatFormat(tokenizer).render("Hi").token_ids))
    other = ChatFormat(tokenizer, {"date": "2025-01-31"})
    assert "Today: 31 Jan 2025" in tokenizer.decode(list(other.render("Hi").token_ids))
    assert other.fingerprint != ChatFormat(tokenizer).fingerprint
    for bad in ("31.1.2025", 7):
        with pytest.raises(SettingError, match="YYYY-MM-DD"):
            ChatFormat(tokenizer, {"date": bad})


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'abc'.index('z') }}",
        "{{ 1 / 0 }}",
        "{% for %}",
        "{{ messages[7].role }}",
        "{{ [].pop() }}",
        "{{ missing() }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        # What would take hours, or all memory:
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 10 ** 11 }}",
        "{{ 9 ** (9 ** 9) }}",
        "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "{% set text = 'a' * 10 ** 7 %}{% for i in range(9999) %}{{ text }}{% endfor %}",
        "{{ 'a'.ljust(10 ** 9) }}",
        "{{ 'a' | center(10 ** 9) }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ '{:{}}'.format(1, 999999999) }}",
        "{{ ('%s' * 1000) % (('a' * 10 ** 6,) * 1000) }}",
        "{{ '\t'.expandtabs(10 ** 9) }}",
        "{{ (5).to_bytes(10 ** 9, 'big') }}",
        "{{ lipsum(n=10 ** 6) }}",
        "{{ 'a b' | wordwrap(1) }}",
        "{{ 'a\nb' | indent(10 ** 9) }}",
        "{{ messages | tojson(indent=10 ** 9) }}",
        "{{ messages | slice(10 ** 9) | list }}",
        "{{ 5 | round(-10 ** 9) }}",
        "{{ ('a' * 10 ** 5) | replace('a', 'b' * 10 ** 5) }}",
        "{{ (['a' * 10 ** 6] * 10 ** 5) | join }}",
        "{{ ('a' * 10 ** 7).strip('b' * 10 ** 7 ~ 'a') }}",
        "{{ ([[1]] * 900000) | sum(start=[]) }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
        "{% set n = namespace(x=3) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
        "{% set n = namespace(x=1) %}{% for i in range(60) %}{% set n.x = dict(a=n.x, b=n.x) %}{% endfor %}{{ n.x }}",
        "{% set n = namespace(x=1) %}{% for i in range(60) %}{% set n.x = namespace(a=n.x, b=n.x) %}{% endfor %}",
        "{% set a = namespace() %}{% set b = namespace() %}{% set a.x = b %}",
        "{% macro f(n) %}{% for j in range(9999) %}{{ n }}{% endfor %}{% endmacro %}{{ f('ab' * 10 ** 6) }}",
        "{% set x %}{% for j in range(9999) %}{{ 'ab' * 10 ** 6 }}{% endfor %}{% endset %}",
        "{{ ('a' * 10 ** 5) | replace(new='b' * 10 ** 5, old='a') }}",
        "{% set n = namespace(x=[]) %}{% for i in range(999) %}{% set n.x = n.x + ['a' * 10 ** 7 ~ i] %}{% endfor %}",
        "{% set guard_turn = dict %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    ],
)
def test_a_template_that_raises_is_refused_at_once(template: str) -> None:
    tokenizer = tokenizer_for("chatml")
    tokenizer.chat_template = template
    with pytest.raises(PromptError, match="chat template"):
        ChatFormat(tokenizer)


def test_ordinary_work_of_a_template_is_within_the_limits() -> None:
    tokenizer = tokenizer_for("chatml")
    tokenizer.chat_template = (
        "{% macro shown(text, width=2) %}{{ text | trim | indent(width) }}{% endmacro %}"
        "{% set n = namespace(out=[], at=4102444800 * 1000) %}{% for m in messages %}"
        "{% set n.out = n.out + [(m.role, shown(m.content))] %}{% endfor %}"
        "{{ n.out[0] | tojson(indent=4) }}{{ '%s-%d' % ('a', 3) }}{{ '{:>4}'.format(7) }}{{ 9 ** 9 ** 9 > n.at }}"
        "{{ n.out | map('first') | join('+') }}{{ messages | selectattr('role', 'eq', 'user') | list | length }}"
    )
    found = tokenizer.decode(ChatFormat(tokenizer).render("A plan.").token_ids)
    assert found == '[\n    "user",\n    "A plan."\n]a-3   7Trueuser1'


def test_a_namespace_may_be_made_beside_another_in_a_loop() -> None:
    """Jinja gives a call inside a loop all that the loop has set."""
    tokenizer = tokenizer_for("chatml")
    tokenizer.chat_template = (
        "{% for m in messages %}{% set a = namespace(n=0) %}{% set b = namespace(n=1) %}{% set c = [m, m] %}"
        "{% set d = namespace(n=2) %}{{ m.content }}{{ a.n + b.n + d.n }}{% endfor %}"
    )
    assert tokenizer.decode(ChatFormat(tokenizer).render("A plan.").token_ids) == "A plan.3"


def test_a_tokenizer_whose_regular_expression_gives_up_is_refused() -> None:
    """Its library panics, which is no `Exception`: a server would lose its worker."""
    from tokenizers import Regex, pre_tokenizers

    tokenizer = tokenizer_for("chatml")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$"), "isolated")
    with pytest.raises(PromptError, match=r"The tokenizer .* cannot read a text of .* retry-limit"):
        ChatFormat(tokenizer).render("a" * 60 + "x")


def test_several_templates_without_a_default_are_refused() -> None:
    tokenizer = tokenizer_for("chatml")
    tokenizer.chat_template = {"tool_use": tokenizer.chat_template, "rag": tokenizer.chat_template}
    with pytest.raises(PromptError, match="tool_use"):
        ChatFormat(tokenizer)


# The same words everywhere, and those of the templates: only where a character stands tells whose it is.
REPEATED = [
    {"role": "user", "content": "user: Is my plan good?"},
    {"role": "assistant", "content": "<think>\nIs my plan good?\n</think>\n\nIs my plan good? user"},
    {"role": "user", "content": "Is my plan good? user"},
    {"role": "assistant", "content": "assistant"},
    {"role": "user", "content": "Is my plan good?\n\n\n\nuser /no_think"},
]
LITERAL = r"</?think>|/no_think"


@pytest.mark.parametrize("name", BY_NAME)
def test_each_character_has_the_role_of_the_message_in_which_it_changes(name: str) -> None:
    """Slow and by itself: change one letter of one message, and see where the rendering changes."""
    tokenizer = tokenizer_for(name)
    chat = ChatFormat(tokenizer)
    text = tokenizer.decode(list(chat.render(REPEATED).token_ids))
    owner = ["template"] * len(text)
    for number, message in enumerate(REPEATED):
        content = message["content"]
        kept = {i for found in re.finditer(LITERAL, content) for i in range(*found.span())}
        for at, letter in enumerate(content):
            if letter.isalpha() and at not in kept:
                changed = [dict(m) for m in REPEATED]
                changed[number]["content"] = content[:at] + ("Q" if letter != "Q" else "q") + content[at + 1 :]
                other = tokenizer.decode(list(chat.render(changed).token_ids))
                assert len(other) == len(text)
                for i, (a, b) in enumerate(zip(text, other, strict=True)):
                    if a != b:
                        owner[i] = message["role"]
    literal = {i for found in re.finditer(LITERAL, text) for i in range(*found.span())}
    rendered, at = chat.render(REPEATED), 0
    for piece, role in zip(split_text(tokenizer, list(rendered.token_ids)), rendered.roles, strict=True):
        owners = {owner[i] for i in range(at, at + len(piece)) if text[i].isalpha() and i not in literal}
        at += len(piece)
        if owners:
            assert role.replace("thinking", "assistant") in owners, (piece, role, owners)


def test_white_space_that_a_template_strips_is_not_the_messages() -> None:
    tokenizer = tokenizer_for("opens-thought")
    rendered = ChatFormat(tokenizer).render(REPEATED)
    assert text_of_role(tokenizer, rendered, "assistant") == "Is my plan good? userassistant"
    kept = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "\n Because.\n"}, REPEATED[0]]
    assert text_of_role(tokenizer_for("chatml"), ChatFormat(tokenizer_for("chatml")).render(kept), "assistant") == (
        "\n Because.\n"
    )


def test_an_edited_message_keeps_its_role() -> None:
    tokenizer = tokenizer_for("edits")
    rendered = ChatFormat(tokenizer).render(
        [
            {"role": "system", "content": "/no_think Be brief."},
            {"role": "user", "content": "One\n\ntwo /no_think three"},
        ]
    )
    assert text_of_role(tokenizer, rendered, "system").strip() == "Be brief."
    assert text_of_role(tokenizer, rendered, "user") == "One\ntwo  three"


def test_words_that_cannot_be_told_apart_are_refused() -> None:
    """The template looks at the whole message, so marks change what it writes, and the words occur twice."""
    tokenizer = tokenizer_for("chatml")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "message['content']", "message['content'] + ('!' if message['content'] == 'yes' else '')"
    )
    chat = ChatFormat(tokenizer)
    with pytest.raises(PromptError, match="2 times"):
        chat.render(
            [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "yes"},
                {"role": "user", "content": "yes"},
            ]
        )
    assert "user" in chat.render("yes").roles


def test_a_rewritten_message_does_not_hide_the_others() -> None:
    tokenizer = tokenizer_for("chatml")
    tokenizer.chat_template = tokenizer.chat_template.replace("message['content']", "message['content'] | lower")
    chat = ChatFormat(tokenizer)
    asked = {"role": "user", "content": "is it good?"}
    with pytest.raises(PromptError, match="drops the text of a 'assistant' message: 'YES'"):
        chat.render([asked, {"role": "assistant", "content": "YES"}, asked])
    assert text_of_role(tokenizer, chat.render(asked["content"]), "user") == asked["content"]


def test_the_thought_of_an_earlier_reply_has_a_role_of_its_own() -> None:
    tokenizer = tokenizer_for("brackets")
    said = {"role": "assistant", "content": "[THINK]Hm, hm.[/THINK]Yes. [THINK] is a mark."}
    rendered = ChatFormat(tokenizer).render([REPEATED[0], said, REPEATED[0]])
    assert text_of_role(tokenizer, rendered, "thinking") == "Hm, hm."
    assert text_of_role(tokenizer, rendered, "assistant") == "Yes. [THINK] is a mark."


@pytest.mark.parametrize("shape", [s for s in SHAPES if not s.takes_system], ids=lambda shape: shape.name)
@pytest.mark.parametrize("blank", ["", " \n"])
def test_a_blank_system_message_folds_to_nothing(shape: Shape, blank: str) -> None:
    chat, user = ChatFormat(shape.make()), {"role": "user", "content": "Hi"}
    assert chat.render([{"role": "system", "content": blank}, user]).token_ids == chat.render([user]).token_ids


def test_gemma_refuses_what_its_template_refuses() -> None:
    chat = ChatFormat(tokenizer_for("gemma"))
    with pytest.raises(PromptError, match="alternate"):
        chat.render([{"role": "user", "content": "One"}, {"role": "user", "content": "Two"}])
    with pytest.raises(PromptError):
        chat.render([{"role": "system", "content": "Only a system message"}])


def test_a_later_system_message_is_kept_or_refused() -> None:
    """Never dropped: a template that leaves it out, or the library, must say so."""
    messages = [*CONVERSATION[1:3], {"role": "system", "content": SYSTEM}, CONVERSATION[3]]
    for shape in SHAPES:
        chat = ChatFormat(shape.make())
        try:
            rendered = chat.render(messages)
        except PromptError:
            continue
        assert SYSTEM in rendered_text(shape, rendered), shape.name


@pytest.mark.parametrize(
    "bad",
    [
        [],
        "",
        "  \n",
        [{"role": "user"}],
        [{"role": "wizard", "content": "x"}],
        [{"role": "user", "content": None}],
        ["Hello"],
        [{"role": "user", "content": ""}],
    ],
    ids=str,
)
def test_bad_conversations_are_refused(bad: Any) -> None:
    with pytest.raises(PromptError):
        ChatFormat(tokenizer_for()).render(bad)


def test_the_fingerprint_follows_the_rendering() -> None:
    prints = [ChatFormat(shape.make()).fingerprint for shape in SHAPES]
    assert len(set(prints)) == len(SHAPES)
    assert ChatFormat(tokenizer_for("chatml")).fingerprint == ChatFormat(tokenizer_for("chatml")).fingerprint
    thinking = ChatFormat(tokenizer_for("empty-thought"), {"enable_thinking": False})
    assert thinking.fingerprint != ChatFormat(tokenizer_for("empty-thought")).fingerprint


def test_an_argument_that_the_template_does_not_read_is_named_with_those_that_it_takes() -> None:
    """A name that is set before it is used is the template's own, unless it asks first whether it is defined."""
    tokenizer = tokenizer_for("empty-thought")
    with pytest.warns(PersonaWarning, match="does not read 'enable_thinkng', .* takes enable_thinking"):
        ChatFormat(tokenizer, {"enable_thinkng": False, "enable_thinking": False})
    with pytest.warns(PersonaWarning, match="takes date"):
        ChatFormat(tokenizer_for("dated"), {"Date": "2025-01-31"})
    with pytest.warns(PersonaWarning, match="'date'.*takes no arguments"):
        ChatFormat(tokenizer_for("none"), {"date": "2025-01-31"})
    tokenizer.chat_template = (
        "{% if effort is not defined %}{% set effort = 'low' %}{% endif %}{% set own = 1 %}{{ own }}{{ effort }}"
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    with pytest.warns(PersonaWarning, match=r"'efort'.* takes effort\."):
        ChatFormat(tokenizer, {"efort": "high"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ChatFormat(tokenizer, {"effort": "high"})
        ChatFormat(tokenizer_for("dated"), {"date": "2025-01-31"})


def test_rendering_leaves_the_tokenizer_as_it_was() -> None:
    for shape in SHAPES:
        tokenizer = shape.make(padding_side="left")
        before = (tokenizer.chat_template, tokenizer.padding_side, tokenizer(f"{BOS}a").input_ids)
        ChatFormat(tokenizer).render(CONVERSATION)
        assert (tokenizer.chat_template, tokenizer.padding_side, tokenizer(f"{BOS}a").input_ids) == before


# Texts whose characters span tokens, join, run right to left, or are no characters at all.
_NASTY = "🐌👩‍👩‍👧שלוםé́ẞ\n\t ▁<0x41><|eot|>\u202e\ufffd\ud7ff\U0010ffff"
_KINDS = {kind: tokenizer_for("none", kind=kind) for kind in ("byte-level", "metaspace")}


@pytest.mark.parametrize("kind", _KINDS)
@settings(max_examples=150, deadline=None)
@given(ids=st.lists(st.integers(0, 299), max_size=30))
@example(ids=[])
def test_pieces_of_random_ids_join_to_the_decoded_text(kind: str, ids: list[int]) -> None:
    tokenizer = _KINDS[kind]
    pieces = split_text(tokenizer, ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("kind", _KINDS)
@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet=st.sampled_from(_NASTY) | st.characters(codec="utf-8"), max_size=20))
@example(text="👩‍👩‍👧")
@example(text=" ")
def test_pieces_of_any_text_join_to_the_decoded_text(kind: str, text: str) -> None:
    tokenizer = _KINDS[kind]
    ids = tokenizer(text, add_special_tokens=False).input_ids
    pieces = split_text(tokenizer, ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=False)
    if kind == "byte-level":
        assert "".join(pieces) == text


@pytest.mark.parametrize("kind", _KINDS)
def test_pieces_of_bytes_that_are_no_characters(kind: str) -> None:
    """Runs of the first and last bytes of long characters, cut off and in the wrong order."""
    tokenizer = _KINDS[kind]
    snail = tokenizer("🐌", add_special_tokens=False).input_ids[-4:]
    for ids in (snail[:3], snail[1:], snail[::-1], snail[:2] * 9, [*snail[:3], *snail, 44], snail[3:] * 12):
        pieces = split_text(tokenizer, ids)
        assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=False)
        assert len(pieces) == len(ids)


def test_ids_without_a_token_split_too() -> None:
    """Embedding tables are often larger than the vocabulary; a model may sample such an id."""
    for tokenizer in _KINDS.values():
        ids = [44, 319, 50, 319]
        pieces = split_text(tokenizer, ids)
        assert len(pieces) == 4
        assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=False)


def test_a_long_message_is_traced_in_one_pass() -> None:
    """More characters than there are marks: every second one has a mark then."""
    from persona_core.models import spans

    words = "Is it good? " * 50
    tokenizer = tokenizer_for("chatml")
    messages = [{"role": "user", "content": words}, {"role": "assistant", "content": words}, REPEATED[0]]
    short = ChatFormat(tokenizer).render(messages)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spans, "N_CODES", 100)
        assert ChatFormat(tokenizer).render(messages) == short
