"""Asking on the command line, with a tiny untrained model and files made here."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import pytest
import torch

from arcvideo.ask import TerminalWriter, ask, main, read_words, readings
from arcvideo.model.disk.loading import save_model
from arcvideo.model.disk.tokenizer import save_tokenizer
from arcvideo.seals import write_sums
from arcvideo.structured import SettingsError
from tests.data.build import mp4, png, wav
from tests.rollout.world import make_model, tokenizer

MEDIA = Path(os.environ.get("ARCVIDEO_TEST_MEDIA", Path(__file__).resolve().parents[1] / "shared")) / "data" / "shorts"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_model(make_model(), folder)
    save_tokenizer(tokenizer(), folder)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    contents = {
        "video.mp4": mp4(3.0),
        "mute.mp4": mp4(2.0, sound=False),
        "sound.wav": wav(2.0),
        "picture.png": png(),
        "long.mp4": mp4(170.0, sound=False),
        "longer.wav": wav(301.0),
        "broken.mp4": mp4(3.0)[:700],
        "empty.mp4": b"",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents}


def answer(checkpoint: Path, *words: str) -> tuple[str, str, str]:
    out, err = io.StringIO(), io.StringIO()
    said = ask(read_words([f"checkpoint={checkpoint}", "max_new_tokens=4", *words]), out=out, err=err)
    return said, out.getvalue(), err.getvalue()


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("video.mp4", ""),
        ("mute.mp4", "no sound"),
        ("sound.wav", "no picture"),
        ("picture.png", "no sound"),
        ("long.mp4", "170 s in 150 frames"),
        ("longer.wav", "longer than 240 s: only 1.6 s from each of 150 parts"),
    ],
)
def test_every_kind_of_file_is_answered_and_what_is_missing_is_told(checkpoint, files, name, note):
    said, out, err = answer(checkpoint, f"video={files[name]}", "question=Which colour is seen?")
    assert said
    assert said.strip() in out
    assert note in err


def test_text_alone_needs_no_file(checkpoint):
    assert answer(checkpoint, "question=Which colour is seen?")[0]


def test_summary_and_chapters_have_their_own_question(checkpoint, files):
    for task in ("summary", "chapters"):
        assert answer(checkpoint, f"video={files['video.mp4']}", f"task={task}")[0]


@pytest.mark.parametrize(
    "words",
    [["question=Which?", "options=red,blue"], ["question=Which?\nA.red\nB.blue"], ["question=Which? (A) red (B) blue"]],
)
def test_a_multiple_choice_lists_its_options(checkpoint, words):
    assert "option: " in answer(checkpoint, "task=mcq", *words)[1]


def test_options_are_asked_as_they_are_trained(checkpoint):
    given = answer(checkpoint, "task=mcq", "question=Which?", "options=red,blue", "max_new_tokens=12")[0]
    assert given == answer(checkpoint, "task=mcq", "question=Which?\nA.red\nB.blue", "max_new_tokens=12")[0]


def test_half_of_a_file_can_be_asked_about(checkpoint, files):
    both, video, sound = (
        answer(checkpoint, f"video={files['video.mp4']}", "question=x", f"modality={half}", "max_new_tokens=12")
        for half in ("both", "video", "audio")
    )
    assert "no sound" in video[2]
    assert "no picture" in sound[2]
    assert both[2] != video[2]


def test_sound_of_a_second_file_is_used(checkpoint, files):
    words = [f"video={files['mute.mp4']}", f"audio={files['sound.wav']}", "question=When is it heard?"]
    assert "no sound" not in answer(checkpoint, *words)[2]


def test_sampling_follows_the_seed(checkpoint):
    words = ["question=Which?", "temperature=1.5", "max_new_tokens=12"]
    first = answer(checkpoint, *words, "seed=1")[0]
    assert first == answer(checkpoint, *words, "seed=1")[0]
    assert first != answer(checkpoint, *words, "seed=2")[0]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["video=nowhere.mp4", "question=x"], "no such file"),
        (["video=VIDEO/broken.mp4", "question=x"], "broken.mp4"),
        (["video=VIDEO/empty.mp4", "question=x"], "is empty"),
        (["video=VIDEO/mute.mp4", "question=x", "modality=audio"], "no sound"),
        (["video=VIDEO/video.mp4"], "question: must be set"),
        (["question=x", "task=mqc"], "choose one of"),
        (["questoin=x"], "did you mean 'question'"),
        (["question=<sep>"], "special_in_text"),
        (["question=x", "max_new_tokens=many"], "max_new_tokens: expected a whole number"),
        (["question=x", "stop_at_answer=perhaps"], "true or false"),
        (["question=x", "checkpoint=nowhere"], "checkpoint=nowhere: no such directory"),
        (["question"], "key=value"),
        (["question=Which?", "task=mcq"], "options: a multiple choice needs some"),
        (["question=Which?", "task=mcq", "options=red"], "options: "),
        (["question=Which?", "options=red,blue"], "options: are those of a multiple choice"),
    ],
)
def test_mistakes_are_told_in_one_line(checkpoint, files, capsys, words, told):
    folder = files["video.mp4"].parent
    assert main([f"checkpoint={checkpoint}", *(word.replace("VIDEO", str(folder)) for word in words)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1
    assert told in lines[0]


def test_a_directory_without_weights_is_refused(tmp_path, capsys):
    assert main([f"checkpoint={tmp_path}", "question=x"]) == 2
    assert "no weights there" in capsys.readouterr().err


def streamed(text: str) -> str:
    """Return what the terminal shows of a text that arrives one token at a time, behind a prompt of two."""
    out = io.StringIO()
    writer = TerminalWriter(tokenizer(), out=out, prompt_tokens=2)
    writer.put(torch.tensor([[5, 6]]))
    for token in tokenizer().encode(text, add_special_tokens=False):
        writer.put(torch.tensor([token]))
    writer.end()
    return out.getvalue()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_file_of_the_checkpoint_that_was_changed_is_named_before_it_is_read(checkpoint, tmp_path, capsys, name):
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    write_sums(copy)
    (copy / name).write_text((copy / name).read_text().replace("1", "7"))
    assert main([f"checkpoint={copy}", "question=hi"]) == 2
    assert f"{copy}: {name} was changed" in capsys.readouterr().err


def test_thoughts_and_answer_are_shown_apart():
    assert streamed("<think>red 红 é</think><answer>A</answer>") == "think: red 红 é\nanswer: A\n"


def test_text_without_tags_is_shown_as_it_is():
    assert streamed("a < b and <thin") == "a < b and <thin\n"


def test_times_and_options_are_read_from_the_answer():
    grounding = "<think>00:00:09 - 00:00:10</think><answer>00:00:03 - 00:00:05</answer>"
    assert readings(grounding, task="grounding") == ["time: 00:00:03 - 00:00:05 (3 s to 5 s)"]
    chapters = "<answer>00:00:00 - 00:00:02 a cat\n00:00:02 - 00:01:05 a dog</answer>"
    assert len(readings(chapters, task="chapters")) == 2
    assert readings("<answer>B</answer>", task="mcq") == ["option: B"]
    assert readings("well", task="grounding") == ["time: none that can be read"]
    assert readings("well", task="qa") == []


def test_words_are_read_without_a_model(checkpoint):
    with pytest.raises(SettingsError, match="audio: replaces"):
        read_words([f"checkpoint={checkpoint}", "question=x", "audio=a.wav"])


def test_a_real_short_is_answered(checkpoint):
    short = MEDIA / "x3555e2g3t8.mp4"
    if not short.is_file():
        pytest.skip(f"{short} is not there; set ARCVIDEO_TEST_MEDIA to a folder that holds data/shorts")
    said, _, err = answer(checkpoint, f"video={short}", "task=summary")
    assert said
    assert "no sound" not in err
