"""Learn the value that an edit is to give, by gradient, for any loss over the model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn

from rankedit.learning.objective import Loss, Objective, ValueSearch
from rankedit.learning.searching import LearnedValues, OnStep, Search, StepReport, ValueSearchError
from rankedit.learning.shifting import OutputSite
from rankedit.learning.sites import Site, Sites
from rankedit.metric import Metric
from rankedit.models.reading import as_written
from rankedit.shapes import check_kind

__all__ = [
    "LearnedValues",
    "Loss",
    "OnStep",
    "OutputSite",
    "StepReport",
    "ValueSearch",
    "ValueSearchError",
    "optimise_value",
]


def optimise_value(
    model: nn.Module,
    sites: Mapping[str, Site],
    loss: Loss,
    *,
    options: ValueSearch | None = None,
    metrics: Mapping[str, Metric] | None = None,
    on_step: OnStep | None = None,
) -> LearnedValues:
    """Learn values of projections by gradient; nothing else in the model changes or gets gradients.

    Two kinds of sites, which may be mixed:

    * `OutputSite`: what a projection should give at chosen tokens (ROME, MEMIT). The search adds a
      shift to its output there. The values found are for `solve_edit`.
    * `GatedEdit`: the targets of a gated edit (Perfusion). The search attaches it to the model.

    Requests of one batch do not influence each other's search, unless the loss is one number.

    Args:
        model: the model; it runs in the mode (training or evaluation) that it is in.
        sites: by the name of the projection.
        loss: runs the model and returns its loss: one number, or `[n]` with one for each request
            (row of the values). Or a pair of that and logits `[n·k, classes]`, request by request,
            whose distributions should stay what they are at the first call.
        options: how to search.
        metrics: by name, for gated edits whose keys are to be learned too, under this metric.
        on_step: called after each evaluation; True, or True for each request `[n]`, stops it.

    Returns:
        The values after the last step, and how the search went.

    Raises:
        ProjectionError: a name is unknown or no projection.
        ShapeError: the loss is no number or vector, or does not have an entry for each value.
        SolveError: the loss does not depend on the values at some site.
        ValueSearchError: the loss became NaN or infinite; has the best values before.

    Example:
        >>> import torch
        >>> import rankedit as rk
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        >>> x, wanted = torch.ones(1, 3), torch.tensor([[2.0, -1.0]])
        >>> found = rk.optimise_value(
        ...     model,
        ...     {"0": rk.OutputSite(torch.tensor([0]), count=1)},
        ...     lambda: (model(x) - wanted).square().sum(1),
        ...     options=rk.ValueSearch(
        ...         steps=300, learning_rate=0.1, clamp=None, decay=0, stop_below=1e-6
        ...     ),
        ... )
        >>> found.reasons
        ('low enough',)
        >>> torch.allclose(model[1](found.values["0"] + model[0].bias), wanted, atol=1e-2)
        True
    """
    call = "optimise_value"
    check_kind(call, "model", model, nn.Module)
    check_kind(call, "sites", sites, Mapping)
    check_kind(call, "loss", loss, Callable)
    check_kind(call, "options", options, ValueSearch, optional=True)
    check_kind(call, "metrics", metrics, Mapping, optional=True)
    placed = Sites(model, sites, metrics or {})
    chosen = options or ValueSearch()
    objective, search = Objective(placed, loss, chosen), Search(placed, chosen)
    # Compiled code would have recorded the model without the shifts; see `as_written`.
    with frozen(model), as_written(), torch.enable_grad(), placed.installed() as evaluating:
        while True:
            with evaluating():  # gradients too: checkpointed models run again for them
                terms = objective.evaluate()
                search.judge(terms.totals.detach(), on_step)
                if search.finished:
                    return search.result()
                gradients = search.gradients(terms)
            search.update(gradients)


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter of the model asks for gradients; afterwards those that did do again."""
    # Listed first, so that what asked for gradients is known whatever happens below.
    learning = [p for p in model.parameters() if p.requires_grad]
    try:
        for parameter in learning:
            parameter.requires_grad = False
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad = True
