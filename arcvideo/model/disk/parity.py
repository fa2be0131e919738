"""Compare the model with stored reference numerics: `python -m arcvideo.model.disk.parity --fixtures DIR --prefix dev`.

A fixture set is PREFIX_meta.json (configuration, gradient norms), PREFIX_weights, PREFIX_inputs and PREFIX_outputs
(safetensors); the preprocessing half (PREFIX_preproc) is compared where it is present. Prints the largest difference
of every tensor; exits with 1 when one is beyond --atol.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import DynamicCache

from arcvideo.model.configuration import ArcVideoConfig
from arcvideo.model.disk.loading import load_weights
from arcvideo.model.disk.parity_preprocessing import has_preprocessing, preprocessing_differences
from arcvideo.model.modeling import ArcVideoForConditionalGeneration, ArcVideoOutput
from arcvideo.model.positions import replace_newlines, xd_positions
from arcvideo.model.special import SpecialIds
from arcvideo.places import words_from_home
from arcvideo.processes.command import as_command

Difference = tuple[str, float]


class Fixtures:
    """One fixture set and the model it belongs to."""

    def __init__(self, folder: Path, prefix: str) -> None:
        self.meta: dict[str, Any] = json.loads((folder / f"{prefix}_meta.json").read_text())
        self.inputs = load_file(folder / f"{prefix}_inputs.safetensors")
        self.outputs = load_file(folder / f"{prefix}_outputs.safetensors")
        config = self.meta["config"]
        text = config["text"]
        self.model = ArcVideoForConditionalGeneration(
            ArcVideoConfig(
                text_config=text,
                vision_config=config["vision"],
                audio_config=config["audio"],
                max_num_frame=config["max_num_frame"],
            )
        )
        load_weights(self.model, folder / f"{prefix}_weights.safetensors")
        self.model.eval()
        self.special = SpecialIds(
            end=text["eod_token_id"],
            img_open=text["im_start_id"],
            img_close=text["im_end_id"],
            newline=text["im_newline_id"],
            image=text["image_token_id"],
        )
        self.pixels = self.inputs["pixels_i8"].float() / 64
        self.mels = self.inputs["mel_i8"].float() / 64

    @property
    def scenarios(self) -> list[str]:
        """Names of the stored forward passes."""
        return sorted(name.removesuffix(".raw_ids") for name in self.inputs if name.endswith(".raw_ids"))

    def arguments(self, scenario: str, *, length: int | None = None) -> dict[str, Tensor]:
        """Return what `forward` takes for a scenario, as a batch of one; `length` keeps only its first tokens."""
        raw = self.inputs[f"{scenario}.raw_ids"].long()[:length]
        training = scenario != "inferpos"
        given: dict[str, Tensor] = {
            "input_ids": replace_newlines(raw, special=self.special)[None],
            "position_ids": self.positions(scenario, training=training)[None, :, :length],
        }
        if f"{scenario}.frame_index" in self.inputs:
            given["pixel_values"] = self.pixels[self.inputs[f"{scenario}.frame_index"].long()]
            given["mels"] = self.mels[self.inputs[f"{scenario}.mel_index"].long()]
            given["duration"] = self.inputs[f"{scenario}.duration"]
        return given

    def positions(self, scenario: str, *, training: bool) -> Tensor:
        """Return (4, L) positions by the training or the inference rule."""
        raw = self.inputs[f"{scenario}.raw_ids"].long()
        return xd_positions(raw, self.special, restart_after_eod=training)


def differences(fixtures: Fixtures) -> Iterator[Difference]:
    """Yield name and largest absolute difference of every stored tensor and gradient norm.

    A stored tensor that nothing here computes counts as infinitely far off: it was not compared.
    """
    compared = set()
    for name, gap in _differences(fixtures):
        compared.add(name)
        yield name, gap
    for name in sorted(set(fixtures.outputs) - compared - {"decode.tokens"}):
        if not any(other.startswith(f"{name} ") for other in compared):
            yield f"{name} was not compared: no such tensor here", float("inf")


def _differences(fixtures: Fixtures) -> Iterator[Difference]:
    with torch.no_grad():
        yield from _towers(fixtures)
    for scenario in fixtures.scenarios:
        yield from _scenario(fixtures, scenario)
    if "decode.tokens" in fixtures.outputs:
        with torch.no_grad():
            yield from _decode(fixtures)


def _gap(fixtures: Fixtures, name: str, value: Tensor) -> Difference:
    expected = fixtures.outputs[name]
    if expected.shape != value.shape:
        return f"{name} shape {tuple(value.shape)} != {tuple(expected.shape)}", float("inf")
    return name, float((value.double() - expected.double()).abs().max())


_PART = re.compile(r"(?:_every(?P<stride>\d+)|_(?P<end>last|first)_?\d*)?")


def _stored(fixtures: Fixtures, base: str, value: Tensor, *, rows: int = 0) -> Iterator[Difference]:
    """Compare what is stored of a tensor: all of it, every n-th row, or the first or last rows.

    Args:
        fixtures: the set.
        base: name without the suffix that says which rows are stored.
        value: the whole tensor.
        rows: axis that the rows are counted on.
    """
    for name, expected in fixtures.outputs.items():
        part = _PART.fullmatch(name, len(base)) if name.startswith(base) else None
        if part is None:
            continue
        count = expected.shape[rows] if expected.dim() > rows else 0
        every = slice(None, None, int(part["stride"] or 1))
        stored = {"last": slice(-count, None), "first": slice(count)}.get(part["end"], every)
        yield _gap(fixtures, name, value[(slice(None),) * rows + (stored,)])


def _towers(fixtures: Fixtures) -> Iterator[Difference]:
    model = fixtures.model
    embeddings = model.vision_model.vit.embeddings
    first = fixtures.pixels[:1]
    grid = first.shape[-1] // model.settings.vision.patch_size
    yield from _stored(fixtures, "vit.pos_interp", embeddings.positions(grid)[None], rows=1)
    yield from _stored(fixtures, "vit.patch_plus_pos", embeddings(first), rows=1)
    yield from _stored(fixtures, "vit.hidden", model.encode_vision(first), rows=1)
    yield from _stored(fixtures, "vision.tokens", model.vision_model(fixtures.pixels))
    speech = model.encode_audio(fixtures.mels)
    if "audio.encoder_hidden" in fixtures.outputs:
        yield _gap(fixtures, "audio.encoder_hidden", speech[: len(fixtures.outputs["audio.encoder_hidden"])])
    yield from _stored(fixtures, "audio.projected", model.project_audio(speech)[None], rows=1)


def _scenario(fixtures: Fixtures, scenario: str) -> Iterator[Difference]:
    model, inputs = fixtures.model, fixtures.inputs
    for rule in ("train", "infer"):
        positions = fixtures.positions(scenario, training=rule == "train")
        yield from _stored(fixtures, f"{scenario}.position_ids_{rule}", positions)
    seen: dict[str, Tensor] = {}
    layer = model.language_model.model.layers[0]
    handle = layer.register_forward_hook(lambda _, given, out: seen.update(embeds=given[0][0], layer0=out[0]))
    output: ArcVideoOutput = model(
        **fixtures.arguments(scenario), labels=inputs[f"{scenario}.labels"].long()[None], use_cache=False
    )
    handle.remove()
    assert output.logits is not None
    assert output.loss is not None
    assert output.last_hidden_state is not None
    logits = output.logits[0]
    values = {
        "inputs_embeds": seen["embeds"],
        "layer0_out": seen["layer0"],
        "final_hidden": output.last_hidden_state[0],
        "logits": logits,
        "loss": output.loss[None],
    }
    if f"{scenario}.logits_spread_index" in inputs:
        values["logits_spread"] = logits[inputs[f"{scenario}.logits_spread_index"].long()]
    for name, value in values.items():
        yield from _stored(fixtures, f"{scenario}.{name}", value.detach())
    norms = fixtures.meta.get("grad_names", {}).get(scenario, {})
    if norms:
        yield from _gradients(fixtures, scenario, output.loss, norms)


def _gradients(fixtures: Fixtures, scenario: str, loss: Tensor, norms: dict[str, float]) -> Iterator[Difference]:
    fixtures.model.zero_grad()
    loss.backward()
    gradients = {name: p.grad for name, p in fixtures.model.named_parameters() if p.grad is not None}
    for name, norm in norms.items():
        if name not in gradients:
            yield f"{scenario}.norm.{name} has no gradient", float("inf")
            continue
        yield f"{scenario}.norm.{name}", abs(float(gradients[name].norm()) - norm)
        if f"{scenario}.grad.{name}" in fixtures.outputs:
            yield _gap(fixtures, f"{scenario}.grad.{name}", gradients[name])
    for name in fixtures.meta.get("no_grad_params", {}).get(scenario, ()):
        if name in gradients:
            yield f"{scenario}.norm.{name} has a gradient", float("inf")
    fixtures.model.zero_grad()


def _decode(fixtures: Fixtures) -> Iterator[Difference]:
    """Prefill the prompt of `av`, then feed the stored tokens one by one through the cache."""
    prompt = int(fixtures.inputs["decode.prompt_len"])
    cache = DynamicCache()
    steps = [fixtures.model(**fixtures.arguments("av", length=prompt), past_key_values=cache).logits[0, -1]]
    for token in fixtures.outputs["decode.tokens"].long():
        steps.append(fixtures.model(token.view(1, 1), past_key_values=cache).logits[0, -1])
    yield _gap(fixtures, "decode.step_logits", torch.stack(steps))


def main(argv: list[str] | None = None) -> int:
    """Print the differences; return 1 when one is beyond the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", type=Path, required=True, metavar="DIR")
    parser.add_argument("--prefix", default="dev")
    parser.add_argument("--atol", type=float, default=3e-5)
    options = parser.parse_args(words_from_home(argv))
    try:
        gaps = _all_differences(options.fixtures, options.prefix)
        worst = 0.0
        for name, gap in gaps:
            print(f"{'ok  ' if gap <= options.atol else 'FAIL'} {gap:9.2e}  {name}")
            # `not <=` also catches nan, which compares false with everything.
            worst = gap if not gap <= worst else worst
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    passed = worst <= options.atol
    print(f"{'ok' if passed else 'FAIL'}: largest difference {worst:.2e}, tolerance {options.atol:.0e}")
    return 0 if passed else 1


def _all_differences(folder: Path, prefix: str) -> Iterator[Difference]:
    """Yield the differences of both halves of a fixture set.

    Raises:
        ValueError: the folder has neither.
    """
    tensors = (folder / f"{prefix}_meta.json").exists()
    if not tensors and not has_preprocessing(folder, prefix):
        raise ValueError(f"{folder} has neither {prefix}_meta.json nor {prefix}_preproc.json")
    if tensors:
        yield from differences(Fixtures(folder, prefix))
    if has_preprocessing(folder, prefix):
        yield from preprocessing_differences(folder, prefix)


if __name__ == "__main__":
    as_command(main)
