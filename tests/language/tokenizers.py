"""Tokenizers of the kinds that models have, made in the tests: small, and none of them guesses."""

import functools

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Llama 2's: the beginning is written out, and the answer follows a space.
INSTRUCT = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} "
    "[/INST]{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
)
# As Qwen 3's: what the model thought stands before its answer, and not in the generation prompt.
THINKING = CHATML.replace(
    "{{ m['content'] }}<|im_end|>",
    "{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>",
)

SENTENCES = [
    "法国的首都是巴黎", "日本的首都是东京", "东京都是日本的首都", "京都在日本", "巴黎在法国",
    "東京は日本の首都です。", "エッフェル塔はパリにあります。", "フランスの首都はパリです。",
    "The capital of France is Paris.", "Paris is in France, is it not?", "The tower is in Rome.",
] * 3  # fmt: skip


@functools.cache
def bytes_of_words(begin=False, end=False, template=None):
    """Byte-level BPE, learned: letters of Chinese and Japanese sentences run into one another."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, show_progress=False,
        special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    backend.train_from_iterator(SENTENCES, trainer)
    _marked(backend, begin, end)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", chat_template=template
    )


@functools.cache
def metaspace(begin=False, end=False, template=None):
    """Unigram pieces behind marks of spaces, as SentencePiece has them, with bytes to fall to."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    marks = ["<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]
    words = [
        "▁",
        "▁The",
        "▁Paris",
        "▁is",
        "▁in",
        "is",
        "▁capital",
        "▁of",
        "▁France",
        "東京",
        "京都",
    ]
    words += ["日本", "の", "首都", "都は", "は", "です", "法国的", "首都是", "巴黎", "。", "是巴"]
    words += sorted(set("".join(SENTENCES)) - set(words) - {" "})
    words += [f"<0x{number:02X}>" for number in range(256)]
    pieces = [(word, -len(marks) / (1 + len(word))) for word in [*marks, *words]]
    backend = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Metaspace()]
    )
    backend.add_special_tokens(marks)
    _marked(backend, begin, end)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        chat_template=template,
    )  # fmt: skip


def _marked(backend, begin, end):
    """A post-processor that puts marks of the beginning and the end around each text."""
    from tokenizers import processors

    pattern = f"{'<s> ' if begin else ''}$A{' </s>' if end else ''}"
    marks = [(mark, backend.token_to_id(mark)) for mark in ("<s>", "</s>")]
    if begin or end:
        backend.post_processor = processors.TemplateProcessing(
            single=pattern, special_tokens=[m for m in marks if m[0] in pattern]
        )
