"""Probing an edit of the sandbox's model, with its own judge."""

import numpy as np
import pytest
import torch
from rankedit_recipes import concepts, sandbox
from rankedit_recipes.concepts.contexts import nearest_words
from rankedit_recipes.diffusion.generating import Sampling
from rankedit_recipes.diffusion.text import Texts
from rankedit_recipes.sandbox.images.judge import judge
from rankedit_recipes.sandbox.images.vocabulary import CATEGORIES


@pytest.mark.slow
def test_an_erased_concept_is_gone_and_a_held_one_is_not(tmp_path):
    pipe, model = sandbox.pipeline(), sandbox.attribute_judge()
    pipe.set_progress_bar_config(disable=True)

    def shows(pictures, word):
        pixels = torch.from_numpy(np.stack([np.array(p.convert("RGB")) for p in pictures]))
        return (judge(model, pixels).present[:, CATEGORIES.index(word)] > 0).float().tolist()

    requests = [concepts.erase("cat", to="tree"), concepts.hold("boat")]
    edited = concepts.edit(pipe, requests, method="uce")
    found = concepts.probe(
        pipe, edited, shows, implicit={"cat": ["a photo of a my toy at night"]}, neighbours=1,
        pictures=1, sampling=Sampling(steps=8, guidance=4.0, batch=11),
    )  # fmt: skip
    shares = found.shares()
    assert shares["cat", "contexts"][0] >= 0.75
    assert shares["cat", "contexts"][1] <= 0.25
    assert shares["boat", "kept"][1] >= 0.75
    assert {kind for _, kind in shares} == {"contexts", "implicit", "neighbours", "kept"}
    found.save(tmp_path / "probe.html")
    page = (tmp_path / "probe.html").read_text()
    assert page.count("<img") == 2 * len(found.findings)
    assert "after: a sketch of a cat by the sea" in page
    with pytest.raises(concepts.ConceptsError, match="does not change 'boat'"):
        concepts.probe(pipe, edited, shows, implicit={"boat": ["a sail"]})


def test_nearest_words_are_whole_words_and_not_the_word_itself():
    texts = Texts(sandbox.pipeline())
    found = nearest_words(texts, "cat", 5)
    assert len(set(found)) == 5
    assert "cat" not in found
    table = texts.encoders[0].model.get_input_embeddings().weight.detach()
    number = texts.tokenizer.convert_tokens_to_ids
    unit = torch.nn.functional.normalize(table, dim=1)
    cosine = {word: float(unit[number(word)] @ unit[number("cat")]) for word in found}
    assert list(cosine.values()) == sorted(cosine.values(), reverse=True)
    others = [w for w in ("cup", "house", "tree", "boat") if w not in found]
    assert all(float(unit[number(w)] @ unit[number("cat")]) <= min(cosine.values()) for w in others)
