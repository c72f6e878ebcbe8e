"""The down-projection of each block of a causal model, found by what it does and not by its name.

One forward pass on a few tokens, in which each row of the batch asks one question of every block,
with all rows reading the same at the block's start:

* row 0 is the reference;
* row 1: earlier tokens differ, but at the last token every projection of the block gives what it
  gives in row 0. A projection whose input at the last token differs even so reads other tokens by
  itself: it is the attention's output, and not the MLP's;
* row 2 + j: projection j gives something else at the last token.

The down-projection writes vectors as wide as the residual stream; when it gives something else, the
block's output does too, but no other projection of the block reads anything else; and it does not
mix tokens. Exactly one projection must be so in each block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import rankedit as rk
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.model.running import Hook, embedding_device, first_tensor, quiet
from rankedit_recipes.language.model.whole import check_not_split

# Enough for attention to have something to mix, and few enough to cost nothing in a large model.
_TOKENS = 6
# A relative difference above this is one; rows of a batch differ by rounding alone far below. In
# bfloat16 a stream that takes a shift differs from the shift by at most five roundings of 2⁻⁸ of
# what is no longer than it: of the projection, and of the two streams, with it and without.
_DIFFERENT = {torch.float32: 1e-3, torch.float64: 1e-3}
_DIFFERENT_IN_HALF = 2e-2


@dataclass(frozen=True)
class Block:
    """One block of a causal model.

    Attributes:
        index: its number, from 0.
        name: of the block's module.
        down: name of the projection by which its MLP writes to the residual stream.
        direct: whether what the projection gives is added to the residual stream as it is. In
            blocks that normalise it first (Gemma 2 and 3) a change of it is another change there.
    """

    index: int
    name: str
    down: str
    direct: bool

    @property
    def below(self) -> list[str]:
        """Names of the blocks before this one."""
        stem = self.name.rpartition(".")[0]
        return [f"{stem}.{index}" for index in range(self.index)]


def find_blocks(model: nn.Module) -> list[Block]:
    """The blocks of a causal model of transformers, by running it once on six tokens.

    Raises:
        LanguageError: the model has no list of blocks, or a block has no single down-projection,
            such as in a mixture of experts whose experts are fused or routed.
    """
    name, blocks, lengths = _measured_list(model)
    prefixes = tuple(f"{name}.{index}." for index in range(len(blocks)))
    found = rk.select(model, lambda path, _module: path.startswith(prefixes))
    studies = [
        _Study(f"{name}.{index}", block, _inside(found, prefixes[index]), lengths[index])
        for index, block in enumerate(blocks)
    ]
    # One pass serves all blocks: each sets up its own rows where it begins.
    rows = 2 + max(len(study.projections) for study in studies)
    with contextlib.ExitStack() as stack:
        for study in studies:
            stack.enter_context(study.watched())
        run_tokens(model, rows)
    return [
        Block(index, study.name, *study.conclusion(model)) for index, study in enumerate(studies)
    ]


def _inside(found: dict[str, nn.Module], prefix: str) -> dict[str, nn.Module]:
    return {name: module for name, module in found.items() if name.startswith(prefix)}


def run_tokens(model: nn.Module, rows: int) -> None:
    """Run a model on a few tokens, the same in each row."""
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    words = getattr(embedding, "num_embeddings", None)
    if not isinstance(words, int):
        raise LanguageError(
            "find_blocks: expected a causal language model of transformers, got "
            f"{type(model).__name__} without input embeddings."
        )
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(words, (1, _TOKENS), generator=generator)
    # The same tokens in each row: what differs between rows was changed in them.
    ids = ids.expand(rows, -1).to(embedding_device(model))
    with quiet(model):
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)


def block_list(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Name and modules of the decoder's blocks: the longest list that is run in its order.

    Each member reads the vectors of all tokens, and gives as many of the same width.
    """
    name, blocks, _ = _measured_list(model)
    return name, blocks


def _measured_list(model: nn.Module) -> tuple[str, nn.ModuleList, list[float]]:
    """The list, and how long the stream gets in each block at the last token, at either end."""
    check_not_split(model)
    lists = {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, nn.ModuleList) and len(part)
    }
    seen: dict[str, list[tuple[int, float]]] = {name: [] for name in lists}
    with contextlib.ExitStack() as stack:
        for name, part in lists.items():
            for index, member in enumerate(part):
                # With keywords: some models hand a block its stream by name.
                handle = member.register_forward_hook(_noting(seen[name], index), with_kwargs=True)
                stack.callback(handle.remove)
        run_tokens(model, 1)
    whole = [n for n in lists if [index for index, _ in seen[n]] == list(range(len(lists[n])))]
    if not whole:
        raise LanguageError(
            f"find_blocks: {type(model).__name__} runs no list of blocks one after the other; pass "
            "layers= the names of the projections to edit."
        )
    # A model may run other lists in order too, such as the towers of a model that sees pictures.
    best = max(whole, key=lambda name: len(lists[name]))
    return best, lists[best], [length for _, length in seen[best]]


def _noting(seen: list[tuple[int, float]], index: int) -> Hook:
    def hook(_module: nn.Module, args: object, kwargs: object, output: object) -> None:
        before, after = first_tensor((args, kwargs)), first_tensor(output)
        same = before is not None and after is not None and before.shape == after.shape
        if same and before is not None and after is not None and before.ndim == 3:
            ends = torch.stack([before.detach()[0, -1].float(), after.detach()[0, -1].float()])
            seen.append((index, float(ends.norm(dim=1).max())))

    return hook


class _Study:
    """What one block does in the rows of the batch."""

    def __init__(
        self, name: str, block: nn.Module, projections: dict[str, nn.Module], longest: float
    ) -> None:
        self.name, self._block, self.projections = name, block, projections
        self._read: dict[str, Tensor] = {}
        self._routed: set[str] = set()
        self._shift = torch.zeros(0)
        self._out = torch.zeros(0)
        self._widths: dict[str, int] = {}
        self._longest = longest

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Hooks that set up the rows and note what is read and written at the last token."""
        with contextlib.ExitStack() as stack:
            add = self._block.register_forward_pre_hook(self._start, with_kwargs=True)
            stack.callback(add.remove)
            stack.callback(self._block.register_forward_hook(self._end).remove)
            for number, (name, module) in enumerate(self.projections.items()):
                hook = self._projection_hook(name, 2 + number)
                stack.callback(module.register_forward_hook(hook).remove)
            yield

    def _start(
        self, _block: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        hidden = first_tensor((args, kwargs))
        if hidden is None:
            return args, kwargs
        alike = hidden[:1].expand_as(hidden).clone()
        # Other directions, for a norm in front of the attention leaves nothing but those.
        alike[1, :-1] = -alike[1, :-1].roll(1, -1)
        generator = torch.Generator().manual_seed(0)
        # Drawn on the CPU, whose generator gives the same numbers everywhere.
        shift = torch.randn(hidden.shape[-1], generator=generator).to(hidden)
        # As long as the stream gets: large against rounding, whatever units a model has. What a
        # first block gives may be twenty times as long as what it reads.
        self._shift = shift * (self._longest / shift.float().norm()).to(hidden)
        # By identity: a block may get other tensors of the same shape, such as positions.
        positional = tuple(alike if value is hidden else value for value in args)
        return positional, {k: alike if v is hidden else v for k, v in kwargs.items()}

    def _projection_hook(self, name: str, row: int) -> Hook:
        def hook(_module: nn.Module, args: object, output: Tensor) -> Tensor | None:
            read = first_tensor(args)
            # A router hands an expert some of the tokens, and seldom whole rows of them.
            if read is None or read.numel() % (read.shape[-1] * _TOKENS):
                self._routed.add(name)
                return None
            tokens = read.shape[:-1].numel()
            rows = tokens // _TOKENS
            # Fewer rows than there are, or a module that several experts run in turn.
            if rows <= row or name in self._read:
                self._routed.add(name)
                return None
            self._read[name] = read.detach().reshape(rows, _TOKENS, -1)[:, -1].float()
            changed = output.clone().reshape(rows, _TOKENS, -1)
            self._widths[name] = changed.shape[-1]
            # In row 1 every projection gives at the last token what it gives in row 0; only what
            # attention mixes in from the tokens before can still differ.
            changed[1, -1] = changed[0, -1]
            changed[row, -1] += self._fitted(changed[0, -1])
            return changed.reshape(output.shape)

        return hook

    def _fitted(self, like: Tensor) -> Tensor:
        """The shift, in the width of a projection's output."""
        # Repeated where a projection is wider than the stream: no direction is left out.
        repeats = -(-len(like) // len(self._shift))
        return self._shift.repeat(repeats)[: len(like)].to(like)

    def _end(self, _block: nn.Module, _args: object, output: object) -> None:
        written = first_tensor(output)
        if written is not None:
            self._out = written.detach()[:, -1]

    # ------------------------------------------------------------------ conclusions

    def conclusion(self, model: nn.Module) -> tuple[str, bool]:
        """Name of the down-projection, and whether the residual stream takes it as it is."""
        rows = {name: 2 + number for number, name in enumerate(self.projections)}
        fits = [name for name in self._read if self._is_down(name, rows[name])]
        # Two that fit cannot be told apart by what they do: better none than the wrong one.
        if len(fits) != 1:
            raise LanguageError(self._refusal(model, fits))
        # A stream that takes the projection as it is moves by the shift itself.
        change = (self._out[rows[fits[0]]] - self._out[0]).float()
        direct = not self._differ(change, self._fitted(self._out[0]).float())
        return fits[0], direct

    def _is_down(self, name: str, row: int) -> bool:
        wide = self._widths[name] == len(self._shift)
        acts = self._differ(self._out[row], self._out[0])
        others = [read for other, read in self._read.items() if other != name]
        last = not any(self._differ(read[row], read[0]) for read in others)
        mixes = self._differ(self._read[name][1], self._read[name][0])
        return wide and acts and last and not mixes

    def _differ(self, one: Tensor, other: Tensor) -> bool:
        tolerance = _DIFFERENT.get(self._out.dtype, _DIFFERENT_IN_HALF)
        apart = float((one.float() - other.float()).norm())
        return apart > tolerance * float(other.float().norm())

    def _refusal(self, model: nn.Module, fits: list[str]) -> str:
        start = f"find_blocks: '{self.name}' of {type(model).__name__}"
        remedy = (
            "choose other blocks, or pass layers= the names of projections that read every token "
            "(a shared expert, the attention's output)."
        )
        # transformers 5 keeps all experts of a layer in one tensor [experts, out, in].
        fused = [name for name, tensor in self._block.named_parameters() if tensor.ndim == 3]
        if self._routed or (fused and not fits):
            what = f"fused into {fused[0]!r}" if fused else f"such as {min(self._routed)!r}"
            return (
                f"{start} is a mixture of experts, {what}: each expert reads some of the tokens, "
                f"so that no single projection is what its MLP writes with; {remedy}"
            )
        return (
            f"{start} must have exactly one down-projection, got {fits or 'none'} of "
            f"{len(self._read)} projections that it runs; {remedy}"
        )
