"""What the library advises in Python, as commands."""

# In order: each sees what those before it have put in.
REMEDIES = (
    (
        r"give statistics=, a list of captions or what perfusion\.second_moment returned",
        "give --captions FILE, one caption on a line, the same as before",
    ),
    (r"give contexts=\[.*\] in its own words", "give --context 'a photo of a {}' in its own words"),
    (r"make it anew with concepts\.edit on this pipeline", "make it anew with --model"),
    (
        r"those are written by concepts\.edit\(\.\.\.\)\.save\(path\)",
        "those are written by rankedit concepts erase and replace",
    ),
    (r"give contexts=\[.*\] without them", "give --context 'a photo of a {}' without them"),
    (
        r"choose a method that changes both, such as 'covariance' or 'uce'",
        "give --method covariance or uce",
    ),
    (
        r"give concepts\.balance\('car', .*\}\)",
        "see rankedit concepts debias --help for how shares are given",
    ),
    (
        r"call concepts\.debias\(pipe, requests, judge\), or give balance the amounts= that it "
        r"found",
        "use rankedit concepts debias",
    ),
    (
        r"load it with its text_encoder and tokenizer, and pass prompt embeddings only when "
        r"generating",
        "give --model a whole pipeline, with text_encoder and tokenizer",
    ),
    (r"^Steering: (.*); see its attributes", r"debias: \1; see rankedit concepts debias --help"),
    (r"^Steering: ", "debias: "),
    (r"; give a judge of your own", "; give --judge openai/clip-vit-base-patch32 or another one"),
    (
        r"To go on from it, give debias the requests of Edited\.load\(path\)",
        "Give the same command with --resume to go on from it",
    ),
    (
        r"add to the edit without one, and call gated again",
        "add to the edit without --gate, and give --gate again",
    ),
    (r"attach the edit without a gate, or leave captions", "leave out --gate, or leave captions"),
    (r"attach it, or make the edit without a gate", "make the edit without --gate"),
    (r"detach the edit, or remove its file, instead", "remove the file instead"),
    (r"; give the same captions", "; give the same --captions"),
    (r"to take a concept out use erase\(\.\.\.\)", "to take it out: rankedit concepts erase"),
    (r"use a text-to-image pipeline of diffusers", "give --model a text-to-image pipeline"),
    (r"read_captions:", "concepts: --captions"),
    (r"second_moment: captions", "concepts: --captions"),
    (r"^Settings: ", "concepts: settings: "),
    (r"^(edit|without|load|add|gated): ", "concepts: "),
)
"""See `rankedit_recipes.command_line.boundary`."""
