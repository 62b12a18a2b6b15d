"""The beams of a search as a tree: a column for each word of a caption, a row for each beam that came to an end.

The caption that was chosen runs along the first row; what was given up branches off below, and stops where the search
dropped it.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from PIL import Image, ImageDraw

from capjax.report.contents import one_line
from capjax.report.explanation import END, Branch
from capjax.report.text_blocks import GREY, INK, PAPER, font, wrap

_COLUMN, _ROW = 112, 26
_BAR = "#b8bec8"


class Node(NamedTuple):
    """A branch in its place.

    Attributes:
        text: its word.
        percent: how likely the word was after those before it.
        column: number of words before it.
        row: from the top.
        parent: the place of the node before it in the list, -1 at the start.
        chosen: whether the caption goes through it.
    """

    text: str
    percent: float
    column: int
    row: int
    parent: int
    chosen: bool


def layout(branches: Sequence[Branch]) -> list[Node]:
    """Give each branch its place, children below each other, the likeliest first; in the order of the branches."""
    children: dict[int, list[int]] = {}
    for i, branch in enumerate(branches):
        children.setdefault(branch.parent, []).append(i)
    for siblings in children.values():
        siblings.sort(key=lambda i: (not branches[i].chosen, -branches[i].log_prob))
    rows: dict[int, int] = {}
    columns = {-1: -1}
    next_row = 0
    waiting = children.get(-1, [])[::-1]
    while waiting:
        i = waiting.pop()
        parent = branches[i].parent
        columns[i] = columns[parent] + 1
        # A first child goes on in the row of its parent.
        if parent >= 0 and children[parent][0] == i:
            rows[i] = rows[parent]
        else:
            rows[i], next_row = next_row, next_row + 1
        waiting += children.get(i, [])[::-1]
    nodes = []
    for i, (text, parent, log_prob, chosen, _) in enumerate(branches):
        before = branches[parent].log_prob if parent >= 0 else 0.0
        percent = 100 * math.exp(min(0.0, log_prob - before))
        nodes.append(Node(one_line(text), percent, columns[i], rows[i], parent, chosen))
    return nodes


def told(percent: float) -> str:
    """Print a probability for people."""
    return "<1 %" if percent < 0.5 else f"{percent:.0f} %"


def tree_svg(branches: Sequence[Branch]) -> str:
    """Draw a tree as SVG that takes its colours from the page; "" without branches."""
    nodes = layout(branches)
    if not nodes:
        return ""
    width = _COLUMN * (1 + max(node.column for node in nodes)) + 16
    height = _ROW * (1 + max(node.row for node in nodes)) + 8
    drawn = []
    for node in nodes:
        x, y = 8 + _COLUMN * node.column, _ROW * node.row + 18
        style = "chosen" if node.chosen else "other"
        if node.parent >= 0:
            before = nodes[node.parent]
            x0, y0 = 8 + _COLUMN * node.column - 14, _ROW * before.row + 14
            line = f"M{x0 - 6} {y0}C{x0 + 6} {y0} {x0 - 4} {y - 4} {x - 4} {y - 4}"
            drawn.append(f'<path class="{style}" d="{line}"/>')
        word = node.text if len(node.text) <= 10 else f"{node.text[:9]}…"
        mark = " ■" if node.text == END else ""
        drawn.append(
            f'<text class="{style}" x="{x}" y="{y}">{escape(word)}{mark}'
            f'<tspan class="percent" dx="4">{escape(told(node.percent))}</tspan></text>'
        )
    return (
        f'<svg class="tree" role="img" aria-label="{escape(described(branches))}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">{"".join(drawn)}</svg>'
    )


def described(branches: Sequence[Branch]) -> str:
    """Say in words what the tree shows."""
    whole = sum(branch.is_whole for branch in branches)
    parents = {branch.parent for branch in branches}
    dropped = sum(i not in parents and not branch.is_whole for i, branch in enumerate(branches))
    return f"{whole} captions came to their end or to the greatest length, {dropped} beginnings were dropped"


def draw_tree(branches: Sequence[Branch], width: int) -> Image.Image:
    """Draw a tree `width` pixels wide, its columns as narrow as that takes."""
    nodes = layout(branches)
    column = min(_COLUMN, width // max(1, 1 + max((node.column for node in nodes), default=0)))
    block = Image.new("RGB", (width, 20 * (1 + max((node.row for node in nodes), default=-1)) + 4), PAPER)
    draw = ImageDraw.Draw(block)
    for node in nodes:
        x, y = column * node.column, 20 * node.row + 2
        if node.parent >= 0 and (before := nodes[node.parent]).row != node.row:
            corner = x - 6
            draw.line([(corner, 20 * before.row + 20), (corner, y + 7), (x - 2, y + 7)], _BAR)
        share = told(node.percent)
        small, usual = font(9), font(12, node.chosen)
        room = column - 10 - int(small.getlength(share))
        words = wrap(node.text, usual, max(room, 12), 1)
        draw.text((x, y), words[0] if words else "", INK if node.chosen else GREY, usual)
        draw.text((x + usual.getlength(words[0] if words else "") + 3, y + 3), share, GREY, small)
    return block
