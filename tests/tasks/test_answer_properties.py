"""Texts made around a known answer, in every form of docs/answers.md: it is read; texts with two answers are not."""

from __future__ import annotations

from string import ascii_uppercase

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcvideo.tasks.answers import one_answer, split_answer
from arcvideo.tasks.mcq import parse_letter, read_letter
from arcvideo.tasks.spans import clock, parse_span, read_span

TEXTS = ["red", "a blue car", "green", "two white dogs", "nothing of this", "I see it", "both 1 and 2", "左边的人"]
MANY = settings(max_examples=100, deadline=None)

LETTER = (
    "{x}", "{x}.", "({x})", "[{x}]", "{{{x}}}", "【{x}】", "**{x}**", "**{x}.**", "`{x}`", '"{x}"', "${x}$",
    r"\boxed{{{x}}}", r"\boxed{{\text{{{x}}}}}", '{{"answer": "{x}"}}', "option {x}", "Option ({x})", "Answer: {x}",
    "**Answer:** {x}", "The answer is {x}", "The answer is ({x}).", "I think the answer is {x}.", "{x} is correct.",
    "So the correct option is {x}.", "My final answer: {x}", "I choose {x}.", "{x} is the right answer", "答案：{x}",
    "答案是{x}。", "选{x}", "故选{x}。", "因此，答案是{x}", "我认为应该选择{x}。", "{x}选项",
)  # fmt: skip
WITH_TEXT = (
    "{x}. {t}",
    "{x}) {t}",
    "({x}) {t}",
    "{x}: {t}",
    "{x}.{t}",
    "{x}\n{t}",
    "The answer is {x}. {t}",
    "**{x}. {t}**",
)
TEXT_ALONE = ("{t}", "{t}.", "The answer is {t}.", "**{t}**", "答案是{t}")
BETWEEN = (
    " or ",
    " and ",
    ", ",
    "; ",
    "/",
    "\n",
    ". ",
    "。",
    "、",
    "？",
    ", no: ",
    ". Wait, ",
    "。不对，应该是",
    " ",
    " & ",
)
THOUGHTS = st.text(max_size=30).filter(lambda text: "<" not in text and ">" not in text)


@st.composite
def choices(draw: st.DrawFn) -> tuple[list[str], int]:
    options = draw(st.lists(st.sampled_from(TEXTS), min_size=2, max_size=6, unique=True))
    return options, draw(st.integers(0, len(options) - 1))


@st.composite
def blocks(draw: st.DrawFn) -> str:
    """A completion with a place for its answer."""
    thought = draw(THOUGHTS)
    shapes = [
        "{}",
        "<answer>{}</answer>",
        f"<think>{thought}</think><answer>{{}}</answer>",
        f"<think>{thought}</think>\n{{}}",
    ]
    return draw(st.sampled_from([shape.replace(thought, "\0") if thought else shape for shape in shapes])).replace(
        "\0", thought.replace("{", "").replace("}", "")
    )


@MANY
@given(choice=choices(), form=st.sampled_from([*LETTER, *WITH_TEXT]), around=blocks(), lower=st.booleans())
def test_a_letter_is_read_in_every_form(choice: tuple[list[str], int], form: str, around: str, lower: bool) -> None:
    options, right = choice
    letter = ascii_uppercase[right]
    shown = letter.lower() if lower and form in ("{x}", "{x}.", "({x})", "Answer: {x}", "{x}. {t}") else letter
    text = around.format(form.format(x=shown, t=options[right]))
    assert read_letter(text, options=options).value == letter
    if form in LETTER:
        assert parse_letter(text) == letter


@MANY
@given(choice=choices(), form=st.sampled_from(TEXT_ALONE), around=blocks())
def test_an_options_text_names_it(choice: tuple[list[str], int], form: str, around: str) -> None:
    options, right = choice
    assert parse_letter(around.format(form.format(t=options[right])), options=options) == ascii_uppercase[right]


@MANY
@given(choice=choices(), data=st.data(), between=st.sampled_from(BETWEEN), around=blocks())
def test_two_letters_are_no_answer(
    choice: tuple[list[str], int], data: st.DataObject, between: str, around: str
) -> None:
    options, first = choice
    second = data.draw(st.integers(0, len(options) - 1).filter(lambda other: other != first))
    forms = [data.draw(st.sampled_from([*LETTER, *WITH_TEXT, *TEXT_ALONE])) for _ in range(2)]
    said = between.join(
        form.format(x=ascii_uppercase[place], t=options[place])
        for form, place in zip(forms, (first, second), strict=True)
    )
    assert parse_letter(around.format(said), options=options) is None


TIMES = (
    lambda s: clock(s),
    lambda s: f"{s // 60:02d}:{s % 60:02d}",
    lambda s: f"{s // 60}:{s % 60:02d}.0",
    lambda s: f"00:{s // 60 % 60:02d}:{s % 60:02d},000" if s < 3600 else clock(s),
    lambda s: f"{s} s",
    lambda s: f"{s}s",
    lambda s: f"{s}.0 seconds",
    lambda s: f"{s} sec.",
    lambda s: f"{s}秒",
    lambda s: f"第{s}秒",
    lambda s: f"{s:,} s",
    lambda s: f"{s // 60} min {s % 60} s",
    lambda s: f"{s // 3600}h{s // 60 % 60}m{s % 60}s",
)
JOINS = (" - ", "-", " – ", "—", " --> ", " → ", " to ", " until ", "到", "至", "~", ", ", " to ")
FRAMES = (
    "{}", "{}.", "[{}]", "({})", "**{}**", "<span>{}</span>", "The time range is {}.", "from {}", "在{}之间",
    "答案：{}", "It is visible from {}.",
)  # fmt: skip
BARE = (
    "[{}, {}]",
    "[{},{}]",
    "({}, {})",
    "{} - {}",
    "from {} to {}",
    "between {} and {}",
    '{{"start": {}, "end": {}}}',
    "{}-{} s",
    "{} to {} seconds",
    "starts at {} and ends at {}",
)
RANGES = st.tuples(st.integers(0, 9000), st.integers(0, 9000)).map(lambda pair: tuple(sorted(pair)))


@st.composite
def written(draw: st.DrawFn, span: tuple[int, int]) -> str:
    """A range in one of the accepted forms, bare numbers not among them."""
    first, second = draw(st.sampled_from(TIMES)), draw(st.sampled_from(TIMES))
    join = draw(st.sampled_from([join for join in JOINS if join != ", "]))
    return join.join((first(span[0]), second(span[1])))


@MANY
@given(span=RANGES, data=st.data(), frame=st.sampled_from(FRAMES), around=blocks())
def test_a_range_is_read_in_every_form(span: tuple[int, int], data: st.DataObject, frame: str, around: str) -> None:
    text = around.format(frame.format(data.draw(written(span))))
    assert read_span(text).value == pytest.approx(span)


@MANY
@given(span=RANGES, time=st.sampled_from(TIMES), join=st.sampled_from(JOINS), around=blocks())
def test_a_pair_of_equal_forms_is_read_with_every_join(
    span: tuple[int, int], time: object, join: str, around: str
) -> None:
    assert callable(time)
    assert read_span(around.format(time(span[0]) + join + time(span[1]))).value == pytest.approx(span)


@MANY
@given(span=RANGES, form=st.sampled_from(BARE), around=blocks())
def test_bare_numbers_are_read_where_nothing_else_is_said(span: tuple[int, int], form: str, around: str) -> None:
    assert read_span(around.format(form.format(*span))).value == pytest.approx(span)
    assert parse_span(around.format(f"I count {form.format(*span)} birds and cats")) is None or form.endswith(
        ("s", "seconds")
    )


@MANY
@given(
    first=RANGES,
    second=RANGES,
    data=st.data(),
    between=st.sampled_from([", ", " and ", "; ", "\n", " or ", "。"]),
    around=blocks(),
)
def test_two_ranges_are_no_answer(
    first: tuple[int, int], second: tuple[int, int], data: st.DataObject, between: str, around: str
) -> None:
    said = data.draw(written(first)) + between + data.draw(written(second))
    assert parse_span(around.format(said)) == (first if first == second else None)


@MANY
@given(span=RANGES.filter(lambda span: span[0] > 0), data=st.data(), digits=st.integers(1, 99))
def test_part_of_a_number_is_no_time(span: tuple[int, int], data: st.DataObject, digits: int) -> None:
    """What stands glued before a number belongs to it: its tail alone is never read."""
    text = data.draw(written(span))
    number = str(digits)
    for before in ("-", "/", "$", "v", f"{number}/", f"{number}:0", f"{number},", f"{number}.", f"{number}h"):
        read = parse_span(before + text)
        assert read is None or read[0] != span[0], before


@MANY
@given(answer=st.text(max_size=20), thought=THOUGHTS)
def test_an_answer_in_a_thought_or_in_two_blocks_is_none(answer: str, thought: str) -> None:
    assert one_answer(f"<think>{thought}<answer>{answer}</answer>").value is None
    assert one_answer(f"<answer>{answer}</answer>{thought}<answer>{answer}</answer>").value is None
    assert split_answer(f"<answer>{answer}</answer><answer>{answer}</answer>").answer is None
