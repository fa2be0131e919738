"""Base weights from parts: a directory with language model and vision tower, and a Whisper encoder.

`arcvideo model assemble --family NAME --base DIR --whisper DIR|FILE.pt --out DIR` writes what the first stage starts
from. The base is ARC's own kind of directory, HunyuanOCR's (arc_hunyuan_1b) or Qwen2.5-VL's (arc_qwen).
Projectors that no part brings are new: drawn with --seed and listed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from arcvideo.files import error_line
from arcvideo.model.configuration import ArcVideoConfig, ids_to_config
from arcvideo.model.disk.loading import empty_model, save_model
from arcvideo.model.disk.tokenizer import load_tokenizer, save_tokenizer
from arcvideo.model.disk.weights import HEAD, IGNORED, tensors_of, weight_files
from arcvideo.model.families.table import FAMILIES, family_of, parts_of
from arcvideo.model.modeling import ArcVideoForConditionalGeneration
from arcvideo.model.settings import AudioSettings
from arcvideo.model.special import special_ids
from arcvideo.places import words_from_home, writable
from arcvideo.processes.command import as_command
from arcvideo.seals import write_sums

NEW_MODULES = ("vision_model.perceive", "mlp2")
"""May be missing from the parts; any other module must come complete."""
OPENAI_NAMES = (
    (r"^positional_embedding$", "embed_positions.weight"),
    (r"^ln_post\.", "layer_norm."),
    (r"^blocks\.(\d+)\.", r"layers.\1."),
    (r"\.attn\.query\.", ".self_attn.q_proj."),
    (r"\.attn\.key\.", ".self_attn.k_proj."),
    (r"\.attn\.value\.", ".self_attn.v_proj."),
    (r"\.attn\.out\.", ".self_attn.out_proj."),
    (r"\.attn_ln\.", ".self_attn_layer_norm."),
    (r"\.mlp_ln\.", ".final_layer_norm."),
    (r"\.mlp\.0\.", ".fc1."),
    (r"\.mlp\.2\.", ".fc2."),
)
"""Names inside OpenAI's encoder -> names in Hugging Face's, which are the released ones."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Where the parameters of a module came from."""

    module: str
    source: str
    """A path, or `new`."""
    tensors: int
    parameters: int


def assemble(
    llm: Path,
    whisper: Path | None,
    *,
    family: str = "arc_hunyuan",
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> tuple[ArcVideoForConditionalGeneration, list[Part]]:
    """Return the model made of the parts, and where each module came from.

    Args:
        llm: directory of safetensors with the language model and the vision tower under the released names (or their
            names without `language_model.` and `vision_model.`), and a config.json; without one the released sizes.
            Of another family: its own directory, HunyuanOCR's or Qwen2.5-VL's.
        whisper: a Hugging Face directory, or an OpenAI `.pt` file; None for a directory that has an encoder.
        family: of the model.
        settings: what no part says, like max_num_frame or vision_config; the family's usual values without.
        seed: of the new projectors.
        dtype: of the parameters.

    Raises:
        ValueError: files that cannot be read, or tensors that are missing, unexpected or misshapen, with their names.
    """
    parts = parts_of(family)
    listening, rows = ({}, ()) if whisper is None else _whisper(whisper)
    config = _config(llm, listening, family=family, settings=settings)
    model = empty_model(config)
    nn.Module.to(model, dtype)
    nn.Module.to_empty(model, device="cpu")
    model.tie_weights()
    skipped = (*IGNORED, HEAD) if config.tie_word_embeddings else IGNORED
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in skipped}
    filled = _Filling(state, skipped=skipped)
    for name, tensor in parts.renamed(tensors_of(weight_files(llm)), config.settings):
        filled.take(name, tensor, source=llm)
    for name, tensor in rows:
        # A complete ARC directory has an encoder too; the one asked for wins.
        assert whisper is not None
        filled.take(f"speech_encoder.{name}", tensor, source=whisper, again=True)
    new = [module for module in NEW_MODULES if not filled.has(module)]
    filled.finish(new=new)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in new:
            model.get_submodule(module).apply(lambda part: parts.initialize(part, settings=config.settings))
    return model.eval(), _parts(model, filled=filled, new=new)


class _Filling:
    """Copies tensors into the model's and collects what is wrong."""

    def __init__(self, state: Mapping[str, Tensor], *, skipped: Collection[str]) -> None:
        self.state = state
        self.skipped = skipped
        self.sources: dict[str, Path] = {}
        self.problems: list[str] = []

    def take(self, name: str, tensor: Tensor, *, source: Path, again: bool = False) -> None:
        if name in self.skipped:
            return
        if name not in self.state:
            self.problems.append(f"{source}: {name} is unexpected")
        elif name in self.sources and not again:
            self.problems.append(f"{source}: {name} appears twice")
        elif tensor.shape != self.state[name].shape:
            self.problems.append(
                f"{source}: {name} is {tuple(tensor.shape)}, the configuration wants {tuple(self.state[name].shape)}"
            )
        else:
            self.state[name].copy_(tensor)
        self.sources[name] = source

    def has(self, module: str) -> bool:
        return any(name.startswith(f"{module}.") for name in self.sources)

    def finish(self, *, new: Iterable[str]) -> None:
        """Raise ValueError with every problem; modules in `new` may be missing."""
        skipped = tuple(f"{module}." for module in new)
        missing = [name for name in self.state if name not in self.sources and not name.startswith(skipped)]
        problems = self.problems + [f"{name} is missing" for name in missing]
        if problems:
            raise ValueError("the parts do not make up the model:\n  " + "\n  ".join(problems))


def _parts(model: ArcVideoForConditionalGeneration, *, filled: _Filling, new: list[str]) -> list[Part]:
    parts = []
    for module in ("language_model", "vision_model.vit", "vision_model.perceive", "speech_encoder", "mlp2"):
        mine = [name for name in filled.state if name.startswith(f"{module}.")]
        sources = sorted({str(filled.sources[name]) for name in mine if name in filled.sources})
        parts.append(
            Part(
                module=module,
                source="new" if module in new else ", ".join(sources),
                tensors=len(mine),
                parameters=sum(filled.state[name].numel() for name in mine),
            )
        )
    assert sum(part.parameters for part in parts) == sum(p.numel() for p in model.parameters())
    return parts


USUAL: dict[str, dict[str, Any]] = {
    "arc_hunyuan": {},
    # One frame a second as in ARC's first model, 112 tokens each.
    "arc_hunyuan_1b": {"max_num_frame": 150, "vision_config": {"force_image_size": 640, "anyres_pooling_size": 2}},
    # Frames of 392 x 392, as its public inference code resizes them.
    "arc_qwen": {"max_num_frame": 300, "vision_config": {"force_image_size": 392, "max_image_size": 1400}},
}
"""Family -> what its base directories do not say."""


def _config(
    llm: Path, listening: Mapping[str, int], *, family: str, settings: Mapping[str, Any] | None
) -> ArcVideoConfig:
    """Return what the directory says, with the sizes of the Whisper encoder, the tokenizer's ids and `settings`."""
    config: dict[str, Any] = {"family": family}
    audio = {"audio_config": dict(listening)} if listening else {}
    for blocks in (USUAL[family], parts_of(family).describe(llm), audio, settings or {}):
        for key, value in blocks.items():
            config[key] = {**config.get(key, {}), **value} if isinstance(value, Mapping) else value
    if family != "arc_hunyuan":
        config["text_config"] |= ids_to_config(special_ids(load_tokenizer(llm)))
    return ArcVideoConfig.from_dict(config)


Encoder = tuple[Mapping[str, int], Iterable[tuple[str, Tensor]]]
"""Sizes under our names, and tensors of the encoder under the released names without `speech_encoder.`."""


def _whisper(path: Path) -> Encoder:
    if path.is_dir():
        return _whisper_directory(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file or directory; give a Whisper directory or an OpenAI .pt file")
    loaded = _load_pickle(path)
    if not isinstance(loaded, dict) or not {"dims", "model_state_dict"} <= set(loaded):
        raise ValueError(f"{path} holds no 'dims' and 'model_state_dict': it is not an OpenAI Whisper file")
    dims, state = loaded["dims"], loaded["model_state_dict"]
    sizes = {
        "d_model": dims["n_audio_state"],
        "encoder_layers": dims["n_audio_layer"],
        "encoder_attention_heads": dims["n_audio_head"],
        "encoder_ffn_dim": 4 * dims["n_audio_state"],
        "num_mel_bins": dims["n_mels"],
        "max_source_positions": dims["n_audio_ctx"],
    }
    encoder = ((name.removeprefix("encoder."), tensor) for name, tensor in state.items() if name.startswith("encoder."))
    return sizes, [(_from_openai(name), tensor) for name, tensor in encoder]


def _from_openai(name: str) -> str:
    for pattern, replacement in OPENAI_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _whisper_directory(path: Path) -> Encoder:
    described = path / "config.json"
    if not described.is_file():
        raise ValueError(f"{path} lacks config.json: it is not a Hugging Face Whisper directory")
    values = json.loads(described.read_text())
    # The released configuration uses Whisper's own names.
    keys = [field.name for field in fields(AudioSettings)]
    missing = [key for key in keys if key not in values]
    if missing:
        raise ValueError(f"{described} lacks {', '.join(missing)}: it does not describe a Whisper model")
    return {key: values[key] for key in keys}, _encoder_tensors(path)


def _encoder_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the encoder's tensors; the decoder's are passed over."""
    pickled = sorted(path.glob("pytorch_model*.bin"))
    if not list(path.glob("*.safetensors")) and pickled:
        every: Iterable[tuple[str, Tensor]] = (item for file in pickled for item in _load_pickle(file).items())
    else:
        every = tensors_of(weight_files(path))
    for name, tensor in every:
        inner = name.removeprefix("model.")
        if inner.startswith("encoder."):
            yield inner.removeprefix("encoder."), tensor


def _load_pickle(path: Path) -> Any:
    """Return the tensors of a file in torch's format, which runs no code from it.

    Raises:
        ValueError: a file that is damaged or holds more than tensors and plain values.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} cannot be read as plain tensors ({reason})") from error


def main(argv: list[str] | None = None) -> int:
    """Assemble, write and report; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("assemble",), default="assemble", help="the one thing there is")
    parser.add_argument("--family", choices=tuple(FAMILIES), default="arc_hunyuan")
    parser.add_argument(
        "--base", "--llm", dest="llm", type=Path, required=True, metavar="DIR", help="language model and vision tower"
    )
    parser.add_argument(
        "--whisper", type=Path, metavar="DIR|PT", help="audio encoder; may be left out where the base has one"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0, help="of the new projectors")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args(words_from_home(argv))
    try:
        if not writable(options.out):
            raise ValueError(f"--out {options.out}: cannot be written; give another folder")
        tokenizer = load_tokenizer(options.llm)
        if (family := family_of(tokenizer).name) != options.family:
            raise ValueError(
                f"{options.llm} has a tokenizer of {family}, not of {options.family}: give --family {family}"
            )
        model, parts = assemble(
            options.llm,
            options.whisper,
            family=options.family,
            seed=options.seed,
            dtype=getattr(torch, options.dtype),
        )
        save_model(model, options.out)
        save_tokenizer(tokenizer, options.out)
        (options.out / "parts.json").write_text(json.dumps([asdict(part) for part in parts], indent=1) + "\n")
        write_sums(options.out)
    except (ValueError, OSError, SafetensorError) as error:
        print(f"error: {error_line(error, folder=options.out)}", file=sys.stderr)
        return 2
    for part in parts:
        print(f"{part.module:24} {part.tensors:5} tensors {part.parameters:14,} parameters  {part.source}")
    return 0


if __name__ == "__main__":
    as_command(main)
