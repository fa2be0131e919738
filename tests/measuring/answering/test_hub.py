"""Video models of transformers as what is measured, on tiny random weights of their real classes."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from arcvideo.measuring.answering.hub import HubModel, film
from arcvideo.measuring.answering.models import open_model
from arcvideo.measuring.arms import Seen
from arcvideo.measuring.questions import Material, Question
from arcvideo.measuring.read import Read
from arcvideo.measuring.settings import EvaluateSettings
from arcvideo.tasks import make_sample
from arcvideo.types import Clip
from tests.measuring.answering.hub_models import qwen_omni, qwen_vl

TORCHVISION = importlib.util.find_spec("torchvision") is not None
needs_torchvision = pytest.mark.skipif(
    not TORCHVISION,
    reason="transformers reads videos with torchvision, which is not installed (pip install 'arcvideo[evaluate]')",
)
CPU = torch.device("cpu")


def clip(*, frames: int = 4, part: float = 1.0) -> Clip:
    made = torch.Generator().manual_seed(frames)
    starts = torch.arange(frames) * part
    return Clip(
        key="c", frames=torch.randint(0, 255, (frames, 3, 64, 64), dtype=torch.uint8, generator=made),
        waveform=torch.rand(int(16000 * frames * part), generator=made) - 0.5, duration=frames * part,
        frame_times=torch.stack([starts, starts + part], dim=1),
    )  # fmt: skip


def read(*arms: str, seen: Clip | None = None) -> Read:
    item = {"task": "mcq", "question": "Which?", "options": ["red", "blue"], "answer": "B"}
    question = Question(number=0, sample=make_sample(item, key="c/0", media_key="c"), tags=("t",), fields=item)
    material = Material(number=0, name="c", questions=(question,), read=None)
    return Read(material=material, wanted={"c/0": arms}, seen=Seen(clip=seen or clip(), bare=None), other=None, lost=(),
                seconds=0.0)  # fmt: skip


def opened(folder: Path) -> HubModel:
    settings = EvaluateSettings(checkpoint=str(folder), data="x.tar", max_new_tokens=6)
    model = open_model(settings, device=CPU)
    assert isinstance(model, HubModel)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("hub")
    return {"vl": qwen_vl(out / "vl"), "omni": qwen_omni(out / "omni")}


@needs_torchvision
@pytest.mark.parametrize("kind", ["vl", "omni"])
def test_its_answers_are_those_of_its_own_generate(kind: str, folders: dict[str, Path]) -> None:
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5OmniThinkerForConditionalGeneration

    model = opened(folders[kind])
    model.load()
    ((answers, seconds),) = model.ask([read("full", "no_picture")])
    assert [(one.arm, one.has_audio, one.has_video, one.tokens > 0) for one in answers] == [
        ("full", True, True, True), ("no_picture", True, True, True),
    ]  # fmt: skip
    assert seconds["video"] == 4.0
    classes: dict[str, Any] = {
        "vl": Qwen2_5_VLForConditionalGeneration, "omni": Qwen2_5OmniThinkerForConditionalGeneration,
    }  # fmt: skip
    config = getattr(model.config, "thinker_config", model.config)
    own = classes[kind].from_pretrained(folders[kind], config=config, dtype=torch.float32).eval()
    inputs = model.inputs(model.first_prompt(read("full").material.questions[0]), clip=clip())
    made = own.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert answers[0].text == model.processor.tokenizer.decode(made.tolist(), skip_special_tokens=True)


@needs_torchvision
def test_sound_goes_to_a_model_that_hears_and_the_card_says_when_it_does_not(folders: dict[str, Path]) -> None:
    vl, omni = opened(folders["vl"]), opened(folders["omni"])
    assert omni.origin["sound"].startswith("given")
    assert vl.origin["sound"].startswith("not given")
    heard = omni.inputs("Which?", clip=clip())
    silent = omni.inputs("Which?", clip=Clip(**{**vars(clip()), "waveform": None}))
    audio = omni.processor.tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    assert int((heard["input_ids"] == audio).sum()) > 0 == int((silent["input_ids"] == audio).sum())
    assert "input_features" in heard
    assert "input_features" not in silent
    omni.load()
    with torch.inference_mode():
        one, other = (omni.model(**inputs).logits[0, -1] for inputs in (heard, silent))
    assert not torch.allclose(one, other)


@needs_torchvision
@pytest.mark.parametrize(("frames", "part"), [(4, 1.0), (5, 2.5), (1, 1.0)])
def test_frames_keep_their_times(frames: int, part: float, folders: dict[str, Path]) -> None:
    """A pair of frames stands for twice the interval, however long that is, and no frame is dropped."""
    shown = clip(frames=frames, part=part)
    meta = film(shown)["video_metadata"][0]
    assert meta.timestamps[:frames] == pytest.approx([(number + 0.5) * part for number in range(frames)])
    vl, omni = opened(folders["vl"]), opened(folders["omni"])
    for model, name in ((vl, "second_per_grid_ts"), (omni, "video_second_per_grid")):
        inputs = model.inputs("Which?", clip=shown)
        assert inputs[name].tolist() == pytest.approx([2 * part])
        assert int(inputs["video_grid_thw"][0, 0]) == max(1, (frames + 1) // 2)


@needs_torchvision
def test_weights_that_are_missing_are_never_made_up(tmp_path: Path) -> None:
    folder = qwen_vl(tmp_path / "vl")
    path = next(folder.glob("*.safetensors"))
    tensors = load_file(path)
    gone = next(name for name in sorted(tensors) if "mlp" in name)
    save_file({name: value for name, value in tensors.items() if name != gone}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights of .* missing"):
        opened(folder).load()


def unknown(folder: Path) -> None:
    """A model whose code comes with its weights, as that of Keye-VL does."""
    config = {"model_type": "Keye", "auto_map": {"AutoConfig": "code.KeyeConfig"}, "architectures": ["KeyeModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")


def damaged(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "qwen2_5_vl", "vision_config": 3}')


@pytest.mark.parametrize("write", [unknown, damaged])
def test_what_cannot_be_loaded_is_told_in_one_line_and_runs_nothing(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    write(tmp_path)
    with pytest.raises(ValueError, match=r"^checkpoint=.*endpoint=URL") as error:
        opened(tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(TORCHVISION, reason="torchvision is installed")
def test_a_missing_torchvision_is_named_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    with pytest.raises(ValueError, match=r"pip install 'arcvideo\[evaluate\]'.*torch "):
        opened(tmp_path)
