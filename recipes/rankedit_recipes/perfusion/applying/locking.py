"""The global key lock: keys of the whole prompt follow the prompt with the category's word.

Prompts are encoded a second time with the category in place of the concept, and the key projections
are given that encoding, token by token, where they would read the concept's.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsIndex
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

import rankedit as rk
from rankedit_recipes.diffusion.encoded import Encoded, encoded_of, negative_of
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.text import word_tokens
from rankedit_recipes.diffusion.vectors import in_place_of

# Prompts whose two encodings are kept: more than any batch; 40 MB for SDXL in 16 bit.
_REMEMBERED = 64
# Encodings of one prompt in batches of different sizes differ by rounding; those of two prompts by
# far more.
_SAME = 1e-2
# Similarity at which a token of an unknown encoding is taken for a concept's word: where it stands
# it has 0.72 to 1.07 (docs/decisions/a-key-for-every-place.md).
_PRESENT = 0.7
_TINY = 1e-30  # below any square of an encoding's length, and no zero
_PROMPTS = ("prompt", "prompt_2", "prompt_3")
# Compiled code holds the number of a denoiser; which lock that means is looked up as it runs.
_numbers: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
_locks: dict[int, GlobalLock] = {}
_counter = itertools.count()


class GlobalLock:
    """Puts the category's encodings before the key projections until it is removed.

    Args:
        parts: of the pipeline, with the concepts' words in it.
        categories: by trigger word the category.
        similarity: of encodings `[..., in]` to the concepts' keys, `[..., concepts]`.
    """

    def __init__(
        self,
        parts: Parts,
        categories: Mapping[str, str],
        similarity: Callable[[Tensor], Tensor],
    ) -> None:
        self._similarity, self._warned = similarity, False
        self._parts, self._categories = parts, dict(categories)
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._last: tuple[Tensor, Tensor] | None = None
        self._own = "encode_prompt" in vars(parts.pipe)
        self._encode = parts.pipe.encode_prompt
        self._signature = inspect.signature(self._encode)
        # With the signature of the method, which others ask for.
        parts.pipe.encode_prompt = functools.wraps(self._encode)(
            functools.partial(self._encode_both)
        )
        modules = parts.projections
        self._layers = [modules[name] for name in parts.targets.keys]
        self._number = _numbers.setdefault(parts.denoiser.plain, next(_counter))
        _locks[self._number] = self
        self._handles = [_lock_input(layer, self._number) for layer in self._layers]

    def remove(self) -> None:
        """Restore the pipeline."""
        for handle, layer in zip(self._handles, self._layers, strict=True):
            handle.remove()
            if isinstance(layer, _Locked):
                layer.__class__ = type(layer).__bases__[1]
        _locks.pop(self._number, None)
        self._handles, self._layers = [], []
        # The instance's attribute hid the class's method, which comes to light again.
        # What a user put there before stays; else the class has it.
        if self._own:
            self._parts.pipe.encode_prompt = self._encode
        else:
            self._parts.pipe.__dict__.pop("encode_prompt", None)
        self._pairs.clear()

    def key_reads(self, read: Tensor) -> Tensor:
        """What key projections read in place of encodings `[batch, tokens, in]`."""
        return self._locked(read)

    def _encode_both(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as encode_prompt
        with self._parts.text.heard() as tokens:
            result = self._encode(*args, **kwargs)
        given = dict(self._signature.bind(*args, **kwargs).arguments)
        pairs = []
        # Without tokens embeddings were given: what they say is not known.
        if given.get("prompt") is not None and tokens:
            pairs = self._prompt_pairs(given, encoded_of(result, tokens))
        pairs += self._negative_pairs(given, negative_of(result))
        # The newest first: those are what the next steps of sampling look for.
        self._pairs = [*pairs, *self._pairs][:_REMEMBERED]
        self._last = None
        return result

    def _prompt_pairs(self, given: dict[str, Any], own: Encoded) -> list[tuple[Tensor, Tensor]]:
        texts = self._parts.text
        places = {word: texts.positions(own, word) for word in self._categories}
        if not any(found for table in places.values() for found in table):
            # What needs no lock is known too, so that what is not known can be told.
            return self._unchanged(own)
        changed = dict(given)
        extra = changed.pop("kwargs", {})
        # XL and SD 3 may be given other words for their further encoders.
        for name in _PROMPTS:
            if given.get(name) is not None:
                changed[name] = self._in_category(given[name])
        other = encoded_of(self._encode(**changed, **extra))
        return self._aligned(own, other, places)

    def _negative_pairs(
        self, given: dict[str, Any], negative: Encoded | None
    ) -> list[tuple[Tensor, Tensor]]:
        if negative is None:
            return []
        said: dict[str, Any] = {name: given.get(f"negative_{name}") for name in _PROMPTS}
        said = {name: prompt for name, prompt in said.items() if prompt is not None}
        if all(self._in_category(prompt) == prompt for prompt in said.values()):
            return self._unchanged(negative)
        # Encoded once more as prompts, for of those it is known where words stand. Clip skip is not
        # for negative prompts (diffusers 0.42).
        kept = {n: v for n, v in given.items() if "prompt" not in n and n != "clip_skip"}
        kept |= {n: given[n] for n in ("num_images_per_prompt",) if n in given}
        extra = kept.pop("kwargs", {})
        kept |= {"prompt": "", **said, "do_classifier_free_guidance": False}
        self._encode_both(**kept, **extra)
        return []

    def _unchanged(self, encoded: Encoded) -> list[tuple[Tensor, Tensor]]:
        with torch.no_grad():
            read = self._parts.reads(encoded).detach()
        return [(row, row) for row in read]

    def _in_category(self, prompt: str | Sequence[str]) -> str | list[str]:
        """The prompt or prompts in words that the model knows; of the type that was given."""
        # Pipelines refuse a list beside a negative prompt that is a text.
        if not isinstance(prompt, str):
            return [str(self._in_category(one)) for one in prompt]
        tokenizer = self._parts.text.tokenizer
        # Words that are in already stay: a concept's may be a part of theirs.
        words = {word: word for word in tokenizer.get_added_vocab()} | self._categories
        counts = {word: len(word_tokens(tokenizer, word)) for word in self._categories}
        return in_place_of(words, prompt, counts)

    def _aligned(
        self, own: Encoded, other: Encoded, places: Mapping[str, list[list[int]]]
    ) -> list[tuple[Tensor, Tensor]]:
        """What is read of each prompt, and what its keys shall read, token by token."""
        with torch.no_grad():
            read, wanted = self._parts.reads(own), self._parts.reads(other)
        pairs = []
        for index in range(len(own.tokens[0])):
            # Several pictures of one prompt are copies of one encoding, one after another.
            row = index * (len(read) // len(own.tokens[0]))
            found = {word: table[index] for word, table in places.items()}
            aligned = wanted[row, self._sources(found, read.shape[1])]
            pairs.append((read[row].detach(), aligned.detach()))
        return pairs

    def _sources(self, places: Mapping[str, list[int]], length: int) -> Tensor:
        """For each token of a prompt the one of the category's prompt that it corresponds to.

        A category of other tokens than the concept's moves what follows it; its last token stands
        for all of the concept's.
        """
        tokenizer = self._parts.text.tokenizer
        shift = torch.zeros(length, dtype=torch.long)
        for trigger, category in self._categories.items():
            vectors = len(word_tokens(tokenizer, trigger))
            more = len(word_tokens(tokenizer, category)) - vectors
            for place in places[trigger]:
                shift[place:] += more
                # Those before the last one of the concept's tokens lie so far before its place.
                for back in range(1, vectors):
                    shift[place - back] += more + back
        return (torch.arange(length) + shift).clamp(0, length - 1)

    def exchanged(self, read: Tensor) -> Tensor:
        """`key_reads`, kept for as long as the same tensor comes: from all layers, in all steps."""
        # By identity: comparing the contents would cost as much as the search.
        last = self._last
        # Another thread may put its own there meanwhile.
        if last is None or last[0] is not read:
            self._last = last = (read, self._locked(read))
        return last[1]

    def _locked(self, read: Tensor) -> Tensor:
        rows = read.reshape(-1, *read.shape[-2:]) if read.ndim > 2 else read[None]
        changed = [self._row(row) for row in rows]
        return torch.stack(changed).reshape(read.shape)

    def _row(self, row: Tensor) -> Tensor:
        """One prompt's encoding; longer ones are several encodings, one behind the other."""
        for length in {len(own) for own, _ in self._pairs}:
            if len(row) > length and len(row) % length == 0:
                return torch.cat([self._part(part) for part in row.split(length)])
        return self._part(row)

    def _part(self, row: Tensor) -> Tensor:
        # By contents: pipelines join, repeat and cast encodings on their way to the denoiser, and
        # prompt weighting scales them token by token.
        read = row.detach().float()
        bound = _SAME * float(read.norm())
        for own, wanted in self._pairs:
            if own.shape == row.shape:
                known = own.to(row.device).float()
                if float((read - known).norm()) <= bound:
                    return wanted.to(row)
                squares = known.square().sum(1, keepdim=True).clamp_min(_TINY)
                weights = (read * known).sum(1, keepdim=True) / squares
                if float((read - weights * known).norm()) <= bound:
                    return weights.to(row) * wanted.to(row)
        self._warn_of_unknown(row)
        return row

    def _warn_of_unknown(self, row: Tensor) -> None:
        """Say once if an encoding that is not locked has a concept's word in it."""
        if self._warned or torch.compiler.is_compiling():
            return
        nearest = float(self._similarity(row.detach().float().cpu()).max())
        if nearest > _PRESENT:
            self._warned = True
            warnings.warn(
                f"perfusion: the global lock meets a prompt with {' or '.join(self._categories)} "
                f"(similarity {nearest:.2f}) whose encoding this pipeline's encode_prompt did not "
                "give, such as after prompt weighting: its keys are not locked. Apply the concepts "
                "with lock='local', which holds for any encoding.",
                rk.RankeditWarning,
                stacklevel=2,
            )


# ------------------------------------------------------------------------ in the key projections


class _Locked(nn.Module):
    """Marks a key projection that reads something else.

    Compiled code is checked against the classes of layers, not against their hooks: without a class
    of its own a lock would be ignored by a denoiser that was compiled before.
    """

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:  # noqa: ANN401 - as object's own
        # A copy is made of the layer's own class, which can be found by name.
        locked = type(self)
        self.__class__ = locked.__bases__[1]
        try:
            return self.__reduce_ex__(protocol)
        finally:
            self.__class__ = locked


_classes: dict[type[nn.Module], type[nn.Module]] = {}


def _lock_input(layer: nn.Module, number: int) -> torch.utils.hooks.RemovableHandle:
    base = type(layer)
    if base not in _classes:
        _classes[base] = type(f"Locked{base.__name__}", (_Locked, base), {})
    layer.__class__ = _classes[base]

    def exchange(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if torch.compiler.is_compiling():
            return (_exchanged_copy(args[0], number), *args[1:])
        lock = _locks.get(number)
        return args if lock is None else (lock.exchanged(args[0]), *args[1:])

    return layer.register_forward_pre_hook(exchange)


# Opaque to the compiler, which would otherwise keep the encodings of the prompt that it saw.
@torch.library.custom_op(
    "rankedit_recipes::exchanged", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,)
)
def _exchanged_copy(read: Tensor, number: int) -> Tensor:
    lock = _locks.get(number)
    # An operator of torch must not give back its input, and what is remembered stays ours.
    return (read if lock is None else lock.exchanged(read)).clone()


@_exchanged_copy.register_fake
def _(read: Tensor, number: int) -> Tensor:  # noqa: ARG001 - as the operator's
    return torch.empty_like(read)
