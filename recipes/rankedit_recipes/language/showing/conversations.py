"""What a model says, before and after an edit, as a page that anyone can read."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike

from rankedit.atomic import atomic_write

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --page: #fff; --soft: #5a6478; --line: #dde1e8;
  --old: #8a4b00; --new: #0b6b3a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ee; --page: #14171d; --soft: #a8b0c0;
  --line: #303644; --old: #f0b36a; --new: #6fd6a0; } }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem;
  color: var(--ink); background: var(--page); }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem; }
.lead { font-size: 1.1rem; } small, .soft { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; min-width: 34rem; }
th, td { text-align: left; vertical-align: top; padding: .45rem .7rem;
  border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; font-size: .85rem; }
td.asked { width: 34%; } mark { background: none; font-weight: 700; }
mark.old { color: var(--old); } mark.new { color: var(--new); }
"""


@dataclass(frozen=True)
class Answers:
    """What a model said to the same prompts in several states.

    Attributes:
        title: of the table.
        note: what to look for.
        prompts: what was asked.
        said: by state of the model (such as `"before"`): what it said to each prompt.
        old: the answer that is to go, or `""`; told apart by its colour.
        new: the answer that is to come, or `""`.
    """

    title: str
    note: str
    prompts: Sequence[str]
    said: Mapping[str, Sequence[str]]
    old: str = ""
    new: str = ""

    def html(self) -> str:
        """As a section of a page."""
        head = "".join(f'<th scope="col">{html.escape(h)}</th>' for h in ("asked", *self.said))
        rows = "".join(
            f'<tr><td class="asked">{html.escape(prompt)}</td>'
            + "".join(f"<td>{self._marked(every[i])}</td>" for every in self.said.values())
            + "</tr>"
            for i, prompt in enumerate(self.prompts)
        )
        return (
            f"<h2>{html.escape(self.title)}</h2><p class=soft>{html.escape(self.note)}</p>"
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{rows}</tbody></table></div>"
        )

    def text(self) -> str:
        """As lines for a terminal."""
        width = max(map(len, self.said))
        lines = [self.title]
        for i, prompt in enumerate(self.prompts):
            lines.append(f"  {prompt}")
            lines += [f"    {state:<{width}}  {every[i]}" for state, every in self.said.items()]
        return "\n".join(lines)

    def _marked(self, answer: str) -> str:
        marked = html.escape(answer)
        for kind, word in (("old", self.old), ("new", self.new)):
            shown = html.escape(word)
            if shown:
                marked = marked.replace(shown, f'<mark class="{kind}">{shown}</mark>')
        return marked


def save_page(
    path: str | PathLike[str],
    title: str,
    lead: str,
    answers: Sequence[Answers],
    facts: Mapping[str, str],
) -> None:
    """Write a page of answers.

    Args:
        path: of one HTML file that needs no other.
        title: of the page.
        lead: what was done, for somebody who never heard of it.
        answers: the tables.
        facts: figures and where everything came from, below them.
    """
    rows = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(value)}</td></tr>'
        for name, value in facts.items()
    )
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>"
        f'<h1>{html.escape(title)}</h1><p class="lead">{html.escape(lead)}</p>'
        f"{''.join(part.html() for part in answers)}"
        f'<h2>How</h2><div class="scroll"><table><tbody>{rows}</tbody></table></div>'
        "</body></html>\n"
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
