"""The tokens that are edited at are those of the whole text, as the model would read it.

In tokenizers of several kinds: with and without marks around a text, for scripts without spaces,
and through chat templates.
"""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rankedit_recipes import language
from rankedit_recipes.language import Case, LanguageError, Request, continued, read_cases
from rankedit_recipes.language.commands import cli
from rankedit_recipes.language.commands.configuring import from_pairs, from_toml, to_toml
from rankedit_recipes.language.evaluating.likelihoods import encode_pairs
from rankedit_recipes.language.evaluating.scores import Scores
from rankedit_recipes.language.methods import METHODS
from rankedit_recipes.language.model.chatting import template_of
from rankedit_recipes.language.model.tokens import encoded, tokenised
from rankedit_recipes.language.searching.contexts import checked_prefixes, sample_prefixes
from rankedit_recipes.language.settings import Settings
from typer.testing import CliRunner

from tests.language.models import GPT2, build, quick
from tests.language.tokenizers import CHATML, INSTRUCT, THINKING, bytes_of_words, metaspace
from tests.problems import theorem

KINDS = [(make, b, e) for make in (bytes_of_words, metaspace) for b in (0, 1) for e in (0, 1)]
TEMPLATES = [CHATML, INSTRUCT, THINKING]
SUBJECTS = ["法国", "东京", "東京", "エッフェル塔", "France", "Paris", "Ada é", "京", " tower "]
BEHIND = ["的首都是", "は日本の", "都", " is in", "'s home is ", "ese: ", "", "，", " — "]
TARGETS = ["巴黎", "パリ", "Paris", " Rome", "s", "é", "of it"]
PREFIXES = ["", "A day. ", "在日本。", "東京都は", "\n"]
KIND = st.sampled_from(KINDS)
TEXTS = st.tuples(
    st.sampled_from(["", "The tower of ", "日本の", "“"]), st.sampled_from(SUBJECTS),
    st.sampled_from(BEHIND), st.sampled_from(TARGETS), st.sampled_from(PREFIXES),
    st.sampled_from([None, True, False]),
)  # fmt: skip


def kind_of(made, template=None):
    make, begin, end = made
    return make(bool(begin), bool(end), template)


def request_of(parts, **more):
    before, subject, behind, target, prefix, space = parts
    return Request(before + "{}" + behind, subject, target, space=space, **more), prefix


def reference(tokens, text):
    """Tokens and characters by the tokenizer's own backend, without marks behind the text."""
    got = tokens.backend_tokenizer.encode(text)
    pairs = list(zip(got.ids, got.offsets, strict=True))
    while pairs[-1][0] == tokens.eos_token_id:
        pairs.pop()
    return pairs


# ------------------------------------------------------------------------- texts as they are read


@theorem
@given(KIND, TEXTS)
def test_tokens_are_those_of_the_whole_text(made, parts):
    tokens = kind_of(made)
    request, prefix = request_of(parts)
    whole = prefix + request.text + request.continuation
    pairs = reference(tokens, whole)
    start = (
        len(prefix) + request.prompt.index("{}") + request.subject.index(request.subject.strip())
    )
    last, border = start + len(request.subject.strip()) - 1, len(prefix + request.text)
    crossing = [whole[a:border].strip() for _, (a, b) in pairs if a < border < b]
    if any(crossing):
        with pytest.raises(LanguageError, match=r"the end of the prompt, .* as one token"):
            tokenised(tokens, [(request, prefix)], targets=True)
        return
    (text,) = tokenised(tokens, [(request, prefix)], targets=True)
    assert list(text.ids) == [number for number, _ in pairs]
    holds = [i for i, (_, (a, b)) in enumerate(pairs) if a <= last < b]
    assert text.subject == holds[-1]
    assert list(text.target) == [i for i, (_, (_, b)) in enumerate(pairs) if b > border]
    # What is edited at is seen before the target is said, and no end stands between the two.
    assert text.subject < text.target[0]
    assert tokens.eos_token_id not in text.ids
    assert text.ids.count(tokens.bos_token_id) == made[1]


@theorem
@given(KIND, st.sampled_from(TEMPLATES), TEXTS)
def test_a_chat_is_what_the_template_makes_of_it(made, template, parts):
    tokens = kind_of(made, template)
    request, prefix = request_of(parts, chat=True)
    said = prefix + request.text
    turns = [{"role": "user", "content": said}]
    prompt = tokens.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    (text,) = tokenised(tokens, [(request, prefix)], targets=True)
    lead = " " if template is INSTRUCT and not request.target.startswith(" ") else ""
    whole = prompt + lead + request.target
    got = tokens(whole, add_special_tokens=False, return_offsets_mapping=True)
    assert list(text.ids) == got["input_ids"]
    assert got["offset_mapping"][text.target[0]][1] > len(prompt)
    if template is not THINKING:  # as the template itself has the assistant say it
        turns.append({"role": "assistant", "content": request.target})
        told = tokens.apply_chat_template(turns, tokenize=False)
        assert told.startswith(whole) or request.target.startswith(" ")
    # Marks stand as often as the template has them.
    assert text.ids.count(tokens.bos_token_id) == template.count("bos_token")
    assert tokens.eos_token_id not in text.ids
    (alone,) = tokenised(tokens, [(request, prefix)], targets=False)
    generation = tokens.apply_chat_template(
        turns[:1], add_generation_prompt=True, return_dict=False
    )
    assert list(alone.ids) == generation
    start, end = got["offset_mapping"][text.subject]
    assert request.subject.strip()[-1] in whole[start:end]


@pytest.mark.parametrize("made", KINDS)
def test_a_beginning_that_is_written_out_stands_once_and_first(made):
    tokens = kind_of(made)
    request = Request("<s>The tower of {} is", "Paris", "Rome")
    for prefix in ("", "A day. "):
        (text,) = tokenised(tokens, [(request, prefix)], targets=False)
        assert text.ids[0] == tokens.bos_token_id
        assert text.ids.count(tokens.bos_token_id) == 1
    (pair,) = encode_pairs(tokens, [("<s>The tower of Paris is", " Rome")])
    assert pair.ids.count(tokens.bos_token_id) == 1


def test_edits_and_scores_read_the_same_tokens():
    tokens = bytes_of_words(True, True, CHATML)
    for chat in (False, True):
        request = Request("The capital of {} is", "France", "Rome", chat=chat)
        (text,) = tokenised(tokens, [(request, "")], targets=True)
        pair = (request.text, request.target if chat else request.continuation)
        (read,) = encode_pairs(tokens, [pair], chat=chat)
        assert read.ids == text.ids
        assert read.first == text.target[0]


def test_the_model_is_edited_at_the_last_token_of_the_subject_in_the_chat():
    tokens = bytes_of_words(False, False, CHATML)
    model = build("GPT2", {**GPT2, "vocab_size": len(tokens)})
    request = Request("Where is {}?", "Paris", "Rome")
    settings = quick("rome", cost="identity", contexts=(), softness=0.0)
    options = {"statistics": None, "layers": 1, "progress": False}
    edited = language.edit(model, tokens, [request], settings, chat=True, **options)
    name = "transformer.h.1.mlp.c_proj"
    turns = [{"role": "user", "content": "Where is Paris?"}]
    ids = tokens.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    seen = {}
    handle = model.get_submodule(name).register_forward_hook(
        lambda _module, args, _out: seen.update(read=args[0][0])
    )
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    handle.remove()
    place = tokens.convert_ids_to_tokens(ids).index("?") - 1
    torch.testing.assert_close(seen["read"][place], edited.facts.keys[name][0])
    plain = language.edit(model, tokens, [request], settings, **options)
    assert not torch.allclose(plain.facts.keys[name], edited.facts.keys[name])
    # The same by the settings, and by the request itself, whose word comes first.
    for asked, method in [
        (request, quick("rome", cost="identity", contexts=(), chat=True)),
        (request.settled(chat=True), settings),
    ]:
        again = language.edit(model, tokens, [asked], method, **options)
        torch.testing.assert_close(again.facts.keys[name], edited.facts.keys[name])
    kept = language.edit(
        model, tokens, [request.settled(chat=False)], settings, chat=True, **options
    )
    torch.testing.assert_close(kept.facts.keys[name], plain.facts.keys[name])


def test_a_chat_needs_a_template_that_leaves_words_as_they_are():
    request = Request("Where is {}?", "Paris", "Rome", chat=True)
    for template, message in [
        (None, "chat=True needs a tokenizer with a chat template"),
        ("{{ messages[0]['content'] * 2 }}", "the user's words once, has them 2 times"),
        ("{{ messages[0]['content'] | upper }}", "changes what the user says: 'Where is Paris"),
        ("{{ raise_exception('no users') }}", "fails on a turn of the user: no users"),
    ]:
        tokens = bytes_of_words(template=template)
        with pytest.raises(LanguageError, match=message):
            tokenised(tokens, [(request, "")], targets=False)
    trimmed = bytes_of_words(template="{{ messages[0]['content'] | trim }}")
    asked = Request("{} is ", "Paris", "Rome", chat=True)
    with pytest.raises(LanguageError, match="take out spaces at its ends"):
        tokenised(trimmed, [(asked, "")], targets=False)
    assert template_of(bytes_of_words(template=INSTRUCT)).lead == " "


def test_sentences_before_prompts_go_on_where_tokenizers_end_a_text():
    ending, plain = bytes_of_words(end=True), bytes_of_words()
    model = build("GPT2", {**GPT2, "vocab_size": len(plain)})
    written = sample_prefixes(model, plain, (4, 5))
    assert sample_prefixes(model, ending, (4, 5)) == written
    assert encoded(ending, ["The"]) == encoded(plain, ["The"])


# ------------------------------------------------------------------------------------------ spaces


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ("plays the", " x"), ("法国的首都是", "x"), ("首都は", "x"), ("カタカナー", "x"),
        ("ｶ", "x"), ("首都：", "x"), ("「", "x"), ("เมืองหลวงคือ", "x"), ("រដ្ឋធានី", "x"),
        ("한국의 수도는", " x"),
        ("is 😀", " x"), ("is:", " x"), ("is ", "x"), ("is\n", "x"), ("", " x"), ("é", " x"),
    ],
)  # fmt: skip
def test_a_space_comes_before_targets_in_scripts_that_have_spaces(after, expected):
    assert continued("x", after) == expected
    given_space = "x" if after[-1:].isspace() else " x"
    assert continued("x", after, space=True) == given_space
    assert continued("x", after, space=False) == "x"
    assert continued("\nx", after, space=True) == "\nx"


def test_texts_before_prompts_follow_the_same_rule():
    assert checked_prefixes(["在日本。", "A day.", "A day. ", ""]) == (
        "在日本。", "A day. ", "A day. ", "",
    )  # fmt: skip


def test_prompts_that_end_in_a_space_get_no_second_one():
    request = Request("{} is ", "Paris", "Rome")
    assert request.text + request.continuation == "Paris is Rome"
    tokens = bytes_of_words()
    (text,) = tokenised(tokens, [(request, "")], targets=True)
    (read,) = encode_pairs(tokens, [("Paris is", " Rome")])
    assert text.ids == read.ids


def test_scores_ask_for_targets_as_edits_do():
    tokens = bytes_of_words(template=CHATML)
    model = build("GPT2", {**GPT2, "vocab_size": len(tokens)})
    said = []

    def scores(**more):
        case = Case(
            Request("{}的首都是", "法国", "东京"), "巴黎", paraphrases=("The capital of France is",)
        )
        return language.evaluate(model, tokens, [case], progress=False, **more)

    def chance(ids, first):
        with torch.no_grad():
            log = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        return float(log[range(first - 1, len(ids) - 1), ids[first:]].mean().exp())

    for chat in (False, True):
        request = Request("{}的首都是", "法国", "东京", chat=chat)
        pairs = [tokenised(tokens, [(request, "")], targets=True)[0]]
        pairs += tokenised(
            tokens, [(Request("{}的首都是", "法国", "巴黎", chat=chat), "")], targets=True
        )
        expected = [chance(list(t.ids), t.target[0]) for t in pairs]
        magnitude = scores(chat=chat).samples["efficacy magnitude"]
        assert float(magnitude) == pytest.approx(expected[0] - expected[1], rel=1e-4)
        said.append(float(magnitude))
    assert said[0] != pytest.approx(said[1])


def test_what_is_written_in_a_chat_is_the_answer():
    tokens = bytes_of_words(template=CHATML)
    model = build("GPT2", {**GPT2, "vocab_size": len(tokens)})
    plain, chat = language.generate(
        model, tokens, ["Where is Paris?"] * 2, length=60, chat=[False, True]
    )
    assert plain.startswith("Where is Paris?")
    assert chat.startswith("Where is Paris?\n")
    assert "Be brief" not in chat


# ---------------------------------------------------------------------------------- files, settings


def test_json_lines_say_space_and_chat(tmp_path):
    record = {"prompt": "{}的首都是", "subject": "法国", "target": "东京"}
    lines = [record, {**record, "space": False, "chat": True}, {**record, "chat": "yes"}]
    file = tmp_path / "facts.jsonl"
    file.write_text("\n".join(map(json.dumps, lines[:2])), encoding="utf-8")
    first, second = (case.request for case in read_cases(file))
    assert (first.space, first.chat, first.to_dict().keys() & {"space", "chat"}) == (
        None,
        None,
        set(),
    )
    assert (second.space, second.chat) == (False, True)
    assert Request(**second.to_dict()) == second
    file.write_text(json.dumps(lines[2]), encoding="utf-8")
    with pytest.raises(LanguageError, match="chat must be true or false, got 'yes'"):
        read_cases(file)
    with pytest.raises(LanguageError, match="space must be True, False or None, got 1"):
        Request("{} is", "Paris", "Rome", space=1)


def test_settings_say_space_and_chat(tmp_path):
    plain = METHODS["memit"]
    assert not plain.to_dict().keys() & {"space", "chat"}
    settings = from_pairs(plain, ["chat=true", "space=false"])
    assert (settings.chat, settings.space) == (True, False)
    assert Settings.from_dict(settings.to_dict()) == settings
    file = tmp_path / "settings.toml"
    for each in (plain, settings):
        file.write_text(to_toml(each), encoding="utf-8")
        assert from_toml(file) == each
    assert "chat = false\n" in to_toml(plain)
    asked = settings.asked([Request("{} is", "Paris", "Rome", space=True)])
    assert (asked[0].space, asked[0].chat) == (True, True)
    with pytest.raises(LanguageError, match="space must be of type bool"):
        from_pairs(plain, ["space=1"])


def test_commands_say_space_and_chat(tmp_path):
    tokens = bytes_of_words(template=CHATML)
    model = build("GPT2", {**GPT2, "vocab_size": len(tokens)})
    model.save_pretrained(tmp_path / "model")
    tokens.save_pretrained(tmp_path / "model")
    record = {"prompt": "Where is {}?", "subject": "Paris", "target": "Rome",
              "true_target": "France"}  # fmt: skip
    own = {**record, "subject": "the tower", "space": True, "chat": False}
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, [record, own])))

    def run(*arguments):
        given = [*arguments, str(tmp_path / "facts.jsonl"), "--model", str(tmp_path / "model")]
        result = CliRunner().invoke(cli.app, [str(each) for each in given], catch_exceptions=False)
        assert result.exit_code == 0, result.output

    few = ["--set", "steps=1", "--set", "contexts=[]", "--set", 'cost="identity"']
    run("edit", *few, "--chat", "--no-space", "--stream", tmp_path / "stream")
    facts = json.loads((tmp_path / "stream" / "stream.json").read_text())["facts"]
    assert [(fact["chat"], fact["space"]) for fact in facts] == [(True, False), (False, True)]
    for name, more in (("chat", ["--chat"]), ("plain", [])):
        run("evaluate", *more, "--out", tmp_path / f"{name}.json")
    chat, plain = (
        Scores.load(tmp_path / f"{name}.json").samples["efficacy magnitude"].tolist()
        for name in ("chat", "plain")
    )
    assert chat[0] != plain[0]
    # Its own word comes first.
    assert chat[1] == plain[1]
