"""Other people's annotation formats -> records. Media bytes are copied untouched, unusable rows are listed."""

from __future__ import annotations

from collections.abc import Callable

from arcvideo.data.importers.captions import import_activitynet, import_charades_sta, import_webvid
from arcvideo.data.importers.conversations import import_arc, import_sharegpt
from arcvideo.data.importers.drafts import Draft, Drafts, ImportReport, ImportRequest
from arcvideo.data.importers.folders import import_records, import_transcripts
from arcvideo.data.importers.rewarded import import_sharegpt4video, import_video_r1
from arcvideo.data.importers.tables import table_importers

IMPORTERS: dict[str, Callable[..., Drafts]] = {
    "activitynet": import_activitynet,
    "arc": import_arc,
    "charades-sta": import_charades_sta,
    "records": import_records,
    "llama-factory": import_sharegpt,
    "llava-video": import_sharegpt,
    "ms-swift": import_sharegpt,
    "openai": import_sharegpt,
    "sharegpt": import_sharegpt,
    "sharegpt4video": import_sharegpt4video,
    **table_importers(),
    "transcripts": import_transcripts,
    "video-r1": import_video_r1,
    "webvid": import_webvid,
}
"""Format name -> its reader: (ImportRequest, report=ImportReport) -> Drafts."""

__all__ = ["IMPORTERS", "Draft", "Drafts", "ImportReport", "ImportRequest"]
