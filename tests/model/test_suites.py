"""Our classes among transformers' own common tests."""

from pathlib import Path

import pytest

from tests.model.suites.__main__ import run, source_distribution


@pytest.mark.slow
def test_the_common_suites_of_transformers_pass(tmp_path: Path) -> None:
    try:
        source = source_distribution(tmp_path)
    except OSError as error:
        pytest.skip(str(error))
    outcome = run(source, tmp_path, words=[])
    assert outcome.failed == {}
    # 97 of the model's for each of two families, 15 of the processor's, under 5.23.
    assert len(outcome.passed) >= 200
