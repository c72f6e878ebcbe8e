"""Whether a concept is really gone, and what went with it: pictures before and after, judged.

    found = probe(pipe, edited, judge, implicit={"cat": ["a pet that purrs on the sofa"]},
                  learners=[TextualInversion()], run="probe")
    found.save("probe.html")

Asked for are the concept in sentences that no edit was made in, descriptions of it without its
word, and the words whose embeddings are the nearest to its own; and what is held. Then it is taught
to the edited model anew, and asked for after some steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from PIL import Image

from rankedit.collecting.digests import model_digest
from rankedit.progress import progress as show_progress
from rankedit_recipes.concepts.contexts import nearest_words, readable
from rankedit_recipes.concepts.edited import Edited
from rankedit_recipes.concepts.errors import ConceptsError
from rankedit_recipes.concepts.probing.found import Finding, Probed
from rankedit_recipes.concepts.probing.judging import Judge
from rankedit_recipes.concepts.probing.relearning import (
    Curve,
    Learner,
    Teaching,
    check_steps,
    kept_pictures,
)
from rankedit_recipes.concepts.requests import Request
from rankedit_recipes.diffusion.captions import listed_texts
from rankedit_recipes.diffusion.generating import Sampling
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.statistics import text_digest
from rankedit_recipes.diffusion.text import Pipeline, Texts

# None of these is among the contexts of edits.
UNSEEN = (
    "a photo of a {} in a meadow",
    "a picture of a yellow {} on a snowy day",
    "a sketch of a {} by the sea",
    "a white {} under the stars",
)
UNSEEN_ATTRIBUTES = (
    "a photo of a {} car in a meadow",
    "a picture of a {} fish on a snowy day",
    "a sketch of a {} house by the sea",
    "a {} cup under the stars",
)
# Pictures to learn from have seeds of their own.
_EXAMPLES = 10_000


def probe(
    pipe: Pipeline,
    edited: Edited,
    judge: Judge,
    *,
    implicit: Mapping[str, Sequence[str]] | None = None,
    around: Sequence[str] = (),
    neighbours: int = 4,
    learners: Sequence[Learner] = (),
    steps: Sequence[int] = (0, 50, 200),
    photos: Mapping[str, Sequence[Image.Image]] | None = None,
    examples: int = 4,
    pictures: int = 2,
    sampling: Sampling | None = None,
    seed: int = 0,
    run: str | PathLike[str] | None = None,
    progress: bool = False,
) -> Probed:
    """Try to bring an edit's concepts back, by prompts and by teaching, and look at what is held.

    Args:
        pipe: the pipeline, unedited.
        edited: the edit.
        judge: says which pictures show a concept.
        implicit: by concept, prompts that describe it without its word: parts, typical scenes.
        around: words of things near the concepts, which are looked for as what is held is.
        neighbours: how many of the words with the nearest embeddings are asked for.
        learners: teach each concept to the edited model, such as `TextualInversion()`.
        steps: of learning, at which pictures are made; 0 is before any.
        photos: by concept, pictures to learn from; by default the unedited model's own.
        examples: how many of those are made.
        pictures: of each prompt.
        sampling: how they are made.
        seed: of what learning draws.
        run: folder of what is made; the same call goes on there if it was interrupted.
        progress: show it, with an estimate.

    Raises:
        ConceptsError: descriptions or pictures of what the edit does not change, steps that do not
            rise, or no prompt that the model knows the words of.
        PipelineError: the pipeline's denoisers are two, of which one would not be edited.
    """
    texts, folder = Texts(pipe), None if run is None else Path(run)
    _check_names(edited, implicit or {}, "descriptions")
    _check_names(edited, photos or {}, "pictures")
    if learners:
        check_steps(steps)
    asked = _asked(texts, edited, implicit or {}, neighbours, around)
    if not asked:
        raise ConceptsError(
            "probe: the model knows the words of none of the prompts; give implicit= in its words."
        )
    Parts(pipe).denoiser.check_one()
    if folder is not None:
        # Pictures and states of one model are never taken for those of another one.
        folder /= _model_mark(pipe)
        folder.mkdir(parents=True, exist_ok=True)
    concepts = [request for request in edited.requests if request.kind != "hold"]
    total = 2 + len(concepts) * len(learners) * len(steps)
    with show_progress("probe", total, shown=progress) as advance:
        each = [(*one, number) for one in asked for number in range(pictures)]
        prompts, seeds = [prompt for _, _, prompt, _ in each], [number for *_, number in each]
        before = kept_pictures(pipe, prompts, seeds, sampling, folder, "before")
        advance("without the edit")
        with edited.attach(pipe):
            name = f"after {edited.digest()}"
            after = kept_pictures(pipe, prompts, seeds, sampling, folder, name)
        advance("with it")
        found = Probed(
            _findings(judge, each, before, after), f"Probe of {', '.join(edited.names())}"
        )
        teaching = Teaching(pipe, edited, judge, tuple(steps), sampling, seed, folder, advance)
        curves = [
            _curve(teaching, learner, request, texts, found, photos or {}, examples, pictures)
            for request in concepts
            for learner in learners
        ]
    return Probed(found.findings, found.title, tuple(curves))


def _model_mark(pipe: Pipeline) -> str:
    """Of everything that makes a picture of a prompt and noise."""
    parts = Parts(pipe)
    models = [model_digest(module) for module in (parts.denoiser.plain, parts.pipe.vae)]
    # What begins with `_` is diffusers' own, in another order in each process.
    known = sorted((k, v) for k, v in pipe.scheduler.config.items() if not k.startswith("_"))
    told = f"{models} {text_digest(parts)} {type(pipe.scheduler).__name__} {known}"
    return f"model-{hashlib.sha256(told.encode()).hexdigest()[:12]}"


def templates_of(texts: Texts, request: Request) -> list[str]:
    """Sentences to ask for a concept in; a request's own, where it has such."""
    unseen = UNSEEN_ATTRIBUTES if request.about == "attribute" else UNSEEN
    return readable(texts, request.contexts or unseen)


def _findings(
    judge: Judge,
    each: Sequence[tuple[str, str, str, int]],
    before: Sequence[Image.Image],
    after: Sequence[Image.Image],
) -> tuple[Finding, ...]:
    findings = []
    for word in dict.fromkeys(concept for concept, *_ in each):
        own = [i for i, (concept, *_) in enumerate(each) if concept == word]
        scores = [judge([made[i] for i in own], word) for made in (before, after)]
        findings += [
            Finding(word, each[i][1], each[i][2], float(one), float(two), (before[i], after[i]))
            for i, one, two in zip(own, *scores, strict=True)
        ]
    return tuple(findings)


def _curve(
    teaching: Teaching,
    learner: Learner,
    request: Request,
    texts: Texts,
    found: Probed,
    photos: Mapping[str, Sequence[Image.Image]],
    examples: int,
    pictures: int,
) -> Curve:
    name = request.name
    templates = templates_of(texts, request)
    if not templates:
        raise ConceptsError(
            f"probe: the model knows the words of no sentence to learn {name!r} in; ask for it "
            "with contexts=['a photo of a {}', ...] in its own words."
        )
    given = list(photos.get(name, ()))
    if not given:
        texts_of = [templates[i % len(templates)].format(name) for i in range(examples)]
        seeds = range(_EXAMPLES, _EXAMPLES + examples)
        given = kept_pictures(
            teaching.pipe, texts_of, seeds, teaching.sampling, teaching.run, "examples"
        )
    before, _ = found.shares()[name, "contexts"]
    return teaching.curve(learner, name, given, templates, pictures, before)


def _check_names(edited: Edited, given: Mapping[str, object], what: str) -> None:
    unknown = sorted(set(given) - set(edited.names()))
    if unknown:
        raise ConceptsError(
            f"probe: the edit does not change {', '.join(map(repr, unknown))}; {what} are "
            f"of {', '.join(edited.names())}."
        )


def _asked(
    texts: Texts,
    edited: Edited,
    implicit: Mapping[str, Sequence[str]],
    count: int,
    around: Sequence[str],
) -> list[tuple[str, str, str]]:
    """Concept, kind and prompt of everything that is asked for."""
    found = []
    for request in edited.requests:
        kind = "kept" if request.kind == "hold" else "contexts"
        templates = templates_of(texts, request)
        for word in request.words:
            # What is held counts by itself; synonyms are the concept.
            concept = word if kind == "kept" else request.name
            found += [(concept, kind, template.format(word)) for template in templates]
        if kind == "kept":
            continue
        described = listed_texts("probe", "implicit", implicit.get(request.name, ()))
        found += [(request.name, "implicit", text) for text in described]
        near = [w for w in nearest_words(texts, request.name, count) if w not in request.words]
        found += [(request.name, "neighbours", f"a photo of a {word}") for word in near]
    known = listed_texts("probe", "around", around)
    return found + [(w, "around", t.format(w)) for w in known for t in readable(texts, UNSEEN)]
