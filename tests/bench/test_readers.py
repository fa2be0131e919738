"""Every benchmark in its published layout: what is asked, what is not and why, and what is missing in a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from arcvideo.bench import BENCHES, Bench, read_bench
from arcvideo.tasks import TASKS, make_sample
from tests.bench.layouts import ANNOTATIONS, LAYOUTS, LETTERED, MEDIA, clip, lines, put


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All benchmarks, each in a folder of its own; whoever changes one copies it."""
    root = tmp_path_factory.mktemp("benches")
    for name, write in LAYOUTS.items():
        write(root / name)
    return root


def copied(world: Path, name: str, target: Path) -> Path:
    shutil.copytree(world / name, target / name)
    return target / name


def ids(bench: Bench) -> list[str]:
    return [item.id for item in bench.items]


def test_every_benchmark_has_a_layout_here() -> None:
    assert list(LAYOUTS) == list(BENCHES)


@pytest.mark.parametrize("name", BENCHES)
def test_a_published_layout_becomes_questions_that_can_be_asked(world: Path, name: str) -> None:
    bench = read_bench(name, world / name)
    assert bench.holes == () or name == "tinyshorts"
    assert bench.source
    assert len(set(ids(bench))) == len(bench.items) > 0
    for item in bench.items:
        assert item.clip.is_absolute()
        assert item.clip.stat().st_size > 0
        assert item.fields["task"] == item.task in TASKS
        assert make_sample(item.fields, key=item.id, media_key="m").task == item.task


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("shortvid-bench", ["a.mp4#0", "a.mp4#1"]),
        ("charades-sta", ["line 1", "line 2"]),
        ("activitynet-captions", ["v_one/0", "v_one/1"]),
        ("qvhighlights", ["7", "8"]),
        ("timelens-bench", ["charades/v/0", "activitynet/v/0", "qvhighlights/v/0"]),
        ("video-mme", ["000-1", "001-1"]),
        ("vcr-bench", ["0"]),
        ("video-holmes", ["f1/1", "f2/1"]),
        ("daily-omni", ["Ec_l#0", "Ec_l#1"]),
        ("worldsense", ["AAW/task0", "AAW/task1"]),
        ("own", ["x", "a.mp4#0", "a.mp4#1", "a.mp4#2"]),
    ],
)
def test_questions_keep_the_ids_of_the_benchmark(world: Path, name: str, expected: list[str]) -> None:
    assert ids(read_bench(name, world / name)) == expected


def letters(bench: Bench) -> list[str]:
    return [make_sample(item.fields, key=item.id, media_key="m").truth["letter"] for item in bench.items]


def test_the_two_sizes_of_shortvid_bench_have_names_of_their_own(tmp_path: Path) -> None:
    clip(tmp_path / "videos_compressed/a.mp4")
    row = {"video": "a.mp4", "question": "q?", "candidates": LETTERED, "answer": "A", "problem_type": "Humor and Meme"}
    for size in (400, 1000):
        put(tmp_path / "ShortVid-Bench-1k.json", [row] * size)
        bench = read_bench("shortvid-bench", tmp_path, size=str(size))
        assert (bench.name, len(bench.items)) == (f"shortvid-bench-{size}", size)
    with pytest.raises(ValueError, match="holds 1000 questions, not the 400"):
        read_bench("shortvid-bench", tmp_path, size="400")


def test_shortvid_bench_is_scored_by_dimension(world: Path) -> None:
    bench = read_bench("shortvid-bench", world / "shortvid-bench")
    assert [item.tags for item in bench.items] == [("dimension:Affective Intent",), ("dimension:Humor and Meme",)]
    assert letters(bench) == ["B", "D"]


def test_spans_behind_the_real_end_of_a_clip_are_cut_and_counted(world: Path) -> None:
    bench = read_bench("charades-sta", world / "charades-sta")
    assert [item.fields["span"] for item in bench.items] == [[0.5, 1.5], [1.0, 2.0]]
    assert [item.tags for item in bench.items] == [(), ("span:cut_at_end",)]
    assert "1 spans end behind their clip and were cut there (tag span:cut_at_end)" in bench.notes
    assert bench.items[0].fields["question"] == "When does this happen in the video: person turn a light on."


def test_charades_takes_lengths_from_its_own_table_where_it_lies_there(world: Path, tmp_path: Path) -> None:
    folder = copied(world, "charades-sta", tmp_path)
    (folder / "Charades_v1_test.csv").write_text("id,subject,length\n3MSZA,HR43,2.50\n")
    assert read_bench("charades-sta", folder).items[1].fields["span"] == [1.0, 2.5]


def test_what_cannot_be_asked_about_spans_is_listed(world: Path, tmp_path: Path) -> None:
    folder = copied(world, "charades-sta", tmp_path)
    bad = ["3MSZA 2.5 3.0##late.", "3MSZA 1.0 0.5##reversed.", "GONE1 0.0 1.0##no video.", "nonsense", "3MSZA 0 1##"]
    with (folder / "charades_sta_test.txt").open("a") as file:
        file.write("\n".join(bad))
    (folder / "Charades_v1_480/BROKEN.mp4").write_bytes(b"no film")
    with (folder / "charades_sta_test.txt").open("a") as file:
        file.write("\nBROKEN 0 1##broken.\n")
    holes = {hole.id: hole.reason for hole in read_bench("charades-sta", folder).holes}
    assert holes == {
        "line 3": "span_outside",
        "line 4": "bad_span",
        "line 5": "no_media",
        "line 6": "bad_row",
        "line 7": "no_question",
        "line 8": "broken_media",
    }


def test_a_moment_that_comes_twice_keeps_all_its_spans(world: Path) -> None:
    one, two = read_bench("qvhighlights", world / "qvhighlights").items
    assert (one.fields["span"], one.fields.get("spans"), one.tags) == ([0, 1], None, ("moments:one",))
    assert (two.fields["span"], two.tags) == ([1, 2], ("moments:several",))
    assert two.fields["spans"] == [[0, 0.5], [1, 2]]
    sample = make_sample(two.fields, key=two.id, media_key="m")
    iou = TASKS["grounding"].measures[0]
    assert [iou.score(text, sample.truth).value for text in ("0 - 0.5", "1 - 2", "0.5 - 1")] == [1.0, 1.0, 0.0]


def test_timelens_can_be_read_set_by_set(world: Path, tmp_path: Path) -> None:
    folder = copied(world, "timelens-bench", tmp_path)
    (folder / "charades-timelens.json").unlink()
    shutil.rmtree(folder / "videos/qvhighlights")
    with pytest.raises(ValueError, match=r"charades-timelens\.json, videos/qvhighlights/ missing"):
        read_bench("timelens-bench", folder)
    bench = read_bench("timelens-bench", folder, sets="activitynet")
    assert (bench.name, bench.items[0].tags) == ("timelens-bench-activitynet", ("set:activitynet",))
    assert bench.items[0].fields["question"] == "When does this happen in the video: a man"


def test_mvbench_makes_letters_of_texts_and_says_which_part_is_meant(world: Path, tmp_path: Path) -> None:
    bench = read_bench("mvbench", world / "mvbench")
    assert set(letters(bench)) == {"C"}
    windows = {item.tags[0].removeprefix("task:"): item.window for item in bench.items}
    assert windows["action_sequence"] == windows["episodic_reasoning"] == (0.5, 1.5)
    assert windows["action_count"] is None
    folder = copied(world, "mvbench", tmp_path)
    clip(folder / "video/star/Charades_segment/v.mp4")  # the part that is meant, already
    assert {item.id: item.window for item in read_bench("mvbench", folder).items}["action_sequence/0"] is None
    (folder / "video/tvqa/frames_fps3_hq/shot.mp4").unlink()
    put(
        folder / "json/action_count.json",
        [{"video": "v.mp4", "question": "q", "candidates": ["1", "1"], "answer": "1"}],
    )
    holes = {hole.id: (hole.reason, hole.detail) for hole in read_bench("mvbench", folder).holes}
    assert holes["episodic_reasoning/0"][0] == "only_frames"
    assert "ffmpeg -framerate 3" in holes["episodic_reasoning/0"][1]
    assert holes["action_count/0"] == ("bad_answer", "2 of the options are the answer '1'")


def test_mvbench_names_each_file_that_is_missing(world: Path, tmp_path: Path) -> None:
    folder = copied(world, "mvbench", tmp_path)
    for name in ("action_count", "state_change"):
        (folder / f"json/{name}.json").unlink()
    with pytest.raises(ValueError, match=r"json/action_count\.json, json/state_change\.json missing"):
        read_bench("mvbench", folder)
    assert len(read_bench("mvbench", folder, tasks="moving_count+object_existence").items) == 2


def test_video_mme_with_and_without_subtitles(world: Path) -> None:
    without = read_bench("video-mme", world / "video-mme")
    assert (without.name, {item.subtitles for item in without.items}) == ("video-mme", {None})
    bench = read_bench("video-mme", world / "video-mme", subtitles="yes")
    assert (bench.name, [item.subtitles for item in bench.items]) == (
        "video-mme-subtitles",
        ["Good morning\nall", None],
    )
    assert "1 questions are about videos without subtitles" in bench.notes
    assert bench.items[0].tags == ("duration:short", "domain:Knowledge", "category:Law", "task:Counting Problem")
    assert ids(read_bench("video-mme", world / "video-mme", duration="long")) == ["001-1"]
    with pytest.raises(ValueError, match="subtitles=maybe: choose yes or no"):
        read_bench("video-mme", world / "video-mme", subtitles="maybe")


def test_the_open_part_of_vcr_bench_is_asked_on_request(world: Path) -> None:
    bench = read_bench("vcr-bench", world / "vcr-bench")
    assert (bench.name, bench.items[0].tags) == ("vcr-bench-mcq", ("dimension:Video Plot Analysis",))
    assert len(bench.items[0].fields["options"]) == 3
    assert "1 questions of the other part are not asked; part=all asks them" in bench.notes
    assert [item.task for item in read_bench("vcr-bench", world / "vcr-bench", part="all").items] == ["mcq", "qa"]


def test_worldsense_with_subtitles_and_tags(world: Path) -> None:
    bench = read_bench("worldsense", world / "worldsense", subtitles="yes")
    assert {item.subtitles for item in bench.items} == {"Good morning\nall"}
    assert bench.items[0].tags == (
        *("domain:Music", "category:Pop", "audio:Speech"),
        *("skill:Recognition", "task:Audio Counting"),
    )


def test_own_shards_become_questions_about_files(world: Path) -> None:
    bench = read_bench("tinyshorts", world / "tinyshorts")
    assert {item.clip.suffix for item in bench.items} == {".mp4", ".wav", ".png"}
    assert {item.id.partition("/")[0] for item in bench.items} == {f"clip-{number:05d}" for number in range(4)}
    again = read_bench("tinyshorts", world / "tinyshorts")
    assert again == bench


def test_own_questions_may_say_which_part_of_a_file_is_meant(world: Path) -> None:
    items = read_bench("own", world / "own").items
    assert [item.task for item in items] == ["mcq", "grounding", "qa", "summary"]
    assert [item.window for item in items] == [None, (0.0, 1.5), None, None]
    assert items[0].tags == ("needs:audio",)


@pytest.mark.parametrize("name", ANNOTATIONS)
def test_a_missing_annotation_file_is_named(world: Path, tmp_path: Path, name: str) -> None:
    folder = copied(world, name, tmp_path)
    (folder / ANNOTATIONS[name]).unlink()
    with pytest.raises(ValueError, match=r"missing") as told:
        read_bench(name, folder)
    assert Path(ANNOTATIONS[name]).name in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", MEDIA)
def test_a_missing_folder_of_media_is_named(world: Path, tmp_path: Path, name: str) -> None:
    folder = copied(world, name, tmp_path)
    shutil.rmtree(folder / MEDIA[name])
    with pytest.raises(ValueError, match="missing") as told:
        read_bench(name, folder)
    assert MEDIA[name] in str(told.value)


@pytest.mark.parametrize("name", [name for name in BENCHES if name != "tinyshorts"])
def test_a_benchmark_without_any_media_is_refused_with_the_first_that_is_missing(
    world: Path, tmp_path: Path, name: str
) -> None:
    folder = copied(world, name, tmp_path)
    for film in {item.clip for item in read_bench(name, folder).items}:
        film.unlink()
    with pytest.raises(ValueError, match=r"^[^\n]*none of \d+ questions can be asked \(\d+ x no_media[^\n]*$"):
        read_bench(name, folder)


def test_some_missing_and_empty_media_are_holes(world: Path, tmp_path: Path) -> None:
    folder = copied(world, "video-holmes", tmp_path)
    (folder / "videos_cropped/f1.mp4").write_bytes(b"")
    bench = read_bench("video-holmes", folder)
    assert (ids(bench), [(hole.id, hole.reason) for hole in bench.holes]) == (["f2/1"], [("f1/1", "empty_media")])
    (folder / "videos_cropped/f1.mp4").unlink()
    (hole,) = read_bench("video-holmes", folder).holes
    assert (hole.id, hole.reason) == ("f1/1", "no_media")
    assert str(folder / "videos_cropped/f1") in hole.detail


def question_of(name: str) -> dict[str, Any]:
    return {"video": "a.mp4", "question": "which?", "options": ["red", "blue"], "answer": "B"} | {"id": name}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"options": []}, "no_options"),
        ({"options": None, "task": "mcq"}, "no_options"),
        ({"options": ["red"]}, "bad_options"),
        ({"options": ["red", "red "]}, "bad_options"),
        ({"answer": "C"}, "bad_answer"),
        ({"answer": None}, "no_answer"),
        ({"question": " "}, "no_question"),
        ({"video": "../a.mp4"}, "unsafe_name"),
        ({"video": "b.mp4"}, "no_media"),
        ({"video": None}, "no_media"),
        ({"task": "dance"}, "unknown_task"),
        ({"window": [2, 1]}, "bad_window"),
        ({"question": "half \ud83d"}, "broken_text"),
        ({"id": "good"}, "duplicate_id"),
        ({"tags": "loud"}, "bad_tags"),
        ({"span": [3, 2], "task": "grounding"}, "bad_span"),
    ],
)
def test_what_is_wrong_with_a_question_is_listed_with_its_id(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    clip(tmp_path / "a.mp4")
    lines(tmp_path / "questions.jsonl", [question_of("good"), question_of("bad") | change])
    bench = read_bench("own", tmp_path)
    assert ids(bench) == ["good"]
    assert [(hole.id, hole.reason) for hole in bench.holes] == [(change.get("id", "bad"), reason)]
    assert len(bench.items) + len(bench.holes) == 2


def test_lines_that_are_no_json_do_not_hide_the_others(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4")
    text = json.dumps(question_of("good"))
    (tmp_path / "questions.jsonl").write_bytes(f"{text[:-5]}\n[1]\n{text}\n\xff\n".encode("latin-1"))
    bench = read_bench("own", tmp_path)
    assert ids(bench) == ["good"]
    assert [hole.reason for hole in bench.holes] == ["broken_json", "bad_row", "broken_text"]
