"""The processor makes of files, frames and questions what training makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from arcvideo.model.disk.loading import save_model
from arcvideo.processing import ArcVideoProcessor
from arcvideo.render import render_branch
from arcvideo.tasks import make_sample
from arcvideo.tasks.fields import SUFFIXES
from tests.data.build import mp4, wav
from tests.rollout.world import LAYOUT, make_model, tokenizer


@pytest.fixture(scope="module")
def processor() -> ArcVideoProcessor:
    return ArcVideoProcessor(tokenizer(), layout=LAYOUT)


@pytest.fixture
def clip(processor, tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(mp4(3.0))
    return processor.read(path)


@pytest.mark.parametrize(
    ("task", "instruction"), [("qa", "general"), ("summary", "general"), ("mcq", "mcq"), ("grounding", "grounding")]
)
def test_prompts_end_with_the_instruction_of_their_task(processor, clip, task, instruction):
    prompt = processor.prompt("Which?", media=processor.media(clip), task=task)
    said = tokenizer().decode(prompt.question_ids.tolist())
    assert said == f"\nWhich?\n{SUFFIXES['arc'][instruction]}<sep>"
    start = tokenizer().decode(prompt.prefix_ids.tolist()[:3])
    assert start == "<|startoftext|><vid><img>"


def test_prompts_are_those_of_training(processor, clip):
    item = {"task": "grounding", "question": "When?", "span": [0, 1], "think": "so"}
    sample = make_sample(item, key="k", media_key="m", style="think")
    branch = render_branch(sample, tokenizer=tokenizer(), wording="arc")
    prompt = processor.prompt("When?", media=processor.media(clip), task="grounding")
    assert prompt.question_ids.tolist() == branch.ids[: branch.question_tokens].tolist()


def test_frames_may_stand_inside_the_question(processor, clip):
    prompt = processor.prompt("Clip: <video>\nWhich?", media=processor.media(clip), task="none")
    said = tokenizer().decode(prompt.ids.tolist())
    assert said.startswith("<|startoftext|>Clip: <vid>")
    assert said.endswith("</vid>\nWhich?<sep>")


def test_text_alone_starts_with_the_start_token(processor):
    assert tokenizer().decode(processor.prompt("Which?", task="none").ids.tolist()) == "<|startoftext|>Which?<sep>"


def test_decoded_frames_are_chosen_stamped_and_resized(processor):
    frames = np.full((24, 200, 320, 3), 90, dtype=np.uint8)
    clip = processor.clip(frames, fps=8.0, waveform=torch.zeros(48_000))
    assert clip.frames.shape == (3, 3, 128, 128)
    assert clip.frames[0, :, 0, 0].tolist() == [90, 90, 90]
    assert not torch.equal(clip.frames[0], clip.frames[1]), "every frame bears its own time"
    media = processor.media(clip)
    assert (media.frame_count, media.seconds, media.has_audio) == (3, 3, True)
    with pytest.raises(ValueError, match="uint8 RGB"):
        processor.clip(frames.astype(np.float32), fps=8.0)


def test_equal_clips_have_equal_keys(processor):
    frames = np.zeros((8, 64, 64, 3), dtype=np.uint8)
    assert processor.clip(frames, fps=8.0).key == processor.clip(frames, fps=8.0).key
    assert processor.clip(frames, fps=8.0).key != processor.clip(frames, fps=4.0).key


@torch.no_grad()
def test_questions_together_equal_questions_alone(processor, clip, tmp_path):
    model = make_model().double().eval()
    sound = tmp_path / "sound.wav"
    sound.write_bytes(wav(2.0))
    clips = [processor.media(clip), None, processor.media(processor.read(sound))]
    questions = ["Which colour is seen?", "When is it heard?", "Transcribe."]
    settings = {"max_new_tokens": 4, "eos_token_id": None}
    together = model.generate(**processor(questions, media=clips), **settings)
    for row, (question, media) in enumerate(zip(questions, clips, strict=True)):
        alone = model.generate(**processor(question, media=media), **settings)
        assert together[row, -4:].tolist() == alone[0, -4:].tolist()


def test_as_many_clips_as_questions(processor, clip):
    with pytest.raises(ValueError, match="2 questions"):
        processor(["a", "b"], media=[processor.media(clip)])


def test_a_saved_processor_is_found_by_transformers(processor, tmp_path):
    save_model(make_model(), tmp_path)
    ArcVideoProcessor(tokenizer(), layout=LAYOUT, wording="brief").save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, ArcVideoProcessor)
    assert (loaded.wording, loaded.layout) == ("brief", LAYOUT)
    assert loaded.prompt("Which?").ids.tolist() != processor.prompt("Which?").ids.tolist()


def test_a_checkpoint_without_processor_file_has_the_released_wording(tmp_path):
    save_model(make_model(), tmp_path)
    tokenizer().save_pretrained(tmp_path)
    assert ArcVideoProcessor.from_pretrained(tmp_path).wording == "arc"


def test_unknown_words_are_refused(processor, clip):
    with pytest.raises(ValueError, match="task='essay'"):
        processor.prompt("x", task="essay")
    with pytest.raises(ValueError, match="modality='smell'"):
        processor.media(clip, modality="smell")
    with pytest.raises(ValueError, match="special_in_text"):
        processor.prompt("x<sep>y")


def test_chat_templates_of_ones_own_come_back(processor, tmp_path):
    for number, template in enumerate(["mine", {"default": "mine", "second": "other"}]):
        own = ArcVideoProcessor(tokenizer(), layout=LAYOUT, chat_template=template)
        own.save_pretrained(tmp_path / str(number))
        back = ArcVideoProcessor.from_pretrained(tmp_path / str(number))
        assert back.chat_template == back.tokenizer.chat_template == template


def test_a_chat_template_is_never_written_elsewhere(processor, tmp_path):
    own = ArcVideoProcessor(tokenizer(), layout=LAYOUT, chat_template={"default": "mine", "../../outside": "theirs"})
    with pytest.raises(ValueError, match="outside"):
        own.save_pretrained(tmp_path / "in" / "here")
    assert not list(tmp_path.rglob("outside*"))
