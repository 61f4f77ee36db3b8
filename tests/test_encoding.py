"""Chats to tokens: tools reach the template, what it refuses or would leave out is one line."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from polydraft.encoding import check_chat, encode_chat, encode_text
from polydraft.errors import InputError
from tests.tiny import tiny_tokenizer

USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
WITH_TOOLS = (
    "{% if tools %}<bos>{{ tools[0].function.name }}<eos>{% endif %}"
    "{% for message in messages %}<bos>{{ message.role }}: {{ message.content or '' }}"
    "{% for call in message.tool_calls %}{{ call.function.name }}!{% endfor %}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant: {% endif %}"
)
STRICT = (
    "{% for message in messages %}{% if message.role not in ('user', 'assistant') %}"
    "{{ raise_exception('Only user and assistant.\nNo one else.') }}{% endif %}"
    "{{ message.content }}{% endfor %}"
)


def tokenizer(template: Any = WITH_TOOLS) -> PreTrainedTokenizerFast:
    made = tiny_tokenizer()
    made.chat_template = template
    return made


def text(row: dict[str, Any], *, reply: bool = False, template: Any = WITH_TOOLS) -> str:
    made = tokenizer(template)
    return str(made.decode(encode_chat(row, made, where="here", reply=reply)))


def refusal(row: dict[str, Any], template: Any = WITH_TOOLS) -> str:
    with pytest.raises(InputError) as error:
        encode_chat(row, tokenizer(template), where="FILE, line 3", reply=False)
    line = str(error.value)
    assert line.startswith("FILE, line 3: ")
    assert "\n" not in line
    return line


def test_tools_reach_the_template() -> None:
    plain = "<bos>user: hi<eos><bos>assistant: yo<eos>"
    assert text({"messages": [USER, ASSISTANT]}) == plain
    assert text({"messages": [USER, ASSISTANT], "tools": [TOOL]}) == "<bos>f<eos>" + plain
    for none in (None, []):
        assert text({"messages": [USER, ASSISTANT], "tools": none}) == plain


def test_the_template_for_tools_is_taken_among_several() -> None:
    several = {"default": "plain", "tool_use": WITH_TOOLS}
    assert text({"messages": [USER]}, template=several) == "plain"
    assert text({"messages": [USER], "tools": [TOOL]}, template=several) == "<bos>f<eos><bos>user: hi<eos>"


def test_a_reply_begins_after_the_chat() -> None:
    assert text({"messages": [USER]}, reply=True) == "<bos>user: hi<eos><bos>assistant: "


@pytest.mark.parametrize("content", [{"content": None}, {}], ids=["null", "missing"])
def test_a_message_that_calls_tools_needs_no_content(content: dict[str, Any]) -> None:
    calls = {"role": "assistant", "tool_calls": [CALL]} | content
    answer = {"role": "tool", "content": "3"}
    assert (
        text({"messages": [USER, calls, answer]})
        == "<bos>user: hi<eos><bos>assistant: f!<eos><bos>tool: 3<eos>"
    )


def test_parts_are_joined_and_nulls_are_not_given() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    row = {"messages": [{"role": "user", "content": parts, "name": None, "tool_calls": None}], "tools": None}
    assert check_chat(row, where="x") == {"messages": [{"role": "user", "content": "one\ntwo"}]}


MESSAGES: list[tuple[Any, str]] = [
    ([], "`messages` must be a list"),
    ("hello", "`messages` must be a list"),
    (None, "`messages` must be a list"),
    (5, "`messages` must be a list"),
    (USER, "`messages` must be a list"),
    (["hello"], "message 1 must be an object"),
    ([[USER]], "message 1 must be an object"),
    ([USER, None], "message 2 must be an object"),
    ([{"content": "x"}], "message 1: `role` must be a text"),
    ([{"role": None, "content": "x"}], "`role` must be a text"),
    ([{"role": "", "content": "x"}], "`role` must be a text"),
    ([{"role": 3, "content": "x"}], "`role` must be a text, such as user, got 3"),
    ([{"role": ["user"], "content": "x"}], "`role` must be a text"),
    ([USER, {"role": "user"}], "message 2: `content` must be a text"),
    ([{"role": "user", "content": None}], "`content` must be a text, or parts of type text, got None"),
    ([{"role": "assistant", "content": None, "tool_calls": []}], "`content` must be a text"),
    ([{"role": "user", "content": 5}], "got 5"),
    ([{"role": "user", "content": True}], "got True"),
    ([{"role": "user", "content": {"text": "x"}}], "`content` must be a text"),
    ([{"role": "user", "content": ["x"]}], "`content` must be a text, or parts of type text, got 'x'"),
    (
        [{"role": "user", "content": [{"type": "image", "url": "x" * 99}]}],
        "got {'type': 'image', 'url': 'xxx",
    ),
    ([{"role": "user", "content": [{"type": "text", "text": 5}]}], "parts of type text"),
    ([{"role": "assistant", "content": "x", "tool_calls": "f"}], "`tool_calls` must be a list of objects"),
]


@pytest.mark.parametrize(("messages", "says"), MESSAGES)
def test_messages_that_are_none(messages: Any, says: str) -> None:
    line = refusal({"messages": messages})
    assert says in line
    assert len(line) < 200


@pytest.mark.parametrize("tools", ["f", 3, ["f"], [3], {"name": "f"}, [TOOL, None]])
def test_tools_that_are_none(tools: Any) -> None:
    assert "`tools` must be a list of objects" in refusal({"messages": [USER], "tools": tools})


@pytest.mark.parametrize(
    ("template", "row", "says"),
    [
        (None, {}, "this model has no chat template"),
        ("", {}, "this model has no chat template"),
        ({"other": "x"}, {}, "multiple chat templates with no default"),
        (STRICT, {"messages": [{"role": "narrator", "content": "x"}]}, "refuses the messages: Only user and"),
        ("{{ messages[0].content + 1 }}", {}, "refuses the messages: can only concatenate str"),
        ("{{ messages[1].content.strip() }}", {}, "refuses the messages: "),
        ("{% if %}", {}, "refuses the messages: "),
        ("{{ 1 // 0 }}", {}, "refuses the messages: "),
        (STRICT, {"tools": [TOOL]}, "`tools`, but this model's chat template leaves them out"),
        (STRICT, {"messages": [USER, ASSISTANT | {"tool_calls": [CALL]}]}, "`tool_calls`, but"),
    ],
)
def test_what_a_template_refuses_or_would_leave_out(template: Any, row: dict[str, Any], says: str) -> None:
    assert says in refusal({"messages": [USER]} | row, template)


def test_half_a_surrogate_pair_is_no_text() -> None:
    assert encode_text("ab", tiny_tokenizer(), where="x") == tiny_tokenizer()("ab")["input_ids"]
    with pytest.raises(InputError, match=r"x: U\+D83D is half a surrogate pair"):
        encode_text("a\ud83d", tiny_tokenizer(), where="x")
    assert "half a surrogate pair" in refusal({"messages": [{"role": "user", "content": "a\udc00"}]})
