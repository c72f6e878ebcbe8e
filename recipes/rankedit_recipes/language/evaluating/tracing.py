"""Where a model keeps a fact: causal tracing (Meng et al., arXiv 2202.05262, section 2).

The subject's embeddings are disturbed, so that the model forgets the answer. Then, one at a time,
what a part of the model gave at one token in the undisturbed run is put back: the probability of
the answer that returns with it tells how much of the fact passes there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankedit.progress import progress as show_progress
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.evaluating.likelihoods import evaluating, run, takes
from rankedit_recipes.language.model.running import embedding_device
from rankedit_recipes.language.model.tokens import tokenised
from rankedit_recipes.language.requests import Request

PLACES = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first token behind",
    "tokens between",
    "last token",
)
"""Groups of token positions, as in the paper's average over many facts."""

LAST_OF_SUBJECT = PLACES[2]


@dataclass(frozen=True)
class Trace:
    """Average indirect effects: what restoring one part at one token brings back.

    Attributes:
        effects: by kind of part (`"block"`, `"mlp"`, `"attention"`): `[layers, places]`, the rise
            of the answer's probability, mean over facts and over disturbances.
        clean: mean probability of the answer, undisturbed.
        disturbed: the same with the subject disturbed.
        facts: how many there were.
    """

    effects: Mapping[str, Tensor]
    clean: float
    disturbed: float
    facts: int

    def strongest(self, kind: str = "mlp") -> tuple[int, str]:
        """Layer and place with the largest effect."""
        # Below any effect: a group that no fact has cannot be the strongest.
        grid = self.effects[kind].nan_to_num(-1)
        layer, place = divmod(int(grid.argmax()), grid.shape[1])
        return layer, PLACES[place]

    def best(self, count: int = 1, *, kind: str = "mlp") -> list[int]:
        """Neighbouring layers whose effects at the subject's last token have the largest sum.

        Raises:
            LanguageError: so many layers were not traced.
        """
        column = self.effects[kind][:, PLACES.index(LAST_OF_SUBJECT)]
        if not 1 <= count <= len(column):
            raise LanguageError(
                f"Trace.best: count must be from 1 to {len(column)}, the layers that were traced, "
                f"got {count}."
            )
        # Neighbours, for methods share an edit among those: the best ones may lie apart.
        first = int(column.unfold(0, count, 1).sum(1).argmax())
        return list(range(first, first + count))


def trace(
    model: nn.Module,
    tokenizer: Any,  # noqa: ANN401 - a fast tokenizer of transformers
    requests: Sequence[Request],
    parts: Mapping[str, Sequence[str]],
    *,
    noise: float = 3.0,
    disturbances: int = 5,
    seed: int = 0,
    own: bool = False,
    places: Sequence[str] = PLACES,
    progress: bool = True,
) -> Trace:
    """Trace facts that the model knows.

    Args:
        model: a causal model of transformers.
        tokenizer: its fast tokenizer.
        requests: facts as the model holds them: the target is its present answer.
        parts: by kind, the name of the part in each layer; see `parts_of`.
        noise: of the disturbance, in standard deviations of the input embeddings.
        disturbances: noises drawn for each fact.
        seed: of them.
        own: trace the token that the model finds likeliest after each prompt, whatever the targets.
        places: groups of tokens to restore, of `PLACES`; effects elsewhere are NaN. Time grows
            with the number of tokens.
        progress: show it.

    Raises:
        LanguageError: no requests, or no such places.
    """
    unknown = sorted(set(places) - set(PLACES))
    if unknown or not places:
        raise LanguageError(
            f"trace: places must be some of {', '.join(PLACES)}, got {unknown or 'none'}."
        )
    wanted = torch.tensor([float(place in places) for place in PLACES])
    if not requests:
        raise LanguageError("trace: at least one fact is expected, got none.")
    sums = {kind: torch.zeros(len(names), len(PLACES)) for kind, names in parts.items()}
    counts = torch.zeros(len(PLACES))
    clean = disturbed = 0.0
    generator = torch.Generator().manual_seed(seed)
    with (
        torch.inference_mode(),
        evaluating(model),
        show_progress("trace", len(requests), shown=progress) as advance,
    ):
        for request in requests:
            fact = _Fact(model, tokenizer, request, noise, disturbances, generator, own=own)
            clean, disturbed = clean + fact.clean, disturbed + fact.disturbed
            membership = fact.places() * wanted
            counts += membership.sum(0)
            tokens = membership.sum(1).nonzero()[:, 0]
            # A subject of one token has none in its middle.
            for kind, names in parts.items() if len(tokens) else ():
                sums[kind] += fact.effects(names, tokens) @ membership[tokens]
            advance(request.subject)
    number = len(requests)
    # A group that no fact has, such as middle tokens of one-token subjects, comes out as NaN.
    effects = {kind: total / counts for kind, total in sums.items()}
    return Trace(effects, clean / number, disturbed / number, number)


def parts_of(model: nn.Module, downs: Sequence[str]) -> dict[str, list[str]]:
    """The parts of each layer to trace, found from the names of its MLP's down-projections.

    A block is the module in the model's list of layers; its attention is the child with several
    matrices that does not hold the down-projection.

    Raises:
        LanguageError: a down-projection is not inside a list of layers.
    """
    parts: dict[str, list[str]] = {"block": [], "mlp": list(downs), "attention": []}
    for name in downs:
        block = _block_of(model, name)
        parts["block"].append(block)
        for child, module in model.get_submodule(block).named_children():
            matrices = sum(p.ndim > 1 for p in module.parameters())
            if matrices > 1 and not f"{name}.".startswith(f"{block}.{child}."):
                parts["attention"].append(f"{block}.{child}")
                break
    # In blocks where attention and MLP are no children of their own it cannot be told.
    return {kind: names for kind, names in parts.items() if len(names) == len(downs)}


def _block_of(model: nn.Module, name: str) -> str:
    pieces = name.split(".")
    for end in range(1, len(pieces)):
        if isinstance(model.get_submodule(".".join(pieces[:end])), nn.ModuleList):
            return ".".join(pieces[: end + 1])
    raise LanguageError(f"parts_of: {name!r} is in no list of layers, so its block is unknown.")


class _Fact:
    """One fact, with its subject disturbed."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,  # noqa: ANN401
        request: Request,
        noise: float,
        disturbances: int,
        generator: torch.Generator,
        *,
        own: bool,
    ) -> None:
        self._model, self._count = model, disturbances
        device = embedding_device(model)
        # The model's own answer needs no target, which may not go with the prompt's tokens.
        (text,) = tokenised(tokenizer, [(request, "")], targets=not own)
        self._subject = list(text.named)
        first = text.target[0] if text.target else len(text.ids)
        # The answer's first token stands for it, as in the paper.
        self._answer = 0 if own else text.ids[first]
        # Without the answer, whose probability is asked for behind the last of these.
        self._ids = torch.tensor([text.ids[:first]], device=device)
        if own:
            self._answer = int(run(model, self._ids).logits[0, -1].argmax())
        # In units of the embeddings' own spread, as published: models scale theirs differently.
        table: Tensor = model.get_input_embeddings().weight  # type: ignore[operator]
        drawn = torch.randn(disturbances, len(self._subject), table.shape[1], generator=generator)
        self._noise = (noise * float(table.float().std()) * drawn).to(table)
        self.clean = float(self._chances(self._ids)[0])
        with self._disturbing(1):
            self.disturbed = float(self._chances(self._ids.expand(disturbances, -1)).mean())

    def places(self) -> Tensor:
        """`[tokens, places]`: 1 where a token belongs to a group."""
        length = self._ids.shape[1]
        membership = torch.zeros(length, len(PLACES))
        first, last = self._subject[0], self._subject[-1]
        # From the subject on: tokens before it do not see it.
        for position in range(first, length):
            inside = position <= last
            if position == last:
                place = 2
            elif inside:
                place = 0 if position == first else 1
            elif position == length - 1:
                place = 5
            else:
                place = 3 if position == last + 1 else 4
            membership[position, place] = 1
        return membership

    def effects(self, names: Sequence[str], tokens: Tensor) -> Tensor:
        """`[layers, tokens]`: what restoring one part at one of the tokens brings back."""
        number = len(tokens)
        # One undisturbed pass for all parts.
        kept = self._outputs(names)
        rows = []
        for name in names:
            # One row for each token and disturbance: its own token is restored in it.
            which = tokens.repeat_interleave(self._count)
            batch = self._ids.expand(number * self._count, -1)
            with self._disturbing(number), self._restoring(name, kept[name], which):
                chances = self._chances(batch).reshape(number, self._count).mean(1)
            rows.append(chances.float().cpu() - self.disturbed)
        return torch.stack(rows)

    def _chances(self, ids: Tensor) -> Tensor:
        # Of the last token only, where the model can: the vocabulary is a fifth of a small one.
        options = {"logits_to_keep": 1} if takes(self._model, "logits_to_keep") else {}
        logits = run(self._model, ids, **options).logits[:, -1].float()
        return logits.softmax(-1)[:, self._answer]

    def _outputs(self, names: Sequence[str]) -> dict[str, Tensor]:
        """What each part gives in the undisturbed run: `[tokens, width]`."""
        kept: dict[str, Tensor] = {}
        with contextlib.ExitStack() as stack:
            for name in names:

                def keep(_module: Any, _args: Any, out: Any, name: str = name) -> None:  # noqa: ANN401
                    # Some models run their MLPs on the tokens of all rows as one list.
                    kept[name] = _tensor(out).reshape(self._ids.shape[1], -1).clone()

                stack.enter_context(_hooked(self._model.get_submodule(name), keep))
            self._chances(self._ids)
        return kept

    def _disturbing(self, repeats: int) -> contextlib.AbstractContextManager[None]:
        """Noise on the subject's embeddings of a batch that repeats all noises so many times."""
        repeated = self._noise.repeat(repeats, 1, 1)

        def disturb(_module: Any, _args: Any, out: Tensor) -> Tensor:  # noqa: ANN401
            changed = out.clone()
            changed[:, self._subject] += repeated
            return changed

        return _hooked(self._model.get_input_embeddings(), disturb)  # type: ignore[operator]

    @contextlib.contextmanager
    def _restoring(self, name: str, clean: Tensor, which: Tensor) -> Iterator[None]:
        def restore(_module: Any, _args: Any, out: Any) -> Any:  # noqa: ANN401
            # Tensors in another memory order have no view by rows and tokens.
            changed = _tensor(out).clone(memory_format=torch.contiguous_format)
            rows = changed.view(len(which), len(clean), -1)
            rows[torch.arange(len(which)), which] = clean[which]
            return (changed, *out[1:]) if isinstance(out, tuple) else changed

        with _hooked(self._model.get_submodule(name), restore):
            yield


def _tensor(out: Any) -> Tensor:  # noqa: ANN401 - modules return a tensor, or a tuple of it and more
    found: Tensor = out[0] if isinstance(out, tuple) else out
    return found


@contextlib.contextmanager
def _hooked(module: nn.Module, hook: Any) -> Iterator[None]:  # noqa: ANN401
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
