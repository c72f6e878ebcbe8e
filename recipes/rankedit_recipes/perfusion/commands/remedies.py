"""What the library advises in Python, as commands."""

_OTHER_WORD = "rankedit perfusion rename FILE --placeholder '<other>' --out NEW gives another word"

# In order: each sees what those before it have put in.
REMEDIES = (
    # Two calls advise it, one of them with the words behind it.
    (r"concept\.renamed\('<other>'\)( gives another word)?", _OTHER_WORD),
    (
        # No command clears a concept's base model: what is left of the advice is to learn anew.
        r" Learn both on one model; or, if you know that they fit, clear one's with .*",
        " Learn both on one model.",
    ),
    (
        r"load the pipeline in bfloat16, which takes no more memory, or in float32",
        "give --dtype bfloat16, which takes no more memory, or --dtype float32",
    ),
    (
        r"make the same call again to go on from ('.*')",
        r"give the same command with --resume to go on from \1",
    ),
    (r"use a text-to-image pipeline of diffusers", "give --model a text-to-image pipeline"),
    (
        r"load it with its text_encoder and tokenizer, and pass prompt embeddings only when "
        r"generating",
        "give --model a whole pipeline, with text_encoder and tokenizer",
    ),
    (r"the placeholder must be", "--placeholder must be"),
    (
        r"\bsteps was (\d+), is (\d+)",
        r"steps was \1, is \2 (the learning rates fall towards the last step, so that more steps "
        r"are another training: give --steps \1)",
    ),
    (
        r"use another run folder, or remove it to start again",
        "give another --run folder, or remove this one to start again",
    ),
    (
        r"make it with second_moment and save_moment",
        "make it with `rankedit perfusion stats --captions FILE --out FILE`",
    ),
    (
        r", and tokens must be '(\w+)'; collect it with the same tokens",
        r", and the setting tokens is \1; give --set tokens=, or collect it with --tokens \1",
    ),
    # Prefixes are those of calls in Python; here the command or the option is what was typed.
    (r"Config: (\w+) must", r"learn: the setting \1 must"),
    (r"Config: unknown setting", "learn: unknown setting"),
    (r"Config\.from_toml:", "learn: --config"),
    (r"load_moment:", "learn: --statistics"),
    (r"read_captions:", "learn: --captions"),
    (r"load_photos: ", "photos: "),
)
"""See `rankedit_recipes.command_line.boundary`."""
