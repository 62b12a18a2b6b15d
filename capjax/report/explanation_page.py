"""How the caption of one picture came about, as one HTML file with everything inside, for any browser.

explanation.html is the frame, explanation.css what it adds to the looks of page.css, explained.js lights the picture.
As for the report page, text enters escaped, and a content security policy pins style and script by hash.
"""

import io
import os
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image

from capjax.host.disk import write_atomically
from capjax.report.beam_tree import described, told, tree_svg
from capjax.report.contents import one_line
from capjax.report.explanation import Explanation, Look, explained_json
from capjax.report.html import data_uri, embedded_json, page_of, text_of

HOW_TO_READ = {
    "attention": "Lit is what the decoder attended to when it wrote the word: the weights of the grid's places.",
    "occlusion": (
        "Lit is what the word depends on: covered with the picture's mean colour, it makes the word less likely "
        "(occlusion, Zeiler & Fergus 2014)."
    ),
    "integrated gradients": (
        "Lit is what adds most to the word's log-probability on the way from a picture of one colour to this one "
        "(integrated gradients, Sundararajan et al. 2017)."
    ),
    "": "Where the model looked cannot be told of features made elsewhere without attention.",
}
_PICTURE = 480


def write_explanation_page(
    path: str | os.PathLike[str],
    look: Look,
    settings: Mapping[str, Any],
    alternatives: Sequence[tuple[str, float]] = (),
) -> None:
    """Write a self-contained page.

    Args:
        path: file to write.
        look: the picture, its caption's explanation and the beams.
        settings: of model and search, by name.
        alternatives: other captions that the search returned, with their log-probabilities.

    Raises:
        CapjaxError: the file cannot be written.
    """
    explanation, name = look.explanation, escape(one_line(look.name))
    page = page_of(
        "explanation.html",
        text_of("page.css", "explained.css", "explanation.css"),
        text_of("explained.js", "explanation.js"),
        caption=escape(one_line(explanation.caption)) or "(empty caption)",
        name=name,
        settings="".join(
            f"<div><dt>{escape(str(key))}</dt><dd>{escape(one_line(str(value)))}</dd></div>"
            for key, value in settings.items()
        ).join(('<dl class="settings">', "</dl>")),
        picture=data_uri(_encoded(look), "png"),
        words=_table(explanation),
        beams=_beams(look),
        alternatives=_alternatives(alternatives),
        data=embedded_json(explained_json(explanation)),
    )
    write_atomically(path, page.encode("utf-8", "replace"))


def _encoded(look: Look) -> bytes:
    picture = Image.fromarray(look.image)
    if picture.width < _PICTURE:
        picture = picture.resize((_PICTURE, _PICTURE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _table(explanation: Explanation) -> str:
    rows = []
    for word in explanation.words:
        likely = ", ".join(f"{escape(one_line(text))} {escape(told(100 * p))}" for text, p in word.likely)
        rows.append(
            f'<tr><th scope="row">{escape(one_line(word.text))}</th>'
            f'<td class="number strong">{escape(told(100 * word.probability))}</td><td class="note">{likely}</td></tr>'
        )
    about = f"How likely each word was after those before it, and what was likeliest. {HOW_TO_READ[explanation.method]}"
    return (
        f'<p class="about">{escape(about)}</p><div class="scroll" role="region" tabindex="0" aria-label="Words, table">'
        '<table><thead><tr><th scope="col">Word</th><th scope="col" class="number">Probability</th>'
        f'<th scope="col">Likely here</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _beams(look: Look) -> str:
    if not look.branches:
        return ""
    return (
        '<section aria-labelledby="beams"><h2 id="beams">The beams</h2>'
        f'<p class="about">{escape(described(look.branches))}. The caption runs along the first row; the percentages '
        "tell how likely each word was after those before it.</p>"
        '<div class="scroll" role="region" tabindex="0" aria-label="The beams as a tree">'
        f"{tree_svg(look.branches)}</div></section>"
    )


def _alternatives(alternatives: Sequence[tuple[str, float]]) -> str:
    if not alternatives:
        return ""
    items = "".join(f"<li>{escape(one_line(text))} (log p {score:.2f})</li>" for text, score in alternatives)
    return f'<section aria-labelledby="others"><h2 id="others">Further captions</h2><ol>{items}</ol></section>'
