"""What people look at: a self-contained page, contact sheets and training curves, from plain rows of captions.

    rows = [CaptionRow(image_id=1, file_name="a.jpg", image=thumbnail(data), caption="a dog runs",
                       references=("a dog is running",), log_prob=-3.2, scores={"CIDEr-D": 0.93})]
    write_page("report.html", Report(title="…", note="…", settings={"search": "greedy"}, rows=rows))
    write_sheet("sheet.png", spread(rows, 24), heading="greedy decoding, scenes test split")
    write_curves("curves.png", read_log("log.jsonl"))

| file             | holds                                                                                |
| ---------------- | ------------------------------------------------------------------------------------ |
| contents.py      | the dataclasses above, the choice of rows worth showing                              |
| training_log.py  | reading a training log                                                               |
| charts.py        | training curves and histograms as data, and as SVG for the page                      |
| page.py          | the page; its markup, style and behaviour are page.html, page.css and page.js        |
| per_image.py     | what the page shows of an image as a line of JSON, for all images                    |
| evaluation.py    | what of an evaluation stands on the page                                             |
| sheet.py         | the contact sheets: of captions, and of examples of a data set                       |
| explanation.py   | what can be told of how a caption came about, as data                                |
| explanation_sheet.py | pictures with where the model looked, word by word, and its beams                |
| explanation_page.py | the same as a page; explained.js and explained.css are what both pages show of words |
| beam_tree.py     | the beams of a search as a tree, for page and sheet                                  |
| html.py          | what the pages share                                                                 |
| text_blocks.py   | text in pictures                                                                     |
| model_card.py    | what a model is, how good, and what it cannot do, as the README.md beside its weights |
| ledger.py        | measured numbers as rows of a file that tables are made from                         |
| curves.py        | the same curves as a PNG                                                             |

Nothing here knows of models, devices or data sets: evaluation, scoring and the demo all hand over rows.
"""

from capjax.images import thumbnail
from capjax.report.contents import CaptionRow, Measure, Report, Score, spread
from capjax.report.curves import write_curves
from capjax.report.evaluation import evaluation_report
from capjax.report.explanation import Look
from capjax.report.explanation_page import write_explanation_page
from capjax.report.explanation_sheet import write_explanation_sheet
from capjax.report.model_card import model_card
from capjax.report.page import write_page
from capjax.report.per_image import write_per_image
from capjax.report.sheet import Example, draw_sheet, write_examples, write_sheet
from capjax.report.training_log import read_log

__all__ = [
    "CaptionRow",
    "Example",
    "Look",
    "Measure",
    "Report",
    "Score",
    "draw_sheet",
    "evaluation_report",
    "model_card",
    "read_log",
    "spread",
    "thumbnail",
    "write_curves",
    "write_examples",
    "write_explanation_page",
    "write_explanation_sheet",
    "write_page",
    "write_per_image",
    "write_sheet",
]
