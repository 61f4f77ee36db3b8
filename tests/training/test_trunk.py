"""Training of the base model itself: what it learns, what it leaves alone, what a killed run ends in."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedModel

from polydraft import generate
from polydraft.adapters import AdapterSwitch, load_adapter
from polydraft.errors import InputError
from polydraft.heads import DraftHead
from polydraft.heads.fingerprint import describe_base
from polydraft.joint import LatentMixture
from polydraft.loading import load_head
from polydraft.training.data import Document, collate, read_documents, split, windows
from polydraft.training.language import language_loss, next_token_loss
from polydraft.training.objective import Objective
from polydraft.training.options import TrainOptions
from polydraft.training.scratch import byte_tokenizer, scratch_model
from polydraft.training.trunk import Trunk
from polydraft.training.weights import LossWeights
from tests.tiny import tiny_head, tiny_model, tiny_tokenizer
from tests.training.runs import DEFAULTS, StopAt, Stopped, run, write_corpus

CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl")


def base() -> PreTrainedModel:
    return tiny_model(vocab_size=len(tiny_tokenizer()))


def state(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def record(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "training.json").read_text())
    return found


def held_out(data: Path) -> list[Document]:
    """The windows that a run with `DEFAULTS` holds out."""
    documents = read_documents([data], tiny_tokenizer())
    _, kept = split(documents, held_out=DEFAULTS["held_out"], seed=0)
    return windows(kept, max_length=DEFAULTS["max_length"])


def plain_loss(model: PreTrainedModel, documents: list[Document]) -> float:
    """Nats per token, one token at a time."""
    values: list[float] = []
    for document in documents:
        with torch.no_grad():
            rows = model(torch.tensor([document.input_ids])).logits[0].double().log_softmax(-1)
        following = pairwise(range(len(document.input_ids)))
        values += [-float(rows[t, document.input_ids[u]]) for t, u in following if u >= document.learn_from]
    return sum(values) / len(values)


# -- the parts -------------------------------------------------------------------------------------


def test_the_loss_of_text_is_that_of_one_token_at_a_time() -> None:
    model = base()
    documents = [Document(list(range(9, 30)), 5), Document([7, 8, 9, 10]), Document(list(range(40, 53)), 12)]
    assert language_loss(model, documents, batch_size=2) == pytest.approx(plain_loss(model, documents), 1e-5)


def test_the_gradient_of_the_next_token_loss() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 300, 11, requires_grad=True)
    labels = torch.randint(0, 11, (2, 300))
    labels[0, :7] = labels[1, 40:] = -100
    next_token_loss(logits, labels).backward()
    found, logits.grad = logits.grad, None
    rows, following = logits.log_softmax(-1)[:, :-1], labels[:, 1:]
    (-rows.gather(-1, following.clamp(min=0)[..., None])[..., 0] * (following >= 0)).sum().backward()
    assert found is not None and logits.grad is not None
    assert torch.allclose(found, logits.grad, atol=1e-6)


@pytest.mark.parametrize("features", ["hidden", "fused", "block"])
def test_the_gradient_of_a_trunk_is_that_of_the_plain_loss(features: str) -> None:
    """All of it in one graph, row by row of the joint, with U' as a constant."""
    model = tiny_model()
    sizes = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 16}
    block = {"block": sizes | {"rope_theta": 1e4}} if features == "block" else {}
    trunk = Trunk(model, TrainOptions(trunk="full", lm_weight=0.5), held_out=[Document([1, 2, 3])])
    head = tiny_head(model, features=features, horizon=2, seed=1, **block)
    objective = Objective(head, model, weights=LossWeights(balance=0.0), trunk=trunk)
    ids = torch.tensor([[5, 9, 17, 33, 2, 8, 60, 61]])
    objective(collate([vars(Document(ids[0].tolist()))])).loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    out = model(ids, output_hidden_states=True)
    following = torch.cat([ids[:, 1:], ids[:, -1:]], -1)
    features_of = head.features(out.hidden_states[-1], following)
    loss = 0.5 * cross_entropy(out.logits[0, :-1], ids[0, 1:], reduction="sum")
    first = 1 if features == "hidden" else 2
    for t in range(ids.shape[1] - 2):
        u = features_of[:, t]
        joint = LatentMixture(head.gate(u), head._all_logits(head.maps(u), None), None)
        state = joint.start()
        for s, token in enumerate(head.draft_index(ids[:, t + first : t + 4]).unbind(1)):
            loss = loss - joint.row(state, s)[0, token[0]]
            state = joint.advance(state, s, token)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        scale = float(parameter.grad.abs().max())
        assert torch.allclose(found[name], parameter.grad, atol=1e-4 * scale), name


def test_the_unembedding_learns_from_the_next_token_loss_alone() -> None:
    found = []
    for lm_weight in (1.0, 0.5):
        model = base()
        trunk = Trunk(model, TrainOptions(trunk="full", lm_weight=lm_weight), held_out=[Document([1, 2, 3])])
        objective = Objective(tiny_head(model), model, weights=LossWeights(), trunk=trunk)
        objective(collate([vars(Document(list(range(20))))])).loss.backward()
        gradient = model.get_output_embeddings().weight.grad
        assert isinstance(gradient, Tensor) and gradient.abs().sum() > 0
        found.append(gradient)
    assert torch.allclose(found[0], 2 * found[1], atol=1e-5)


def test_the_rows_of_the_head_follow_the_unembedding() -> None:
    model = base()
    trunk = Trunk(model, TrainOptions(trunk="full"), held_out=[Document([1, 2, 3])])
    head = tiny_head(model, draft_vocab_size=20)
    with torch.no_grad():
        model.get_output_embeddings().weight += 1.0
    trunk.extend(head, collate([vars(Document([4, 5, 6, 7]))]))
    assert torch.equal(head.rows, model.get_output_embeddings().weight[head.draft_ids])


# -- whole runs ------------------------------------------------------------------------------------


def test_from_scratch_it_learns_a_language_of_known_entropy(tmp_path: Path) -> None:
    """Four words of three bytes, equally likely: log(4) / 3 nats a byte, since the first byte tells the word.

    A head that drafts two bytes without regard to each other or to the one before has at best
    log(4) (2 + 1 + 2) / 3 nats a draft, by what of the word is read; the joint needs log(4) (0 + 1 + 1) / 3.
    """
    words, rng = ("abc", "def", "ghi", "jkl"), torch.Generator().manual_seed(0)
    texts = ["".join(words[int(i)] for i in torch.randint(0, 4, (16,), generator=rng)) for _ in range(60)]
    path = tmp_path / "words.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    model = scratch_model(tmp_path, byte_tokenizer(), seed=0, dtype=torch.float32)
    out = tmp_path / "out"
    head = run(
        path, out, model=model, trunk="scratch", features="hidden", loss="joint", horizon=2, batch_size=16,
        max_length=48, draft_vocab_size=259, steps=60, every=60, learning_rate=1e-2, warmup=10,
        trunk_learning_rate=1e-2, rank=4, map_rank=16, balance=0.1,
    )  # fmt: skip
    found, entropy = record(out)["base_loss"], math.log(4) / 3
    assert found["before"] == pytest.approx(math.log(259), abs=0.3)
    assert entropy - 0.02 < found["after"] < entropy + 0.08
    last = [row for row in record(out)["history"] if "eval_nll" in row][-1]
    assert math.log(4) * 2 / 3 < last["eval_nll"] < math.log(4) * 5 / 3 - 0.3
    saved: Any = AutoModelForCausalLM.from_pretrained(out / "model", dtype=torch.float32)
    again = load_head(str(out), model=saved, tokenizer=byte_tokenizer())
    assert (
        again.config.base_model
        == head.config.base_model
        == describe_base(saved, byte_tokenizer()) | {"id": str(out / "model")}
    )
    prompt = torch.tensor([byte_tokenizer()("abcab")["input_ids"]])
    for attached in (head, again):
        base_model = model if attached is head else saved
        drafted = generate(base_model, attached, prompt, max_new_tokens=24)
        plain = base_model.generate(prompt, max_new_tokens=24, do_sample=False)
        assert torch.equal(drafted.sequences, plain)
        assert drafted.statistics.mean_acceptance_length > 1.5


def test_full_changes_the_model_and_reports_what_it_cost(data: Path, tmp_path: Path) -> None:
    model, out = base(), tmp_path / "out"
    before = state(model)
    lines: list[str] = []
    run(data, out, model=model, trunk="full", trunk_learning_rate=1e-3, on_note=lines.append)
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(p.requires_grad for p in model.parameters())
    saved: Any = AutoModelForCausalLM.from_pretrained(out / "model", dtype=torch.float32)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in saved.state_dict().items())
    expected = {"before": plain_loss(base(), held_out(data)), "after": plain_loss(saved, held_out(data))}
    assert record(out)["base_loss"] == pytest.approx(expected, abs=1e-4)
    assert expected["after"] < expected["before"]
    head = DraftHead.from_pretrained(out)
    assert head.config.provenance is not None
    assert head.config.provenance["base_loss"] == record(out)["base_loss"]
    assert any(f"{expected['before']:.3f}"[:4] in line and "nats per token" in line for line in lines)
    load_head(str(out), model=saved)
    with pytest.raises(InputError, match="has another weights"):
        load_head(str(out), model=base())


@pytest.mark.adapters
@pytest.mark.parametrize("verifier", ["trained", "base"])
def test_an_adapter_leaves_the_base_model_alone(data: Path, tmp_path: Path, verifier: str) -> None:
    model, out = base(), tmp_path / "out"
    ids = torch.tensor([held_out(data)[0].input_ids])
    before, logits = state(model), model(ids).logits
    run(data, out, model=model, trunk="lora", lora_rank=4, trunk_learning_rate=1e-2, verifier=verifier)
    adapted = model(ids).logits
    assert not torch.allclose(adapted, logits, atol=1e-2)
    with AdapterSwitch(model).off():
        assert torch.equal(model(ids).logits, logits)
    assert torch.equal(model(ids).logits, adapted)
    after = {name.replace(".base_layer", ""): value for name, value in model.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    again = base()
    load_adapter(again, out / "adapter")
    assert torch.equal(again(ids).logits, adapted)
    assert record(out)["base_loss"]["after"] == pytest.approx(plain_loss(again, held_out(data)), abs=1e-4)
    load_head(str(out), model=again)
    with pytest.raises(InputError, match="--adapter"):
        load_head(str(out), model=base())


@pytest.mark.adapters
def test_the_base_model_teaches_where_it_verifies() -> None:
    model = base()
    trunk = Trunk(
        model, TrainOptions(trunk="lora", verifier="base", lora_rank=2), held_out=[Document([1, 2, 3])]
    )
    with torch.no_grad():
        for parameter in trunk.trained():
            parameter += 0.1
    batch = collate([vars(Document(list(range(12))))])
    states = trunk(tiny_head(model), batch)
    assert torch.equal(states.teacher, base()(batch["input_ids"]).logits)
    assert torch.equal(states.logits, model(batch["input_ids"]).logits)
    assert states.hidden.requires_grad and not states.teacher.requires_grad


@pytest.mark.parametrize("kind", [pytest.param("lora", marks=pytest.mark.adapters), "full"])
def test_a_run_that_broke_off_ends_in_the_same_weights(data: Path, tmp_path: Path, kind: str) -> None:
    options: dict[str, Any] = {"trunk": kind, "trunk_learning_rate": 1e-3, "lora_rank": 2, "steps": 8}
    models = [base(), base(), base()]
    run(data, tmp_path / "whole", model=models[0], **options)
    with pytest.raises(Stopped):
        run(data, tmp_path / "broken", model=models[1], callbacks=[StopAt(6)], **options)
    run(data, tmp_path / "broken", model=models[2], resume=True, **options)
    whole, broken = models[0].state_dict(), models[2].state_dict()
    assert whole.keys() == broken.keys()
    assert all(torch.equal(value, broken[name]) for name, value in whole.items())
    a, b = (DraftHead.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "broken"))
    assert all(torch.equal(value, b[name]) for name, value in a.items())
    assert record(tmp_path / "whole")["base_loss"] == record(tmp_path / "broken")["base_loss"]


def test_a_bfloat16_model_trains_in_float32_and_ships_bfloat16(data: Path, tmp_path: Path) -> None:
    model, out = base().to(torch.bfloat16), tmp_path / "out"  # type: ignore[arg-type]
    expected = plain_loss(model, held_out(data))
    run(data, out, model=model, trunk="full", trunk_learning_rate=1e-4, steps=4)
    assert model.dtype == torch.bfloat16
    saved: Any = AutoModelForCausalLM.from_pretrained(out / "model")
    assert saved.dtype == torch.bfloat16
    found = record(out)["base_loss"]
    assert found == pytest.approx({"before": expected, "after": plain_loss(saved, held_out(data))}, abs=5e-3)


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"trunk": "half"}, "trunk must be one of"),
        ({"trunk": "full", "lm_weight": 0.0}, "lm_weight must be above 0"),
        ({"trunk": "lora", "lora_rank": 0}, "lora_rank must be at least 1"),
        pytest.param(
            {"trunk": "lora", "lora_targets": ("nowhere",)},
            r"no adapter of layers nowhere in \w+: Target modules .*not found",
            marks=pytest.mark.adapters,
        ),
        ({"trunk": "full", "verifier": "base"}, "verifier 'base' needs trunk 'lora'"),
        ({"trunk": "full", "cache": Path("cache")}, "--cache-hidden needs --trunk frozen"),
        ({"trunk": "full", "fsdp": True}, "--fsdp"),
    ],
)
def test_nonsense_is_refused(data: Path, tmp_path: Path, changes: dict[str, Any], fragment: str) -> None:
    with pytest.raises(InputError, match=fragment) as error:
        run(data, tmp_path / "out", **changes)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_lora_without_peft(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polydraft.adapters.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install 'peft>="):
        run(data, tmp_path / "out", trunk="lora")


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (None, "no configuration at"),
        ("{", "not JSON"),
        ("[1]", "names no model_type"),
        ('{"hidden_size": 3}', "names no model_type"),
        ('{"model_type": "nothing"}', "cannot load the configuration"),
        ('{"model_type": "clip"}', "cannot load the configuration"),
        (json.dumps(CONFIG | {"vocab_size": 9}), "vocab_size must be at least the tokenizer's 259"),
        (json.dumps(CONFIG | {"hidden_size": "wide"}), "'hidden_size' expected int"),
    ],
)
def test_a_configuration_that_makes_no_model(tmp_path: Path, content: str | None, fragment: str) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError) as error:
        scratch_model(path, byte_tokenizer(), seed=0, dtype=torch.float32)
    assert fragment in str(error.value) and "\n" not in str(error.value)


def test_one_seed_makes_one_model(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    a, b, c = (
        state(scratch_model(path, byte_tokenizer(), seed=seed, dtype=torch.float32)) for seed in (0, 0, 1)
    )
    assert all(torch.equal(value, b[name]) for name, value in a.items())
    assert any(not torch.equal(value, c[name]) for name, value in a.items())


def test_bytes_come_back() -> None:
    tokenizer = byte_tokenizer()
    text = "naïve\n\tüçé 漢"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode()) and tokenizer.decode(ids) == text
