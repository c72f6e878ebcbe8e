"""Where the text enters a denoiser: the first projections that its tokens pass.

Found by running it twice, without names. In the second run the tokens are others, and a projection
that reads something else than in the first one gives what it gave there: so it is the first that
this part of the text meets, and what is behind it does not see the exchange. If the denoiser gives
the same picture in the end, everything that the tokens say has passed these projections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

import rankedit as rk
from rankedit_recipes.diffusion.calls import same
from rankedit_recipes.diffusion.denoising import Denoiser
from rankedit_recipes.diffusion.encoded import Encoded
from rankedit_recipes.diffusion.errors import PipelineError
from rankedit_recipes.diffusion.streams import (
    end_tokens,
    moved_rows,
    one_token,
    shaken,
    token_leaves,
    with_tokens,
)
from rankedit_recipes.diffusion.targets import Targets
from rankedit_recipes.diffusion.text import Texts

_PROMPT = "a photo of the night by the sea"
Read = Mapping[str, list[tuple[Tensor, Tensor]]]


def entrance(texts: Texts, denoiser: Denoiser) -> Targets:
    """The projections through which every token of a prompt enters.

    Raises:
        PipelineError: there are several that read different encodings, or tokens pass by them.
    """
    denoiser.check_one()
    encoded = texts.encode([_PROMPT])
    latents, time = denoiser.probe_inputs(0, 0)
    model = denoiser.plain

    def run(text: Encoded) -> Any:  # noqa: ANN401 - a tensor, or a list of them
        return denoiser.forward(latents, time, text)

    names = list(rk.select(model, "*"))
    with torch.no_grad():
        base, picture = _recorded(model, names, lambda: run(encoded))
        other = with_tokens(encoded, shaken)
        found, exchanged = _met(model, base, lambda: run(other))
        if not same(exchanged, picture):
            raise PipelineError(
                f"diffusion: {denoiser.name} is not supported: what the text says reaches it in "
                f"other ways than through projections ({', '.join(found[:3]) or 'none'} were "
                "found), so that editing these would not change all of it."
            )
        read = _one_read(denoiser, base, found)
        first = _first_row(denoiser, found[0], encoded, run)
    direct = read.shape == encoded.embeds.shape and torch.equal(read, encoded.embeds.to(read))
    return Targets((), (), (), read.shape[-1], direct, tuple(found), first)


def _recorded(model: nn.Module, names: list[str], run: Callable[[], Any]) -> tuple[Read, Any]:
    """What every projection reads and gives, call by call."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}

    def hook(name: str) -> Callable[..., None]:
        def note(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401
            found[name].append((args[0].detach().clone(), output.detach().clone()))

        return note

    return found, _hooked(model, names, hook, run)


def _met(model: nn.Module, base: Read, run: Callable[[], Any]) -> tuple[list[str], Any]:
    """Projections that read something else first, and what the denoiser gives without them."""
    found: list[str] = []
    calls = dict.fromkeys(base, 0)

    def hook(name: str) -> Callable[..., Tensor | None]:
        def exchange(_: nn.Module, args: tuple[Any, ...], __: object) -> Tensor | None:
            number = calls[name]
            calls[name] += 1
            read, gave = base[name][number]
            if read.shape == args[0].shape and torch.equal(read, args[0]):
                return None
            if name not in found:
                found.append(name)
            return gave

        return exchange

    return found, _hooked(model, list(base), hook, run)


def _hooked(
    model: nn.Module, names: list[str], hook: Callable[[str], Any], run: Callable[[], Any]
) -> Any:  # noqa: ANN401 - what the denoiser gives
    modules = dict(model.named_modules())
    with ExitStack() as stack:
        for name in names:
            stack.callback(modules[name].register_forward_hook(hook(name)).remove)
        return run()


def _one_read(denoiser: Denoiser, base: Read, found: list[str]) -> Tensor:
    """The encodings that all entrances read.

    Raises:
        PipelineError: they read different ones.
    """
    reads = [base[name][0][0] for name in found]
    if not reads or any(len(base[name]) != 1 for name in found):
        raise PipelineError(
            f"diffusion: {denoiser.name} is not supported: no projection was found that the text "
            "enters through once in each step."
        )
    if any(not (r.shape == reads[0].shape and torch.equal(r, reads[0])) for r in reads):
        raise PipelineError(
            f"diffusion: {denoiser.name} is not supported: its text enters through {len(found)} "
            f"projections that read different encodings of it ({', '.join(found[:3])}), so that "
            "one change of encodings cannot stand for all."
        )
    return reads[0]


def _first_row(
    denoiser: Denoiser, name: str, encoded: Encoded, run: Callable[[Encoded], Any]
) -> int:
    """Row of the first token in what an entrance reads; the others follow it.

    Raises:
        PipelineError: tokens do not keep their order.
    """
    model = denoiser.plain
    [path] = token_leaves(encoded) if len(token_leaves(encoded)) == 1 else [()]
    ends = end_tokens(encoded, encoded.embeds.shape[-2])

    def read(text: Encoded) -> Tensor:
        seen = _recorded(model, [name], lambda: run(text))[0][name][0][0]
        # Some put the prompts of a batch into one sequence; here is one prompt.
        return seen.reshape(1, -1, seen.shape[-1])

    plain = read(encoded)
    rows = [moved_rows(plain, read(with_tokens(encoded, one_token(at), path))) for at in ends]
    apart = ends[1] - ends[0]
    # Behind the last one may be copies of it (Z-Image fills prompts up with them).
    if len(rows[0]) != 1 or rows[1][:1] != [rows[0][0] + apart]:
        raise PipelineError(
            f"diffusion: {denoiser.name} is not supported: tokens {ends[0]} and {ends[1]} of a "
            f"prompt stand in rows {rows[0]} and {rows[1]} of what {name!r} reads, so that it is "
            "not known which row is which token's."
        )
    return rows[0][0] - ends[0]
