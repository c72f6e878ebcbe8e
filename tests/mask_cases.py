"""Small models that arrange a batch in every way, and what a projection of each really reads."""

import torch
from torch import nn

import rankedit as rk

LENGTHS = {(2, 5): (3, 5), (3, 3): (3, 3, 2)}


def kept(batch, tokens, lengths=None):
    """A mask of what is kept, `[batch, tokens]`, padded on the right."""
    lengths = torch.tensor(lengths or LENGTHS[batch, tokens])
    return torch.arange(tokens)[None] < lengths[:, None]


def by_hand(model, name, batch, keep, *, tokens_first=False, call=None):
    """The moment of the kept vectors, from the input as it was and the order that is known."""
    seen = []
    handle = model.get_submodule(name).register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((*args, *kwargs.values())[0].detach().clone()),
        with_kwargs=True,
    )
    with torch.no_grad():
        (call or (lambda batch: model(**batch)))(batch)
    handle.remove()
    rows = seen[0].reshape(*(keep.mT if tokens_first else keep).shape, -1)
    rows = rows.transpose(0, 1) if tokens_first else rows
    return rk.SecondMoment(rows.shape[-1]).update(rows, keep)


def check(model, name, batch, keep, *, tokens_first=False, call=None, **options):
    """`collect` gives what the kept vectors give."""
    model = model.eval()
    found = rk.collect(model, name, [batch], call=call, progress=False, **options)[name]
    expected = by_hand(model, name, batch, keep, tokens_first=tokens_first, call=call)
    assert found.count == expected.count == int(keep.sum())
    torch.testing.assert_close(found.matrix, expected.matrix, rtol=1e-5, atol=1e-7)


class Toy(nn.Module):
    """Embeds tokens and reads them by `out`; how they are arranged on the way is the subject."""

    def __init__(self, arrange, *, table=None, lstm=None):
        super().__init__()
        torch.manual_seed(0)
        self.emb, self.lin, self.out = nn.Embedding(60, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.arrange = arrange
        if table is not None:
            self.register_buffer("table", table)
        if lstm is not None:
            self.lstm = nn.LSTM(8, 8, batch_first=lstm)

    def forward(self, input_ids, attention_mask=None):
        return self.out(self.arrange(self, input_ids, attention_mask))


class Two(Toy):
    """Two sequences and one mask, which no module gets."""

    def __init__(self):
        super().__init__(None)

    def forward(self, src, tgt, attention_mask=None):
        memory, h = self.lin(self.emb(src)), self.emb(tgt)
        return self.out(torch.softmax(h @ memory.mT, -1) @ memory + h)


def rolled(x):
    return torch.cat([x[:, 1:], x[:, :1]], 1)


def filled_backwards(x):
    out = torch.empty_like(x)
    out[torch.arange(len(x)).flip(0)] = x
    return out


def mean_over(x, k):
    return torch.softmax(x @ k.mT, -1) @ k


BATCH_FIRST = {
    "flat": lambda m, ids, _: torch.tanh(m.lin(m.emb(ids).reshape(-1, 8))),
    "flat and back": lambda m, ids, _: m.lin(m.emb(ids).view(-1, 8)).view(*ids.shape, 8),
    "heads": lambda m, ids, _: (
        mean_over(*[m.emb(ids).view(*ids.shape, 2, 4).transpose(1, 2)] * 2)
        .transpose(1, 2)
        .flatten(2)
    ),
    "lstm": lambda m, ids, _: m.lstm(m.emb(ids))[0],
    "joined": lambda m, ids, _: torch.cat(m.emb(ids).chunk(2, -1)[::-1], -1),
    "in place": lambda m, ids, _: m.emb(ids).transpose(0, 1).add_(1).transpose(0, 1),
}
TOKENS_FIRST = {
    "transposed": lambda m, ids, _: torch.tanh(m.lin(m.emb(ids).transpose(0, 1).contiguous() + 1)),
    "ids transposed": lambda m, ids, _: torch.tanh(m.lin(m.emb(ids.t().contiguous()))),
    "flat": lambda m, ids, _: torch.tanh(m.lin(m.emb(ids).transpose(0, 1).reshape(-1, 8))),
    "permuted twice": lambda m, ids, _: m.emb(ids).permute(2, 1, 0).permute(1, 2, 0),
    "einsum": lambda m, ids, _: torch.einsum("btd,de->tbe", m.emb(ids), m.lin.weight),
}
LOST = {
    "sorted": lambda m, ids, _: m.emb(ids).reshape(-1, 8)[m.emb(ids).flatten(0, 1)[:, 0].argsort()],
    "stacked": lambda m, ids, _: torch.stack([m.emb(ids)[i] for i in reversed(range(len(ids)))]),
    "joined": lambda m, ids, _: torch.cat(m.emb(ids).split(1)[::-1]),
    "shifted": lambda m, ids, _: rolled(m.emb(ids)),
    "mirrored": lambda m, ids, _: torch.fliplr(m.emb(ids)),
    "turned": lambda m, ids, _: torch.rot90(m.emb(ids), 2),
    "written": lambda m, ids, _: m.emb(ids).index_copy(
        0, torch.arange(len(ids)).flip(0), m.emb(ids)
    ),
    "filled": lambda m, ids, _: filled_backwards(m.emb(ids)),
    "packed": lambda m, ids, mask: m.emb(ids)[mask.bool()],
    "queries": lambda m, ids, _: mean_over(m.table.expand(len(ids), -1, -1), m.emb(ids)),
}
