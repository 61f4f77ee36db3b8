"""What others do with a model, or have set in its configuration, leaves no trace in drafted texts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Qwen2VLConfig, Qwen2VLForConditionalGeneration

import polydraft
from polydraft.decoding import LiveBatch, new_row
from polydraft.decoding.adapted import AdaptedTrunk, verify_with_base
from polydraft.decoding.plan import Plan
from polydraft.decoding.trunk import EagerTrunk
from polydraft.forwards import lean, turn
from polydraft.heads import DraftHead
from tests.decoding.models import (
    NEW_TOKENS,
    drafted,
    known,
    new_tokens,
    oracle_of_many,
    plain,
    ragged_prompts,
)
from tests.decoding.test_adapted import pair
from tests.tiny import BLOCK, tiny_head, tiny_model

ROWS = 3
IMAGE = 60


def live_texts(model: PreTrainedModel, head: DraftHead, prompts: list[Tensor]) -> list[list[int]]:
    """What a live batch writes behind the prompts, greedily."""
    batch = LiveBatch(model, head, rows=len(prompts), plan=Plan(drafting="chain"))
    rows = [new_row(p.tolist(), device=model.device, max_new_tokens=NEW_TOKENS) for p in prompts]
    batch.admit(rows)
    while batch.active:
        batch.step()
    return [row.generated for row in rows]


def plain_texts(model: PreTrainedModel, prompts: list[Tensor]) -> list[list[int]]:
    """What plain decoding writes behind each of them."""
    texts = [plain(model, prompt[None], max_new_tokens=NEW_TOKENS)[0] for prompt in prompts]
    return [text[len(prompt) :].tolist() for text, prompt in zip(texts, prompts, strict=True)]


class TestAnImageBefore:
    """Qwen-VL and its like keep the shift of positions that an image brings, for tokens that follow it."""

    def model(self) -> Any:
        """One that takes images of 4 x 4 pixels."""
        torch.manual_seed(0)
        text = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
        text |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
        vision = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 2}
        vision |= {"spatial_merge_size": 2, "temporal_patch_size": 1, "mlp_ratio": 2, "in_channels": 3}
        config = Qwen2VLConfig(
            text_config=text | {"rope_parameters": rope},
            vision_config=vision,
            image_token_id=IMAGE,
            video_token_id=61,
            vision_start_token_id=58,
            vision_end_token_id=59,
        )
        model: Any = Qwen2VLForConditionalGeneration(config).eval()
        model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.copy_(0.4 * torch.randn_like(parameter))
        return model

    def test_the_next_texts_are_right(self) -> None:
        model, prompts = self.model(), ragged_prompts(ROWS)
        head, expected = tiny_head(model), plain_texts(model, prompts)
        ids = torch.tensor([[1, 2, 58, *[IMAGE] * 4, 59, 5]])
        image = {"pixel_values": torch.randn(16, 12), "image_grid_thw": torch.tensor([[1, 4, 4]])}
        model.generate(ids, **image, mm_token_type_ids=(ids == IMAGE).long(), max_new_tokens=2)
        assert int(model.model.rope_deltas) == -2
        assert live_texts(model, head, prompts) == expected
        for options in ({"drafting": "chain"}, {"drafting": "tree"}, {"prefill_chunk_size": 5}):
            for prompt, text in zip(prompts, expected, strict=True):
                assert new_tokens(drafted(model, head, [prompt], **options), [prompt]) == [text]

    def test_an_image_is_refused(self) -> None:
        model = self.model()
        ids = torch.tensor([[1, 2, 58, *[IMAGE] * 4, 59, 5]])
        image = {"pixel_values": torch.randn(16, 12), "image_grid_thw": torch.tensor([[1, 4, 4]])}
        options = image | {"mm_token_type_ids": (ids == IMAGE).long(), "max_new_tokens": 2}
        with pytest.raises(polydraft.InputError, match="drafted generation takes text only"):
            polydraft.generate(model, tiny_head(model), ids, **options)


EXTRA = [
    ("mixtral", "output_router_logits"),
    ("qwen3_moe", "output_router_logits"),
    pytest.param("gpt_oss", "output_router_logits", marks=pytest.mark.nightly),
    ("llama", "output_hidden_states"),
    ("gpt2", "output_hidden_states"),
    ("llama-eager", "output_attentions"),
]


@pytest.mark.parametrize(("kind", "flag"), EXTRA)
class TestWhatTheConfigurationAddsToAForward:
    def model(self, kind: str, flag: str) -> PreTrainedModel:
        """A model whose every forward returns more than logits."""
        kind, _, attention = kind.partition("-")
        model = tiny_model(kind)
        if attention:
            cast(Any, model).set_attn_implementation(attention)
        setattr(model.config, flag, True)
        assert lean(model) == {flag: False}
        return model

    def test_texts_and_batches_and_trees(self, kind: str, flag: str) -> None:
        model, prompts = self.model(kind, flag), ragged_prompts(ROWS)
        head = tiny_head(model)
        expected = plain_texts(model, prompts)
        assert live_texts(model, head, prompts) == expected
        for rows in (1, ROWS):
            for drafting in ("chain", "tree"):
                out = drafted(model, head, prompts[:rows], drafting=drafting)
                assert new_tokens(out, prompts[:rows]) == expected[:rows]

    def test_a_forward_computes_none_of_it(self, kind: str, flag: str) -> None:
        model, found = self.model(kind, flag), list[Any]()
        handle = model.register_forward_hook(lambda _, args, out: found.append(out))
        drafted(model, tiny_head(model), ragged_prompts(1), max_new_tokens=4)
        handle.remove()
        assert found
        for out in found:
            assert {"logits"} <= set(out) <= {"logits", "past_key_values", "cache"}


def test_a_flag_that_the_model_brings_is_not_asked_for() -> None:
    """`model.generate` takes it from the configuration of the model; the caller has not given it."""
    model = tiny_model("llama", output_hidden_states=True)
    prompt = ragged_prompts(1)[0]
    right = plain(model, prompt[None], max_new_tokens=NEW_TOKENS)
    out = drafted(model, tiny_head(model), [prompt])
    assert out.sequences.equal(cast(Any, right).sequences)
    with pytest.raises(polydraft.InputError, match="output_hidden_states is not supported"):
        drafted(model, tiny_head(model), [prompt], output_hidden_states=True)


def elsewhere(work: Callable[[], object]) -> None:
    """Do `work` in another thread, to its end."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised below, in the test's own thread
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


@contextmanager
def meanwhile(module: nn.Module, work: Callable[[], object]) -> Iterator[list[int]]:
    """After every forward of `module` in this thread, others do `work` before it goes on; counts them."""
    mine, done = threading.get_ident(), list[int]()

    def between(*_: Any) -> None:
        if threading.get_ident() == mine:
            done.append(1)
            elsewhere(work)

    handle = module.register_forward_hook(between)
    try:
        yield done
    finally:
        handle.remove()


class TestThreads:
    @pytest.mark.parametrize("form", ["hidden", "block"])
    def test_forwards_of_others_in_the_middle_of_ones_own(self, form: str) -> None:
        model, prompts, texts = known("llama")
        options: dict[str, Any] = {"features": "hidden"}
        if form == "block":
            options = {"features": "block", "block": BLOCK, "layers": [1]}
        head = tiny_head(model, **options)
        undisturbed = drafted(model, head, prompts[:1])
        ids = prompts[2][None]
        with torch.no_grad(), meanwhile(model, lambda: cast(Any, model)(input_ids=ids)) as done:
            out = drafted(model, head, prompts[:1])
        assert len(done) > 5
        assert out.sequences[0].tolist() == texts[0].tolist()
        assert out.statistics.acceptance_histogram == undisturbed.statistics.acceptance_histogram

    def test_whole_generations_between_two_tokens(self) -> None:
        model, prompts, texts = known("llama")
        heads = [oracle_of_many(model, texts[:1]), oracle_of_many(model, texts[1:2])]
        found: list[list[int]] = []

        def other() -> None:
            found.append(drafted(model, heads[1], prompts[1:2]).sequences[0].tolist())

        class Streamer:
            def put(self, value: Tensor) -> None:
                if len(found) < 4:
                    elsewhere(other)

            def end(self) -> None:
                """Nothing."""

        out = drafted(model, heads[0], prompts[:1], streamer=Streamer())
        assert out.sequences[0].tolist() == texts[0].tolist()
        assert found == [texts[1].tolist()] * 4

    def test_many_at_once(self) -> None:
        model, prompts, texts = known("llama")
        found: dict[int, list[int]] = {}

        def write(row: int) -> None:
            head = oracle_of_many(model, [texts[row]])
            found[row] = drafted(model, head, [prompts[row]]).sequences[0].tolist()

        threads = [threading.Thread(target=write, args=(row,)) for row in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == {row: texts[row].tolist() for row in range(4)}

    @pytest.mark.adapters
    def test_others_wait_while_an_adapter_is_switched_on(self) -> None:
        model, head = pair()
        verify_with_base(model, head)
        assert head.switch is not None
        adapted = AdaptedTrunk(model, head, head.switch, [ragged_prompts(1)[0]])
        free: list[bool] = []

        def look() -> None:
            free.append(turn(model).acquire(blocking=False))
            if free[-1]:
                turn(model).release()

        with torch.no_grad(), meanwhile(model, look):
            adapted.prefill()
        elsewhere(look)
        assert free == [False, True]

    def test_others_wait_for_a_forward(self) -> None:
        model = tiny_model()
        free: list[bool] = []
        with (
            torch.no_grad(),
            meanwhile(model, lambda: free.append(turn(model).acquire(blocking=False))),
            EagerTrunk(model, taps={}, rows=1) as trunk,
        ):
            trunk.prefill([ragged_prompts(1)[0]])
        assert free == [False]
        assert turn(model) is turn(model)
        assert turn(model) is not turn(tiny_model())
