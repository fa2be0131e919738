"""An export where the package is not installed, on the hub, and saved once more by somebody else."""

from __future__ import annotations

import ast
import stat
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from arcvideo.model.disk.carried import CODE_FILE, SOURCE_FILE
from arcvideo.model.families.table import FAMILIES
from tests.test_exports import GREEDY, asked, export, fresh

__all__ = ["export"]

HIDDEN = """
import sys
from importlib.machinery import PathFinder
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name != "arcvideo":
            return None
        spec = PathFinder.find_spec(name, [place for place in sys.path if place.startswith(sys.argv[2])])
        if spec is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return spec
sys.meta_path.insert(0, Absent())
try:
    import arcvideo
    raise AssertionError("it should not be there")
except ModuleNotFoundError:
    pass
"""
ASK = """
from transformers import AutoModelForImageTextToText, AutoProcessor
trust = {"trust_" + "remote_code": True}
processor = AutoProcessor.from_pretrained(sys.argv[1], **trust)
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], **trust)
print(type(processor).__name__, type(model).__name__)
parts = [{"type": "video", "url": sys.argv[1] + "/clip.mp4"}, {"type": "text", "text": "Which colour?"}]
inputs = processor.apply_chat_template([{"role": "user", "content": parts}], tokenize=True, return_dict=True)
print(model.generate(**inputs, max_new_tokens=4, eos_token_id=None, do_sample=False)[0].tolist())
print(sys.modules["arcvideo"].__file__)
"""


@pytest.mark.slow
@pytest.mark.parametrize("installed", [True, False])
def test_trusted_code_answers_with_the_package_and_without_it(export, tmp_path, installed):
    code = "import sys\n" + ("" if installed else HIDDEN) + ASK
    done = fresh(code, export, tmp_path / "modules", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    classes, ids, place = done.stdout.splitlines()
    assert classes == "ArcVideoProcessor ArcVideoForConditionalGeneration"
    assert place.startswith(str(tmp_path / "modules")) is not installed
    processor, model = AutoProcessor.from_pretrained(export), AutoModelForImageTextToText.from_pretrained(export)
    video = {"type": "video", "url": str(export / "clip.mp4")}
    inputs = processor.apply_chat_template(asked(video), tokenize=True, return_dict=True)
    assert ids == str(model.generate(**inputs, **GREEDY)[0].tolist())


def test_the_code_in_an_export_has_every_family_and_the_font(export):
    tree = ast.parse((export / SOURCE_FILE).read_text())
    tables = {node.targets[0].id: ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign)}
    root = Path(__file__).resolve().parent.parent
    for name, text in tables["TEXTS"].items():
        assert text == (root / name).read_text(), name
    for family in FAMILIES.values():
        assert f"{family.parts.replace('.', '/')}.py" in tables["TEXTS"], family.name
    assert list(tables["PACKED"]) == ["arcvideo/media/fonts/DejaVuSans.ttf"]
    assert "arcvideo/media/fonts/LICENSE.txt" in tables["TEXTS"]
    assert not {name for name in tables["TEXTS"] if name.split("/")[1] in ("runner", "lineage", "composing")}


def test_a_model_that_is_saved_once_more_has_its_code_and_is_readable(export, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(export)
    model.save_pretrained(tmp_path)
    mode = stat.S_IMODE((tmp_path / "config.json").stat().st_mode)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert set(modes.values()) == {mode}, modes
    assert {CODE_FILE, SOURCE_FILE, "model.safetensors"} <= set(modes)
    assert "AutoModelForMultimodalLM" in AutoConfig.from_pretrained(tmp_path).auto_map
    with pytest.raises(ValueError, match=r"call push_to_hub\(\)"):
        model.save_pretrained(tmp_path, push_to_hub=True)


def test_a_repository_of_the_hub_is_loaded_by_its_name(export, tmp_path, monkeypatch):
    repository = tmp_path / "models--somebody--shorts"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / ("0" * 40)).symlink_to(export)
    options = {"cache_dir": tmp_path, "local_files_only": True}
    processor = AutoProcessor.from_pretrained("somebody/shorts", **options)
    model = AutoModelForImageTextToText.from_pretrained("somebody/shorts", **options)
    assert processor.layout == model.settings.layout == AutoProcessor.from_pretrained(export).layout
    for name in ("nobody/nothing", "runs/tiny/sft/export"):
        with pytest.raises(ValueError, match=f"{name}: no such folder, nor a repository"):
            type(processor).from_pretrained(name, **options)


def test_ids_of_another_models_processor_are_told(export):
    processor, model = AutoProcessor.from_pretrained(export), AutoModelForImageTextToText.from_pretrained(export)
    video = {"type": "video", "url": str(export / "clip.mp4")}
    inputs = processor.apply_chat_template(asked(video), tokenize=True, return_dict=True)
    ids = inputs["input_ids"]
    ids[ids == model.config.image_token_id] = model.config.text_config.vocab_size
    with pytest.raises(ValueError, match="the ids hold 0 image tokens but the media give"):
        model.generate(**inputs, **GREEDY)
