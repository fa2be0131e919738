"""What the tests of this room share with those of media."""

from tests.media.conftest import layout as layout
from tests.media.conftest import short_video as short_video
