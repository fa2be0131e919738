"""Tokenizers: a tiny one trained on the spot, the released one, and the special ids of either.

Both are byte-level BPE over NFC text: any text survives encode and decode.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from arcvideo.model.arc_hunyuan.family import ARC_HUNYUAN
from arcvideo.model.families.family import Family
from arcvideo.model.families.table import FAMILIES
from arcvideo.model.special import ANSWER_TAGS, SPECIALS

TINY_PIECES = r"\d\d:\d\d:\d\d|\d| ?\p{L}+| ?[^\s\p{L}\d]|\s"
"""A clock time, a digit, a word or a mark with its leading space, or one white space."""

RELEASED_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The GPT-4 pieces, except that every digit stands alone."""

CHAT_TEMPLATE = (
    "{{ '<|startoftext|>' }}{% for message in messages %}"
    "{% if message['role'] not in ['user', 'assistant'] %}"
    "{{ raise_exception('roles are user and assistant only: this model has no system turn') }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}"
    "{% if media_is_read is not defined %}"
    "{{ raise_exception('a tokenizer reads no media: AutoProcessor, after `import arcvideo`, does') }}{% endif %}"
    "{{ '<video>\\n' }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<sep>' if message['role'] == 'user' else '<|endoftext|>' }}{% endfor %}"
)
"""Spec 3.1. Each part that is no text becomes a media tag, which the processor replaces by frames; `media_is_read` is
its word for it. Without it the tag would stay a word, and nothing would be seen or heard."""

RELEASED_FILE = "hunyuan.tiktoken"
RELEASED_SPECIALS = 217
TEMPLATE_FILE = "chat_template.jinja"
MORE_TEMPLATES = "additional_chat_templates"


def build_tiny_tokenizer(
    corpus: Iterable[str], *, vocab_size: int = 1024, family: str = "arc_hunyuan"
) -> PreTrainedTokenizerFast:
    """Return a tokenizer trained on `corpus`; equal text gives equal ids on every machine.

    Words, clock times and answer tags that the corpus repeats become single tokens, as far as `vocab_size` goes.

    Args:
        corpus: text as the model will read and write it, without special strings.
        vocab_size: ids in all, special strings and tags included.
        family: whose special strings it gets.

    Raises:
        ValueError: no room for bytes, special strings and tags.
    """
    strings = SPECIALS if family == ARC_HUNYUAN.name else FAMILIES[family].strings
    specials = list(dict.fromkeys([*strings.values(), *_marks(FAMILIES[family].template.opening)]))
    extra = len(specials) + len(ANSWER_TAGS)
    if vocab_size < 256 + extra:
        raise ValueError(f"vocab_size must be at least {256 + extra} (bytes, special strings, tags), got {vocab_size}")
    tokenizer = _byte_bpe(models.BPE(), pieces=TINY_PIECES)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - extra,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # Sorting makes ties between equally frequent merges independent of the order in which a corpus is listed.
    tokenizer.train_from_iterator(sorted(corpus), trainer)
    tokenizer.add_special_tokens([_added(text, special=True) for text in specials])
    tokenizer.add_tokens([_added(text, special=False) for text in ANSWER_TAGS])
    return _wrap(tokenizer, family=FAMILIES[family])


def released_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Return the released tokenizer, converted from its rank file `hunyuan.tiktoken`.

    Raises:
        ValueError: a file that does not hold `<base64 bytes> <rank>` lines with ranks 0, 1, 2, ...
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines()):
        fields = line.split()
        if len(fields) != 2 or not fields[1].isdigit() or int(fields[1]) != number:
            raise ValueError(f"{path}: line {number + 1} must be `<base64 bytes> {number}`")
        ranks[base64.b64decode(fields[0])] = number
    letters = _byte_letters()
    vocabulary = {"".join(letters[byte] for byte in token): rank for token, rank in ranks.items()}
    merges = []
    for token in ranks:
        if len(token) > 1 and (pair := _last_merge(token, ranks)) is not None:
            left, right = ("".join(letters[byte] for byte in half) for half in pair)
            merges.append((left, right))
    tokenizer = _byte_bpe(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True), pieces=RELEASED_PIECES)
    tokenizer.add_special_tokens([_added(text, special=True) for text in _released_specials()])
    return _wrap(tokenizer)


def load_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a checkpoint directory.

    Raises:
        ValueError: the directory has neither `tokenizer.json` nor `hunyuan.tiktoken`, or a damaged one.
    """
    if (path := directory / "tokenizer.json").exists():
        try:
            return PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
        except Exception as error:  # tokenizers raises nothing more special
            raise ValueError(
                f"{path}: is damaged, copy it there anew ({next(iter(str(error).splitlines()), '')})"
            ) from None
    if (directory / RELEASED_FILE).exists():
        return released_tokenizer(directory / RELEASED_FILE)
    raise ValueError(f"{directory} has neither tokenizer.json nor {RELEASED_FILE}: copy one there")


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write tokenizer.json and its configuration beside the weights."""
    tokenizer.save_pretrained(directory)


Template = str | dict[str, str]
"""A chat template, or several by name with one called `default`."""


def save_templates(template: Template, directory: Path) -> None:
    """Write chat templates where transformers looks for them.

    Raises:
        ValueError: a name that is not one of a file, or no template called `default`.
    """
    named = template if isinstance(template, dict) else {"default": template}
    if "default" not in named:
        raise ValueError(f"chat templates {', '.join(named)}: one must be called default")
    for name in named:
        if not re.fullmatch(r"[\w-]+", name):
            raise ValueError(f"chat template {name!r}: a name is made of letters, digits, _ and -")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / TEMPLATE_FILE).write_text(named["default"])
    for name in named.keys() - {"default"}:
        (directory / MORE_TEMPLATES).mkdir(exist_ok=True)
        (directory / MORE_TEMPLATES / f"{name}.jinja").write_text(named[name])


def load_templates(directory: Path) -> Template | None:
    """Return the chat templates of a directory; None if it has none."""
    if (directory / TEMPLATE_FILE).is_file():
        default = (directory / TEMPLATE_FILE).read_text()
    elif (directory / "chat_template.json").is_file():
        default = str(json.loads((directory / "chat_template.json").read_text())["chat_template"])
    else:
        return None
    more = {path.stem: path.read_text() for path in sorted((directory / MORE_TEMPLATES).glob("*.jinja"))}
    return {"default": default, **more} if more else default


def _byte_bpe(model: models.BPE, *, pieces: str) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pieces), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _added(text: str, *, special: bool) -> AddedToken:
    return AddedToken(text, special=special, normalized=False)


def _marks(text: str) -> list[str]:
    """Return the special strings in a template's text."""
    return re.findall(r"<[|\uff5c][^<>]*[|\uff5c]>", text)


def chat_template(family: Family) -> str:
    """Return the family's chat template; its turns are the ones that training writes."""
    written = family.template

    def quoted(text: str) -> str:
        return "'" + text.replace("\n", "\\n") + "'"

    text = CHAT_TEMPLATE
    if family.name != ARC_HUNYUAN.name:
        text = text.replace("'<|startoftext|>'", quoted(written.opening)).replace("'<sep>'", quoted(written.separator))
        end = quoted(family.strings["end"])
        if written.between:
            # A turn that another question follows is closed by what stands between them.
            end = f"{end} ~ ({quoted(written.between)} if not loop.last else '')"
        text = text.replace("'<|endoftext|>'", f"({end})")
        text = text.replace("'<video>\\n'", f"'<video>{written.behind_media}'".replace("\n", "\\n"))
    return text


def _wrap(tokenizer: Tokenizer, *, family: Family = ARC_HUNYUAN) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=family.strings["start"],
        eos_token=family.strings["end"],
        pad_token=family.strings["pad"],
        clean_up_tokenization_spaces=False,
        chat_template=chat_template(family),
    )


def _byte_letters() -> dict[int, str]:
    """Return the printable letter that byte-level BPE writes for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


def _last_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """Return the two parts whose merge makes `token`: what BPE leaves when only earlier ranks may merge."""
    parts = [token[i : i + 1] for i in range(len(token))]
    limit = ranks[token]
    while len(parts) > 2:
        candidates = [(ranks.get(parts[i] + parts[i + 1], limit), i) for i in range(len(parts) - 1)]
        rank, i = min(candidates)
        if rank >= limit:
            return None
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts[0], parts[1]


def _released_specials() -> list[str]:
    """Return the 217 special strings in id order from 127957."""
    head = ["end", "start", "bos", "eos", "pad", "img_open", "img_close", "newline"]
    # sep, vid and /vid changed places with extras 31, 32 and 33, and newline with the image placeholder.
    names = [SPECIALS[name] for name in head] + [f"<|extra_{n}|>" for n in (31, 32, 33)] + [SPECIALS["image"]]
    swapped = {31: SPECIALS["sep"], 32: SPECIALS["vid_open"], 33: SPECIALS["vid_close"]}
    return names + [swapped.get(n, f"<|extra_{n}|>") for n in range(RELEASED_SPECIALS - len(names))]
