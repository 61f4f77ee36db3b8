"""Every form of training text, every one-line error, and the small steps from text to batches."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from polydraft.errors import InputError
from polydraft.training.data import (
    Document,
    collate,
    data_hash,
    frequent_tokens,
    read_documents,
    split,
    windows,
)
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
CHAT_TEXT = "<bos>user: hi<eos><bos>assistant: yo<eos>"


def write_jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts(*paths: Path) -> list[str]:
    return [TOKENIZER.decode(d.input_ids) for d in read_documents(paths, TOKENIZER)]


class TestForms:
    def test_txt(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("Grüße", encoding="utf-8")
        assert texts(tmp_path / "a.txt") == ["Grüße"]

    def test_jsonl_with_text_and_messages(self, tmp_path: Path) -> None:
        path = write_jsonl(tmp_path / "a.jsonl", {"text": "one"}, {"messages": CHAT})
        path.write_text(path.read_text() + "\n  \n")
        assert texts(path) == ["one", CHAT_TEXT]

    def test_jsonl_with_ids_as_collect_writes_them(self, tmp_path: Path) -> None:
        row = {"input_ids": [5, 6, 7, 8], "prompt_length": 2, "temperature": 0.0, "kind": "code"}
        (found,) = read_documents([write_jsonl(tmp_path / "a.jsonl", row)], TOKENIZER)
        assert found == Document([5, 6, 7, 8], 2, 0.0)

    def test_marks_and_foreign_ends_of_line(self, tmp_path: Path) -> None:
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in ("o\u2028ne", "two")]
        (tmp_path / "a.jsonl").write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
        (tmp_path / "b.txt").write_bytes("\ufeffthree\r\nlines".encode())
        assert texts(tmp_path) == ["o\u2028ne", "two", "three\nlines"]

    def test_tools_reach_the_template(self, tmp_path: Path) -> None:
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = (
            "{% for tool in tools %}{{ tool.name }};{% endfor %}{{ messages[0].content }}"
        )
        path = write_jsonl(tmp_path / "a.jsonl", {"messages": CHAT, "tools": [{"name": "f"}, {"name": "g"}]})
        (found,) = read_documents([path], tokenizer)
        assert tokenizer.decode(found.input_ids) == "f;g;hi"

    def test_saved_datasets_lose_the_nulls_that_arrow_fills_in(self, tmp_path: Path) -> None:
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = "{{ tools }}{{ messages[0].tool_calls }}"
        tools = [{"name": "f", "x": {"type": "int"}}, {"name": "g", "y": {"type": "int"}}]
        rows = [[{"role": "assistant", "content": "a", "tool_calls": [call]}] for call in tools]
        made = datasets.Dataset.from_dict({"messages": rows, "tools": [[tool] for tool in tools]})
        assert made[0]["tools"][0]["y"] is None
        made.save_to_disk(str(tmp_path / "saved"))
        found = read_documents([tmp_path / "saved"], tokenizer)
        assert [tokenizer.decode(d.input_ids) for d in found] == [f"{[tool]}{[tool]}" for tool in tools]

    def test_ids_may_lie_in_rows_that_the_tokenizer_has_no_token_for(self, tmp_path: Path) -> None:
        path = write_jsonl(tmp_path / "a.jsonl", {"input_ids": [5, 6, 299]})
        (found,) = read_documents([path], TOKENIZER, rows=300)
        assert found.input_ids == [5, 6, 299]
        with pytest.raises(InputError, match="token id 299 is of another tokenizer"):
            read_documents([path], TOKENIZER)

    def test_folder_of_sources(self, tmp_path: Path) -> None:
        (tmp_path / "b" / "c").mkdir(parents=True)
        (tmp_path / "b" / "c" / "x.py").write_text("x = 1")
        (tmp_path / "a.rs").write_text("fn main")
        (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff")
        write_jsonl(tmp_path / "z.jsonl", {"text": "last"})
        assert texts(tmp_path) == ["fn main", "x = 1", "last"]

    def test_saved_datasets(self, tmp_path: Path) -> None:
        part = datasets.Dataset.from_dict({"text": ["one", "two"]})
        part.save_to_disk(str(tmp_path / "one"))
        datasets.DatasetDict(
            {"train": part, "test": datasets.Dataset.from_dict({"text": ["three"]})}
        ).save_to_disk(str(tmp_path / "dict"))
        assert texts(tmp_path / "one") == ["one", "two"]
        assert texts(tmp_path / "dict") == ["one", "two", "three"]

    def test_duplicates_and_scraps_are_dropped(self, tmp_path: Path) -> None:
        first = write_jsonl(tmp_path / "a.jsonl", {"text": "same"}, {"text": "ab"}, {"text": "same"})
        second = write_jsonl(tmp_path / "b.jsonl", {"text": "other"}, {"text": "same"})
        assert texts(first, second) == ["same", "other"]


class TestErrors:
    def expect(self, path: Path, fragment: str) -> None:
        with pytest.raises(InputError) as error:
            read_documents([path], TOKENIZER)
        assert fragment in str(error.value)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)

    def test_missing(self, tmp_path: Path) -> None:
        self.expect(tmp_path / "none.txt", "no such file or folder")

    def test_unknown_kind_of_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.pdf").write_text("text")
        self.expect(tmp_path / "a.pdf", "unknown kind of file")

    def test_a_folder_that_is_called_a_file_and_a_file_that_is_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").mkdir()
        self.expect(tmp_path / "a.jsonl", "no text in")
        (tmp_path / "a.bin").write_bytes(b"\0")
        self.expect(tmp_path / "a.bin", "unknown kind of file")

    def test_malformed_json_names_the_line(self, tmp_path: Path) -> None:
        path = write_jsonl(tmp_path / "a.jsonl", {"text": "fine"})
        path.write_text(path.read_text() + '\n{"text": \n')
        self.expect(path, "line 3: not JSON")

    @pytest.mark.parametrize("row", [{"words": "x"}, ["text"], {"text": 3}, {"text": None}, 7])
    def test_row_of_no_supported_form(self, tmp_path: Path, row: Any) -> None:
        self.expect(write_jsonl(tmp_path / "a.jsonl", row), "line 1: expected an object with")

    @pytest.mark.parametrize(
        ("row", "fragment"),
        [
            ({"input_ids": "text"}, "must be a list of whole numbers"),
            ({"input_ids": [1, "2", 3]}, "must be a list of whole numbers"),
            (
                {"input_ids": [1, 2, 259]},
                "token id 259 is of another tokenizer: the model reads ids below 259",
            ),
            ({"input_ids": [1, 2, 2**70]}, "of another tokenizer"),
            ({"input_ids": [1, -2, 3]}, "token id -2 is of another tokenizer"),
            ({"input_ids": [True, False, True]}, "must be a list of whole numbers"),
            ({"input_ids": [1.0, 2.0, 3.0]}, "must be a list of whole numbers"),
            ({"input_ids": None}, "must be a list of whole numbers"),
            ({"input_ids": [[1, 2, 3]]}, "must be a list of whole numbers"),
            ({"input_ids": [1, 2, 3], "prompt_length": None}, "`prompt_length`"),
            ({"input_ids": [1, 2, 3], "prompt_length": True}, "`prompt_length`"),
            ({"input_ids": [1, 2, 3], "temperature": "hot"}, "`temperature` must be a number of 0 or more"),
            ({"input_ids": [1, 2, 3], "temperature": -1}, "`temperature`"),
            ({"input_ids": [1, 2, 3], "temperature": [0]}, "`temperature`"),
            ({"input_ids": [1, 2, 3], "temperature": float("nan")}, "`temperature`"),
            ({"input_ids": [1, 2, 3], "temperature": float("inf")}, "`temperature`"),
            ({"input_ids": [1, 2, 3], "temperature": True}, "`temperature`"),
            ({"messages": []}, "`messages` must be a list"),
            ({"messages": [{"role": "user", "content": None}]}, "message 1: `content` must be a text"),
            ({"messages": CHAT, "tools": [{}]}, "`tools`, but this model's chat template leaves them out"),
            ({"input_ids": [1, 2, 3], "prompt_length": -1}, "`prompt_length`"),
            ({"input_ids": [1, 2, 3], "prompt_length": "1"}, "`prompt_length`"),
        ],
    )
    def test_bad_ids(self, tmp_path: Path, row: Any, fragment: str) -> None:
        self.expect(write_jsonl(tmp_path / "a.jsonl", row), fragment)

    @pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.py"])
    def test_not_utf8(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes("größe".encode("latin-1"))
        self.expect(tmp_path / name, "not UTF-8")

    def test_nothing_in_it(self, tmp_path: Path) -> None:
        self.expect(tmp_path, "no text in")
        (tmp_path / "a.txt").write_text("")
        self.expect(tmp_path / "a.txt", "no text in")

    def test_chat_without_a_template(self, tmp_path: Path) -> None:
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = None
        path = write_jsonl(tmp_path / "a.jsonl", {"messages": CHAT})
        with pytest.raises(InputError, match="no chat template"):
            read_documents([path], tokenizer)


def test_windows_by_hand() -> None:
    document = Document(list(range(11)), 5, 1.0)
    assert windows([document], max_length=4) == [
        Document([4, 5, 6, 7], 1, 1.0),  # the first window is prompt alone
        Document([8, 9, 10], 0, 1.0),
    ]
    assert windows([Document(list(range(6)))], max_length=4) == [Document([0, 1, 2, 3])]  # a tail of two
    assert windows([Document([1, 2, 3, 4], 3)], max_length=4) == []  # one token to learn: no anchor
    assert windows([Document([1, 2, 3, 4], 2)], max_length=4) == [Document([1, 2, 3, 4], 2)]


class TestSplit:
    documents = tuple(Document([i] * 3) for i in range(20))

    def test_is_disjoint_complete_and_seeded(self) -> None:
        training, held_out = split(self.documents, held_out=0.2, seed=0)
        assert (len(training), len(held_out)) == (16, 4)
        assert sorted(d.input_ids[0] for d in [*training, *held_out]) == list(range(20))
        assert split(self.documents, held_out=0.2, seed=0) == (training, held_out)
        assert split(self.documents, held_out=0.2, seed=1) != (training, held_out)

    def test_every_temperature_is_held_out_in_its_share(self) -> None:
        temperatures = [0.0] * 40 + [1.0] * 8 + [0.7] * 2 + [0.3] + [None] * 10
        documents = [Document([i] * 3, temperature=t) for i, t in enumerate(temperatures)]
        training, held_out = split(documents, held_out=0.1, seed=3)
        assert Counter(d.temperature for d in held_out) == {0.0: 4, 1.0: 1, 0.7: 1, None: 1}
        assert sorted(d.input_ids[0] for d in [*training, *held_out]) == list(range(61))
        assert [d.input_ids[0] for d in held_out] == sorted(d.input_ids[0] for d in held_out)

    def test_one_document_of_each_temperature(self) -> None:
        documents = [Document([i] * 3, temperature=float(i)) for i in range(3)]
        training, held_out = split(documents, held_out=0.5, seed=0)
        assert (len(training), len(held_out)) == (2, 1)

    @pytest.mark.parametrize("share", [0.001, 0.999])
    def test_each_side_has_one(self, share: float) -> None:
        sides = split(self.documents, held_out=share, seed=0)
        assert min(map(len, sides)) == 1

    def test_refuses_one_document_and_bad_shares(self) -> None:
        with pytest.raises(InputError, match="one single document"):
            split(self.documents[:1], held_out=0.5, seed=0)
        for share in (0.0, 1.0, -1.0):
            with pytest.raises(InputError, match="between 0 and 1"):
                split(self.documents, held_out=share, seed=0)


def test_frequent_tokens_by_hand() -> None:
    documents = [Document([9, 9, 9, 5, 5, 3], 3), Document([5, 7, 7])]
    assert frequent_tokens(documents, size=2, vocab_size=10) == [5, 7]  # 9 is prompt only
    assert frequent_tokens(documents, size=3, vocab_size=10) == [3, 5, 7]
    assert frequent_tokens(documents, size=5, vocab_size=10) == [0, 1, 3, 5, 7]
    assert frequent_tokens(documents, size=10, vocab_size=10) == list(range(10))


def test_data_hash_tells_tokens_order_and_prompts_apart() -> None:
    first, second = Document([1, 2, 3]), Document([4, 5, 6])
    variants = [
        [first, second],
        [second, first],
        [first],
        [Document([1, 2, 3, 4, 5, 6])],
        [Document([1, 2, 3], 1), second],
    ]
    assert len({data_hash(v) for v in variants}) == 5
    assert data_hash([Document([1, 2, 3]), second]) == data_hash(variants[0])


def test_collate_by_hand() -> None:
    long = Document([1, 2, 3, 4], 2, None, torch.full((4, 2), 7.0), torch.ones(4))
    short = Document([5, 6, 7], 0, None, torch.full((3, 2), 8.0), torch.ones(3))
    batch = collate([vars(long), vars(short)])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4], [5, 6, 7, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 3, 4], [5, 6, 7, -100]]
    assert batch["hidden"][:, :, 0].tolist() == [[7.0] * 4, [8.0] * 3 + [0.0]]
    assert batch["log_normaliser"].tolist() == [[1.0] * 4, [1.0] * 3 + [0.0]]
    assert set(collate([vars(Document([1, 2, 3]))])) == {"input_ids", "attention_mask", "labels"}
