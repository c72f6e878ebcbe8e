"""One HTML file that shows how a model scores, with definitions and plots; it needs no other."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike

from rankedit.atomic import atomic_write
from rankedit_recipes.language.evaluating.measures import MEASURES
from rankedit_recipes.language.evaluating.scores import Scores
from rankedit_recipes.language.evaluating.tracing import Trace
from rankedit_recipes.language.showing.plots import (
    Curve,
    embedded,
    growth_figure,
    relations_figure,
    trace_figure,
)

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 0 auto; padding: 1rem;
  color: #1d2330; background: #fff; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.plot { max-width: 100%; height: auto; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; }
td, th { padding: .2rem .7rem; text-align: left; border-bottom: 1px solid #dde1e8;
  vertical-align: top; }
th { position: sticky; top: 0; background: #fff; }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
small { color: #4a5264; }
@media (prefers-color-scheme: dark) { body { color: #e4e7ee; background: #14171d; }
  th { background: #14171d; } small { color: #a8b0c0; } td, th { border-color: #303644; }
  .plot { background: #fff; } }
"""
_WORST = 15


@dataclass(frozen=True)
class Table:
    """A table of a report: the first column is text, the others are numbers.

    Attributes:
        header: of the columns.
        rows: of the table.
        note: below it.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def html(self) -> str:
        """As an element of HTML."""
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in self.header)
        lines = "".join(f"<tr>{_cells(row)}</tr>" for row in self.rows)
        note = f"<p><small>{html.escape(self.note)}</small></p>" if self.note else ""
        return f'<div class="scroll"><table><tr>{head}</tr>{lines}</table></div>{note}'

    def markdown(self) -> str:
        """As a table of Markdown, numbers to the right."""
        lines = [_bar(self.header), _bar(["---", *["---:"] * (len(self.header) - 1)])]
        return "\n".join([*lines, *map(_bar, self.rows)]) + "\n"


@dataclass(frozen=True)
class Report:
    """Everything that a report may show; what is left out is not shown.

    Attributes:
        title: of the page.
        scores: by the name of a model (such as `"edited"`): its scores.
        base: scores of the unedited model on the same cases.
        curves: by method: scores by the number of edits.
        trace: where the facts are.
        tables: further tables by their titles.
        settings: anything else worth recording.
    """

    title: str
    scores: Mapping[str, Scores] = field(default_factory=dict)
    base: Scores | None = None
    curves: Mapping[str, Curve] = field(default_factory=dict)
    trace: Trace | None = None
    tables: Mapping[str, Table] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the report as one HTML file."""
        with atomic_write(path) as temporary:
            temporary.write_text(self.html(), encoding="utf-8")

    def html(self) -> str:
        """The page."""
        sections = [
            ("Scores", self._scores()),
            ("Score against the number of edits", self._growth()),
            *((title, table.html()) for title, table in self.tables.items()),
            ("By relation", self._relations()),
            ("Where the facts are", self._trace()),
            ("Cases that failed", self._failures()),
            ("Definitions", definitions().html() if self.scores or self.base else ""),
            ("Settings and provenance", _facts(self.settings)),
        ]
        body = "".join(f"<h2>{html.escape(t)}</h2>{c}" for t, c in sections if c)
        title = html.escape(self.title)
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{title}</title><style>{_STYLE}</style></head><body><h1>{title}</h1>"
            f"{body}</body></html>\n"
        )

    def _scores(self) -> str:
        every = ({} if self.base is None else {"unedited": self.base}) | dict(self.scores)
        return scores_table(every).html() if every else ""

    def _growth(self) -> str:
        if not self.curves:
            return ""
        return embedded(growth_figure(self.curves, base=self.base), "scores by number of edits")

    def _relations(self) -> str:
        return "".join(
            f"<h3>{html.escape(name)}</h3>"
            f"{embedded(relations_figure(scores), f'{name}: scores by relation')}"
            for name, scores in self.scores.items()
            if "efficacy" in scores.figures and len(set(scores.relations)) > 1
        )

    def _trace(self) -> str:
        if self.trace is None:
            return ""
        layer, place = self.trace.strongest()
        said = (
            f"Mean over {self.trace.facts} facts. Undisturbed, the answer has probability "
            f"{self.trace.clean:.3f}; with the subject's embeddings disturbed, "
            f"{self.trace.disturbed:.3f}. One MLP brings back most in layer {layer} at the {place}."
        )
        return embedded(trace_figure(self.trace), "causal trace") + f"<p>{html.escape(said)}</p>"

    def _failures(self) -> str:
        rows = []
        for name, scores in self.scores.items():
            magnitude = scores.samples.get("efficacy magnitude")
            if magnitude is None:
                continue
            # By probability the old answer is still ahead, or even.
            failed = [i for i, x in enumerate(magnitude.tolist()) if x <= 0]
            # The worst first, of which only some are shown.
            failed.sort(key=lambda i: float(magnitude[i]))
            rows += [
                (name, scores.names[i], scores.relations[i], f"{100 * float(magnitude[i]):.1f}")
                for i in failed[:_WORST]
            ]
        return Table(("model", "case", "relation", "magnitude"), rows).html() if rows else ""


def scores_table(every: Mapping[str, Scores]) -> Table:
    """A row for each model, a column for each measure, with 95 % intervals."""
    names = [name for name in MEASURES if any(name in s.figures for s in every.values())]
    rows = [(model, *(_number(scores, name) for name in names)) for model, scores in every.items()]
    return Table(("", *names), rows, "In brackets: bootstrap interval of 95 % over cases.")


def definitions() -> Table:
    """What each measure counts, and who defined it."""
    rows = [(m.name, m.definition, m.source, m.better) for m in MEASURES.values()]
    return Table(("measure", "definition", "source", "an edit should leave it"), rows)


def _number(scores: Scores, name: str) -> str:
    return scores.figures[name].text(MEASURES[name]) if name in scores.figures else ""


def _facts(settings: Mapping[str, str]) -> str:
    return Table(("", ""), list(settings.items())).html() if settings else ""


def _cells(row: Iterable[str]) -> str:
    return "".join(
        f"<td{' class=number' if _is_number(cell) else ''}>{html.escape(cell)}</td>" for cell in row
    )


def _is_number(cell: str) -> bool:
    # A minus sign alone is text; U+2212 is what figures are printed with.
    return cell[:1].isdigit() or (cell[:1] in "-−" and cell[1:2].isdigit())


def _bar(cells: Iterable[str]) -> str:
    # `chr(92)` is a backslash, which f-strings of Python 3.11 do not take.
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
