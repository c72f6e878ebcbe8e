"""What is learned of a concept: the word's embedding, the values, and the key that follows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

import rankedit as rk
from rankedit.protocol import KeyOutputs
from rankedit.shapes import Inputs, Outputs
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.text import Texts, word_tokens
from rankedit_recipes.diffusion.words import NewWords, embedding_layers, embedding_of
from rankedit_recipes.perfusion.errors import PerfusionError
from rankedit_recipes.perfusion.learning.config import Config
from rankedit_recipes.perfusion.locks import Lock
from rankedit_recipes.perfusion.naming import Naming
from rankedit_recipes.perfusion.prompts import filled, origin_encoding, word_encoding

# Of the spread of token embeddings: vectors that begin as one token must be told apart.
_NOISE = 0.1


@dataclass(frozen=True, eq=False)
class ThroughKey:
    """A gated edit whose key receives gradients in everything that depends on it.

    Attributes:
        edit: its keys and images require gradients.
    """

    edit: rk.GatedEdit

    @property
    def in_features(self) -> int:
        """Width of the inputs."""
        return self.edit.in_features

    @property
    def out_features(self) -> int:
        """Width of the outputs."""
        return self.edit.out_features

    def bind(self, outputs: KeyOutputs) -> dict[str, Tensor]:
        """The edit's tensors; directions and `W i*` with their graph."""
        tensors = self.edit.bind(outputs)
        keys, images = self.edit.keys, self.edit.images
        # For a single key there is no basis to be made orthogonal.
        energy = (keys * images).sum(1, keepdim=True)
        return {**tensors, "read": images / energy, "removed": -outputs(keys).float()}

    def added(self, x: Inputs, tensors: Mapping[str, Tensor]) -> Outputs:
        """What the edit adds."""
        return self.edit.added(x, tensors)

    def terms(self, x: Inputs, tensors: Mapping[str, Tensor]) -> tuple[tuple[Tensor, Tensor], ...]:
        """What the edit adds, as products."""
        return self.edit.terms(x, tensors)

    def settings(self) -> frozenset[str]:
        """The edit's settings."""
        return self.edit.settings()


class Learner:
    """The state of one training.

    Args:
        parts: of the pipeline, bare.
        naming: the concept's words.
        metric: of the statistics.
        config: how to learn.

    Attributes:
        rows: embeddings of the word, `[width]` or `[vectors, width]`, one for each text encoder.
        targets: the outputs that are learned, `[vectors, out]` by projection.
        locked: those that are not.
        key: `i* [vectors, in]`.
        optimiser: over `rows` and `targets`.
    """

    def __init__(self, parts: Parts, naming: Naming, metric: rk.Metric, config: Config) -> None:
        self._config, self._metric = config, metric
        device, modules = parts.device, parts.projections
        self.key = origin_encoding(parts, naming, config.templates)[None].to(device)
        with torch.no_grad():
            # Float32 whatever the weights are: small steps would be lost in bfloat16.
            outputs = {
                n: rk.linear_output(m, self.key).float().repeat(config.vectors, 1)
                for n, m in modules.items()
            }
        learned = learned_names(parts, config.lock)
        self.targets = {n: y.clone().requires_grad_() for n, y in outputs.items() if n in learned}
        self.locked = {n: y for n, y in outputs.items() if n not in learned}
        first = _first_rows(parts.text, naming.origin, config)
        self.rows = [row.to(device).requires_grad_() for row in first]
        if config.vectors > 1:
            # Where each of them stands: at one key for all, no gate could tell them apart.
            self.key = self._encoded(parts, naming).to(device)
        # No decay: it would pull the values towards zero and not towards the category's.
        self.optimiser = torch.optim.AdamW(self._groups(parts.text), weight_decay=0.0)
        self._rates = [group["lr"] for group in self.optimiser.param_groups]
        self._inverse: Tensor | None = None
        if config.key_gradient:
            # Solved once as a matrix, for gradients pass through a product and not through the
            # solver.
            identity = torch.eye(metric.dim, dtype=torch.float64)
            self._inverse = metric.guarded.solve(identity).float().to(device)

    def _encoded(self, parts: Parts, naming: Naming) -> Tensor:
        words = NewWords(parts.text, {naming.trigger: self.rows})
        try:
            prompts = filled(self._config.templates, naming.phrase)
            return word_encoding(parts, naming.trigger, prompts)
        finally:
            words.remove()

    def _groups(self, texts: Texts) -> list[dict[str, object]]:
        config = self._config
        relative = config.rates == "relative"
        groups: list[dict[str, object]] = []
        for row, (_, encoder, _) in zip(self.rows, texts.encoders, strict=True):
            spread = _embedding_spread(encoder) if relative else 1.0
            groups.append({"params": [row], "lr": config.embedding_rate * spread})
        # Adam moves each number by its rate: relative to the spread, layers of any scale move
        # alike.
        for target in self.targets.values():
            spread = float(target.detach().square().mean().sqrt()) if relative else 1.0
            groups.append({"params": [target], "lr": config.value_rate * max(spread, 1e-8)})
        return groups

    def parameters(self) -> list[Tensor]:
        """Everything that is learned, in a fixed order."""
        return [*self.rows, *self.targets.values()]

    @property
    def statistics(self) -> str:
        """Fingerprint of the metric."""
        return self._metric.fingerprint

    def image(self, key: Tensor) -> Tensor:
        """`i* A [vectors, in]`; with the key's graph if gradients go through it."""
        if self._inverse is not None:
            return key @ self._inverse
        return self._metric.guarded.solve(key).float().to(key.device)

    def edits(self, key: Tensor | None = None) -> dict[str, rk.Edit]:
        """The edits of all projections as they are now.

        Args:
            key: another key than the present one, with a graph.
        """
        key = self.key if key is None else key
        image = self.image(key)
        # Several keys of one word are alike: as when concepts are joined, each its own coordinate.
        kind = rk.Sigmoid if len(key) == 1 else rk.JointSigmoid
        gate = kind(self._config.bias, self._config.temperature)
        targets = {**self.locked, **self.targets}
        # What is checked and computed of key and gate is once so: on an accelerator, each look at a
        # number waits for all that was asked of it before.
        first = rk.GatedEdit.from_images(
            key, next(iter(targets.values())), image, gate, statistics=self.statistics
        )
        gated = {name: first.with_targets(target) for name, target in targets.items()}
        # Plain edits can be refreshed in place at each step.
        if not key.requires_grad:
            return dict(gated)
        return {name: ThroughKey(edit) for name, edit in gated.items()}

    def next_key(self, encodings: Tensor) -> Tensor:
        """`p i* + (1 − p) mean(e) [vectors, in]` for encodings `[n, vectors, in]` of the word."""
        momentum = self._config.key_momentum
        return momentum * self.key + (1 - momentum) * encodings.float().mean(0)

    def step(self, encodings: Tensor, step: int) -> None:
        """End of an optimiser step: parameters move by their gradients, the key by its average.

        Args:
            encodings: `[n, vectors, in]` of the concept's word, of all parts of the batch.
            step: its number, which decides the rates.
        """
        for group, rate in zip(self.optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * self._config.rate_at(step)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            # Here and not in a forward pass, of which accumulation and recomputation make several.
            self.key = self.next_key(encodings.detach())

    # ---------------------------------------------------------------- keeping

    def state(self) -> dict[str, Tensor]:
        """Everything that changes, by name; copies."""
        found = {"key": self.key}
        for index, tensor in enumerate(self.parameters()):
            found[f"learned.{index}"] = tensor
            for name, value in self.optimiser.state.get(tensor, {}).items():
                found[f"{name}.{index}"] = value
        return {name: tensor.detach().cpu().clone() for name, tensor in found.items()}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a state, optimiser included."""
        self.key = state["key"].to(self.key)
        for index, tensor in enumerate(self.parameters()):
            tensor.copy_(state[f"learned.{index}"])
            # What the state of the optimiser is called is torch's to say.
            names = [n.rpartition(".")[0] for n in state if n.endswith(f".{index}")]
            kept = {name: state[f"{name}.{index}"].clone() for name in names if name != "learned"}
            self.optimiser.state[tensor] = {
                # Adam keeps its count on the CPU, its moments beside the parameter.
                name: value if name == "step" else value.to(tensor)
                for name, value in kept.items()
            }


def learned_names(parts: Parts, lock: Lock) -> list[str]:
    """Projections whose outputs are learned: those that the lock leaves free.

    Raises:
        PerfusionError: a lock of the coarse levels, on a model that has one level only.
    """
    found = parts.targets
    if lock == "coarse" and found.finest == found.keys:
        raise PerfusionError(
            f"learn: the coarse lock needs levels, but all cross-attention layers of "
            f"{parts.denoiser.name} look at the picture in one resolution; choose the "
            "lock 'local', or 'trained'."
        )
    return list(found.learned(lock))


def _first_rows(texts: Texts, word: str, config: Config) -> list[Tensor]:
    """Embeddings of the last tokens of a word in each text encoder; then of its last, with noise.

    `[width]` for one vector, which begins as the last token: of a phrase, that is its noun.
    """
    noise = torch.Generator().manual_seed(config.seed)
    found = []
    for _, encoder, tokenizer in texts.encoders:
        tokens = word_tokens(tokenizer, word)[-config.vectors :]
        rows = [embedding_of(encoder, token).cpu() for token in tokens]
        if config.vectors > 1:
            size = _NOISE * _embedding_spread(encoder)
            while len(rows) < config.vectors:
                rows.append(
                    rows[len(tokens) - 1] + size * torch.randn(rows[0].shape, generator=noise)
                )
        found.append(rows[0] if config.vectors == 1 else torch.stack(rows))
    return found


def _embedding_spread(encoder: torch.nn.Module) -> float:
    """Root mean square deviation of token embeddings from their mean, over a thousand tokens."""
    layer = embedding_layers(encoder)[0]
    count: int = layer.num_embeddings  # type: ignore[assignment]
    # Spread over the table: neighbouring numbers are words of one kind.
    tokens = torch.linspace(0, count - 1, min(count, 1000)).long()
    with torch.no_grad():
        rows = layer(tokens.to(next(encoder.parameters()).device)).float()
    return float((rows - rows.mean(0)).square().mean().sqrt())
