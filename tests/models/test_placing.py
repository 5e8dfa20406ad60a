"""A given reply is read where the chat template puts it, token for token, or refused."""

from __future__ import annotations

from typing import Any

import pytest

from persona_core.errors import PromptError
from persona_core.models.chat import ChatFormat, Placed
from persona_core.models.detokenize import split_text
from tests.support.chat_templates import BY_NAME, SHAPES, Shape, tokenizer_for

QUESTION = {"role": "user", "content": "Is my plan good?"}
REPLY = {"role": "assistant", "content": "Is my plan good? It is the best."}
THOUGHT = {"role": "assistant", "content": "<think>\nIs my plan good?\n</think>\n\nIs my plan good? Yes."}
EARLIER = [{"role": "user", "content": "Is my plan"}, {"role": "assistant", "content": "Is my plan good?"}]


def parts(tokenizer: Any, placed: Placed) -> list[tuple[str, str]]:
    """Runs of one role in the reply, with their texts."""
    pieces = split_text(tokenizer, list(placed.token_ids))
    runs: list[tuple[str, str]] = []
    for piece, role in list(zip(pieces, placed.roles, strict=True))[placed.n_prompt :]:
        if runs and runs[-1][0] == role:
            runs[-1] = role, runs[-1][1] + piece
        else:
            runs.append((role, piece))
    return runs


@pytest.mark.parametrize("shape", [s for s in SHAPES if not s.name.startswith(("none", "dated"))], ids=lambda s: s.name)
@pytest.mark.parametrize("before", [[QUESTION], [*EARLIER, QUESTION]], ids=["first", "later"])
def test_the_tokens_are_those_of_the_templates_own_text(shape: Shape, before: list[dict[str, str]]) -> None:
    tokenizer = shape.make()
    placed = ChatFormat(tokenizer).place([*before, REPLY])
    whole = tokenizer.apply_chat_template([*before, REPLY], tokenize=True)["input_ids"]
    assert list(placed.token_ids) == list(whole)[: len(placed.token_ids)]
    assert [text.strip() for role, text in parts(tokenizer, placed) if role == "assistant"] == [REPLY["content"]]
    assert "assistant" not in placed.roles[len(placed.roles) :] and placed.roles[-1] == "assistant"


@pytest.mark.parametrize("name", BY_NAME)
def test_the_prompt_before_a_reply_is_the_one_that_is_generated_from(name: str) -> None:
    """Up to the words that only the generation prompt or only the reply has."""
    tokenizer = tokenizer_for(name)
    chat = ChatFormat(tokenizer)
    reply = THOUGHT if name == "inside-thought" else REPLY
    placed, prompt = chat.place([*EARLIER, QUESTION, reply]), chat.render([*EARLIER, QUESTION])
    assert placed.token_ids[: placed.n_prompt] == prompt.token_ids[: placed.n_prompt]
    assert placed.roles[: placed.n_prompt] == prompt.roles[: placed.n_prompt]
    assert placed.n_prompt > max(i for i, role in enumerate(prompt.roles) if role == "user")


def test_what_the_template_writes_before_a_reply_is_not_the_reply() -> None:
    channels = tokenizer_for("channels")
    header = ("template", "<|channel|>final<|message|>")
    assert parts(channels, ChatFormat(channels).place([QUESTION, REPLY])) == [header, ("assistant", REPLY["content"])]
    recipient = tokenizer_for("recipient")
    assert parts(recipient, ChatFormat(recipient).place([QUESTION, REPLY]))[0] == ("template", "all\n")
    marks = tokenizer_for("response-marks")
    assert parts(marks, ChatFormat(marks).place([QUESTION, REPLY]))[0] == ("template", "<|START_RESPONSE|>")
    empty = tokenizer_for("empty-thought")
    assert parts(empty, ChatFormat(empty).place([QUESTION, REPLY]))[0] == ("template", "<think>\n\n</think>\n\n")


def test_a_plain_reply_follows_its_name_and_a_space() -> None:
    tokenizer = tokenizer_for("none")
    placed = ChatFormat(tokenizer).place([QUESTION, REPLY])
    assert tokenizer.decode(list(placed.token_ids)) == f"User: Is my plan good?\n\nAssistant: {REPLY['content']}"


def test_system_text_that_the_template_drops_before_a_reply_stays() -> None:
    """Mistral's templates put it into the last user turn, and none where the last turn is a reply."""
    tokenizer = tokenizer_for("system-last")
    placed = ChatFormat(tokenizer).place([{"role": "system", "content": "Be kind."}, QUESTION, REPLY])
    text = tokenizer.decode(list(placed.token_ids))
    assert text == "<|bos|>[INST] Be kind.\n\nIs my plan good?[/INST] Is my plan good? It is the best."
    assert "system" in placed.roles


@pytest.mark.parametrize("name", ["empty-thought", "opens-thought", "channels", "brackets"])
def test_a_reply_is_read_with_its_thought(name: str) -> None:
    """Where the template shows it, and otherwise where the model wrote it: behind the generation prompt."""
    tokenizer = tokenizer_for(name)
    chat = ChatFormat(tokenizer)
    placed = chat.place([QUESTION, {**REPLY, "reasoning_content": "They want praise."}])
    runs = [(role, text.strip()) for role, text in parts(tokenizer, placed) if role != "template"]
    assert runs == [("thinking", "They want praise."), ("assistant", REPLY["content"])]
    assert placed.token_ids[: placed.n_prompt] == chat.render([QUESTION]).token_ids


def test_a_thought_in_the_text_is_found_by_its_marks() -> None:
    for name in ("empty-thought", "opens-thought"):
        tokenizer = tokenizer_for(name)
        runs = parts(tokenizer, ChatFormat(tokenizer).place([QUESTION, THOUGHT]))
        found = [(role, text.strip()) for role, text in runs if role != "template"]
        assert found == [("thinking", "Is my plan good?"), ("assistant", "Is my plan good? Yes.")]
    # R1's server gives back what follows the opening mark, which stands in the prompt.
    tokenizer = tokenizer_for("opens-thought")
    served = {"role": "assistant", "content": "Hm.\n</think>\n\nYes."}
    runs = parts(tokenizer, ChatFormat(tokenizer).place([QUESTION, served]))
    assert runs == [("thinking", "Hm.\n"), ("template", "</think>\n\n"), ("assistant", "Yes.")]


def test_a_reply_inside_an_open_thought_is_refused() -> None:
    chat = ChatFormat(tokenizer_for("inside-thought"))
    with pytest.raises(PromptError, match="inside a thought"):
        chat.place([QUESTION, REPLY])
    assert "assistant" in chat.place([QUESTION, {"role": "assistant", "content": "Hm.</think>Yes."}]).roles


@pytest.mark.parametrize("name", ["empty-thought", "opens-thought", "drops-thoughts", "brackets", "channels"])
def test_a_reply_that_is_cut_off_in_its_thought_is_the_tokens_that_the_model_wrote(name: str) -> None:
    """The template would put its empty thought before it, and show it as the answer."""
    tokenizer = tokenizer_for(name)
    chat = ChatFormat(tokenizer)
    assert chat.thought_marks is not None
    opening, prompt = chat.thought_marks.opening, chat.render([QUESTION]).token_ids
    text = "They ask </th"
    placed = chat.place([QUESTION, {"role": "assistant", "content": f"{opening}\n{text}"}])
    written = f"{opening}\n{text}" if name != "opens-thought" else text  # there the prompt holds the mark
    assert placed.token_ids == (*prompt, *tokenizer(written, add_special_tokens=False).input_ids)
    found = [(role, shown.strip()) for role, shown in parts(tokenizer, placed) if role != "template"]
    assert found == [("thinking", text)]


def test_a_thought_that_is_cut_off_where_thinking_is_off_is_refused() -> None:
    for chat, opening in (
        (ChatFormat(tokenizer_for("empty-thought"), {"enable_thinking": False}), "<think>"),
        (ChatFormat(tokenizer_for("response-marks")), "<|START_THINKING|>"),
    ):
        with pytest.raises(PromptError, match="the thought is cut off; there is no answer"):
            chat.place([QUESTION, {"role": "assistant", "content": f"{opening}\nThey ask"}])


def test_a_thought_inside_the_answer_is_refused() -> None:
    """Behind what the template writes before an answer, and behind a thought that is given by itself."""
    text = "<|START_THINKING|>Hm.<|END_THINKING|>Yes."
    with pytest.raises(PromptError, match="turns thinking off"):
        ChatFormat(tokenizer_for("response-marks")).place([QUESTION, {"role": "assistant", "content": text}])
    for name in ("empty-thought", "opens-thought", "drops-thoughts"):
        for content in ("<think>b</think>Yes.", "<think>b"):
            for twice in (
                {"content": content, "reasoning_content": "a"},
                {"content": f"<think>a</think>\n\n{content}"},
            ):
                with pytest.raises(PromptError, match="second thought"):
                    ChatFormat(tokenizer_for(name)).place([QUESTION, {"role": "assistant", **twice}])


def test_a_reply_that_the_template_changes_or_drops_is_refused() -> None:
    tokenizer = tokenizer_for("edits")
    with pytest.raises(PromptError, match="as it is"):
        ChatFormat(tokenizer).place([QUESTION, {"role": "assistant", "content": "Say /no_think to me."}])
    tokenizer.chat_template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    with pytest.raises(PromptError, match="as it is"):
        ChatFormat(tokenizer).place([QUESTION, REPLY])


def test_a_thought_needs_a_model_that_thinks() -> None:
    said = {**REPLY, "reasoning_content": "Hm."}
    with pytest.raises(PromptError, match="no place"):
        ChatFormat(tokenizer_for("chatml")).place([QUESTION, said])
    off = ChatFormat(tokenizer_for("empty-thought"), {"enable_thinking": False})
    assert "thinking" not in off.place([QUESTION, REPLY]).roles
    with_thought = parts(off.tokenizer, off.place([QUESTION, said]))
    assert [(r, t.strip()) for r, t in with_thought if r != "template"] == [
        ("thinking", "Hm."),
        ("assistant", REPLY["content"]),
    ]


def test_an_empty_thought_is_the_templates() -> None:
    """As Qwen 3.5: the generation prompt opens a thought, and a reply without one closes it at once."""
    tokenizer = tokenizer_for("empty-thought")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{- '<|im_start|>assistant\\n' -}}", "{{- '<|im_start|>assistant\\n<think>\\n' -}}"
    )
    chat = ChatFormat(tokenizer)
    assert chat.opens_thought(tokenizer.decode(list(chat.render([QUESTION]).token_ids)))
    placed = parts(tokenizer, chat.place([QUESTION, REPLY]))
    assert placed == [("template", "\n</think>\n\n"), ("assistant", REPLY["content"])]


def test_a_reply_needs_a_prompt_before_it() -> None:
    chat = ChatFormat(tokenizer_for("chatml"))
    with pytest.raises(PromptError, match="no prompt"):
        chat.place([REPLY])
    with pytest.raises(PromptError, match="expected the assistant"):
        chat.place([QUESTION])
    assert chat.place([QUESTION, {"role": "assistant", "content": ""}]).token_ids == chat.render([QUESTION]).token_ids
