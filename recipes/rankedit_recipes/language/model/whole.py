"""Whether this process holds a model, or a part of one that others hold with it."""

from __future__ import annotations

from torch import nn

from rankedit.models.reading import may_stop, tensor_parallel
from rankedit_recipes.language.errors import LanguageError


def check_searchable(model: nn.Module) -> None:
    """Refuse models of which this process holds a part: the search asks layers by themselves.

    Raises:
        LanguageError: it is split by tensor parallelism, or sharded; says what works instead.
    """
    check_not_split(model)
    if not may_stop(model):
        raise LanguageError(
            "edit: the model is sharded (fully_shard, fsdp_size), so that its layers have weights "
            "in forward passes only, and the search runs layers by themselves. Save what "
            "collect_statistics gives on the sharded model; find the edits in one process, on the "
            'model loaded with device_map="auto", or by `rankedit language edit REQUESTS --model '
            "NAME --statistics FILE --offload sequential --out EDITS`; then attach rk.load(EDITS) "
            "to the sharded model."
        )


def check_not_split(model: nn.Module) -> None:
    """Refuse models whose projections read and give parts of vectors.

    Raises:
        LanguageError: it is split by tensor parallelism.
    """
    split = tensor_parallel(model)
    if split is not None:
        raise LanguageError(
            f"language: the model is split over processes by tensor parallelism ({split!r}), where "
            "none holds what a projection reads and gives; load it without tp_plan or tp_size: "
            'spread by device_map="auto"; statistics can also be collected under fully_shard.'
        )
