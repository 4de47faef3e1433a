"""What a search finds in a table of fingerprints: nearest rows and near pairs, by all backends alike."""

import importlib.util
import sys

import pytest
import torch

from bdg_fast.cli import main
from bdg_fast.table import Settings, Table, build, duplicates, nearest
from bdg_fast.table.parts import read_column
from bdg_fast.table.search import Exact, Tree, index_of
from table_setup import make_photos


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def table(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables") / "table"
    build([photos], folder, Settings(per_part=4, analyse=True))
    return Table(folder)


def test_search_finds_the_image_itself_first(photos, table, tmp_path, capsys):
    photo = sorted(photos.glob("*.png"))[1]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no")
    assert main(["search", str(table.folder), str(photo), str(broken), "--top", "2"]) == 1
    told = capsys.readouterr()
    header, first, second = told.out.splitlines()
    assert header.split() == ["image", "distance", "key", "kind", "level"]
    assert first.split()[:3] == [str(photo), "0.0000", str(photo)]
    assert float(second.split()[1]) > 0
    assert "broken.png" in told.err
    output = tmp_path / "near.csv"
    assert main(["search", str(table.folder), str(photo), "--threshold", "0.01", "--output", str(output)]) == 0
    assert [line.split(",")[0] for line in output.read_text().splitlines()] == ["image", str(photo)]


TREE = pytest.param("tree", marks=pytest.mark.skipif(not importlib.util.find_spec("scipy"), reason="needs scipy"))


@pytest.mark.parametrize("backend", ["exact", TREE])
@pytest.mark.parametrize("block", [3, 4096])
def test_exact_distances_are_those_of_all_rows(table, block, backend, monkeypatch):
    monkeypatch.setattr("bdg_fast.table.search.BLOCK", block)
    rows = torch.cat([*table.vectors()])
    queries = rows[:5] + 0.01
    distances, found = nearest(table, queries, 100, backend=backend)
    expected = torch.cdist(queries.double(), rows.double()).sort(1)
    assert torch.equal(found, expected.indices)
    assert torch.allclose(distances, expected.values.float(), atol=1e-6)
    itself, _ = nearest(table, rows, 1, backend=backend)
    assert itself.max() < 1e-6


@pytest.mark.parametrize("backend", ["exact", TREE])
@pytest.mark.parametrize("block", [3, 4096])
def test_pairs_are_those_below_the_threshold(table, block, backend, monkeypatch, capsys):
    monkeypatch.setattr("bdg_fast.table.search.BLOCK", block)
    rows = torch.cat([*table.vectors()]).double()
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    pairs = duplicates(table, 0.4, 10, backend=backend)
    assert {pair[1:] for pair in pairs} == {
        (a, b) for a in range(11) for b in range(a + 1, 11) if distances[a, b] <= 0.4
    }
    assert 5 < len(pairs) < 55
    assert pairs == sorted(pairs)
    assert all(pair.distance == pytest.approx(distances[pair[1:]].item(), abs=1e-6) for pair in pairs)
    assert len(duplicates(table, 10.0, 1, backend=backend)) < 11  # a neighbour of each
    assert main(["search", str(table.folder), "--duplicates", "--threshold", "0", "--backend", backend]) == 0
    assert "nothing is that near" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere", "--duplicates"], "is no table"),
        (["table"], "either IMAGE or --duplicates"),
        (["table", "--duplicates", "--threshold", "-1"], "threshold must be at least 0"),
        (["table", "--duplicates", "--top", "0"], "count must be at least 1"),
    ],
)
def test_bad_searches(table, words, told, capsys):
    assert main(["search", *(str(table.folder) if word == "table" else word for word in words)]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["exact", TREE])
def test_bad_queries_are_named(table, backend):
    rows = torch.cat([*table.vectors()])
    for queries, told in (
        (rows[0], r"queries must have shape \[Q, 2048\], got \[2048\]"),
        (rows[:2, :33], r"queries must have shape \[Q, 2048\], got \[2, 33\]"),
        (rows[:2] * torch.nan, "queries must be finite"),
    ):
        with pytest.raises(ValueError, match=told):
            nearest(table, queries, 3, backend=backend)
    distances, found = nearest(table, rows[:0], 3, backend=backend)
    assert distances.shape == found.shape == (0, 3)
    nearest(table, rows[:2], 3, backend=backend)[0].clamp_(max=1)  # plain tensors, not of inference alone


def test_bad_rows_and_columns_are_named(table):
    for row in (-1, 11):
        with pytest.raises(IndexError, match=rf"rows must be in 0\.\.10, got {row}"):
            table.column("key", [0, row])
    with pytest.raises(ValueError, match=r"name must be one of key, width, height, kind, level, confidence, got 'kin'"):
        table.column("kin", [0])


def test_pairs_of_a_large_table_are_named_a_block_at_a_time(table, tmp_path, monkeypatch):
    monkeypatch.setattr("bdg_fast.cli.search.TOGETHER", 4)
    command = ["search", str(table.folder), "--duplicates", "--threshold", "0.4", "--output"]
    assert main([*command, str(tmp_path / "pairs.csv")]) == 0
    lines = [line.split(",") for line in (tmp_path / "pairs.csv").read_text().splitlines()]
    assert lines[0] == ["distance", "first", "second"]
    pairs = duplicates(table, 0.4)
    assert len(pairs) > 4
    assert lines[1:] == [[f"{p.distance:.4f}", *table.column("key", [p.first, p.second])] for p in pairs]


def test_a_backend_or_format_without_its_package_says_what_to_install(photos, table, tmp_path, monkeypatch, capsys):
    for name in ("faiss", "scipy.spatial", "pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    for backend in ("tree", "faiss"):
        assert main(["search", str(table.folder), "--duplicates", "--backend", backend]) == 2
        told = capsys.readouterr().err
        assert f"backend '{backend}' needs" in told
        assert "pip install 'bdg-fast[table]'" in told
    assert main(["fingerprints", str(photos), "--output", str(tmp_path / "table.parquet")]) == 2
    assert "pip install 'bdg-fast[table]'" in capsys.readouterr().err
    assert not (tmp_path / "table.parquet").exists()
    monkeypatch.setattr("bdg_fast.table.search.EXACT", 0)
    assert duplicates(table, 0.5)  # auto goes on without


@pytest.mark.parametrize("backend", ["exact", TREE])
def test_images_that_are_the_same_are_pairs_at_distance_0(photos, tmp_path, backend):
    photo = min(photos.glob("*.png"))
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(photo.read_bytes())
    build([tmp_path], tmp_path / "table", Settings(project=True))
    pairs = duplicates(Table(tmp_path / "table"), 0.0, backend=backend)
    assert [pair[1:] for pair in pairs] == [(0, 1), (0, 2), (1, 2)]
    assert {pair.distance for pair in pairs} == {0.0}


def test_auto_takes_the_tree_for_many_pairs_of_projected_rows_alone(photos, table, tmp_path, monkeypatch):
    pytest.importorskip("scipy")
    monkeypatch.setattr("bdg_fast.table.search.TREE", 100)
    build([photos], tmp_path / "table", Settings(project=True))
    narrow = Table(tmp_path / "table")
    assert isinstance(index_of(narrow, queries=11), Tree)
    assert isinstance(index_of(narrow, queries=9), Exact)
    assert isinstance(index_of(table, queries=11), Exact)


def test_the_approximate_index_finds_what_is_nearest(tmp_path, photos, monkeypatch):
    pytest.importorskip("faiss")
    build([photos], tmp_path / "one", Settings(per_part=11))
    part = next((tmp_path / "one").glob("part-*"))
    table = Table(tmp_path / "one")
    base = read_column(part, "fingerprint")
    torch.manual_seed(0)
    many = (base.repeat(40, 1) + 0.02 * torch.randn(440, base.shape[1])).half().float()
    monkeypatch.setattr(Table, "vectors", lambda self: iter(many.split(100)))
    monkeypatch.setattr(Table, "__len__", lambda self: len(many))
    exact, wanted = nearest(table, many, 5, backend="exact")
    near, found = nearest(table, many, 5, backend="faiss")
    recall = (wanted[:, :, None] == found[:, None]).any(2).double().mean()
    assert recall > 0.95
    assert torch.allclose(near[:, 0], exact[:, 0], atol=1e-3)
