"""The one exception of the media room."""

from __future__ import annotations

REASONS = {
    "no_media": "the file has neither a picture nor a sound stream that can be decoded",
    "unreadable": "the container or a stream cannot be parsed",
    "truncated": "the file ends before its header says so",
    "corrupt": "a frame that is needed does not decode cleanly",
    "too_large": "the file, a frame or the memory it needs is over the limit",
    "too_long": "the duration is over the limit",
    "timeout": "decoding did not finish before the deadline",
    "crashed": "the decoding process died",
}


class MediaError(Exception):
    """A file that cannot become a Clip.

    Attributes:
        reason: a key of REASONS, for counting and for quarantine lists.
        detail: which file, and what was found.
    """

    def __init__(self, reason: str, detail: str) -> None:
        assert reason in REASONS, reason
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[MediaError], tuple[str, str]]:
        return MediaError, (self.reason, self.detail)
