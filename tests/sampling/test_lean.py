"""The lean sampler draws what the plain one drew, and does so in few kernels and little reading."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from arcvideo.model.arc_hunyuan.language import Decoder, LanguageModel, rope_tables
from arcvideo.model.configuration import ArcVideoConfig
from arcvideo.model.disk.tokenizer import build_tiny_tokenizer
from arcvideo.model.families.table import FAMILIES
from arcvideo.model.modeling import ArcVideoForConditionalGeneration
from arcvideo.model.settings import TextSettings
from arcvideo.model.special import special_ids
from arcvideo.sampling import decode, prefill
from arcvideo.sampling.decode import Decoding
from arcvideo.sampling.forked import ForkedCache, PromptRun
from arcvideo.sampling.prefill import Prefilled, parts_of, runs_of
from arcvideo.sampling.roofline import bytes_per_turn
from arcvideo.sampling.sampler import InProcessSampler
from arcvideo.sampling.settings import Sampling
from arcvideo.sampling.step import PlainStep, TokenStep, step_of
from tests.compose import settings as compose
from tests.rollout.world import make_model, make_prompts, tokenizer
from tests.sampling.oracle import PlainSampler
from tests.sampling.test_sampler import likely_end

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WARM = Sampling(max_new_tokens=24, temperature=1.3)


@pytest.fixture(scope="module")
def model() -> Any:
    """Ends a completion after about ten tokens."""
    made = make_model(width=16).to(DEVICE)
    likely_end(made)
    return made


def compared(model: Any, settings: Sampling, *, generations: int = 5) -> None:
    """Assert that both samplers give the same completions."""
    prompts = make_prompts()
    lean, plain = (
        sampler(model, tokenizer=tokenizer()).sample(
            prompts, num_generations=generations, settings=way, seeds=[5, 6, 7, 8]
        )
        for sampler, way in ((InProcessSampler, settings), (PlainSampler, replace(settings, decode="dynamic")))
    )
    for here, there in zip(lean, plain, strict=True):
        assert here.prompt is there.prompt
        for one, two in zip(here.completions, there.completions, strict=True):
            assert one.ids.tolist() == two.ids.tolist()
            assert (one.text, one.finished) == (two.text, two.finished)
            torch.testing.assert_close(one.logprobs, two.logprobs, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("every", [1, 3, 8])
@pytest.mark.parametrize("way", ["dynamic", "static"])
def test_the_tokens_are_those_of_the_plain_sampler(model: Any, way: str, every: int) -> None:
    compared(model, replace(WARM, decode=way, check_every=every))


@pytest.mark.parametrize(
    "words",
    [{"top_k": 5}, {"top_p": 0.7}, {"temperature": 0.0}, {"temperature": 1.0, "max_new_tokens": 1}, {"stop": ["re"]}],
    ids=str,
)
def test_so_they_are_under_other_settings(model: Any, words: dict[str, Any]) -> None:
    compared(model, replace(WARM, check_every=4, **words))


def test_prompts_in_several_parts_and_without_padding_give_the_same(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA: clips one after the other, and every prompt's keys by themselves."""

    def bare(prefilled: Prefilled, padded: bool) -> list[PromptRun]:
        return runs_of(prefilled, padded=False)

    monkeypatch.setattr(prefill, "parts_of", lambda prompts: parts_of(prompts, tokens=1))
    compared(model, WARM)
    monkeypatch.setattr(prefill, "runs_of", bare)
    compared(model, WARM)
    monkeypatch.undo()
    monkeypatch.setattr(prefill, "runs_of", bare)
    compared(model, replace(WARM, decode="static"))


def test_prompts_about_a_clip_stay_together_and_parts_keep_to_their_tokens() -> None:
    prompts = make_prompts()
    assert parts_of(prompts) == [[2, 0, 1, 3]]
    assert parts_of(prompts, tokens=1) == [[2], [0, 1], [3]]
    lengths = [prompt.length for prompt in prompts]
    assert parts_of(prompts, tokens=2 * lengths[2]) == [[2, 0, 1], [3]]


def test_a_decoder_that_somebody_hooked_into_is_called_as_it_is(model: Any) -> None:
    cache = shared(model.settings.text, prompts=[4], width=2, room=3, device=DEVICE, dtype=torch.float32)
    assert isinstance(step_of(model, cache=cache, end=8), TokenStep)
    seen: list[int] = []
    layer = model.language_model.model.layers[0]
    hook = layer.register_forward_hook(lambda module, inputs, output: seen.append(1))
    try:
        assert isinstance(step_of(model, cache=cache, end=8), PlainStep)
        compared(model, replace(WARM, max_new_tokens=4))
    finally:
        hook.remove()
    assert seen


PAGES = {"arc_hunyuan": "tiny", "arc_hunyuan_1b": "tiny_hunyuan_1b", "arc_qwen": "tiny_qwen"}
"""Family -> page of a tiny model."""


def family_model(family: str) -> Any:
    """A tiny model of a family, with random weights."""
    torch.manual_seed(0)
    words = build_tiny_tokenizer(["Which colour is seen?"], vocab_size=400, family=family)
    settings = compose("stage=sft", f"model={PAGES[family]}").model
    config = ArcVideoConfig.from_settings(settings, vocab_size=len(words), special=special_ids(words))
    return ArcVideoForConditionalGeneration(config)


@pytest.mark.parametrize("how", ["bf16", "autocast"])
@pytest.mark.parametrize(
    ("kind", "family"), [(PlainStep, family) for family in PAGES] + [(TokenStep, "arc_hunyuan")], ids=str
)
def test_logits_are_drawn_from_as_they_are_scored(kind: Any, family: str, how: str) -> None:
    """Rounded to half precision they would be compared with log-probabilities that are not."""
    made = family_model(family).to(DEVICE, torch.bfloat16 if how == "bf16" else torch.float32).eval()
    # Under autocast transformers' rope raises keys to fp32, and so they are cached.
    keys = torch.float32 if (family, how) == ("arc_qwen", "autocast") else torch.bfloat16
    cache = shared(made.settings.text, prompts=[4], width=2, room=3, device=DEVICE, dtype=keys)
    with torch.no_grad(), torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=how == "autocast"):
        step = PlainStep(made, cache=cache) if kind is PlainStep else step_of(made, cache=cache, end=8)
        assert type(step) is kind
        logits = step(torch.tensor([7, 9], device=DEVICE), torch.tensor([4, 4], device=DEVICE))
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())


def test_every_family_has_a_tiny_page() -> None:
    assert set(PAGES) == set(FAMILIES)


def test_rows_leave_in_whole_prompts_and_by_the_longest_answer() -> None:
    """Of three prompts with four rows one is done, the others have two rows and one left: 2 x 2 rows go on."""
    cache = shared(TINY, prompts=[4, 4, 4], width=4, room=8, device="cpu", dtype=torch.float32)
    decoding = Decoding(
        cache=cache, step=lambda tokens, positions: tokens, positions=torch.arange(12), noise=torch.zeros(12, 8),
        banned=torch.tensor([0]), settings=WARM, decode="dynamic",
    )  # fmt: skip
    decoding._shrink(torch.tensor([0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 1, 0]).bool())
    assert decoding._numbers.tolist() == [5, 7, 8, 10]
    assert (cache.prompts, cache.rows) == (2, 4)
    decoding._shrink(torch.tensor([1, 0, 1, 1]).bool())
    assert cache.rows == 4, "too little to gain"


# Launches and bytes.

TINY = TextSettings(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, attention_head_dim=16, rope_alpha=1.0,
)  # fmt: skip
VIEWS = {
    "view", "_unsafe_view", "expand", "permute", "transpose", "t", "unsqueeze", "squeeze", "select", "slice", "split",
    "split_with_sizes", "unbind", "alias", "detach", "as_strided", "empty", "empty_like", "device", "new_empty",
    "_reshape_alias", "chunk", "lift_fresh", "unsafe_split", "empty_strided",
}  # fmt: skip


class Launches(TorchDispatchMode):
    """Counts operations that compute or copy; a norm, one kernel on a GPU, counts as one."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.read = 0
        self.inside = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name not in VIEWS and not self.inside:
            self.names.append(name)
            self.read += _bytes_read(name, args, found)
        return found


class Norms(TorchFunctionMode):
    """Lets the counter see a norm as one operation."""

    def __init__(self, launches: Launches) -> None:
        super().__init__()
        self.launches = launches

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not F.rms_norm and function is not torch.rms_norm:
            return function(*args, **(kwargs or {}))
        outer, self.launches.inside = self.launches.inside, True
        try:
            found = function(*args, **(kwargs or {}))
        finally:
            self.launches.inside = outer
        if not outer:
            self.launches.names.append("rms_norm")
            self.launches.read += args[0].numel() * args[0].element_size()
        return found


def _bytes_read(name: str, args: Any, found: Any) -> int:
    """Bytes of the tensors that go in; of tables that are looked up in or written into, what is looked up."""
    if name in ("embedding", "index_select", "gather", "index"):
        return int(found.numel() * found.element_size())
    if name.startswith(("index_copy", "copy_", "index_fill_")):
        args = args[1:]
    tensors = {id(x): x for x in args if isinstance(x, Tensor)}
    return sum(x.numel() * x.element_size() for x in tensors.values())


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def counted() -> Iterator[Launches]:
    launches = Launches()
    with torch.no_grad(), launches, Norms(launches):
        yield launches


def shared(
    text: TextSettings,
    *,
    prompts: list[int],
    width: int,
    room: int,
    device: str,
    dtype: torch.dtype,
    static: bool = False,
) -> ForkedCache:
    """Prompts of given lengths, one run for each length, with keys of noise."""
    runs = []
    for length in dict.fromkeys(prompts):
        shape = (prompts.count(length), text.num_key_value_heads, length, text.attention_head_dim)
        keys, values = ([torch.randn(shape, device=device, dtype=dtype) for _ in range(text.num_hidden_layers)]
                        for _ in range(2))  # fmt: skip
        runs.append(PromptRun(keys=keys, values=values, mask=None))
    return ForkedCache(runs, width=width, room=room, static=static)


def lean_turn(model: Any, *, prompts: int, width: int) -> int:
    text = model.settings.text
    cache = shared(text, prompts=[30] * prompts, width=width, room=8, device="cpu", dtype=model.dtype)
    rows = prompts * width
    decoding = Decoding(
        cache=cache, step=step_of(model, cache=cache, end=64), positions=torch.full((rows,), 30),
        noise=torch.full((rows, 8), 0.5, dtype=torch.float64), banned=torch.tensor([3]),
        settings=replace(WARM, temperature=1.0), decode="dynamic",
    )  # fmt: skip
    with torch.no_grad():
        decoding._draw(torch.zeros(rows, text.vocab_size))
        decoding._turn()
    with counted() as launches:
        decoding._turn()
    return len(launches.names)


def plain_turn(model: Any, *, width: int) -> int:
    """Launches of one more token of the plain sampler: those of 6 tokens less those of 5."""
    prompt = make_prompts()[3]
    sampler = PlainSampler(model, tokenizer=tokenizer())
    found = []
    for count in (5, 6):
        settings = replace(WARM, temperature=1.0, max_new_tokens=count)
        noise = torch.full((1, width, count), 0.5, dtype=torch.float64)
        with torch.no_grad():
            state = sampler.begin([prompt], noise=noise, settings=settings)
        sampler.stop_ids = frozenset([10**6])  # nothing ends early
        with counted() as launches:
            sampler._decode(state, settings=settings)
        found.append(len(launches.names))
    return found[1] - found[0]


@pytest.mark.parametrize(("dtype", "times"), [(torch.bfloat16, 3.0), (torch.float32, 2.0)], ids=str)
def test_a_token_takes_a_third_of_the_launches(dtype: torch.dtype, times: float) -> None:
    """Per layer and around the layers, from models of two depths; then at the depth that is released.

    In fp32, which nobody decodes the 7B in, the plain sampler had no conversions to lose.
    """
    counts: dict[str, list[int]] = {"lean": [], "plain": []}
    for layers in (2, 4):
        model = make_model(width=16)
        blocks = model.language_model.model.layers
        for number in range(2, layers):
            blocks.append(type(blocks[0])(model.settings.text, layer=number))
        model.settings = replace(model.settings, text=replace(model.settings.text, num_hidden_layers=layers))
        model.to(dtype).eval()
        counts["lean"].append(lean_turn(model, prompts=1, width=8))
        counts["plain"].append(plain_turn(model, width=8))
    layer = {name: (deep - flat) / 2 for name, (flat, deep) in counts.items()}
    around = {name: flat - 2 * layer[name] for name, (flat, deep) in counts.items()}
    depth = TextSettings().num_hidden_layers
    whole = {name: around[name] + depth * layer[name] for name in counts}
    print(dtype, "a layer", layer, "around", around, "of 32 layers", whole)
    assert times * whole["lean"] <= whole["plain"], (layer, around, whole)


def test_a_turn_reads_what_the_roofline_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the released widths, without memory: weights once, each prompt once for its whole group, in bf16."""
    text, prompts, width, own = TextSettings(), 8, 8, 512
    monkeypatch.setattr(nn.Linear, "reset_parameters", lambda self: None)
    rope_tables(torch.zeros(4, 1), settings=text, dtype=torch.bfloat16)  # its table of axes needs values, once
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), default_dtype(torch.bfloat16):
        language = LanguageModel(text, decoder=Decoder(text))
        language.lm_head.weight = language.model.embed_tokens.weight
        cache = shared(text, prompts=[17_300] * prompts, width=width, room=1024, device="cpu", dtype=torch.bfloat16)
        cache.length = own - 1
        step = TokenStep(language, cache=cache, end=18_400)
        rows = prompts * width
        with counted() as launches:
            logits = step(torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64))
    assert logits.shape == (rows, text.vocab_size)
    bound = bytes_per_turn(text, prompts=[17_300] * prompts, rows=rows, own=own)
    print(f"{launches.read / 1e9:.2f} GB read a turn, {bound / 1e9:.2f} GB at least")
    assert bound <= launches.read <= 1.05 * bound


def test_the_roofline_is_that_of_the_published_figures() -> None:
    """Weights 15.0 GB, 131,072 bytes a token: 3.65 ms for one group and 7.28 ms for eight at 4.8 TB/s."""
    text = TextSettings()
    assert bytes_per_turn(text, prompts=[], rows=0, own=0) == pytest.approx(15.0e9, rel=0.01)
    for groups, milliseconds in ((1, 3.65), (8, 7.28)):
        read = bytes_per_turn(text, prompts=[17_000] * groups, rows=8 * groups, own=250)
        assert 1000 * read / 4.8e12 == pytest.approx(milliseconds, rel=0.03)


def test_what_a_gpu_is_asked_once_in_a_while(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    look = Decoding._look

    def counting(self: Any, answers: Any, first: int, last: int, **words: Any) -> Any:
        looks.append(last - first)
        return look(self, answers, first, last, **words)

    monkeypatch.setattr(decode.Decoding, "_look", counting)
    sampler = InProcessSampler(model, tokenizer=tokenizer())
    sampler.stop_ids = frozenset([10**6])
    settings = replace(WARM, max_new_tokens=20, check_every=8)
    sampler.sample(make_prompts(), num_generations=2, settings=settings, seeds=[0] * 4)
    assert looks == [8, 8, 4]


def test_hidden_modules_are_linear_layers_only() -> None:
    """What the lean step goes around must not hold weights that it forgets."""
    layer = make_model(width=16).language_model.model.layers[0]
    known = {"input_layernorm", "post_attention_layernorm", "self_attn.query_layernorm", "self_attn.key_layernorm"}
    held = {name.rpartition(".")[0] for name, _ in layer.named_parameters()}
    linear = {name for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
    assert held == known | linear
