"""What plain and drafted decoding read and multiply, as operations of a roofline (`machine.Machine`).

Notation: B texts at once, c tokens of context each, k new tokens each, L layers, d, V; n drafts, V' draft
tokens, r components evaluated. Weights are read once a forward, whatever B and k:

    layers        bytes  w L (attention + ffn)                flops  2 B k L (attention + ffn)
    kv            bytes  B (c + k) kv_bytes_per_token         flops  4 B k (c + k) L heads head_dim
    unembedding   bytes  w V d + 4 B k V (logits, float32)    flops  2 B k V d
    choice        bytes  4 B k V passes

and for the head, once a cycle:

    fuse, gate, maps, previous, block   bytes  w' parameters             flops  2 B parameters
    rows          bytes  w V' d + 4 B n r V'                             flops  2 B n r V' d
    bias          bytes  w' (n - 1) V' k                                 flops  2 B (n - 1) V' k
    joint         bytes  4 B n r V' passes

The roofline is that of Williams, Waterman and Patterson (2009); that verification reads the weights once for
all drafts is what speculative decoding lives on (Leviathan et al. 2023, arXiv 2211.17192).
"""

from __future__ import annotations

from dataclasses import dataclass

from lab.project.machine import Machine, Op
from lab.project.shapes import HeadShape, ModelShape
from polydraft.errors import InputError

LAYER_OPS = 8
"""Operations of a layer beside attention: norm, qkv, rotation, o, norm, gate and up, activation, down."""
FLOAT = 4
"""Bytes of a logit."""
CHOICE_PASSES = {"greedy": 1, "sampled": 4}
"""Times that rows over V are read or written to choose: argmax; softmax (read, written), draw, ratio."""
CHOICE_OPS = {"greedy": 1, "sampled": 4}
"""Operations of it."""
JOINT_PASSES = {"greedy": 4, "sampled": 5}
"""Of rows over r V': log-softmax (read twice, written), mixture (read); sampling also draws."""
JOINT_OPS, ONE_OPS = 3, 1
"""Operations a position of the joint: softmax with mixture, choice, posterior; of one component, one."""
FUSE_OPS, GATE_OPS, MAP_OPS, BIAS_OPS = 4, 1, 2, 2
"""Operations: norms, up, gating, down; scores; inner and outer products; of each bias its inner part, sum."""
READ = 2
"""Positions a block reads a cycle: one draft kept, and the next token."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is decoded.

    Attributes:
        batch: B texts. context: c tokens of each before the step. mode: "greedy" or "sampled".
    """

    batch: int = 1
    context: int = 512
    mode: str = "greedy"

    def __post_init__(self) -> None:
        if self.batch < 1 or self.context < 0:
            raise InputError(
                f"batch must be at least 1 and context 0 or more, got {self.batch} and {self.context}"
            )
        if self.mode not in CHOICE_OPS:
            raise InputError(f"mode must be one of {', '.join(CHOICE_OPS)}, got {self.mode!r}")


def forward_ops(model: ModelShape, tokens: int, load: Load) -> list[Op]:
    """A forward of the base model over `tokens` new tokens of each text."""
    b, d = load.batch, model.hidden_size
    layers = model.layers * model.layer_parameters
    seen = load.context + tokens
    width = model.heads * model.head_dim
    return [
        Op(
            name="layers",
            bytes=model.weight_bytes * layers,
            flops=2 * b * tokens * layers,
            launches=LAYER_OPS * model.layers,
            reduces=2 * model.layers,
            reduce_bytes=2 * b * tokens * d,
        ),
        Op(
            name="kv",
            bytes=b * seen * model.kv_bytes_per_token,
            flops=4 * b * tokens * seen * model.layers * width,
            launches=model.layers,
        ),
        Op(
            name="unembedding",
            bytes=model.weight_bytes * model.unembedding_parameters + FLOAT * b * tokens * model.vocab_size,
            flops=2 * b * tokens * model.unembedding_parameters,
            launches=1,
        ),
    ]


def choice_op(model: ModelShape, tokens: int, load: Load) -> Op:
    """Choose from, or verify against, the base model's rows of `tokens` positions."""
    passes = CHOICE_PASSES[load.mode] * FLOAT * load.batch * tokens * model.vocab_size
    return Op(name="choice", bytes=passes, launches=CHOICE_OPS[load.mode])


def draft_ops(model: ModelShape, head: HeadShape, load: Load) -> list[Op]:
    """The head, once: n drafts for each text. Every device computes all of it but the rows over V'."""
    b, d, n = load.batch, model.hidden_size, head.positions
    rows = head.draft_vocab_size * d
    logits = b * n * head.components * head.draft_vocab_size

    def dense(name: str, parameters: int, launches: float, *, reads: int = 1) -> Op:
        return Op(
            name=name,
            bytes=head.weight_bytes * parameters,
            flops=2 * b * reads * parameters,
            launches=launches if parameters else 0,
            sharded=False,
        )

    out = [
        dense("fuse", head.fuse_parameters(d), FUSE_OPS, reads=READ if head.features == "block" else 1),
        dense("block", head.block_parameters(model), LAYER_OPS + 1, reads=READ),
        dense("gate", head.gate_parameters(d), GATE_OPS),
        dense("maps", head.map_parameters(d, head.components), MAP_OPS),
        dense("previous", head.previous_parameters(d), BIAS_OPS * (n - 1)),
        Op(
            name="rows",
            bytes=model.weight_bytes * rows + FLOAT * logits,
            flops=2 * b * n * head.components * rows,
            launches=1,
        ),
        Op(
            name="joint",
            bytes=JOINT_PASSES[load.mode] * FLOAT * logits,
            launches=(ONE_OPS if head.components == 1 else JOINT_OPS) * n,
        ),
    ]
    if head.markov:
        table = (n - 1) * head.draft_vocab_size * head.markov_rank
        out.append(Op(name="bias", bytes=head.weight_bytes * table, flops=2 * b * table, launches=n - 1))
    if head.features == "block":
        each = model.kv_bytes_per_token / model.layers
        out.append(Op(name="block", bytes=b * (load.context + READ) * each, sharded=False))
    return out


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Seconds of a plain step and of a drafted cycle, by what they are spent on.

    Attributes:
        plain, drafting, forward, choice: of the step; of the head; over 1 + n tokens; of verification.
    """

    plain: float
    drafting: float
    forward: float
    choice: float

    @property
    def cycle(self) -> float:
        """Seconds of a cycle."""
        return self.drafting + self.forward + self.choice

    @property
    def cost(self) -> float:
        """A cycle in plain steps."""
        return self.cycle / self.plain

    def speedup(self, tokens: float) -> float:
        """Of drafted over plain decoding: E / cost, with E tokens a cycle."""
        return tokens / self.cost


def project(model: ModelShape, head: HeadShape, machine: Machine, load: Load) -> Projection:
    """The roofline of a plain step and of a cycle that drafts a chain of `head.horizon`.

    Raises:
        InputError: the model does not fit into the memory of the machine.
    """
    check_fits(model, machine, load)
    width = 1 + head.horizon
    return Projection(
        plain=machine.total([*forward_ops(model, 1, load), choice_op(model, 1, load)]),
        drafting=machine.total(draft_ops(model, head, load)),
        forward=machine.total(forward_ops(model, width, load)),
        choice=machine.seconds(choice_op(model, width, load)),
    )


def check_fits(model: ModelShape, machine: Machine, load: Load) -> None:
    """Weights and cache, divided among the devices, against their memory; activations are left out.

    Raises:
        InputError: they need more; says what helps.
    """
    needed = model.stored_bytes + load.batch * load.context * model.kv_bytes_per_token
    if machine.memory and needed > machine.devices * machine.memory:
        raise InputError(
            f"{model.name}, {model.weight_bytes:g} bytes a weight: {needed / 1e9:.0f} GB with its cache, "
            f"{machine.devices} x {machine.name} has {machine.devices * machine.memory / 1e9:.0f} GB: "
            "give more --gpus, --weights fp8, or a smaller --batch or --context"
        )
