"""Other people's annotation formats -> records. Media bytes are copied untouched, unusable rows are listed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from arcvideo.data.importers.captions import import_activitynet, import_charades_sta, import_webvid
from arcvideo.data.importers.conversations import import_arc, import_sharegpt
from arcvideo.data.importers.drafts import Draft, ImportReport, ImportRequest
from arcvideo.data.importers.folders import import_records, import_transcripts

IMPORTERS: dict[str, Callable[..., Iterator[Draft]]] = {
    "activitynet": import_activitynet,
    "arc": import_arc,
    "charades-sta": import_charades_sta,
    "records": import_records,
    "sharegpt": import_sharegpt,
    "transcripts": import_transcripts,
    "webvid": import_webvid,
}
"""Format name -> its reader: (ImportRequest, report=ImportReport) -> Drafts."""

__all__ = ["IMPORTERS", "Draft", "ImportReport", "ImportRequest"]
