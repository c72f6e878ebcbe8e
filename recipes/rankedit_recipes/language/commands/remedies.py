"""What the library advises in Python, as commands."""

_TRACE_IN_EDIT = "'traced' is for `rankedit language edit`; give --layers numbers of blocks here"

# In order: each sees what those before it have put in.
REMEDIES = (
    (r"layers='\w+' needs requests to trace, .*", f"{_TRACE_IN_EDIT}."),
    (r"pass layers= the n(ames|umbers)", r"give --layers the n\1"),
    (r"pass layers= one number", "give --layers one number"),
    (r"pass layers=\[([\d, ]+)\]", r"give --layers '\1'"),
    (r"layers must be numbers", "--layers must be numbers"),
    (r"layers must name", "--layers must name"),
    (
        r"pass collect_statistics\(model, tokenizer, texts\)",
        "make some with `rankedit language stats TEXTS --out FILE` and give --statistics FILE",
    ),
    (
        r"make it with collect_statistics\(\.\.\.\)\.save\(path, model\)",
        "make it with `rankedit language stats TEXTS --out FILE`",
    ),
    (
        r"\. Load it with use_fast=True",
        "; give --model a folder that has a tokenizer.json",
    ),
    (
        r"load it with AutoTokenizer\.from_pretrained\(\.\.\.\)",
        "give --model a folder that has a tokenizer.json",
    ),
    # `--set` reads JSON.
    (r"consistent=False", "--set consistent=false"),
    (r"see its attributes", "see --print-config"),
    (r"Settings: ", "language: settings: "),
    (r"from_toml: ", "language: --config "),
    (r"Open it again with Stream\.open and repeat the call", "Give the same command again"),
    (r"and make the call again", "and give the same command again"),
    (
        r"keep the stream in memory \(folder=None\) and save its edits",
        "leave out --stream, and keep the edits with --out",
    ),
    (r"make the same call again, with checkpoint=\S+,", "give the same command again"),
    (
        r"pass what solves again, as method=, or on the command line as --method",
        "give what solves again, by --method",
    ),
    (r"; see `edit`", ""),
    (
        r"drop one of them \(or of the keys in hold\), or pass softness > 0 to compromise",
        "drop one of them, or give --set softness=0.1 to compromise",
    ),
)
"""See `rankedit_recipes.command_line.boundary`."""
