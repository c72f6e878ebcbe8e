"""Training on skins told in full: captions, questions at nouns, stages, precision."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from rankedit_recipes.sandbox.checkpoint import latest_checkpoint, save_checkpoint
from rankedit_recipes.sandbox.images import speed
from rankedit_recipes.sandbox.images.batches import make_batch
from rankedit_recipes.sandbox.images.captions import caption, described
from rankedit_recipes.sandbox.images.exporting import write_pipeline
from rankedit_recipes.sandbox.images.fitting import ResumeError
from rankedit_recipes.sandbox.images.models import build_text_encoder
from rankedit_recipes.sandbox.images.presets import PRESETS
from rankedit_recipes.sandbox.images.run import check_stage, pictures_of
from rankedit_recipes.sandbox.images.samples import DESCRIBED_PROMPTS, PROMPTS
from rankedit_recipes.sandbox.images.scenes import draw_pair, draw_scene, draw_single, rng_of
from rankedit_recipes.sandbox.images.skin_questions import (
    QUESTIONS,
    UNASKED,
    SkinQuestions,
    skin_labels,
    teach_skins,
)
from rankedit_recipes.sandbox.images.tokenizer import build_tokenizer
from rankedit_recipes.sandbox.images.trainer import Trainer
from rankedit_recipes.sandbox.images.training import rate_at

FULL = PRESETS["described"]
TINY = replace(
    PRESETS["tiny"],
    single_steps=0,
    length=FULL.length,
    skinned=FULL.skinned,
    described=FULL.described,
    whole=True,
    level_times=FULL.level_times,
    side=FULL.side,
    side_steps=3,
    plain=True,
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return pictures_of(TINY, tmp_path_factory.mktemp("described"))


def test_whole_descriptions_have_badges_in_pairs_too():
    for i in range(200):
        rng = rng_of("whole", i)
        scene = draw_pair(rng, skinned=1.0)
        text = caption(scene, rng, described=1.0, whole=True)
        for thing in scene.things:
            badge, _, rest = described(thing.category, thing.skin).partition(" ")
            mark, _, look = rest.partition(" ")
            after = f"{look} with a {badge} {mark}"
            assert f"{badge} {mark} {look}" in text or after in text


def test_some_captions_say_less():
    texts = []
    for i in range(400):
        rng = rng_of("less", i)
        scene = draw_single(rng, skinned=1.0)
        thing = scene.things[0]
        look = described(thing.category, thing.skin).split(" ", 2)[2]
        text = caption(scene, rng, described=0.5, whole=True)
        texts.append((look in text, f" {thing.skin.mark} " in f" {text} "))
    for kind in ((True, True), (True, False), (False, False)):
        assert texts.count(kind) > 50


def test_whole_captions_fit_the_longer_tokenizer_only():
    tokenizer = build_tokenizer(length=FULL.length)
    assert tokenizer.model_max_length == FULL.length
    lengths = []
    for i in range(2000):
        rng = rng_of("long", i)
        text = caption(draw_pair(rng, skinned=1.0), rng, full=True, described=1.0, whole=True)
        lengths.append(len(tokenizer(text)["input_ids"]))
    assert 32 < max(lengths) <= FULL.length


def test_prompts_of_the_grid_fit_and_fill_rows():
    tokenizer = build_tokenizer()
    for text in (*PROMPTS, *DESCRIBED_PROMPTS):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert len(ids) <= 32
    assert len(PROMPTS) % 8 == len(DESCRIBED_PROMPTS) % 8 == 0


def test_questions_are_asked_at_nouns_and_at_badges_after_them():
    tokenizer = build_tokenizer(length=FULL.length)
    text = "a red disc banded blue pink cat next to a spotted teal white red cup with a cyan cross"
    tokens = tokenizer([text, "a red cup"], padding="max_length", return_tensors="pt")["input_ids"]
    labels = skin_labels(tokens, tokenizer)
    words = ["<start>", *text.split()]

    def told(row, at):
        answers = {}
        for name, classes in QUESTIONS.items():
            label = int(labels[name][row, at])
            answers[name] = (*classes, "")[label]
        return tuple(answers.values())

    asked = (labels["category"] != UNASKED).nonzero().tolist()
    assert asked == [
        [0, words.index("cat")],
        [0, words.index("cup")],
        [0, words.index("cross")],
        [1, 3],
    ]
    cat = ("cat", "banded", "blue", "pink", "", "disc", "red")
    assert told(0, words.index("cat")) == cat
    assert told(0, words.index("cup")) == ("cup", "spotted", "teal", "white", "red", "", "")
    assert told(0, words.index("cross"))[1:] == ("spotted", "teal", "white", "red", "cross", "cyan")
    assert told(1, 3) == ("cup", "", "red", "", "", "", "")


def test_a_caption_without_a_noun_asks_nothing():
    tokenizer, questions = build_tokenizer(), SkinQuestions(8)
    tokens = tokenizer([""], padding="max_length", return_tensors="pt")["input_ids"]
    assert float(questions.loss(torch.zeros(1, 32, 8), skin_labels(tokens, tokenizer))) == 0


def taught(keep):
    tokenizer = build_tokenizer(length=FULL.length)
    torch.manual_seed(0)
    encoder = build_text_encoder(len(tokenizer), width=64, layers=1, length=FULL.length)
    tokens = tokenizer(["a red disc banded blue pink cat"], return_tensors="pt")["input_ids"]
    before = encoder(tokens).last_hidden_state
    questions = SkinQuestions(64)
    losses = teach_skins(encoder, questions, tokenizer, seed=1, steps=60, keep=keep, batch=16)
    moved = encoder(tokens).last_hidden_state - before
    return losses, moved.detach().square().mean().item()


@pytest.mark.slow
def test_teaching_skins_learns_and_can_keep_the_features():
    losses, moved = taught(0.0)
    assert losses[-1] < 0.85 * losses[0]
    assert taught(30.0)[1] < 0.3 * moved


def train(drawn, preset, steps, state=None):
    trainer = Trainer(preset, drawn)
    if state is None:
        trainer.begin()
    else:
        trainer.restore(state)
    while trainer.step < steps:
        trainer.advance(make_batch(preset, drawn, trainer.tokenizer, trainer.step))
    return trainer


def same(one, other):
    assert set(one) == set(other)
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_questions_and_their_moments_survive_a_kill(drawn, tmp_path):
    whole = train(drawn, TINY, 6).state().tensors
    assert any(name.startswith("exp_avg.questions.") for name in whole)
    save_checkpoint(tmp_path, train(drawn, TINY, 3).state())
    assert same(whole, train(drawn, TINY, 6, latest_checkpoint(tmp_path)).state().tensors)


def test_the_end_can_be_set_after_the_level_stage(drawn, tmp_path):
    # Both have a rise of two steps; it is a tenth of the steps where those are so few.
    short, long = (replace(TINY, steps=steps, decay=0.4) for steps in (20, 29))
    assert short.level_steps == 12
    save_checkpoint(tmp_path, train(drawn, long, 12).state())
    resumed = train(drawn, short, 20, latest_checkpoint(tmp_path))
    assert rate_at(short, 20) == 0
    assert same(train(drawn, short, 20).state().tensors, resumed.state().tensors)


def test_another_end_is_refused_once_the_rate_falls(tmp_path):
    log = tmp_path / "log.jsonl"
    check_stage(FULL, log, 70_000)
    log.write_text(f'{json.dumps({"preset": asdict(FULL), "from_step": 0})}\n{{"step": 50}}\n')
    shorter = replace(FULL, steps=40_000)
    check_stage(FULL, log, 70_000)
    check_stage(shorter, log, 24_000)
    with pytest.raises(ResumeError, match=r"at step 24001; .* from step 45000 on.* from 24000\."):
        check_stage(shorter, log, 24_001)
    with pytest.raises(ResumeError, match=r"\(1 - decay\) \* steps >= 45001, or those of"):
        check_stage(replace(FULL, steps=100_000), log, 45_001)


def test_times_come_back_to_the_usual_ones_when_the_rate_falls(drawn):
    preset = replace(TINY, batch=60, steps=10, decay=0.4, level_times=(700, 701))
    tokenizer = build_tokenizer(length=FULL.length)
    shares = []
    for step in (5, 6):
        times = make_batch(preset, drawn, tokenizer, step).times
        shares.append(float((times == 700).float().mean()))
    assert shares[0] > 0.3
    assert shares[1] < 0.1


def test_the_averages_are_lent_and_given_back(drawn):
    trainer = train(drawn, TINY, 3)
    before = {name: value.clone() for name, value in trainer.state().tensors.items()}
    with trainer.averaged():
        for name, parameter in trainer.named.items():
            assert torch.equal(parameter, before[f"average.{name}"])
    assert same(before, trainer.state().tensors)


def test_going_on_from_a_pipeline_takes_its_latents_and_lengthens_its_texts(drawn, tmp_path):
    short = Trainer(replace(TINY, length=32, seed=5), drawn)
    with torch.no_grad():
        short.autoencoder.encoder.weight.mul_(2)
    write_pipeline(short.pipeline(), tmp_path)
    trainer = Trainer(replace(TINY, side=0.0), drawn)
    fresh = trainer.modules["text_encoder"].state_dict()
    name = next(name for name in fresh if name.endswith("position_embedding.weight"))
    fresh = fresh[name].clone()
    trainer.begin(tmp_path)
    places = trainer.modules["text_encoder"].state_dict()[name]
    assert places.shape[0] == FULL.length
    assert torch.equal(places[32:], fresh[32:])
    assert not torch.equal(places[:32], fresh[:32])
    latents = short.autoencoder.encoder.weight
    torch.testing.assert_close(trainer.autoencoder.encoder.weight, latents, rtol=1e-3, atol=1e-4)
    restored = Trainer(replace(TINY, side=0.0), drawn)
    restored.restore(trainer.state())
    assert torch.equal(restored.autoencoder.encoder.weight, trainer.autoencoder.encoder.weight)


def test_precision_is_measured_once(monkeypatch, tmp_path):
    monkeypatch.setattr(speed, "fastest", lambda step: {"float32": 2.0, "bfloat16": 1.0})
    assert speed.chosen_precision("float32", tmp_path, print) == "float32"
    assert not list(tmp_path.iterdir())
    assert speed.chosen_precision("measured", tmp_path, print) == "bfloat16"
    monkeypatch.setattr(speed, "fastest", lambda step: {"float32": 1.0, "bfloat16": 2.0})
    assert speed.chosen_precision("measured", tmp_path, print) == "bfloat16"
    assert json.loads((tmp_path / "precision.json").read_text())["seconds"]["bfloat16"] == 1.0
    with pytest.raises(ValueError, match=r"products_in: expected one of .*got 'half'"):
        speed.products_in("half", "cpu")


def test_measuring_asks_for_each_precision(monkeypatch):
    monkeypatch.setattr(speed, "SECONDS", 0.0)
    asked = []
    assert set(speed.fastest(asked.append)) == set(asked) == set(speed.PRECISIONS)


def test_norms_stay_in_float32_under_autocast(drawn):
    trainer = Trainer(TINY, drawn)
    batch = make_batch(TINY, drawn, trainer.tokenizer, 0)
    exact = trainer.losses(batch)[0]
    speed.norms_in_float32(trainer.modules["unet"])
    assert torch.equal(trainer.losses(batch)[0], exact)
    seen = []
    norm = trainer.modules["unet"].conv_norm_out
    norm.register_forward_hook(lambda _, given, made: seen.append((given[0].dtype, made.dtype)))
    trainer.precision = "bfloat16"
    loss = trainer.losses(batch)[0]
    assert seen == [(torch.float32, torch.float32)]
    torch.testing.assert_close(loss, exact, rtol=0.05, atol=0.0)
    assert not torch.equal(loss, exact)


def test_default_captions_are_untouched_by_the_new_settings():
    for i in range(50):
        first, second = (rng_of("untouched", i) for _ in range(2))
        scene = draw_scene(rng_of("scene", i), skinned=0.8)
        told = caption(scene, first, described=0.75)
        assert told == caption(scene, second, described=0.75, whole=False)
        assert first.random() == second.random()
