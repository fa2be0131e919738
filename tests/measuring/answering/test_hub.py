"""Video models of transformers as what is measured, on tiny random weights of their real classes."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from arcvideo.evaluation.answers import Answer
from arcvideo.measuring.answering.hub import HubModel, film
from arcvideo.measuring.answering.models import open_model
from arcvideo.measuring.arms import Seen, arm_clip
from arcvideo.measuring.questions import Material, MeasuredQuestion
from arcvideo.measuring.read import Read
from arcvideo.measuring.settings import EvaluateSettings
from arcvideo.tasks import make_sample
from arcvideo.types import Clip
from tests.measuring.answering.hub_models import qwen_omni, qwen_vl, sketch
from tests.measuring.answering.sketch.modeling_sketch import SketchForConditionalGeneration

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


def blank(shown: Clip) -> Clip:
    """The same clip as it is given without its picture."""
    made = arm_clip(Seen(clip=shown, bare=None), arm="no_picture", other=None)
    assert made is not None
    return made


def read(*arms: str, seen: Clip | None = None) -> Read:
    item = {"task": "mcq", "question": "Which?", "options": ["red", "blue"], "answer": "B"}
    question = MeasuredQuestion(number=0, sample=make_sample(item, key="c/0", media_key="c"), tags=("t",), fields=item)
    material = Material(number=0, name="c", questions=(question,), read=None)
    return Read(material=material, wanted={"c/0": arms}, seen=Seen(clip=seen or clip(), bare=None), other=None, lost=(),
                seconds=0.0)  # fmt: skip


def opened(folder: Path, *, trust_remote_code: bool = False) -> HubModel:
    settings = EvaluateSettings(
        checkpoint=str(folder), data="x.tar", max_new_tokens=6, trust_remote_code=trust_remote_code
    )
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
    """A model whose code comes with its weights."""
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


@pytest.fixture(scope="module")
def sketched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sketch(tmp_path_factory.mktemp("hub") / "sketch")


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where transformers copies a directory's code before it runs it, for as long as this file is tested."""
    folder = tmp_path_factory.mktemp("modules")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder))
        patch.setattr("sys.path", list(sys.path))
        yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        del sys.modules[name]


def test_code_beside_the_weights_waits_for_consent(sketched: Path, modules: Path) -> None:
    before = sorted(modules.rglob("*"))
    with pytest.raises(
        ValueError, match=r"^checkpoint=.*modeling_sketch.py.*trust_remote_code=true.*endpoint=URL"
    ) as error:
        opened(sketched)
    assert "\n" not in str(error.value)
    assert sorted(modules.rglob("*")) == before


def test_code_beside_the_weights_answers_as_its_own_generate(sketched: Path, modules: Path) -> None:
    """The interface of Keye-VL: frames through the image processor, the rate as fps, a sampling default to override."""
    model = opened(sketched, trust_remote_code=True)
    model.load()
    ((answers, _),) = model.ask([read("full", "no_picture")])
    own = SketchForConditionalGeneration.from_pretrained(sketched, dtype=torch.float32).eval()
    for answer, shown in zip(answers, (clip(), blank(clip())), strict=True):
        inputs = model.inputs(model.first_prompt(read("full").material.questions[0]), clip=shown)
        made = own.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert answer.text == model.processor.tokenizer.decode(made.tolist(), skip_special_tokens=True)
    assert answers[0].text != answers[1].text
    assert "modeling_sketch.py" in model.origin["own_code"]


@pytest.mark.parametrize(("frames", "part"), [(4, 1.0), (5, 2.5), (1, 1.0)])
def test_frames_and_their_rate_reach_a_processor_without_a_video_processor(
    frames: int, part: float, sketched: Path, modules: Path
) -> None:
    inputs = opened(sketched, trust_remote_code=True).inputs("Which?", clip=clip(frames=frames, part=part))
    assert inputs["second_per_grid_ts"].tolist() == pytest.approx([part])
    assert inputs["video_grid_thw"].tolist() == [[max(2, frames), 4, 4]]


def test_other_code_is_another_model(sketched: Path, modules: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(sketched, tmp_path / "other"))
    path = other / "modeling_sketch.py"
    path.write_text(path.read_text() + "\n# changed\n")
    assert opened(other, trust_remote_code=True).weights != opened(sketched, trust_remote_code=True).weights


def answered(model: HubModel) -> list[Answer]:
    model.load()
    ((answers, _),) = model.ask([read("full")])
    return answers


def raising(folder: Path) -> None:
    path = folder / "modeling_sketch.py"
    path.write_text(path.read_text().replace("steps, rows, columns = grid.tolist()", "assert False, 'not here'"))


def lacking_package(folder: Path) -> None:
    path = folder / "modeling_sketch.py"
    path.write_text("import flash_attn_that_is_not_there\n" + path.read_text())


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(raising, r"to answer c/0 \(modeling_sketch.py:\d+: AssertionError: not here\)"),
     (lacking_package, r"to load its weights.*flash_attn_that_is_not_there")],
)  # fmt: skip
def test_code_that_fails_is_told_in_one_line_with_its_place(
    spoil: Callable[[Path], None], reason: str, sketched: Path, modules: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(sketched, tmp_path / "spoilt"))
    spoil(folder)
    path = folder / "configuration_sketch.py"  # transformers knows a model's class by its configuration's
    path.write_text(path.read_text() + f"\n# {spoil.__name__}\n")
    with pytest.raises(ValueError, match=rf"^checkpoint=.*its own code failed {reason}.*endpoint=URL") as error:
        answered(opened(folder, trust_remote_code=True))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "place", ["somebody/model--modeling_sketch.Sketch", "elsewhere.Sketch", "..up.Sketch", "Sketch"]
)
def test_code_that_lies_elsewhere_is_refused(place: str, sketched: Path, modules: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sketched, tmp_path / "foreign"))
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"]["AutoModel"] = place
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"^checkpoint=.*AutoModel.*not in this directory"):
        opened(folder, trust_remote_code=True)


def test_a_chat_template_is_part_of_the_model(sketched: Path, modules: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sketched, tmp_path / "retold"))
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text() + " ")
    assert opened(folder, trust_remote_code=True).weights != opened(sketched, trust_remote_code=True).weights


@pytest.mark.skipif(TORCHVISION, reason="torchvision is installed")
def test_a_missing_torchvision_is_named_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    with pytest.raises(ValueError, match=r"pip install 'arcvideo\[evaluate\]'.*torch "):
        opened(tmp_path)
