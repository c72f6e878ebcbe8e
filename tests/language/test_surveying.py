"""Which blocks are edited where none are asked for: those whose keys tell subjects apart."""

from dataclasses import replace

import pytest
import torch
from rankedit_recipes.language import METHODS, LanguageError, find_blocks
from rankedit_recipes.language.model.blocks import Block
from rankedit_recipes.language.model.layers import choose_blocks, default_blocks
from rankedit_recipes.language.model.surveying import explained, survey
from torch import nn

import rankedit as rk
from tests.language.models import family


class Reader(nn.Module):
    """A block that reads the tokens in one way, and gives nothing."""

    def __init__(self, reads):
        super().__init__()
        self.reads, self.down = reads, nn.Linear(64, 64)

    def forward(self, x):
        self.down(self.reads(x))


def last(x):
    return x


def three(x):
    return x + x.roll(1, 1) + x.roll(2, 1)


def all_so_far(x):
    return x.cumsum(1)


def sink(x):
    return three(x) * torch.tensor([100.0] + [1.0] * 8)[:, None]


def alike(x):
    return three(x) + 3 * x.new_ones(64)


class Model(nn.Module):
    """Blocks side by side, each of which reads the embeddings."""

    def __init__(self, *reads):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(1000, 64)
        self.layers = nn.ModuleList(Reader(each) for each in reads)

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, attention_mask, use_cache):
        for layer in self.layers:
            layer(self.embedding(input_ids))


def chosen(*reads, method="rome", direct=lambda number: True):
    model = Model(*reads)
    blocks = [
        Block(n, f"layers.{n}", f"layers.{n}.down", direct=direct(n)) for n in range(len(reads))
    ]
    found = choose_blocks(model, blocks, None, METHODS[method])
    assert found == default_blocks(model, blocks, METHODS[method])
    return [block.index for block in found]


def test_what_is_measured():
    model = Model(last, three, all_so_far, sink, alike)
    blocks = [Block(n, f"layers.{n}", f"layers.{n}.down", direct=True) for n in range(5)]
    only, best, far, held, near = survey(model, blocks)
    assert (only.agreement, only.alike) == (pytest.approx(1), pytest.approx(1))
    assert best.agreement == pytest.approx(1)  # the beginnings are not seen
    assert best.alike == pytest.approx(1 / 3, abs=0.1)  # one of three tokens is the same
    assert best.overlap < 0.25
    assert far.agreement < 0.6
    assert near.overlap > 0.6
    assert held.longest > 50
    assert [each.unfit for each in (only, best, far, held, near)] == [1, 0, 0, 1, 0]
    assert max((best, far, near), key=lambda found: found.apart) is best
    said = list(explained(model, blocks[2:4]))
    assert said[0].startswith("  chosen layers.2: keys of one subject agree by 0.")
    assert said[1].endswith(", a sink")


def test_the_block_that_tells_subjects_apart_is_taken_from_the_lower_half():
    rest = [three] * 5
    assert chosen(last, all_so_far, three, alike, sink, *rest) == [2]
    assert chosen(last, sink, all_so_far, last, sink, *rest) == [2]
    assert chosen(last, sink, last, sink, last, *rest)[0] < 5  # of what there is


def test_several_blocks_lie_next_to_each_other_and_have_no_sink():
    low = [last, three, sink, three, three, three, alike, all_so_far, sink]
    assert chosen(*low, *[three] * 9, method="memit") == [3, 4, 5]
    # One that normalises what it gives cannot share.
    low = [last, three, three, three, three, three, all_so_far, all_so_far]
    with pytest.warns(rk.RankeditWarning, match=r"edits 2 of 3 .*'layers.2' normalises"):
        found = chosen(
            *low, *[three] * 8, method="memit", direct=lambda number: number not in (2, 5)
        )
    assert found == [3, 4]


def test_real_families_are_measured_and_left_as_they_are():
    for name in ("gpt2", "opt", "gemma2"):
        model, _ = family(name)
        model.train()
        found = survey(model, find_blocks(model))
        assert all(0 <= each.agreement <= 1 and each.longest > 0 for each in found)
        assert model.training
        assert not any(m._forward_hooks for m in model.modules())
        assert survey(model, find_blocks(model)) == found


def test_what_cannot_be_measured_is_refused():
    model = Model(three)
    with pytest.raises(LanguageError, match="does not run 'embedding' on every token"):
        survey(model, [Block(0, "layers.0", "embedding", direct=True)])
    with pytest.raises(
        LanguageError, match=r"got Linear without input embeddings; pass layers= the names"
    ):
        survey(nn.Linear(2, 2), [])


def test_a_depth_asks_for_the_blocks_of_papers():
    model = Model(*[three] * 30)
    blocks = [Block(n, f"layers.{n}", f"layers.{n}.down", direct=True) for n in range(30)]
    paper = replace(METHODS["memit"], depth=1 / 3)
    assert [b.index for b in choose_blocks(model, blocks, None, paper)] == [6, 7, 8, 9, 10]
