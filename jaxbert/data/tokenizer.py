"""Text to word piece ids: WordPiece and SentencePiece behind one interface.

The functions here give ids without special tokens, truncation or padding: [CLS], [SEP] and lengths
belong to `corpus` and `tasks`, rows and padding to `packing`.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import tokenizers

from jaxbert.errors import UserError
from jaxbert.files import read_object

_ROLES = ("pad", "unk", "cls", "sep", "mask")
_MAX_TOKENIZER = 64 << 20  # bytes of a tokenizer.json, twice as many as any published one has
_HOLES = 100_000  # ids that no piece has, at least as many as any published vocabulary leaves
# The keys of tokenizer_config.json that override a BertNormalizer, and its names for them.
_NORMALIZER_OPTIONS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


class Pieces(NamedTuple):
    """The word pieces of a text, and the characters that each is made of.

    Attributes:
      ids: int32 [pieces].
      starts: int32 [pieces], its first character, an index into the text as it was given.
      ends: int32 [pieces], the index behind its last one.
    """

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


class Tokenizer(Protocol):
    """What the rest of jaxbert knows of a tokenizer.

    Attributes:
      vocab_size: the largest id + 1, so the least number of rows an embedding table must have.
      pad_id, unk_id, cls_id, sep_id, mask_id: ids of the special pieces.
      fingerprint: SHA-256 (hex) of everything that decides which ids a text gets: the piece table
        and the casing and normalising options. Equal however the same tokenizer was stored.
      pieces: what each id stands for, as the vocabulary spells it; "" for an id without a piece.
      continues: bool [vocab_size], whether a piece goes on with the word that the piece before it
        began: ``##x`` of WordPiece, all but ``▁x`` of SentencePiece. False for special pieces.
    """

    @property
    def vocab_size(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def unk_id(self) -> int: ...
    @property
    def cls_id(self) -> int: ...
    @property
    def sep_id(self) -> int: ...
    @property
    def mask_id(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def pieces(self) -> tuple[str, ...]: ...
    @property
    def continues(self) -> np.ndarray: ...

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns int32 [pieces] for each text: no special tokens, no truncation, no padding.

        Raises:
          UserError: a text is not text (no `str`, or lone surrogates in it); names its position.
        """
        ...

    def encode_with_offsets(self, texts: Sequence[str]) -> list[Pieces]:
        """The ids of `encode`, with the characters that each piece is made of.

        Raises:
          UserError: as `encode` does.
        """
        ...

    def save(self, folder: Path) -> None:
        """Writes the files that `load_tokenizer` (and `transformers`, where it can) reads."""
        ...


def special_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids of the pieces that stand for no text: padding, unknown, [CLS], [SEP] and [MASK]."""
    t = tokenizer
    return (t.pad_id, t.unk_id, t.cls_id, t.sep_id, t.mask_id)


def difference(one: Tokenizer, other: Tokenizer) -> str:
    """Where two tokenizers part, for an error: the first id that stands for another piece."""
    pairs = itertools.zip_longest(one.pieces, other.pieces)
    for number, (mine, theirs) in enumerate(pairs):
        if mine != theirs:
            said = [repr(piece) if piece else "no piece" for piece in (mine, theirs)]
            return f"id {number} is {said[0]}, and {said[1]}"
    return "the pieces are the same, and text is split in another way, such as in lower case"


def excerpt(tokenizer: Tokenizer, ids: np.ndarray, length: int) -> str:
    """What word pieces say, for people, cut to a number of characters.

    Args:
      tokenizer: theirs.
      ids: int [n].
      length: at most.
    """
    special, text = special_ids(tokenizer), ""
    for piece in ids.tolist():
        if piece not in special and len(text) <= length:
            text += "" if tokenizer.continues[piece] else " "
            text += tokenizer.pieces[piece].removeprefix("##").removeprefix("▁")
    text = text.strip()
    return text if len(text) <= length else f"{text[: length - 3]}..."


def load_tokenizer(folder: Path) -> Tokenizer:
    """Loads tokenizer.json, else vocab.txt, else the one SentencePiece ``*.model`` of a folder.

    The options of tokenizer_config.json (`do_lower_case`, `strip_accents`,
    `tokenize_chinese_chars`) go before those inside tokenizer.json, as they do in `transformers`.

    Raises:
      UserError: no tokenizer file, an unreadable one, or one without a special piece.
    """
    folder = Path(folder)
    options = _read_options(folder)
    if (folder / "tokenizer.json").is_file():
        return WordPieceTokenizer(
            _open_fast(folder / "tokenizer.json", options), options, folder / "tokenizer.json"
        )
    if (folder / "vocab.txt").is_file():
        return WordPieceTokenizer(
            _build_wordpiece(folder / "vocab.txt", options), options, folder / "vocab.txt"
        )
    models = sorted(folder.glob("*.model"))
    if len(models) == 1:
        return SentencePieceTokenizer(models[0], options)
    raise UserError(
        f"{len(models)} SentencePiece models" if models else "no tokenizer found",
        f"in {folder}",
        "give a folder with tokenizer.json, vocab.txt or exactly one SentencePiece *.model",
    )


class WordPieceTokenizer:
    """A tokenizer of the `tokenizers` library, BERT's WordPiece as a rule.

    A special piece that stands in a text literally, such as ``[SEP]``, becomes that special id, as
    in the reference (`transformers`' BertTokenizer). Packed rows do not rely on [SEP] to part
    examples, so such a text disturbs no other.

    Attributes:
      backend: the library's own tokenizer.
      options: what special_tokens_map.json and tokenizer_config.json said beside it.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, options: Mapping[str, Any], source: Path
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.options = dict(options)
        table = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(table.values(), default=-1) + 1
        if self.vocab_size > 2 * len(table) + _HOLES:
            what = f"{len(table):,} pieces have ids up to {self.vocab_size - 1:,}"
            raise UserError(what, str(source), "use the vocabulary the model was trained with")
        self._pieces = _special_pieces(table, options, source)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (
            table[piece] for piece in self._pieces.values()
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        state = json.loads(self.backend.to_str())
        vocab = state["model"].pop("vocab")
        added = [(t["content"], t["id"], t["normalized"]) for t in state["added_tokens"]]
        parts = [vocab, state["model"], state["normalizer"], state["pre_tokenizer"], sorted(added)]
        return _digest(json.dumps(parts, sort_keys=True).encode())

    @functools.cached_property
    def pieces(self) -> tuple[str, ...]:
        pieces = [""] * self.vocab_size
        for piece, index in self.backend.get_vocab(with_added_tokens=True).items():
            pieces[index] = piece
        return tuple(pieces)

    @functools.cached_property
    def continues(self) -> np.ndarray:
        prefix = getattr(self.backend.model, "continuing_subword_prefix", None) or "##"
        return np.array([piece.startswith(prefix) and piece != prefix for piece in self.pieces])

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        _check_texts(texts)
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[Pieces]:
        _check_texts(texts)
        encodings = self.backend.encode_batch(list(texts), add_special_tokens=False)
        return [
            _with_accents(text, _pieces(encoding.ids, encoding.offsets))
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
        cls, sep = self._pieces["cls"], self._pieces["sep"]
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{cls}:0 $A:0 {sep}:0",
            pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
            special_tokens=[(cls, self.cls_id), (sep, self.sep_id)],
        )
        backend.save(str(folder / "tokenizer.json"))
        normalizer = json.loads(backend.to_str())["normalizer"] or {}
        is_bert = normalizer.get("type") == "BertNormalizer" and isinstance(
            backend.model, tokenizers.models.WordPiece
        )
        config: dict[str, Any] = {
            "tokenizer_class": "BertTokenizer" if is_bert else "PreTrainedTokenizerFast"
        }
        if is_bert:
            config |= {key: normalizer[name] for key, name in _NORMALIZER_OPTIONS.items()}
        _write_options(folder, config, self._pieces, self.options)
        pieces = sorted(
            backend.get_vocab(with_added_tokens=False).items(), key=lambda item: item[1]
        )
        # A vocab.txt can only say what it says by line number.
        if is_bert and [index for _, index in pieces] == list(range(len(pieces))):
            text = "".join(f"{piece}\n" for piece, _ in pieces)
            (folder / "vocab.txt").write_bytes(text.encode())


class SentencePieceTokenizer:
    """A SentencePiece model (BPE or unigram) with BERT's special pieces among its own.

    [CLS] and [SEP] may be control symbols (never produced from text) or user-defined ones (produced
    where a text holds them literally): the model file decides. ALBERT's names (``<pad>``,
    ``<unk>``) are understood. Its `do_lower_case` is honoured where tokenizer_config.json sets it.
    """

    def __init__(self, path: Path, options: Mapping[str, Any]) -> None:
        import sentencepiece

        self._model = path.read_bytes()
        self._options = dict(options)
        self._lowercase = bool(options.get("do_lower_case", False))
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=self._model)
            self.vocab_size = int(self._processor.get_piece_size())
        except (RuntimeError, OSError) as error:
            raise UserError(
                "not a SentencePiece model",
                str(path),
                "give the .model file that its trainer wrote",
            ) from error
        table = {self._processor.id_to_piece(i): i for i in range(self.vocab_size)}
        self._pieces = _special_pieces(table, options, path)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (
            table[piece] for piece in self._pieces.values()
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        return _digest(self._model + (b"lowercase" if self._lowercase else b""))

    @functools.cached_property
    def pieces(self) -> tuple[str, ...]:
        return tuple(self._processor.id_to_piece(i) for i in range(self.vocab_size))

    @functools.cached_property
    def continues(self) -> np.ndarray:
        continues = np.array([not piece.startswith("▁") for piece in self.pieces])
        continues[list(special_ids(self))] = False
        return continues

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        _check_texts(texts)
        lines = [text.lower() for text in texts] if self._lowercase else list(texts)
        return [
            np.array(ids, dtype=np.int32) for ids in self._processor.encode(lines, out_type=int)
        ]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[Pieces]:
        _check_texts(texts)
        found = []
        for text in texts:
            line = text.lower() if self._lowercase else text
            mapped = self._processor.encode(line, out_type="offset_mapping")
            # What a character becomes in lower case may be longer than it is.
            source = [i for i, c in enumerate(text) for _ in (c.lower() if self._lowercase else c)]
            source.append(len(text))
            spans = []
            for begin, end in mapped["offsets"]:
                # The blank before a word is a part of its first piece, and none of the word.
                begin += len(line[begin:end]) - len(line[begin:end].lstrip())
                last = source[end - 1] + 1 if begin < end else source[end]
                spans.append((source[begin], last))
            found.append(_pieces(mapped["ids"], spans))
        return found

    def save(self, folder: Path) -> None:
        # No tokenizer_class: transformers would rebuild a BPE model under a class made for unigram.
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "spiece.model").write_bytes(self._model)
        _write_options(folder, {"do_lower_case": self._lowercase}, self._pieces, self._options)


def _pieces(ids: Sequence[int], spans: Sequence[tuple[int, int]]) -> Pieces:
    bounds = np.array(spans, np.int32).reshape(-1, 2)
    return Pieces(np.array(ids, np.int32), bounds[:, 0], bounds[:, 1])


def _with_accents(text: str, pieces: Pieces) -> Pieces:
    """The pieces with the accents behind their letters, which BERT's normalizer has taken off."""
    if text.isascii():
        return pieces
    following = np.append(pieces.starts[1:], len(text))
    ends = pieces.ends.copy()
    for index, (end, limit) in enumerate(zip(ends.tolist(), following.tolist(), strict=False)):
        while end < limit and unicodedata.category(text[end]) == "Mn":
            end += 1
        ends[index] = end
    return pieces._replace(ends=ends)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read_options(folder: Path) -> dict[str, Any]:
    """The special piece names and options beside a vocabulary; tokenizer_config.json goes first."""
    options: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        found = read_object(path, "copy the file again")
        for key, value in found.items():
            role = key.removesuffix("_token")
            content = value.get("content") if isinstance(value, Mapping) else value
            good = isinstance(content, str | None) if role in _ROLES and role != key else True
            if not (good and (key not in _NORMALIZER_OPTIONS or isinstance(value, bool | None))):
                what = f"{key} = {value!r} is not supported"
                raise UserError(what, str(path), "copy the file again")
        options |= found
    return options


def _write_options(
    folder: Path, config: Mapping[str, Any], pieces: Mapping[str, str], options: Mapping[str, Any]
) -> None:
    """Writes tokenizer_config.json and special_tokens_map.json."""
    names = {f"{role}_token": piece for role, piece in pieces.items()}
    kept = {key: options[key] for key in ("model_max_length",) if key in options}
    for name, value in (
        ("special_tokens_map.json", names),
        ("tokenizer_config.json", {**config, **kept, **names}),
    ):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _special_pieces(
    table: Mapping[str, int], options: Mapping[str, Any], source: Path
) -> dict[str, str]:
    """Returns the piece for each role: the configured name, else ``[CLS]``, else ``<cls>``."""
    pieces, missing = {}, []
    for role in _ROLES:
        configured = options.get(f"{role}_token")
        if isinstance(configured, Mapping):
            configured = configured.get("content")
        names = ([configured] if configured else []) + [f"[{role.upper()}]", f"<{role}>"]
        found = next((name for name in names if name in table), None)
        if found is None:
            missing.append(names[0])
        else:
            pieces[role] = found
    if missing:
        raise UserError(
            f"the vocabulary lacks {', '.join(missing)}",
            str(source),
            "use the vocabulary the model was trained with",
        )
    return pieces


def _open_fast(path: Path, options: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Opens a tokenizer.json with tokenizer_config.json's normalising options over its own."""
    state = read_object(path, "copy the file again", _MAX_TOKENIZER)
    try:
        normalizer = state.get("normalizer")
        if normalizer and normalizer.get("type") == "BertNormalizer":
            for key, name in _NORMALIZER_OPTIONS.items():
                if key in options:
                    normalizer[name] = options[key]
        backend = tokenizers.Tokenizer.from_str(json.dumps(state))
        unknown = state["model"].get("unk_token")
        if unknown is not None and unknown not in state["model"]["vocab"]:
            raise ValueError(f"its vocabulary lacks {unknown!r}, which stands for unknown words")
        return backend
    except Exception as error:  # the Rust parser raises bare Exception
        raise UserError(
            f"not a tokenizer file ({error})", str(path), "copy the file again"
        ) from error


def _build_wordpiece(path: Path, options: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Builds BERT's tokenizer (google-research/bert, tokenization.py) from a vocab.txt."""
    try:
        # Not splitlines: multilingual vocabularies hold pieces such as U+2028 and U+0085.
        lines = path.read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 ({error})", str(path), "copy the file again") from error
    if lines[-1] == "":
        lines.pop()
    vocab = {line.removesuffix("\r"): index for index, line in enumerate(lines)}
    pieces = _special_pieces(vocab, options, path)
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(
            vocab,
            unk_token=pieces["unk"],
            max_input_chars_per_word=100,
            continuing_subword_prefix="##",
        )
    )
    backend.normalizer = tokenizers.normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=options.get("tokenize_chinese_chars", True),
        strip_accents=options.get("strip_accents"),
        lowercase=options.get("do_lower_case", True),
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.decoder = tokenizers.decoders.WordPiece(prefix="##")
    backend.add_special_tokens(list(pieces.values()))
    return backend


def check_text(text: Any, where: str) -> None:
    """Raises a UserError unless something is text that can be encoded."""
    if not isinstance(text, str):
        raise UserError(f"a {type(text).__name__} instead of text", where, "give text")
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError as error:
        what = f"not valid Unicode ({error.reason})"
        raise UserError(what, where, "read the file as UTF-8") from error


def _check_texts(texts: Sequence[str]) -> None:
    for index, text in enumerate(texts):
        check_text(text, f"text {index}")
