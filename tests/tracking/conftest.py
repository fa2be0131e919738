"""What the tests of this room share with those of the runner."""

from tests.runner.conftest import world as world
