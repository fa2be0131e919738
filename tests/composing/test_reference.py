from __future__ import annotations

import re
from dataclasses import dataclass, field

from arcvideo.composing.overrides import setting_keys
from arcvideo.composing.recipe import Recipe
from arcvideo.composing.reference import markdown, sections
from arcvideo.structured import documented


def test_every_setting_is_there_with_its_meaning() -> None:
    rows = {one.key: one for section in sections() for one in section.settings}
    assert set(setting_keys()) <= rows.keys()  # the names that the command line knows
    assert "data.sources.NAME.items_per_clip" in rows
    assert [key for key, row in rows.items() if not row.meaning] == []
    assert "lora.rank" in rows  # inside settings that may be absent
    assert rows["grpo.beta"].default == "0.1"
    assert rows["threads"].default == "0"
    assert rows["feature_cache"].default == "true"
    assert rows["stage.name"].default == ""


def test_the_keys_of_a_recipe_are_there() -> None:
    rows = {one.key: one for section in sections(Recipe) for one in section.settings}
    assert {"run_dir", "stages", "targets[].at_least", "prepare[].makes"} <= rows.keys()
    assert [key for key, row in rows.items() if not row.meaning] == []


@dataclass
class Example:
    one: int = 1
    """On two
    lines."""
    bare: str = ""
    listed: list[str] = field(default_factory=list)
    """Said."""


def test_a_meaning_is_the_string_right_under_its_field() -> None:
    assert documented(Example) == {"one": "On two lines.", "listed": "Said."}


def test_the_page_is_whole_tables() -> None:
    """A bar or tag in a meaning would break a row or vanish."""
    page = markdown()
    for line in page.splitlines():
        if line.startswith("| `"):
            columns = len(re.findall(r"(?<!\\)\|", line))
            assert columns in (3, 5), line
    assert "<think>" not in re.sub(r"`[^`]*`", "", page)
