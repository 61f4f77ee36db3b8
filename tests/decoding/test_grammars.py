"""Grammars of xgrammar and lm-format-enforcer shape drafts and text alike: plain decoding says the same."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
import torch
import transformers
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel

import polydraft
from polydraft.decoding.grammar import GrammarMask, as_mask
from polydraft.decoding.live import LiveBatch, new_row
from polydraft.decoding.plan import Plan
from polydraft.errors import InputError, PolydraftError
from polydraft.heads import DraftHead
from tests.decoding.cases import PLAIN, VOCAB_SIZE, tables
from tests.decoding.exhaustive import EveryDraw, difference, drafted_texts, plain_texts
from tests.tiny import tiny_head, tiny_model, tiny_tokenizer

xgrammar = pytest.importorskip("xgrammar", reason="the extra `grammar` is not installed")
pytest.importorskip("lmformatenforcer", reason="the extra `grammar` is not installed")
# lm-format-enforcer 0.11.3 looks for this name where transformers 4 had it
cast(Any, transformers.tokenization_utils).PreTrainedTokenizerBase = transformers.PreTrainedTokenizerBase

from lmformatenforcer import JsonSchemaParser, RegexParser  # noqa: E402
from lmformatenforcer.integrations.transformers import build_transformers_prefix_allowed_tokens_fn  # noqa: E402
from xgrammar.contrib.hf import LogitsProcessor as XGrammar  # noqa: E402

TOKENIZER = tiny_tokenizer()
END = 2
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]{1,4}$"},
        "size": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["cat", "car", "dog"]},
    },
    "required": ["name", "size", "kind"],
    "additionalProperties": False,
}
RULES = 'root ::= "a" ("b" | "c" root | "dd")* "e"'
REGEX = r"(ab|ac|add){2,5}e"
PROMPTS = torch.tensor([[71, 72, 73, 74], [0, 0, 80, 81], [0, 90, 91, 92]])
MASK = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1]])
WAYS: dict[str, dict[str, Any]] = {
    "chain": {"drafting": "chain", "draft_length": 3},
    "tree": {"drafting": "tree", "draft_length": 7},
    "lookup": {"prompt_lookup_num_tokens": 5, "draft_length": 3},
}


def compiled(what: str) -> Any:
    info = xgrammar.TokenizerInfo.from_huggingface(TOKENIZER, vocab_size=len(TOKENIZER))
    compiler = xgrammar.GrammarCompiler(info)
    if what == "schema":
        return compiler.compile_json_schema(json.dumps(SCHEMA), any_whitespace=False)
    return compiler.compile_grammar(RULES)


def enforced(what: str) -> Any:
    parser = JsonSchemaParser(SCHEMA) if what == "schema" else RegexParser(REGEX)
    return build_transformers_prefix_allowed_tokens_fn(TOKENIZER, parser)


def options(library: str, what: str) -> dict[str, Any]:
    """As a user hands them in, new for each call."""
    if library == "xgrammar":
        return {"logits_processor": LogitsProcessorList([XGrammar(compiled(what))])}
    return {"prefix_allowed_tokens_fn": enforced(what)}


def made() -> tuple[PreTrainedModel, DraftHead]:
    model = tiny_model(vocab_size=len(TOKENIZER), eos_token_id=END, initializer_range=0.1)
    return model, tiny_head(model, rank=2)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("what", ["schema", "rules"])
@pytest.mark.parametrize("library", ["xgrammar", "lm-format-enforcer"])
def test_greedy_text_is_plain_text(library: str, what: str, way: str) -> None:
    """In a ragged batch; each text as alone, where plain decoding pads no text that has ended."""
    model, head = made()
    given: dict[str, Any] = {"do_sample": False, "max_new_tokens": 60, "pad_token_id": 0}
    out = polydraft.generate(
        model, head, PROMPTS, attention_mask=MASK, **given, **WAYS[way], **options(library, what)
    )
    assert out.statistics is not None and out.statistics.accepted_tokens > 0
    whole = 0
    for row, text in enumerate(cast(Tensor, out.sequences)[:, 4:].tolist()):
        plain = (
            cast(Any, model)
            .generate(
                PROMPTS[row : row + 1], attention_mask=MASK[row : row + 1], **given, **options(library, what)
            )[0, 4:]
            .tolist()
        )
        assert text[: len(plain)] == plain and not any(text[len(plain) :])
        if plain[-1] == END:
            whole += 1
            if what == "schema":
                said = json.loads(TOKENIZER.decode(plain, skip_special_tokens=True))
                assert set(said) == {"name", "size", "kind"} and 0 <= said["size"] <= 99
    assert whole or (library, what) != ("xgrammar", "schema")  # the other lets white space run on


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("library", ["xgrammar", "lm-format-enforcer"])
def test_a_seeded_text_does_not_depend_on_what_was_drafted(library: str, way: str) -> None:
    model, head = made()
    given: dict[str, Any] = {"do_sample": True, "max_new_tokens": 60, "pad_token_id": 0, "seed": 5}
    given["attention_mask"] = MASK
    out, plainly = (
        polydraft.generate(model, head, PROMPTS, **given, **how, **options(library, "schema"))
        for how in (WAYS[way], {"draft_length": 0})
    )
    assert torch.equal(cast(Tensor, out.sequences), cast(Tensor, plainly.sequences))
    for text in cast(Tensor, out.sequences)[:, 4:].tolist():
        if END in text:
            json.loads(TOKENIZER.decode(text[: text.index(END)]))


class TestTheMask:
    """Against xgrammar's own processor, which is told the text token by token."""

    @pytest.mark.parametrize("what", ["schema", "rules"])
    def test_is_a_function_of_the_text(self, what: str) -> None:
        generator = torch.Generator().manual_seed(0)
        grammar = compiled(what)
        mask = GrammarMask(grammar, prompt_length=4)
        asked = 0
        for _ in range(6):
            true, text = XGrammar(grammar), PROMPTS[:1]
            for _ in range(30):
                row = torch.randn(1, len(TOKENIZER), generator=generator)
                expected = true(text, row.clone())
                assert torch.equal(mask(text, row.clone()), expected)
                open_ = expected[0].isfinite().nonzero().flatten()
                for token in open_[torch.randperm(len(open_), generator=generator)[:3]]:
                    mask(torch.cat([text, token.view(1, 1)], -1), row.clone())  # a draft that is refused
                    asked += 1
                chosen = open_[int(torch.randint(len(open_), (1,), generator=generator))]
                text = torch.cat([text, chosen.view(1, 1)], -1)  # after the end of the grammar as well
        assert asked > 200

    def test_a_token_that_the_grammar_does_not_take(self) -> None:
        mask = GrammarMask(compiled("rules"), prompt_length=4)
        text = torch.cat([PROMPTS[:1], torch.tensor([[5]])], -1)
        with pytest.raises(PolydraftError, match="the grammar does not take token 5: another processor"):
            mask(text, torch.zeros(1, len(TOKENIZER)))

    def test_another_dtype(self) -> None:
        mask = GrammarMask(compiled("rules"), prompt_length=4)
        row = torch.zeros(1, len(TOKENIZER), dtype=torch.float64)
        found = mask(PROMPTS[:1], row)
        assert found.dtype == torch.float64 and int(found.isfinite().sum()) == 1 and bool((row == 0).all())

    def test_each_row_has_its_grammar(self) -> None:
        own = XGrammar([compiled("rules"), compiled("schema")])
        first, second = (as_mask(own, row, prompt_length=4) for row in range(2))
        row = torch.zeros(1, len(TOKENIZER))
        starts = [
            TOKENIZER.decode(cast(Any, one)(PROMPTS[:1], row)[0].isfinite().nonzero()[0])
            for one in (first, second)
        ]
        assert starts == ["a", "{"]

    def test_another_number_of_grammars_is_refused(self) -> None:
        model, head = made()
        both = LogitsProcessorList([XGrammar([compiled("rules"), compiled("schema")])])
        with pytest.raises(InputError, match="2 grammars for 3 texts: give one for all, or one for each"):
            polydraft.generate(model, head, PROMPTS, logits_processor=both, max_new_tokens=3)


@pytest.mark.parametrize("drafting", ["chain", "tree"])
def test_texts_of_a_live_batch_with_grammars_of_their_own(drafting: str) -> None:
    model, head = made()
    batch = LiveBatch(model, head, rows=4, plan=Plan(draft_length=4, drafting=drafting))
    processors: list[list[Any]] = [
        [XGrammar(compiled("schema"))],
        [],
        [XGrammar(compiled("rules"))],
        [transformers.generation.logits_process.PrefixConstrainedLogitsProcessor(enforced("rules"), 1)],
    ]
    prompt = PROMPTS[0].tolist()
    new: dict[str, Any] = {"device": model.device, "max_new_tokens": 40, "end_tokens": (END,)}
    rows = [new_row(prompt, logits_processor=own, **new) for own in processors]
    batch.admit(rows)
    while batch.active:
        batch.step()
    ways: list[dict[str, Any]] = [
        options("xgrammar", "schema"),
        {},
        options("xgrammar", "rules"),
        options("lm-format-enforcer", "rules"),
    ]
    for row, way in zip(rows, ways, strict=True):
        plain = cast(Any, model).generate(PROMPTS[:1], do_sample=False, max_new_tokens=40, **way)[0, 4:]
        assert row.generated == plain.tolist() and not row.failed


@pytest.mark.parametrize("verification", ["token", "block"])
@pytest.mark.parametrize("ends", [{4}, set()], ids=["ends", "goes on"])
def test_sampled_text_is_distributed_as_with_xgrammar_alone(
    monkeypatch: pytest.MonkeyPatch, verification: str, ends: set[int]
) -> None:
    """Enumerated over a vocabulary of five tokens, of which the last ends the grammar."""
    info = xgrammar.TokenizerInfo(["a", "b", "c", "ab", "</s>"], vocab_size=VOCAB_SIZE, stop_token_ids=[4])
    grammar = xgrammar.GrammarCompiler(info).compile_grammar('root ::= "ab" ("a" | "c") | "c" root?')
    table, head = tables(PLAIN, pooled=False)

    def fresh() -> LogitsProcessorList:
        return LogitsProcessorList([XGrammar(grammar)])

    expected = plain_texts(table, fresh, ends=ends)
    assert len(expected) > 8 and sum(expected.values()) == pytest.approx(1, abs=1e-6)
    found = drafted_texts(EveryDraw(monkeypatch), table, head, fresh, ends=ends, verification=verification)
    assert difference(found, expected) < 1e-6
