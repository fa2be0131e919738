import base64
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from arcvideo.model.disk.tokenizer import (
    RELEASED_FILE,
    RELEASED_PIECES,
    build_tiny_tokenizer,
    load_tokenizer,
    released_tokenizer,
    save_tokenizer,
)
from arcvideo.model.special import ANSWER_TAGS, SPECIALS, special_ids
from arcvideo.tasks.fields import suffix

ROOT = Path(__file__).parents[2]

CORPUS = [
    f"When is the {colour} circle visible?\nFrom 00:00:0{start} - 00:00:0{start + 1}, the {colour} one."
    for colour in ("red", "blue", "green")
    for start in range(8)
]


@pytest.fixture(scope="module")
def tiny():
    return build_tiny_tokenizer(CORPUS, vocab_size=640)


def pieces(tokenizer, text: str) -> list[str]:
    return [tokenizer.decode([token]) for token in tokenizer(text)["input_ids"]]


@pytest.mark.parametrize(
    "text",
    [
        "When is the red circle visible?",
        "  two  spaces\ttab\r\nline\n",
        "这个视频讲了什么？红色圆形在 00:00:03 出现。",
        "naïve café 🙂 ﷺ",
        "A. 12:34:56 x 100%",
        "<think>red</think><answer>A</answer>",
    ],
)
def test_any_text_survives(tiny, text):
    assert tiny.decode(tiny(text)["input_ids"]) == text


def test_text_is_nfc_normalised(tiny):
    assert tiny("cafe\u0301")["input_ids"] == tiny("caf\u00e9")["input_ids"]


def test_clock_times_and_words_of_the_corpus_are_single_tokens(tiny):
    assert pieces(tiny, "From 00:00:03 - 00:00:04, the red one.") == [
        "From", " ", "00:00:03", " -", " ", "00:00:04", ",", " the", " red", " one", ".",
    ]  # fmt: skip


def test_other_digits_stand_alone(tiny):
    assert pieces(tiny, "1234 12:34") == ["1", "2", "3", "4", " ", "1", "2", ":", "3", "4"]


def test_unseen_clock_times_never_merge_with_their_surroundings(tiny):
    ids = tiny("x 99:59:59 y")["input_ids"]
    assert tiny.decode(ids) == "x 99:59:59 y"
    assert ids[1] == tiny(" ")["input_ids"][0]


def test_line_ends_are_separate(tiny):
    assert pieces(tiny, "visible?\nFrom")[-2:] == ["\n", "From"]


def test_special_strings_are_recognised_in_plain_text(tiny):
    for text in SPECIALS.values():
        around = [tiny("the")["input_ids"], tiny("red")["input_ids"]]
        assert tiny(f"the{text}red")["input_ids"] == [*around[0], tiny.convert_tokens_to_ids(text), *around[1]]


def test_answer_tags_are_single_ordinary_tokens(tiny):
    for tag in ANSWER_TAGS:
        (token,) = tiny(tag)["input_ids"]
        assert token not in tiny.all_special_ids
        assert tiny.decode([token], skip_special_tokens=True) == tag


def test_decoding_can_leave_special_strings_out(tiny):
    ids = tiny("<sep>red<|endoftext|><IMG_CONTEXT>")["input_ids"]
    assert tiny.decode(ids, skip_special_tokens=True) == "red"


def test_nothing_is_added_on_its_own(tiny):
    assert tiny("")["input_ids"] == []


def test_training_does_not_depend_on_process_or_order():
    code = (
        "import sys, hashlib; from tests.model.test_tokenizer import CORPUS; "
        "from arcvideo.model.disk.tokenizer import build_tiny_tokenizer; "
        "text = build_tiny_tokenizer(CORPUS[::-1], vocab_size=640).backend_tokenizer.to_str(); "
        "print(hashlib.sha256(text.encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=env, cwd=ROOT
        ).stdout
        for env in ({"PYTHONHASHSEED": "1", "PATH": ""}, {"PYTHONHASHSEED": "2", "PATH": ""})
    }
    here = build_tiny_tokenizer(CORPUS, vocab_size=640).backend_tokenizer.to_str()
    assert digests == {hashlib.sha256(here.encode()).hexdigest() + "\n"}


def test_the_vocabulary_has_the_size_asked_for(tiny):
    assert len(tiny) <= 640
    assert len(build_tiny_tokenizer(CORPUS, vocab_size=300)) == 300
    with pytest.raises(ValueError, match="at least"):
        build_tiny_tokenizer(CORPUS, vocab_size=100)


def test_saved_tokenizers_load_again(tiny, tmp_path):
    save_tokenizer(tiny, tmp_path)
    loaded = load_tokenizer(tmp_path)
    text = "<vid></vid>\nWhen? 00:00:03 红<sep><think>"
    assert loaded(text)["input_ids"] == tiny(text)["input_ids"]
    assert special_ids(loaded) == special_ids(tiny)
    assert loaded.eos_token == SPECIALS["end"]


def test_special_ids_are_read_from_the_tokenizer(tiny):
    ids = special_ids(tiny)
    assert ids.image == tiny.convert_tokens_to_ids("<IMG_CONTEXT>")
    assert len({ids.start, ids.end, ids.sep, ids.pad, ids.image, ids.newline}) == 6


@pytest.mark.parametrize("change", [("1.0", "1.1"), ("{", "["), ('"BPE"', '"BPF"')])
def test_a_damaged_tokenizer_is_refused_by_name(tiny, tmp_path, change):
    save_tokenizer(tiny, tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace(*change, 1))
    with pytest.raises(ValueError, match=r"tokenizer\.json: is damaged"):
        load_tokenizer(tmp_path)


def test_a_directory_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def rank_file(folder):
    """Write bytes, then merges learned greedily from a text, in the released format; return path and ranks."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    for word in (
        b"th",
        b"the",
        b" the",
        b"in",
        b"ing",
        b" th",
        b"an",
        b" an",
        b"think",
        b"ink",
        b"\xe7\xba",
        b"\xe7\xba\xa2",
    ):
        ranks[word] = len(ranks)
    lines = [base64.b64encode(token) + b" %d" % rank for token, rank in ranks.items()]
    path = folder / RELEASED_FILE
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path, ranks


def test_released_ranks_give_the_ids_of_tiktoken(tmp_path):
    tiktoken = pytest.importorskip("tiktoken")
    _, ranks = rank_file(tmp_path)
    oracle = tiktoken.Encoding("released", pat_str=RELEASED_PIECES, mergeable_ranks=ranks, special_tokens={})
    tokenizer = load_tokenizer(tmp_path)
    for text in (
        "the thing in the think-ink",
        "I've 2024 things\n\nthere  an  and",
        "红红 the",
        "thanking THE ing!!\n",
    ):
        assert tokenizer(text)["input_ids"] == oracle.encode(text)
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_released_special_ids_have_their_places(tmp_path):
    path, ranks = rank_file(tmp_path)
    tokenizer = released_tokenizer(path)
    shift = len(ranks) - 127957
    released = {"end": 127957, "start": 127958, "bos": 127959, "eos": 127960, "pad": 127961, "img_open": 127962,
                "img_close": 127963, "newline": 127964, "image": 127968, "sep": 128000, "vid_open": 128001,
                "vid_close": 128002}  # fmt: skip
    vocabulary = tokenizer.get_vocab()
    assert {name: vocabulary[text] - shift for name, text in SPECIALS.items()} == released
    assert [vocabulary[f"<|extra_{n}|>"] - shift for n in (31, 32, 33, 0, 30, 34)] == [
        127965, 127966, 127967, 127969, 127999, 128003,
    ]  # fmt: skip
    assert len(tokenizer) == len(ranks) + 217


CHECK = [
    127958, 198, 15225, 100765, 101446, 100699, 88240, 198, 5207, 279, 7422, 1920, 304, 366, 27963, 29, 694, 27963, 29,
    323, 1620, 4320, 304, 366, 9399, 29, 694, 9399, 29, 9681, 11, 602, 1770, 2637, 366, 27963, 29, 33811, 1920, 1618,
    694, 27963, 1822, 9399, 29, 4320, 1618, 694, 9399, 14611, 128000,
]  # fmt: skip
"""An engine's test prompt: start, newline, a Chinese question, newline, the general instruction, sep."""


def test_the_released_ranks_give_the_check_sequence():
    path = Path(os.environ.get("ARCVIDEO_RELEASED_TOKENIZER", "hunyuan.tiktoken"))
    if not path.is_file():
        pytest.skip("set ARCVIDEO_RELEASED_TOKENIZER to the released hunyuan.tiktoken")
    tokenizer = released_tokenizer(path)
    text = tokenizer.decode(CHECK)
    assert tokenizer(text)["input_ids"] == CHECK
    assert text.startswith("<|startoftext|>\n")
    assert text.endswith(f"\n{suffix('general', wording='arc')}<sep>")
    assert len(tokenizer) == 128_174


CHAT = [
    {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "When?"}]},
    {"role": "assistant", "content": "<answer>00:00:03</answer>"},
    {"role": "user", "content": "And then?"},
]


@pytest.mark.parametrize("which", ["tiny", "released", "loaded"])
def test_the_chat_template_writes_turns_as_training_does(tiny, tmp_path, which):
    save_tokenizer(tiny, tmp_path / "saved")
    path, _ = rank_file(tmp_path)
    tokenizer = {
        "tiny": lambda: tiny,
        "released": lambda: released_tokenizer(path),
        "loaded": lambda: load_tokenizer(tmp_path / "saved"),
    }[which]()
    said = tokenizer.apply_chat_template(CHAT, tokenize=False, media_is_read=True)
    assert said == ("<|startoftext|><video>\nWhen?<sep><answer>00:00:03</answer><|endoftext|>And then?<sep>")
    ids = tokenizer.apply_chat_template(CHAT, tokenize=True, return_dict=False, media_is_read=True)
    assert ids == tokenizer(said)["input_ids"]
    assert ids.count(special_ids(tokenizer).sep) == 2


def test_a_system_turn_is_refused(tiny):
    with pytest.raises(Exception, match="no system turn"):
        tiny.apply_chat_template([{"role": "system", "content": "x"}], tokenize=False)


def test_a_rank_file_with_a_gap_is_refused(tmp_path):
    path = tmp_path / RELEASED_FILE
    path.write_bytes(b"AA== 0\nAQ== 2\n")
    with pytest.raises(ValueError, match="line 2"):
        released_tokenizer(path)
