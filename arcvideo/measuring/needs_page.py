"""One page about which half of its clip each answer needs, for every metric, tag and item. It fetches nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from arcvideo.evaluation.answers import FULL, NO_SOUND, Answer
from arcvideo.evaluation.figures import counts, measured
from arcvideo.files import write_whole
from arcvideo.measuring.needs import AUDIO, BOTH, NEITHER, RIGHT_FROM, UNKNOWN, VIDEO
from arcvideo.measuring.settings import ARMS, NO_PICTURE

PAGE = "needs.html"
KINDS = {
    AUDIO: "wrong without the sound, right without the picture",
    VIDEO: "wrong without the picture, right without the sound",
    BOTH: "wrong without either one",
    NEITHER: "right without either one",
    UNKNOWN: "wrong with the whole clip: tells nothing",
}
"""Class -> what it means of an answer."""
MOST_ITEMS = 1000
"""Items on the page; `needs.jsonl` has all."""
Answers = Mapping[tuple[str, str], Answer]


def needs_by_metric(answers: Answers, *, metrics: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return metric -> key -> class, of the metrics under which an item is right or wrong.

    As `needs.classes`, with each metric's own score in place of the first one of the task: an IoU is right from one
    half on, R1@0.7 from 0.7 on. Items that lack one of the two arms, though their clip has that half, are left out.
    """
    needs: dict[str, dict[str, str]] = {}
    for metric in metrics:
        _, measure = measured(metric)
        if measure.control or measure.silent:
            continue
        right = {arm: _right(answers, metric=metric, arm=arm, lower=measure.lower_is_better)
                 for arm in (FULL, NO_SOUND, NO_PICTURE)}  # fmt: skip
        rows = {}
        for key, whole in right[FULL].items():
            answer = answers[FULL, key]
            arms = [arm for arm in (NO_SOUND, NO_PICTURE) if key in right[arm]]
            if not arms or (len(arms) < 2 and answer.has_audio and answer.has_video):
                continue
            rows[key] = _class(whole, silent=right[NO_SOUND].get(key, True), blind=right[NO_PICTURE].get(key, True))
        if rows:
            needs[metric] = rows
    return needs


def _right(answers: Answers, *, metric: str, arm: str, lower: bool) -> dict[str, bool]:
    """Return key -> whether the answer in an arm is right under a metric, of the items that it is measured on."""
    task, measure = measured(metric)
    mine = [
        answer
        for (its_arm, _), answer in answers.items()
        if its_arm == arm and measure.asks(answer) and (task is None or answer.task == task.name)
    ]
    rows = [row for row, _ in counts(metric, mine)]
    values = {row.key: row.score / row.weight if row.weight else 0.0 for row in rows}
    return {key: value < RIGHT_FROM if lower else value >= RIGHT_FROM for key, value in values.items()}


def _class(whole: bool, *, silent: bool, blind: bool) -> str:
    if not whole:
        return UNKNOWN
    if silent:
        return NEITHER if blind else VIDEO
    return AUDIO if blind else BOTH


def write_needs_page(path: Path, *, scores: Mapping[str, Any], card: Mapping[str, Any], answers: Answers) -> None:
    """Write the page of one measurement.

    Args:
        path: of the page.
        scores: as `scores.json` has them.
        card: of the measurement.
        answers: (arm, key) -> answer.
    """
    needs = needs_by_metric(answers, metrics=scores["metrics"])
    model = card["origin"].get("model", "")
    about = f"{escape(str(scores['name']))}: {escape(str(scores.get('bench') or 'shards'))}"
    sound = card["origin"].get("sound")
    notes = [
        f"{scores['asked']} of {scores['questions']} questions were asked, about {scores['clips']} clips, of "
        f"{escape(str(card.get('checkpoint', model)))}.",
        *([f"Sound: {escape(str(sound))}."] if sound else []),
        *map(escape, map(str, card.get("notes", ()))),
    ]
    body = [
        f"<h1>What each answer needs</h1><p class=about>{about}</p>",
        *(f"<p class=note>{note}</p>" for note in notes),
        _legend(),
        "<h2>By metric</h2>",
        *(_bar(metric, rows=rows.values(), row=scores["metrics"].get(metric)) for metric, rows in needs.items()),
        _tags(needs, answers=answers),
        _arms(scores),
        _items(needs, answers=answers),
        f"<p class=note>An answer is right from a score of {RIGHT_FROM:g} on. The classes say what this model needed, "
        "not what a question must need: one that is right by luck without a half counts as not needing it.</p>",
    ]
    title = f"What each answer needs: {about}"
    page = _PAGE.format(title=title, style=_STYLE, body="\n".join(part for part in body if part))
    write_whole(path, page.encode("ascii", "xmlcharrefreplace"))  # half characters in answers included


def _legend() -> str:
    rows = (f"<li><i class={_css(kind)}></i><b>{_word(kind)}</b> {meaning}</li>" for kind, meaning in KINDS.items())
    return f"<ul class=legend>{''.join(rows)}</ul>"


def _bar(name: str, *, rows: Iterable[str], row: Mapping[str, float] | None) -> str:
    count = Counter(rows)
    total = sum(count.values())
    parts = [kind for kind in KINDS if count[kind]]
    pieces = "".join(
        f'<span class={_css(kind)} style="flex-grow:{count[kind]}" title="{_word(kind)}: {count[kind]} of {total}">'
        f"{count[kind] if count[kind] >= 0.06 * total else ''}</span>"
        for kind in parts
    )
    label = ", ".join(f"{_word(kind)} {count[kind]}" for kind in parts)
    value = "" if row is None else f" <span class=value>{_figure(row)}</span>"
    return (
        f"<div class=metric><div class=name>{escape(name)}{value}</div>"
        f'<div class=bar role=img aria-label="{label}">{pieces}</div></div>'
    )


def _figure(row: Mapping[str, float]) -> str:
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}], n {row['n']:.0f}"


def _tags(needs: Mapping[str, Mapping[str, str]], *, answers: Answers) -> str:
    """Bars of each tag under the first metric that its items have."""
    bars = []
    tags = sorted({tag for (arm, _), answer in answers.items() if arm == FULL for tag in answer.tags})
    for tag in tags:
        for metric, rows in needs.items():
            mine = [kind for key, kind in rows.items() if tag in answers[FULL, key].tags]
            if mine:
                bars.append(_bar(f"{tag} ({metric}, {len(mine)})", rows=mine, row=None))
                break
    return f"<h2>By tag</h2>{''.join(bars)}" if bars else ""


def _arms(scores: Mapping[str, Any]) -> str:
    """Return what the whole clip is worth above each arm, metric by metric."""
    rows = [
        f"<tr><td>{escape(ARMS.get(arm, arm))}</td><td>{escape(metric)}</td><td class=number>{row['mean']:+.3f}</td>"
        f"<td class=number>{row['low']:+.3f} to {row['high']:+.3f}</td><td class=number>{row['n']}</td></tr>"
        for arm, figures in scores.get("arms", {}).items()
        for metric, row in figures["full_minus_arm"].items()
    ]
    if not rows:
        return ""
    head = "<tr><th>In the arm<th>metric<th class=number>lost<th class=number>95 % over clips<th class=number>items"
    return (
        "<h2>What is lost in each arm</h2><div class=wide><table>"
        f"<thead>{head}</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _items(needs: Mapping[str, Mapping[str, str]], *, answers: Answers) -> str:
    """Return a row for each item under the first metric that has it, with what was said in every arm that decides."""
    classes: dict[str, str] = {}
    for rows in needs.values():
        classes = {**rows, **classes}
    order = [key for arm, key in answers if arm == FULL and key in classes]
    if not order:
        return ""
    shown = [_item(key, kind=classes[key], answers=answers) for key in order[:MOST_ITEMS]]
    left = len(order) - len(shown)
    more = f"<p class=note>{left} more are in needs.jsonl.</p>" if left else ""
    head = "<tr><th>needs<th>item<th>question<th>right is<th>with everything<th>no sound<th>no picture"
    return (
        f"<h2>By item</h2><details><summary>{len(order)} items</summary><div class=wide><table>"
        f"<thead>{head}</thead><tbody>{''.join(shown)}</tbody></table></div>{more}</details>"
    )


def _item(key: str, *, kind: str, answers: Answers) -> str:
    full = answers[FULL, key]
    said = "".join(f"<td>{_said(answers.get((arm, key)))}</td>" for arm in (FULL, NO_SOUND, NO_PICTURE))
    return (
        f"<tr><td><i class={_css(kind)}></i>{_word(kind)}</td><td class=key>{escape(key)}</td>"
        f"<td>{_short(full.question)}</td><td>{_short(full.reference)}</td>{said}</tr>"
    )


def _said(answer: Answer | None) -> str:
    return "<span class=value>not asked</span>" if answer is None else _short(answer.text)


def _short(text: str, *, most: int = 160) -> str:
    plain = " ".join(text.split())
    return escape(plain if len(plain) <= most else f"{plain[: most - 3]}...")


def _word(kind: str) -> str:
    return kind.removeprefix("needs:")


def _css(kind: str) -> str:
    return f"k-{_word(kind)}"


_STYLE = """
:root{color-scheme:light dark;--ink:#1d2329;--faint:#5d6873;--line:#d9dee3;--ground:#fff;--audio:#b4552d;
--video:#2f6db0;--both:#6d4fa3;--neither:#5f7a52;--unknown:#aab2b9;--on:#fff;--on-unknown:#1d2329}
@media(prefers-color-scheme:dark){:root{--ink:#e4e8ec;--faint:#9aa5af;--line:#353d45;--ground:#14181c;--audio:#e08a60;
--video:#74aee6;--both:#b096e3;--neither:#97b787;--unknown:#525c66;--on:#14181c;--on-unknown:#e4e8ec}}
*{box-sizing:border-box}body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:1100px;margin:0 auto;padding:32px 20px 64px}h1{font-size:1.7rem;line-height:1.2;margin:0 0 4px}
h2{font-size:1.15rem;margin:40px 0 12px}.about{margin:0 0 16px;color:var(--faint)}.note{color:var(--faint);
max-width:70ch;margin:6px 0;font-size:.9rem}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:6px 24px;padding:0;margin:20px 0 0;
font-size:.9rem}i{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.5em}
.metric{margin:12px 0}.name{font-size:.92rem;margin-bottom:4px;overflow-wrap:anywhere}.value{color:var(--faint)}
.bar{display:flex;height:26px;border-radius:4px;overflow:hidden;gap:1px}
.bar span{min-width:3px;flex-basis:0;font-size:.8rem;line-height:26px;text-align:center;color:var(--on);overflow:hidden}
.k-audio{background:var(--audio)}.k-video{background:var(--video)}.k-both{background:var(--both)}
.k-neither{background:var(--neither)}.k-unknown{background:var(--unknown)}.bar .k-unknown{color:var(--on-unknown)}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.86rem;width:100%}th,td{text-align:left;vertical-align:top;
padding:7px 12px 7px 0;border-bottom:1px solid var(--line)}th{font-weight:600;white-space:nowrap}td{min-width:5em}
.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}.key{overflow-wrap:anywhere;min-width:9em}
summary{cursor:pointer;padding:6px 0}
"""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{title}</title><style>{style}</style></head><body><main>
{body}
</main></body></html>
"""
