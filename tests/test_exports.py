"""An export is used as transformers' users use a model, in a process that knows nothing but the package's name."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor, pipeline

from arcvideo.model.disk.card import Card, write_card
from arcvideo.model.disk.loading import save_model
from arcvideo.model.positions import replace_newlines, xd_positions
from arcvideo.model.special import special_ids
from arcvideo.processing import ArcVideoProcessor
from arcvideo.render import media_ids, render_branch, render_whole
from arcvideo.types import Sample, Turn
from tests.data.build import mp4, wav
from tests.rollout.world import LAYOUT, make_model, tokenizer

ROOT = Path(__file__).resolve().parent.parent
GREEDY = {"max_new_tokens": 4, "eos_token_id": None, "do_sample": False}


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    model = make_model()
    save_model(model, folder)
    ArcVideoProcessor(tokenizer(), layout=model.settings.layout).save_pretrained(folder)
    (folder / "clip.mp4").write_bytes(mp4(3.0))
    (folder / "other.wav").write_bytes(wav(2.0))
    Image.new("RGB", (96, 64), (200, 30, 30)).save(folder / "still.png")
    return folder


@pytest.fixture(scope="module")
def processor(export):
    return AutoProcessor.from_pretrained(export)


def fresh(code: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_MODULES_CACHE": str(cwd / "modules")},
        capture_output=True,
        text=True,
        check=False,
    )


def asked(*parts: dict, answer: str | None = None) -> list[dict]:
    turns = [{"role": "user", "content": [*parts, {"type": "text", "text": "Which colour?"}]}]
    return turns if answer is None else [*turns, {"role": "assistant", "content": answer}]


def test_importing_the_package_loads_neither_torch_nor_transformers(tmp_path):
    done = fresh("import arcvideo, sys; print({'torch', 'transformers', 'numpy'} & set(sys.modules))", cwd=tmp_path)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("order", ["before", "after"])
def test_a_process_that_imports_the_package_finds_the_classes(export, tmp_path, order):
    imports = ["import arcvideo", "from transformers import AutoModelForImageTextToText, AutoProcessor"]
    lines = imports if order == "before" else imports[::-1]
    code = "\n".join([
        "import sys",
        *lines,
        "print(type(AutoProcessor.from_pretrained(sys.argv[1])).__name__)",
        "print(type(AutoModelForImageTextToText.from_pretrained(sys.argv[1])).__name__)",
    ])  # fmt: skip
    done = fresh(code, export, cwd=tmp_path)
    assert done.stdout.split() == ["ArcVideoProcessor", "ArcVideoForConditionalGeneration"], done.stderr


@pytest.mark.slow
def test_without_import_or_trust_nothing_else_is_loaded(export, tmp_path):
    code = "import sys\nfrom transformers import AutoProcessor\nprint(AutoProcessor.from_pretrained(sys.argv[1]))"
    done = fresh(code, export, cwd=tmp_path)
    assert done.returncode, "a bare tokenizer in place of the processor would read no media"


def test_a_tokenizer_refuses_media_that_it_cannot_read(processor):
    with pytest.raises(Exception, match="a tokenizer reads no media"):
        processor.tokenizer.apply_chat_template(asked({"type": "video", "url": "clip.mp4"}), tokenize=False)
    text = processor.tokenizer.apply_chat_template([{"role": "user", "content": "Which?"}], tokenize=False)
    assert text == "<|startoftext|>Which?<sep>"


@torch.no_grad()
def test_a_chat_with_a_video_is_the_prompt_of_training(export, processor):
    clip = str(export / "clip.mp4")
    inputs = processor.apply_chat_template(asked({"type": "video", "url": clip}), tokenize=True, return_dict=True)
    expected = processor("Which colour?", media=processor.media(processor.read(clip)), task="none")
    for name in ("input_ids", "attention_mask", "position_ids"):
        assert torch.equal(inputs[name], expected[name]), name
    assert torch.equal(inputs["media"][0].mel, expected["media"][0].mel)
    model = AutoModelForImageTextToText.from_pretrained(export)
    assert torch.equal(model.generate(**inputs, **GREEDY), model.generate(**expected, **GREEDY))


def test_a_chat_is_written_before_its_files_are_named(export, processor):
    """The two steps of transformers' own examples."""
    clip, sound = str(export / "clip.mp4"), str(export / "other.wav")
    for parts, files in (([{"type": "video"}], {"videos": clip}), ([{"type": "audio"}], {"audio": sound}),
                         ([{"type": "video"}, {"type": "audio"}], {"videos": clip, "audio": sound})):  # fmt: skip
        named = [part | {"url": str(file)} for part, file in zip(parts, files.values(), strict=True)]
        text = processor.apply_chat_template(asked(*parts))
        assert text == processor.apply_chat_template(asked(*named))
        ids = processor.apply_chat_template(asked(*named), tokenize=True)
        assert torch.equal(processor(text, **files)["input_ids"], ids)


def test_turns_of_a_chat_are_those_of_training(processor):
    turns = (Turn(question="Which?", answer="red"), Turn(question="When?", answer="one"))
    sample = Sample(key="k", task="qa", turns=turns, media_key=None)
    chat = [part for turn in turns for part in ({"role": "user", "content": turn.question},
                                                {"role": "assistant", "content": turn.answer})]  # fmt: skip
    ids = processor.apply_chat_template(chat, tokenize=True)
    assert ids[0].tolist() == render_branch(sample, tokenizer=processor.tokenizer, wording="arc").ids.tolist()


def test_pictures_and_sounds_come_in_the_forms_that_users_have(export, processor):
    picture = Image.open(export / "still.png")
    forms = [str(export / "still.png"), export / "still.png", picture, (export / "still.png").read_bytes(),
             np.asarray(picture)]  # fmt: skip
    seen = [processor("Which?", images=form)["media"][0] for form in forms]
    assert all(torch.equal(one.pixels, seen[0].pixels) for one in seen)
    assert seen[0].has_video
    assert not seen[0].has_audio
    chat = processor.apply_chat_template(asked({"type": "image", "image": picture}), tokenize=True, return_dict=True)
    assert torch.equal(chat["media"][0].pixels, seen[0].pixels)
    samples = torch.sin(torch.arange(32_000) / 20).numpy()
    heard = processor("Transcribe.", audio=samples)["media"][0]
    assert (heard.has_video, heard.has_audio, heard.seconds) == (False, True, 2)
    both = processor("Which?", videos=export / "clip.mp4", audio=export / "other.wav")["media"][0]
    own = processor("Which?", videos=export / "clip.mp4")["media"][0]
    assert torch.equal(both.pixels, own.pixels)
    assert not torch.equal(both.mel, own.mel)
    frames = np.zeros((24, 32, 32, 3), dtype=np.uint8)
    assert processor("Which?", videos=[frames], fps=8.0)["media"][0].frame_count == 3
    with pytest.raises(ValueError, match="need fps"):
        processor("Which?", videos=[frames])


def test_what_cannot_be_read_is_an_error_and_not_a_word(export, processor):
    clip = {"type": "video", "url": str(export / "clip.mp4")}
    cases = [
        ([{"role": "user", "content": [{"type": "depth", "url": "x"}]}], "type 'depth'"),
        ([*asked("x"), {"role": "assistant", "content": [clip]}], "media stand in questions"),
        (asked({"type": "video"}), "needs one of"),
        (asked({"type": "video", "url": "https://example.org/a.mp4"}), "download the file"),
        ([{"role": "user", "content": "a<sep>b"}], "special_in_text"),
        ([{"role": "user", "content": "<video>\nWhich?"}], "1 <video> tags but 0 clips"),
    ]
    for conversation, message in cases:
        with pytest.raises(ValueError, match=message):
            processor.apply_chat_template(conversation, tokenize=True)
    with pytest.raises(ValueError, match="no such option"):
        processor("Which?", num_frames=4)
    with pytest.raises(ValueError, match="sampling_rate=44100"):
        processor("Which?", audio=np.zeros(10, dtype=np.float32), sampling_rate=44100)
    with pytest.raises(ValueError, match="give either media or"):
        processor("Which?", media=processor.media(processor.read(export / "still.png")), images=export / "still.png")
    with pytest.raises(ValueError, match="text must be"):
        processor(images=export / "still.png")


@torch.no_grad()
def test_several_chats_are_padded_like_each_alone(export, processor):
    chats = [asked({"type": "video", "url": str(export / "clip.mp4")}), asked(),
             asked({"type": "audio", "url": str(export / "other.wav")})]  # fmt: skip
    options = {"tokenize": True, "return_dict": True}
    together = processor.apply_chat_template(chats, **options, processor_kwargs={"padding": True})
    assert len(together["media"]) == 2
    for row, chat in enumerate(chats):
        alone = processor.apply_chat_template(chat, **options)["input_ids"][0]
        assert together["input_ids"][row, -len(alone) :].tolist() == alone.tolist()
    right = processor.apply_chat_template(chats, **options, padding_side="right")
    assert right["attention_mask"][1].tolist() == sorted(right["attention_mask"][1].tolist(), reverse=True)


def test_the_last_turn_may_stay_open(processor):
    text = processor.apply_chat_template(asked(answer="It is re"), continue_final_message=True)
    assert text == "<|startoftext|>Which colour?<sep>It is re"


@pytest.mark.slow
def test_the_snippet_of_the_readme_runs(export, tmp_path):
    (code,) = re.findall(r"```python\n(import arcvideo\n.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(code.splitlines()) <= 10
    code = code.replace("runs/tiny_shorts/final_sft/export", str(export)).replace("clip.mp4", str(export / "clip.mp4"))
    done = fresh(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "it prints an answer"


@pytest.mark.slow
def test_the_snippet_of_a_card_runs(export, tmp_path):
    write_card(tmp_path, Card(stage="sft", parent="a", identity="b", steps=3, trained=["llm"]))
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), flags=re.DOTALL)
    code = code.replace("THIS FOLDER", str(export)).replace("clip.mp4", str(export / "clip.mp4"))
    code = code.replace("max_new_tokens=256", "max_new_tokens=4")
    done = fresh(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_card_says_where_the_weights_come_from(tmp_path):
    card = Card(
        stage="sft",
        parent="0123abcd",
        identity="4567ef01",
        steps=30,
        trained=["llm", "audio_projector"],
        mixture={
            "shorts": {
                "requested": {"weight": 1.0},
                "realised": {"items": 412, "tokens": 9000, "share": 0.75, "tasks": {"mcq": 400, "qa": 12, "asr": 0}},
                "books": {"seen": 412},
            }
        },
        settings={
            "optimizer": {"name": "adamw", "lr": 1e-3},
            "secret": {"token": "x"},
            "data": {"sources": {"shorts": {"shards": "data/train-*.tar"}}},
        },
        metrics={"mcq_accuracy": {"value": 0.7534, "n": 300, "low": 0.7, "high": 0.8}},
    )
    write_card(tmp_path, card)
    text = (tmp_path / "README.md").read_text()
    for said in (
        "30 steps",
        "`0123abcd`",
        "llm, audio_projector",
        "| shorts | `data/train-*.tar` | 412 | 9000 | 0.75 | mcq 400, qa 12 |",
        "| `optimizer.lr` | `0.001` |",
        "| mcq_accuracy | 0.7534 | 300 | 0.7 to 0.8 |",
        "library_name: transformers",
    ):
        assert said in text, text
    assert "secret" not in text


@pytest.mark.filterwarnings("ignore")
def test_the_pipeline_answers_about_a_picture(export, processor):
    answer = pipeline("image-text-to-text", model=str(export), device="cpu")
    question = {"type": "image", "url": str(export / "still.png")}
    chat = answer(text=asked(question), max_new_tokens=4, return_full_text=False)
    inputs = processor.apply_chat_template(asked(question), tokenize=True, return_dict=True)
    model = AutoModelForMultimodalLM.from_pretrained(export)  # what `any-to-any` loads
    said = model.generate(**inputs, max_new_tokens=4)[0, inputs["input_ids"].shape[1] :]
    assert chat[0]["generated_text"] == processor.decode(said, skip_special_tokens=True)
    plain = answer(images=str(export / "still.png"), text="Which colour?", max_new_tokens=4)
    assert plain[0]["generated_text"].startswith("Which colour?")


def test_a_processor_works_alone(processor, tmp_path):
    ArcVideoProcessor(tokenizer(), layout=LAYOUT, wording="brief").save_pretrained(tmp_path)
    alone = AutoProcessor.from_pretrained(tmp_path)
    assert (alone.layout, alone.wording, alone.chat_template) == (LAYOUT, "brief", processor.chat_template)
    assert "ArcVideoProcessor" in repr(alone)


def test_a_layout_that_the_model_does_not_read_is_refused(tmp_path):
    save_model(make_model(), tmp_path)
    ArcVideoProcessor(tokenizer(), layout=LAYOUT).save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"layout": stored["layout"] | {"image_size": 192}}))
    with pytest.raises(ValueError, match="the model beside it reads"):
        AutoProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_others_may_read_an_export_as_far_as_the_umask_says(tmp_path, umask):
    before = os.umask(umask)
    try:
        save_model(make_model(), tmp_path)
        ArcVideoProcessor(tokenizer(), layout=LAYOUT).save_pretrained(tmp_path)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert "model.safetensors" in modes
    assert set(modes.values()) == {0o666 & ~umask}, modes


def test_each_medium_of_a_chat_stands_where_its_part_stands(export, processor):
    clip, picture = (
        {"type": "video", "url": str(export / "clip.mp4")},
        {"type": "image", "url": str(export / "still.png")},
    )
    sound, words = {"type": "audio", "url": str(export / "other.wav")}, {"type": "text", "text": "then"}
    chat = [
        {"role": "user", "content": [picture, words, clip, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "A."},
        {"role": "user", "content": [sound, {"type": "text", "text": "Heard?"}]},
    ]
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True)
    assert [(one.has_video, one.has_audio) for one in inputs["media"]] == [(True, False), (True, True), (False, True)]
    turns = (Turn(question="<video>\nthen<video>\nWhat?", answer="A."), Turn(question="<video>\nHeard?", answer=""))
    sample = Sample(key="a/0", task="qa", turns=turns, media_key="a", media_count=3)
    ids = media_ids(
        [one.frame_count for one in inputs["media"]], tokenizer=processor.tokenizer, layout=processor.layout
    )
    whole = render_whole(sample, media=ids, tokenizer=processor.tokenizer, wording="arc").ids[:-1]
    special = special_ids(processor.tokenizer)
    assert inputs["input_ids"][0].tolist() == replace_newlines(torch.from_numpy(whole), special=special).tolist()
    assert torch.equal(inputs["position_ids"][0], xd_positions(torch.from_numpy(whole), special))


def test_a_question_takes_several_media_and_frames_with_their_times(export, processor):
    picture = Image.open(export / "still.png").convert("RGB")
    two = processor("<video> or <video>?", images=[[picture, picture]], task="none")
    assert [one.frame_count for one in two["media"]] == [1, 1]
    frames = {"type": "video", "video": [picture, picture], "times": [0.0, 2.0]}
    (seen,) = processor.apply_chat_template(asked(frames), tokenize=True, return_dict=True)["media"]
    assert seen.frame_count == 4
    with pytest.raises(ValueError, match="2 <video> in the questions of a record with one medium"):
        processor("<video> or <video>?", images=picture)
    with pytest.raises(ValueError, match="in their order"):
        processor("What?", images=[[picture, picture]], audio=[[np.zeros(16_000, dtype=np.float32)]])
