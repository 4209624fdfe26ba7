"""A run, or several, as one page and one picture.

    page, picture = write_report([read_run(Path("runs/demo"))], Path("runs/demo"))

report.html holds all that it shows: no script, no font, no request. Whatever comes from a run is
escaped. run.png is for places that take no page.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from pathlib import Path
from textwrap import shorten

from scu import __version__
from scu.config_file import dump
from scu.errors import OutputError
from scu.monitor import STATISTICS, Judgment, judge
from scu.numerals import is_real, number
from scu.report import story
from scu.report.canvas import DARK, LIGHT, swatch
from scu.report.charts import Chart, charts, picture
from scu.report.key_figures import COMPARED, KeyFigure, compared, key_figures
from scu.report.panels import Track
from scu.report.spans import verdict_spans
from scu.report.story import words
from scu.run_view import RunView

_JUDGMENTS_SHOWN = 200


@dataclass(frozen=True)
class _Told:
    """A run with what is said of it."""

    run: RunView
    label: str
    """Its name, fit to be shown, and unique among the runs of a page."""
    judgments: Sequence[Judgment]

    @cached_property
    def verdict(self) -> str:
        return story.verdict(self.run, self.judgments)


def write_report(runs: Sequence[RunView], folder: Path) -> tuple[Path, Path]:
    """Write folder/report.html and folder/run.png and return their paths.

    Each is replaced as a whole, so a reader never sees a part. Raises ValueError without a run, and
    OutputError where the folder cannot be written.
    """
    if not runs:
        raise ValueError("a report needs at least one run")
    told = [_tell(run, label) for run, label in zip(runs, _labels(runs), strict=True)]
    tracks = [
        Track(t.run, verdict_spans(t.run, t.judgments), label=t.label, place=place)
        for place, t in enumerate(told)
    ]
    subtitle = _subtitle(told[0]) if len(told) == 1 else ""
    page = _page(told, charts(tracks)).encode("utf-8", "replace")
    image = picture(tracks, title=shorten(_title(told), 80), subtitle=subtitle)
    return _write(folder / "report.html", page), _write(folder / "run.png", image)


def _tell(run: RunView, label: str) -> _Told:
    # A trace may hold null for any number, and a record without its step has no place.
    run = replace(run, records=tuple(r for r in run.records if is_real(r.step)))
    judgments = judge(run.records, run.settings, context_free_bpt=run.context_free_bpt)
    return _Told(run, label, judgments)


def _write(path: Path, content: bytes) -> Path:
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def _labels(runs: Sequence[RunView]) -> list[str]:
    """Names without control characters; equal ones are numbered."""
    names = ["".join(c if c.isprintable() else "?" for c in run.name) or "run" for run in runs]
    seen: Counter[str] = Counter()
    labels = []
    for name in names:
        seen[name] += 1
        labels.append(f"{name} ({seen[name]})" if names.count(name) > 1 else name)
    return labels


def _title(told: Sequence[_Told]) -> str:
    return told[0].label if len(told) == 1 else f"{len(told)} runs compared"


def _subtitle(t: _Told) -> str:
    return shorten(f"{words(t.verdict).capitalize()}. {story.ending(t.run)}", 160)


def _page(told: Sequence[_Told], drawn: Sequence[Chart]) -> str:
    alone = len(told) == 1
    body = [
        '<p class="kind">Shannon Control Unit, report</p>',
        f"<h1>{escape(_title(told))}</h1>",
        *(_opening(told[0]) if alone else _comparison(told)),
        "<h2>Over the steps</h2>" if drawn else "<p>There is nothing to draw yet.</p>",
        *map(_chart, drawn),
        *(_details(told[0]) if alone else _all_details(told)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(_title(told))}</title>\n<style>\n{_css()}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + f"\n<footer><p>Made from the trace, the configuration and the metadata of the run by scu "
        f"{__version__}. This page loads nothing from elsewhere.</p></footer>\n"
        "</main>\n</body>\n</html>\n"
    )


def _css() -> str:
    light, dark = _variables(LIGHT), _variables(DARK)
    rules = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    return (
        f":root {{ color-scheme: light dark; {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n{rules}"
    )


def _variables(colors: Mapping[str, str]) -> str:
    return " ".join(f"--{role}: {color};" for role, color in colors.items())


def _opening(t: _Told) -> list[str]:
    """Verdict, ending, story and key figures of one run."""
    return [
        _verdict(t),
        "<h2>What happened</h2>",
        *_story(t),
        _keys(key_figures(t.run)),
    ]


def _story(t: _Told) -> list[str]:
    return [f"<p>{escape(paragraph)}</p>" for paragraph in story.story(t.run, t.judgments)]


def _verdict(t: _Told) -> str:
    tone = t.verdict if t.verdict in LIGHT else "rule"
    meaning = story.MEANING.get(t.verdict, "")
    last = t.judgments[-1] if t.judgments else None
    if last is not None and last.verdict == t.verdict:
        meaning += f". Last judged at step {last.step:,}"
    return (
        f'<p class="verdict"><span class="badge" style="--tone: var(--{tone})">'
        f"{escape(words(t.verdict))}</span> {escape(meaning)}{'.' if meaning else ''}</p>\n"
        f'<p class="ending">{escape(story.ending(t.run))}</p>'
    )


def _keys(figures: Iterable[KeyFigure]) -> str:
    rows = [
        f'<div><dt>{escape(f.label)}</dt><dd class="value">{escape(f.value)}</dd>'
        + (f'<dd class="note">{escape(f.note)}</dd>' if f.note else "")
        + "</div>"
        for f in figures
    ]
    return '<dl class="keys">\n' + "\n".join(rows) + "\n</dl>"


def _comparison(told: Sequence[_Told]) -> list[str]:
    """The runs in one table, then each in a paragraph."""
    rows = [(t.label, compared(t.run, t.verdict)) for t in told]
    parts = [_table("", ["run", *COMPARED], rows, kind="runs"), "<h2>What happened</h2>"]
    for t in told:
        parts += [f'<h3 class="run">{escape(t.label)}</h3>', _verdict(t), *_story(t)]
    return parts


def _chart(chart: Chart) -> str:
    keys = "".join(f"<li>{swatch(key)}{escape(label)}</li>" for label, key in chart.keys.items())
    return (
        f"<figure>\n<figcaption><h3>{escape(chart.title)}</h3><p>{escape(chart.remark)}</p>"
        f'<ul class="legend">{keys}</ul></figcaption>\n'
        f'<div class="wide">{chart.wide}</div>\n<div class="narrow">{chart.narrow}</div>\n</figure>'
    )


def _all_details(told: Sequence[_Told]) -> list[str]:
    parts = ["<h2>Each run</h2>"]
    for t in told:
        inner = "\n".join([_keys(key_figures(t.run)), *_details(t)])
        parts.append(f"<details><summary>{escape(t.label)}</summary>\n{inner}\n</details>")
    return parts


def _details(t: _Told) -> list[str]:
    """The judgments, how the run was made, what had to be assumed."""
    parts = []
    if t.judgments:
        parts += ["<h2>The last judgment</h2>", _last_judgment(t.judgments[-1])]
        shown = t.judgments[-_JUDGMENTS_SHOWN:]
        rows = [(f"{j.step:,}", [words(j.verdict), j.reason]) for j in shown]
        table = _table("", ["step", "verdict", "reason"], rows, kind="text")
        summary = f"The last {len(shown)} of {len(t.judgments)} judgments"
        summary = summary if len(shown) < len(t.judgments) else f"All {len(shown)} judgments"
        parts.append(f"<details><summary>{summary}</summary>\n{table}\n</details>")
    parts.append("<h2>How it was made</h2>")
    notes = (t.run.metadata or {}).get("notes")
    notes = [*t.run.notes, *(map(str, notes) if isinstance(notes, list) else [])]
    if notes:
        items = "".join(f"<li>{escape(note)}</li>" for note in notes)
        parts.append(f'<ul class="notes">{items}</ul>')
    if t.run.config is not None:
        text = escape(_config_text(t.run))
        parts.append(f"<details><summary>config.yaml</summary>\n<pre>{text}</pre>\n</details>")
    return parts


def _config_text(run: RunView) -> str:
    file = run.folder / "config.yaml"
    if file.is_file():  # it says where each value came from
        return file.read_text(encoding="utf-8", errors="replace")
    assert run.config is not None
    return dump(run.config)


def _last_judgment(last: Judgment) -> str:
    """Its statistics, an estimate and the ends of its interval in one row."""
    rows = []
    for name, value in last.statistics.items():
        if name.removesuffix("_low").removesuffix("_high") != name:
            continue
        ends = [last.statistics.get(f"{name}_{end}") for end in ("low", "high")]
        interval = " to ".join(map(number, ends)) if None not in ends else ""
        rows.append((name, [number(value), interval]))
    caption = f"Step {last.step:,}, {words(last.verdict)}: {last.reason}."
    return _table(caption, ["statistic", "value", "90 % interval"], rows, notes=STATISTICS)


def _table(
    caption: str,
    heads: Sequence[str],
    rows: Iterable[tuple[str, Sequence[str]]],
    *,
    notes: Mapping[str, str] | None = None,
    kind: str = "",
) -> str:
    """rows are (heading, cells); notes explain a heading; kind is a class of report.css."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    lines = []
    for name, cells in rows:
        note = (notes or {}).get(name, "")
        label = escape(words(name) if notes else name) + (
            f"<small>{escape(note)}</small>" if note else ""
        )
        inner = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row">{label}</th>{inner}</tr>')
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table class="{kind}">{title}<thead><tr>{head}</tr></thead>\n'
        "<tbody>\n" + "\n".join(lines) + "\n</tbody></table></div>"
    )
