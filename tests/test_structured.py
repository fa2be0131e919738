"""Plain values become settings dataclasses, or an error that names the key."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from arcvideo.ask import AskSettings
from arcvideo.structured import SettingsError, filled, from_words, nearest, words_help


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int = 1
    ratio: float = 0.5

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"inner.size={self.size} must not be negative")


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    inner: Inner = field(default_factory=Inner)
    several: list[Inner] = field(default_factory=list)
    by_name: dict[str, Inner] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    limit: int | None = None
    on: bool = False
    free: dict[str, Any] = field(default_factory=dict)


def test_values_fill_nested_dataclasses_over_their_defaults() -> None:
    made = filled(
        Outer,
        {
            "name": "x",
            "inner": {"size": 3},
            "several": [{"size": 2}, {}],
            "by_name": {"a": {"ratio": 1}},
            "weights": {"b": "1e-5"},
            "limit": 4,
            "free": {"any": [1, {"thing": None}]},
        },
    )
    assert made == Outer(
        name="x",
        inner=Inner(size=3),
        several=[Inner(size=2), Inner()],
        by_name={"a": Inner(ratio=1.0)},
        weights={"b": 1e-5},
        limit=4,
        free={"any": [1, {"thing": None}]},
    )
    assert isinstance(made.by_name["a"].ratio, float)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "name: must be set"),
        ({"nmae": "x"}, "nmae: no such setting (did you mean 'name'?)"),
        ({"inner": {"sise": 1}}, "inner.sise: no such setting (did you mean 'size'?)"),
        ({"inner": 3}, "inner: expected a group of settings, got 3; give them one by one, inner.size=..."),
        ({"inner": {"size": 1.5}}, "inner.size: expected a whole number, got 1.5"),
        ({"inner": {"size": True}}, "inner.size: expected a whole number, got True"),
        ({"inner": {"size": "3"}}, "inner.size: expected a whole number, got '3'"),
        ({"inner": {"size": -1}}, "inner.size=-1 must not be negative"),
        ({"inner": {"ratio": "half"}}, "inner.ratio: expected a number, got 'half'"),
        ({"inner": {"ratio": False}}, "inner.ratio: expected a number, got False"),
        ({"several": {}}, "several: expected a list like [a, b], got {}"),
        ({"several": [{}, {"size": None}]}, "several[1].size: expected a whole number, got None"),
        ({"by_name": []}, "by_name: expected a mapping like {a: 1}, got []"),
        ({"by_name": {"a": {"sise": 1}}}, "by_name.a.sise: no such setting (did you mean 'size'?)"),
        ({"words": "one"}, "words: expected a list like [a, b], got 'one'"),
        ({"on": 1}, "on: expected true or false, got 1"),
        ({"limit": "none"}, "limit: expected a whole number, got 'none'"),
        ({"name": None}, "name: expected a text, got None"),
        ({"name": ["x"]}, "name: expected a text, got ['x']; it takes one text, no list"),
    ],
    ids=str,
)
def test_values_that_do_not_fit_are_refused_with_their_full_key(values: dict[str, Any], told: str) -> None:
    complete = values if not values or "nmae" in values else {"name": "x"} | values
    with pytest.raises(SettingsError) as caught:
        filled(Outer, complete)
    assert str(caught.value) == told


def test_the_place_of_the_values_stands_before_the_key() -> None:
    with pytest.raises(SettingsError, match=r"^data\.inner\.size: "):
        filled(Outer, {"name": "x", "inner": {"size": "x"}}, key="data")


def test_numbers_are_texts_where_a_text_is_wanted() -> None:
    """YAML reads `name: 7` as a number."""
    assert filled(Outer, {"name": 7, "words": [1, "two"]}) == Outer(name="7", words=["1", "two"])


def test_null_is_taken_only_where_the_type_allows_it() -> None:
    assert filled(Outer, {"name": "x", "limit": None}).limit is None
    with pytest.raises(SettingsError, match="on: expected true or false"):
        filled(Outer, {"name": "x", "on": None})


def test_only_a_close_word_is_suggested() -> None:
    assert nearest("stepz", ["steps", "seed"]) == " (did you mean 'steps'?)"
    assert nearest("banana", ["steps", "seed"]) == ""


def test_the_help_of_a_command_says_what_each_word_means() -> None:
    said = words_help(AskSettings).splitlines()
    assert "  task=               qa" in said
    place = said.index("  audio=")
    assert said[place + 1] == "      A second file, whose sound replaces the first one's."
    assert max(map(len, said)) <= 80


@pytest.mark.parametrize("value", ["a[x],b", "[a[x],b]", "[a[x], b]", " a[x] , b,"])
def test_lists_are_written_with_or_without_brackets(value: str) -> None:
    assert from_words(Outer, ["name=n", f"words={value}"], example="words=a").words == ["a[x]", "b"]


def test_a_tag_in_brackets_is_no_list() -> None:
    assert from_words(Outer, ["name=n", "words=a[x]"], example="words=a").words == ["a[x]"]
    assert from_words(Outer, ["name=n", "words=[]"], example="words=a").words == []
