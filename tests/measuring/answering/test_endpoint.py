"""A model behind an endpoint, asked over real HTTP on this machine."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from arcvideo.measuring.answering.endpoint import Endpoint, EndpointError
from arcvideo.measuring.arms import Seen
from arcvideo.measuring.questions import Material, MeasuredQuestion
from arcvideo.measuring.read import Read
from arcvideo.measuring.settings import EvaluateSettings
from arcvideo.tasks import make_sample
from arcvideo.types import Clip
from tests.hostile import HEAD, hostile


@contextmanager
def served(*statuses: int, silent: float = 0.0) -> Iterator[tuple[str, list[Any]]]:
    """A server that answers with these statuses in turn, then with an answer; the first request waits `silent` s."""
    left, bodies = list(statuses), []

    class Answering(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            bodies.append(body)
            if silent and len(bodies) == 1:
                time.sleep(silent)
            status = left.pop(0) if left else 200
            reply = {
                "choices": [{"message": {"content": "B"}, "finish_reason": "stop"}],
                "usage": {"completion_tokens": 1},
            }
            data = json.dumps(reply if status == 200 else {"error": "no"}).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                pass  # nobody waits for it any more

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", bodies
    finally:
        server.shutdown()
        server.server_close()


def endpoint(url: str, *, tries: int = 3, deadline: float = 30.0) -> Endpoint:
    made = Endpoint(EvaluateSettings(endpoint=url, model="m", data="x.tar", tries=tries, deadline=deadline))
    made.pause = 0.01
    return made


def clip() -> Read:
    item = {"task": "mcq", "question": "Which?", "options": ["red", "blue"], "answer": "B"}
    question = MeasuredQuestion(number=0, sample=make_sample(item, key="c/0", media_key="c"), tags=("t",), fields=item)
    decoded = Clip(
        key="c", frames=torch.zeros(2, 3, 64, 64, dtype=torch.uint8), waveform=torch.zeros(32000), duration=2.0,
        frame_times=torch.tensor([[0.0, 1.0], [1.0, 2.0]]),
    )  # fmt: skip
    material = Material(number=0, name="c", questions=(question,), read=None)
    wanted = {"c/0": ("full", "no_sound")}
    return Read(material=material, wanted=wanted, seen=Seen(clip=decoded, bare=None), other=None, lost=(), seconds=0.0)


def test_frames_stand_behind_their_times_and_sound_is_sent_in_the_arms_that_have_it(tmp_path: Path) -> None:
    with served() as (url, bodies):
        ((answers, _),) = endpoint(url).ask([clip()])
    assert [(one.arm, one.text, one.has_audio, one.problem) for one in answers] == [
        ("full", "B", True, None),
        ("no_sound", "B", True, None),
    ]
    kinds = sorted([part["type"] for part in body["messages"][0]["content"]] for body in bodies)
    frames = ["text", "image_url", "text", "image_url"]
    assert kinds == sorted([[*frames, "input_audio", "text"], [*frames, "text"]])
    assert [body["messages"][0]["content"][2]["text"] for body in bodies] == ["1-2 s", "1-2 s"]
    assert all(
        body["temperature"] == 0 and "A.red\nB.blue" in body["messages"][0]["content"][-1]["text"] for body in bodies
    )


def test_a_busy_and_a_silent_server_are_asked_again() -> None:
    with served(503, 429) as (url, bodies):
        assert len(next(iter(endpoint(url, tries=4).ask([clip()])))[0]) == 2
    assert len(bodies) == 4
    with served(silent=2.0) as (url, bodies):
        assert len(next(iter(endpoint(url, deadline=0.5).ask([clip()])))[0]) == 2
    assert len(bodies) >= 3


def test_a_refusal_is_told_at_once_and_a_dead_server_after_all_tries() -> None:
    with served(400, 400) as (url, bodies), pytest.raises(EndpointError, match="status 400"):
        next(iter(endpoint(url).ask([clip()])))
    assert len(bodies) <= 2
    with pytest.raises(EndpointError, match="goes on from here"):
        next(iter(endpoint("http://127.0.0.1:9", tries=2).ask([clip()])))


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"first": b""}, "no whole answer within 0.5 s"),
        ({"first": HEAD + b"\r\n", "drip": b" "}, "no whole answer within 0.5 s"),
        ({"first": HEAD, "drip": b"X: y\r\n"}, "no whole answer within 0.5 s"),
        ({"first": HEAD + b'\r\n{"choices":', "close": True}, "broken off after 11 of 100000 bytes"),
        ({"first": b"HTTP/1.1 200 OK\r\nContent-Len", "close": True}, "an answer that is no JSON|broken off"),
        ({"first": b"HTTP/1.1 503 No\r\nContent-Length: 9\r\n\r\n", "drip": b"x"}, "status 503"),
        ({"first": b"\x00\xff" * 40 + b"\r\n", "close": True}, "broken off"),
    ],
    ids=["silent", "drips", "drips headers", "closes in the body", "closes in the headers", "drips a refusal", "noise"],
)  # fmt: skip
def test_a_server_that_gives_no_whole_answer_is_left_after_the_deadline_and_every_try_is_told(
    how: dict[str, Any], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with hostile(**how) as (url, asked):
        asking = endpoint(url, tries=2, deadline=0.5)
        with pytest.raises(EndpointError, match=told) as error:
            asking._reply(b"{}")
    assert len(asked) == 2
    assert f"endpoint={url}/chat/completions gave no answer" in str(error.value)
    assert "deadline=SECONDS" in str(error.value)
    assert "\n" not in str(error.value)
    assert "(try 2 of 2)" in capsys.readouterr().err


def test_a_password_in_the_address_is_not_told() -> None:
    with hostile(b"", close=True) as (url, _), pytest.raises(EndpointError) as error:
        endpoint(f"{url}?api_key=planted-0123456789", tries=1, deadline=5)._reply(b"{}")
    assert "planted" not in str(error.value)
