"""`DraftHead`: the base model's hidden state and the token just sampled -> a joint over the next n."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polydraft.adapters import AdapterSwitch
from polydraft.heads.attachable import Attachable
from polydraft.heads.block import ContextBlock
from polydraft.heads.config import DraftConfig
from polydraft.heads.features import FullMaps, FusedFeatures, LowRankMaps
from polydraft.heads.past import Memory, Past
from polydraft.heads.previous import PreviousToken
from polydraft.heads.reader import ContextReader
from polydraft.heads.recurrent import Recurrent
from polydraft.heads.sequential import Sequential
from polydraft.heads.sharing import PushedByFolder
from polydraft.heads.steps import StepMaps, Steps
from polydraft.joint import Gate, JointDistribution, LatentMixture, StepwiseJoint, unrolled
from polydraft.joint.mixture import ALL, Bias, Rows
from polydraft.slots import SlotCache

INIT_STD = 0.02


class DraftHead(PushedByFolder, Attachable):  # type: ignore[misc]  # what it refuses is otherwise typed
    """Joint head over a frozen base model (arXiv 2410.17765, retrofit form, any member of the family).

        u_t = features(h_t, x[t+1])                          (d); with a block, of all before t too
        P(z_1..z_n) = gate(u_t)                              r components a position
        P_a^(s) = softmax(U' map_{s,a}(u_t))                 (V'), U' = rows of the base unembedding

    Markov members add `PreviousToken`, a shift of each map by the token before. Stepwise members have
    `Steps` in place of maps.

    The embedding and U' belong to the base model: `attach` gives them, `save_pretrained` leaves them
    out. `switch` is set where the model's adapter counts for drafting alone (`decoding.adapted`), `compiled`
    once `decoding.compiled` has compiled the model for this head.
    """

    config_class = DraftConfig
    config: DraftConfig
    base_model_prefix = "draft"
    main_input_name = "hidden"

    def __init__(self, config: DraftConfig) -> None:
        super().__init__(config)
        d, r, s = config.hidden_size, config.rank, config.positions
        fused = config.features != "hidden"
        self.fuse = FusedFeatures(d, config.feature_size, len(config.layers)) if fused else None
        self.block = ContextBlock(d, config.block) if config.features == "block" else None
        self.gate: Gate = config.member.gate(d, r, s)
        self.steps = _steps(config)
        self.maps = _maps(config)
        self.previous = PreviousToken(d, config.markov_rank, s) if config.member.markov else None
        if config.own_unembedding:
            self.own = nn.Parameter(torch.empty(s, r, config.draft_vocab_size, d))
        self.switch: AdapterSwitch | None = None
        self.compiled: object = None
        self._kept_table: tuple[tuple[object, ...], Tensor] | None = None
        self.post_init()
        self.gate.reset()
        if self.previous is not None:
            self.previous.reset()
        if self.block is not None:
            self.block.reset()
        if self.steps is not None:
            self.steps.reset()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Called by transformers for each module that holds parameters itself, and for no other."""
        fuse = self.fuse
        if isinstance(module, LowRankMaps):
            nn.init.normal_(module.inner.weight, std=module.inner.in_features**-0.5)
            nn.init.normal_(module.outer, std=INIT_STD)
        elif isinstance(module, FullMaps):
            eye = torch.eye(module.weight.shape[-1]).expand_as(module.weight)
            module.weight.copy_(eye + INIT_STD * module.weight.shape[-1] ** -0.5 * torch.randn_like(eye))
        elif fuse is not None and module is fuse.up:
            nn.init.normal_(fuse.up.weight, std=fuse.up.in_features**-0.5)
        elif fuse is not None and module is fuse.down:
            nn.init.zeros_(fuse.down.weight)
        elif module is self and self.config.own_unembedding:
            nn.init.normal_(self.own, std=INIT_STD)

    def refresh(self) -> None:
        """Take U' again from the attached model, and what is made of it."""
        super().refresh()
        self._kept_table = None

    def features(
        self,
        hidden: Tensor,
        next_tokens: Tensor,
        *,
        position_ids: Tensor | None = None,
        cache: SlotCache | None = None,
    ) -> Tensor:
        """u_t from h_t and x[t+1]; (..., D) and (...) -> (..., d), in the head's dtype.

        With features "block" of whole rows, (B, T, D) and (B, T): u_t depends on all positions up to t.

        Args:
            hidden: D = `config.state_size` columns.
            position_ids: (B, T), restarting where another document begins; None for one document a row.
            cache: of the block: what earlier calls saw; T more are written, see `ContextBlock`.
        """
        out = self._fused(hidden, next_tokens)
        return out if self.block is None else self.block(out, position_ids=position_ids, cache=cache)

    def read(
        self, hidden: Tensor, next_tokens: Tensor, *, position_ids: Tensor | None = None
    ) -> tuple[Tensor, Memory | None]:
        """`features` of whole texts, and what chains of drafts see of them; None but for recurrent heads.

        `Memory.at` makes of it the past of some chains, which `joint` and `unrolled` take.
        """
        if self.block is None or not self.config.recurrent:
            return self.features(hidden, next_tokens, position_ids=position_ids), None
        return self.block.read(self._fused(hidden, next_tokens), position_ids=position_ids)

    def _fused(self, hidden: Tensor, next_tokens: Tensor) -> Tensor:
        """The features of single positions, which a block goes on from."""
        hidden = hidden.to(self.dtype)
        if self.fuse is None:
            return hidden
        out: Tensor = self.fuse(hidden, self.embed(next_tokens))
        return out

    def logits(self, mapped: Tensor, position: int) -> Tensor:
        """Draft-vocabulary logits of one 0-based position; z (B, r, d) -> (B, r, V'), float32."""
        if self.config.own_unembedding:
            return torch.einsum("bad,avd->bav", mapped, self.own[position].to(mapped.dtype)).float()
        rows = self.rows
        flat = mapped.flatten(0, 1).to(rows.dtype)  # one matrix product: a batched one would copy U' per row
        out: Tensor = (flat @ rows.T).float().unflatten(0, mapped.shape[:2])
        return out

    def forward(self, hidden: Tensor, next_tokens: Tensor) -> JointDistribution:
        """The joint of x[t+2..t+1+n] over the draft vocabulary.

        Args:
            hidden: (B, D), h_t: what the base model's unembedding was fed to give x[t+1], and the states of
                `config.layers`; or (B, T, D), those of a whole context up to t. A block that is given one
                position sees no more.
            next_tokens: (B,) or (B, T) int64 base ids, the token after each position; x[t+1] the last.
        """
        if hidden.dim() == 2:
            hidden, next_tokens = hidden[:, None], next_tokens[:, None]
        if self.block is None:
            hidden, next_tokens = hidden[:, -1:], next_tokens[:, -1:]
        features, memory = self.read(hidden, next_tokens)
        past = None
        if memory is not None:
            rows = torch.arange(len(hidden), device=features.device)
            past = memory.at(rows, torch.full_like(rows, hidden.shape[1] - 1))
        return self.joint(features[:, -1], next_tokens[:, -1], past)

    def joint(self, features: Tensor, next_tokens: Tensor, past: Past | None = None) -> JointDistribution:
        """The joint from the features; u (B, d) and x[t+1] (B,), see `forward`.

        Args:
            past: what the chains see of their texts; a recurrent head needs it.
        """
        if self.steps is not None:
            stepper = self.steps.stepper(self, features, past)
            size = self.config.draft_vocab_size
            return StepwiseJoint(stepper, self._unembed, horizon=self.config.horizon, vocab_size=size)
        joint = self._mixture(features)
        return joint.after(self.draft_index(next_tokens)) if self.config.features == "hidden" else joint

    def unrolled(self, features: Tensor, targets: Tensor, past: Past | None = None) -> Tensor:
        """z of a stepwise head at all positions along the text's own tokens, which `maps` takes apart.

        Args:
            features: u (B, d). targets: (B, n) int64 draft indices, -1 unknown. past: as of `joint`.

        Returns:
            (B, n d).
        """
        assert self.steps is not None
        if not len(features):
            return features.repeat(1, targets.shape[1])
        return unrolled(self.steps.stepper(self, features, past), targets).flatten(1)

    def _mixture(self, features: Tensor) -> LatentMixture:
        """The joint over all modelled positions of a head with maps."""
        assert not isinstance(self.maps, StepMaps)
        latent = self.gate(features)
        kept = None
        if 0 < self.config.components < self.config.rank:
            latent, kept = latent.routed(self.config.components)
        mapped = self.maps(features) if kept is None else self.maps.selected(features, kept)
        return LatentMixture(latent, self._all_logits(mapped, kept), self._bias(features, kept))

    def reader(self, *, rows: int = 1) -> ContextReader:
        """What reads `rows` growing texts for drafting."""
        return ContextReader(self, rows=rows)

    def _all_logits(self, mapped: Tensor, kept: Tensor | None) -> Tensor:
        """Logits of all positions, in the dtype they are made in; z (B, n, c, d) -> (B, n, c, V')."""
        if self.config.own_unembedding:
            return self._own_logits(mapped, kept)
        rows = self.rows
        flat = mapped.flatten(0, 2).to(rows.dtype)
        product = (rows @ flat.T).T.contiguous()  # for few rows twice as fast as flat @ rows.T
        out: Tensor = product.unflatten(0, mapped.shape[:3])
        return out

    def _unembed(self, mapped: Tensor, position: int) -> Tensor:
        """Logits of one 0-based position and one component; z (B, d) -> (B, V'), float32."""
        if self.config.own_unembedding:
            return self.logits(mapped[:, None], position)[:, 0]
        return (self.rows @ mapped.to(self.rows.dtype).T).T.float()

    def _own_logits(self, mapped: Tensor, kept: Tensor | None) -> Tensor:
        """The same with an unembedding per position and component."""
        own = self.own.to(mapped.dtype)
        if kept is None:
            return torch.einsum("bsad,savd->bsav", mapped, own).float()
        position = torch.arange(mapped.shape[1], device=mapped.device)[:, None]
        return torch.einsum("bscd,bscvd->bscv", mapped, own[position, kept]).float()

    def _bias(self, features: Tensor, kept: Tensor | None) -> Bias | None:
        """What the token before adds to the logits; None for members that do not see it."""
        previous = self.previous
        if previous is None:
            return None
        contexts = previous.contexts(features)
        table = None if self.config.own_unembedding else self._table()

        def bias(position: int, before: Tensor, rows: Rows = ALL) -> Tensor:
            inner = previous.inner(contexts[rows, position], self.embed(self.draft_ids[before.clamp(min=0)]))
            inner = torch.where((before >= 0)[:, None], inner, 0.0)
            if table is not None:
                return (table @ inner.to(table.dtype).T).T.float()
            shift = previous.out(inner)
            out = torch.einsum("bd,avd->bav", shift, self.own[position].to(shift.dtype)).float()
            if kept is None:
                return out
            return out.gather(1, kept[rows, position][:, :, None].expand(-1, -1, out.shape[-1]))

        return bias

    def _table(self) -> Tensor:
        """U' D, (V', k); made again only when D has changed, or the base model."""
        assert self.previous is not None
        weight = self.previous.out.weight
        if torch.is_grad_enabled() and weight.requires_grad:
            return self.previous.table(self.rows)
        key = (weight.data_ptr(), weight.dtype, weight._version)
        if self._kept_table is None or self._kept_table[0] != key:
            self._kept_table = (key, self.previous.table(self.rows))
        return self._kept_table[1]

    def shift(self, contexts: Tensor, before: Tensor) -> Tensor:
        """What the token before adds to z of one position, `PreviousToken`; zero where it is unknown.

        Args:
            contexts: (B, k), `PreviousToken.contexts` at that position.
            before: (B,) int64 draft indices, -1 unknown.

        Returns:
            (B, d).
        """
        assert self.previous is not None
        out: Tensor = self.previous(contexts, self.embed(self.draft_ids[before.clamp(min=0)]))
        return torch.where((before >= 0)[:, None], out, 0.0)


def _maps(config: DraftConfig) -> LowRankMaps | FullMaps | StepMaps:
    """From features to z of all positions."""
    sizes = config.positions, config.rank, config.hidden_size
    if config.member.steps:
        return StepMaps(config.positions)
    return LowRankMaps(*sizes, config.map_rank) if config.map_rank else FullMaps(*sizes)


def _steps(config: DraftConfig) -> Steps | None:
    """What a stepwise member runs; None for others."""
    if not config.member.steps:
        return None
    if config.recurrent:
        return Recurrent()
    return Sequential(config.hidden_size, config.markov_rank, config.positions)
