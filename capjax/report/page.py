"""The report page: one HTML file with everything inside, for any browser, without a server.

page.html is the frame, page.css the looks, page.js the gallery, explained.js tells of the words of a caption. The rows
that it shows travel as JSON in the page; the gallery draws them as they come into view. Numbers are those of all rows,
and so are the charts, whose data are binned: the page stays of a size that browsers load, and so does the memory that
writing it takes, however many rows there are.

Text from data sets and models passes `html.escape` or, inside the JSON, `embedded_json`; a content security policy
pins the one style and the one script by hash and forbids all else, the network included.
"""

import logging
import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from html import escape
from typing import Any

from tqdm import tqdm

from capjax.errors import CapjaxError
from capjax.host.disk import write_atomically
from capjax.images import thumbnail
from capjax.report.charts import length_histogram, line_chart, panels
from capjax.report.contents import CaptionRow, Report, extremes, is_number, sample
from capjax.report.explanation import explained_json
from capjax.report.html import data_uri, embedded_json, page_of, text_of

logger = logging.getLogger(__name__)

MAX_SHOWN = 1000
"""Rows of which the page shows pictures and texts: about 10 MB. Of more it shows a sample."""

_EXTREMES = 4
"""Captions in each of the groups best, median and worst, which the sample has too."""

_LONG = 150
"""Characters from which a caption may scroll, and then takes the keyboard's focus; as in page.js."""


def write_page(path: str | os.PathLike[str], report: Report) -> None:
    """Write the report as one self-contained HTML file; rows whose picture cannot be read are shown without.

    Of more than `MAX_SHOWN` rows it shows a `sample`, and says so; only pictures that are shown are read.

    Args:
      path: file to write.
      report: what to show.

    Raises:
      CapjaxError: the file cannot be written.
    """
    shown = sample(report.rows, MAX_SHOWN, report.rank_by)
    with ThreadPoolExecutor() as pool:
        found = list(tqdm(pool.map(_data_uri, shown), total=len(shown), desc="thumbnails", disable=None))
    unreadable = found.count(None)
    if unreadable:
        logger.warning("%d of %d pictures cannot be read; their rows are shown without", unreadable, len(found))
    page = _render(report, shown, [uri or "" for uri in found])
    write_atomically(path, page.encode("utf-8", "replace"))


def _data_uri(row: CaptionRow) -> str | None:
    """Return the row's picture as a JPEG data URI, an empty string where there is none, None if it cannot be read."""
    try:
        picture = row.picture()
        return "" if picture is None else data_uri(thumbnail(picture))
    except CapjaxError:
        return None


def _render(report: Report, shown: list[CaptionRow], pictures: list[str]) -> str:
    settings = f"Decoded with {escape(report.decoded)}." if report.decoded else "Decoder settings were not given."
    picture_of = {id(row): picture for row, picture in zip(shown, pictures, strict=True)}
    return page_of(
        "page.html",
        text_of("page.css", "explained.css"),
        text_of("explained.js", "page.js"),
        title=escape(report.title),
        note="".join(f"<p>{escape(part.strip())}</p>" for part in re.split(r"\n\s*\n", report.note) if part.strip()),
        settings=_settings_table(report.settings),
        scores=_scores_table(report, settings) + _differences_table(report),
        health=_health_table(report, settings),
        curves=_curves(report),
        lengths=_lengths(report, settings),
        extremes=_extremes(report, settings, picture_of),
        decoded=settings,
        gallery="All captions" if len(shown) == len(report.rows) else "A sample of the captions",
        images=_told_rows(report, len(shown)),
        rows=embedded_json(_gallery(report, shown, pictures)),
    )


def _plain(value: Any) -> str:
    """Print a setting for people."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        words = ("|".join(map(str, word)) if isinstance(word, tuple) else str(word) for word in value)
        return ", ".join(words) or "none"
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)


def _settings_table(settings: Mapping[str, Any]) -> str:
    entries = (
        f"<div><dt>{escape(str(name))}</dt><dd>{escape(_plain(value))}</dd></div>" for name, value in settings.items()
    )
    return f'<dl class="settings">{"".join(entries)}</dl>' if settings else ""


def _section(name: str, heading: str, body: str) -> str:
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{heading}</h2>{body}</section>'


def _scores_table(report: Report, settings: str) -> str:
    if not report.scores:
        return ""
    intervals = any(score.low is not None for score in report.scores)
    notes = any(score.note for score in report.scores)
    head = {"Metric": "", "Score × 100": "number"}
    head |= {"Interval": "number"} if intervals else {}
    head |= {"Note": ""} if notes else {}
    body = []
    for score in report.scores:
        cells = [f'<th scope="row">{escape(score.name)}</th><td class="number strong">{_hundredfold(score.value)}</td>']
        if intervals:
            known = is_number(score.low) and is_number(score.high)
            told = f"{_hundredfold(score.low)} – {_hundredfold(score.high)}" if known else "—"
            cells.append(f'<td class="number">{told}</td>')
        if notes:
            cells.append(f'<td class="note">{escape(score.note)}</td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    told = f"Intervals: {escape(report.interval)}. " if intervals else ""
    about = f"Over {sum(bool(row.scores) for row in report.rows):,} images. {told}{settings}"
    return _section("scores", "Scores", _table("Scores", about, head, body))


def _differences_table(report: Report) -> str:
    if not report.differences:
        return ""
    head = {"Metric": "", "Difference × 100": "number", "Interval": "number", "p": "number"}
    body = [
        f'<tr><th scope="row">{escape(found.name)}</th><td class="number strong">{100 * found.value:+.1f}</td>'
        f'<td class="number">{100 * found.low:+.1f} – {100 * found.high:+.1f}</td>'
        f'<td class="number">{f"{found.p_value:.3f}" if found.p_value >= 0.001 else "&lt; 0.001"}</td></tr>'
        for found in report.differences
    ]
    about = (
        f"How much higher the scores are than those of {escape(report.rival)} on the same images; paired bootstrap, "
        "p by approximate randomisation."
    )
    return _section("differences", f"Compared with {escape(report.rival)}", _table("Comparison", about, head, body))


def _hundredfold(value: float) -> str:
    return f"{100 * value:.1f}" if is_number(value) else "—"


def _table(name: str, about: str, head: Mapping[str, str], body: Iterable[str]) -> str:
    """Return a table (HTML); `head` maps headings to the class of their column."""
    cells = "".join(f'<th scope="col" class="{style}">{heading}</th>' for heading, style in head.items())
    return (
        f'<p class="about">{about}</p><div class="scroll" role="region" tabindex="0" aria-label="{name}, table">'
        f'<table><caption class="hidden">{name}. {about}</caption>'
        f"<thead><tr>{cells}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _health_table(report: Report, settings: str) -> str:
    if not report.health:
        return ""
    body = []
    for measure in report.health:
        value = "—"
        if is_number(measure.value):
            forms = {"share": f"{100 * measure.value:.1f} %", "count": f"{measure.value:,.0f}"}
            value = forms.get(measure.kind, f"{measure.value:,.2f}")
        body.append(
            f'<tr><th scope="row">{escape(measure.name)}</th><td class="number strong">{value}</td>'
            f'<td class="note">{escape(measure.note)}</td></tr>'
        )
    about = f"What scores do not show, over {len(report.rows):,} captions. {settings}"
    return _section(
        "health",
        "Health of the captions",
        _table("Health of the captions", about, {"Measure": "", "Value": "number", "Meaning": ""}, body),
    )


def _curves(report: Report) -> str:
    charts = panels(report.log)
    if not charts:
        return ""
    figures = []
    for panel in charts:
        legend = _legend((f"s-{series.name}", series.name) for series in panel.series) if len(panel.series) > 1 else ""
        averaged = max(series.averaged for series in panel.series)
        note = f'<p class="note">Each point averages up to {averaged} records.</p>' if averaged > 1 else ""
        figures.append(
            f"<figure><figcaption>{escape(panel.title)}{legend}</figcaption>{line_chart(panel)}{note}</figure>"
        )
    has_loss = any(series.name == "training" for panel in charts for series in panel.series if "Loss" in panel.title)
    told = "The loss of training is what is made small: with smoothed labels where that is on."
    about = f'<p class="about">{told}</p>' if has_loss else ""
    return _section("training", "Training", f'{about}<div class="figures">{"".join(figures)}</div>')


def _legend(entries: Iterable[tuple[str, str]]) -> str:
    names = "".join(f'<span class="{style}">{name}</span>' for style, name in entries)
    return f'<span class="legend">{names}</span>'


def _num_words(text: str) -> int:
    return sum(any(map(str.isalnum, word)) for word in text.split())


def _lengths(report: Report, settings: str) -> str:
    if not report.rows:
        return ""
    generated = [_num_words(row.caption) for row in report.rows]
    references = [_num_words(reference) for row in report.rows for reference in row.references]
    means = f"Generated captions have {sum(generated) / len(generated):.1f} words on average"
    if references:
        means += f", references {sum(references) / len(references):.1f}"
    legend = _legend([("b-generated", "generated"), ("b-references", "references")]) if references else ""
    return _section(
        "lengths",
        "Caption lengths",
        f'<p class="about">{means}. {settings}</p>'
        f'<figure class="wide"><figcaption>Per cent of captions by number of words{legend}</figcaption>'
        f"{length_histogram(generated, references)}</figure>",
    )


def _extremes(report: Report, settings: str, picture_of: Mapping[int, str]) -> str:
    groups = extremes(report.rows, report.rank_by, _EXTREMES)
    if not groups:
        return ""
    metric = escape(report.rank_by)
    body = [f'<p class="about">By the {metric} of each image (× 100). {settings}</p>']
    for name, rows in groups.items():
        cards = "".join(_card(row, picture_of[id(row)], report.rank_by, report.rival) for row in rows)
        body.append(f'<h3>{name.capitalize()}</h3><ol class="cards plain">{cards}</ol>')
    return _section("extremes", "Best, median and worst captions", "".join(body))


def _card(row: CaptionRow, picture: str, metric: str, rival: str) -> str:
    """Return one row as a list item; the gallery's cards, which page.js builds, look the same."""
    name = escape(row.file_name)
    image = f'<img src="{picture}" alt="{name}">' if picture else "<span>no picture</span>"
    references = "".join(f'<li dir="auto">{escape(reference)}</li>' for reference in row.references)
    verdict = ""
    if row.verdict:
        style = row.verdict if row.verdict in ("right", "partly", "wrong") else "other"
        verdict = f'<span class="verdict v-{style}">{escape(row.verdict)}</span>'
    caption = '<p class="caption empty">(empty caption)</p>'
    if row.caption.strip():
        focus = ' tabindex="0"' if len(row.caption) > _LONG else ""
        caption = f'<p class="caption" dir="auto"{focus}>{escape(row.caption)}</p>'
    if row.rival is not None:
        score = _hundredfold(row.rival_scores.get(metric))
        caption += (
            f'<p class="rival" dir="auto"><span>{escape(rival)}:</span> '
            f"<bdi>{escape(row.rival) or '(empty caption)'}</bdi> <b>{score}</b></p>"
        )
    return (
        f'<li class="card"><div class="picture">{image}</div>'
        f'<div class="words">{caption}<ul class="references">{references}</ul>'
        f'<p class="facts">{verdict}<span>{escape(metric)} <b>{_hundredfold(row.scores[metric])}</b></span>'
        f"<span>{name}</span></p></div></li>"
    )


def _told_rows(report: Report, num_shown: int) -> str:
    """Say how many images the gallery shows and, if these are not all, which, and where the others are (HTML)."""
    if num_shown == len(report.rows):
        return f"{num_shown:,} images."
    scored = any(report.rank_by in row.scores for row in report.rows)
    ailing = any(row.ailments for row in report.rows)
    groups = ["those that are explained"] if any(row.explanation for row in report.rows) else []
    groups += ["the best, the median and the worst"] if scored else []
    groups += ["captions with ailments"] if ailing else []
    order = f"evenly from best to worst by {escape(report.rank_by)}" if scored else "evenly over the data set"
    groups.append(f"the others {order}" if groups else order)
    told = f"{num_shown:,} of {len(report.rows):,} images are shown: {', '.join(groups)}."
    if report.all_rows_in:
        told += f" All of them are in {escape(report.all_rows_in)}."
    return f"{told} The numbers above are those of all images."


def _gallery(report: Report, shown: list[CaptionRow], pictures: list[str]) -> dict[str, Any]:
    """Return what page.js needs: the metrics that rows have, the rows shown with short keys, how many there are."""
    metrics = list(dict.fromkeys(name for row in report.rows for name in row.scores))
    if report.rank_by in metrics:
        metrics.sort(key=lambda name: name != report.rank_by)
    rows = [
        {
            "id": str(row.image_id),  # numbers in JavaScript end at 2^53
            "file": row.file_name,
            "image": picture,
            "caption": row.caption,
            "references": list(row.references),
            "log_prob": _rounded(row.log_prob),
            "scores": [_rounded(row.scores.get(name)) for name in metrics],
            "alternatives": [[caption, _rounded(log_prob)] for caption, log_prob in row.alternatives],
            "verdict": row.verdict or "",
            "ailments": [ailment.replace("_", " ") for ailment in row.ailments],
            "words": _num_words(row.caption),
            "rival": row.rival,
            "rival_scores": [_rounded(row.rival_scores.get(name)) for name in metrics],
            "explained": row.explanation and explained_json(row.explanation, row.crop),
        }
        for row, picture in zip(shown, pictures, strict=True)
    ]
    return {"metrics": metrics, "rows": rows, "total": len(report.rows), "rival": report.rival}


def _rounded(value: Any) -> float | None:
    return round(float(value), 5) if is_number(value) else None
