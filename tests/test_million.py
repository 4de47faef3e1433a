"""The collection of the benchmark of large tables: what its names tell is what its images are."""

import io
import tarfile

import numpy as np
from PIL import Image

from bdg_fast.data.images import bundled_photographs
from benchmarks import million_data
from benchmarks.million_data import BEFORE, CHANGES, Name, is_copy, make_collection


def test_copies_are_of_the_image_that_their_number_tells(tmp_path, monkeypatch):
    monkeypatch.setattr(million_data, "PER_SHARD", 200)
    assert make_collection(tmp_path, bundled_photographs()[:3], 400) == 2
    found, broken = {}, []
    for path in sorted(tmp_path.iterdir()):
        with tarfile.open(path) as tar:
            for member in tar:
                data = tar.extractfile(member).read()
                if member.name.startswith("broken"):
                    broken.append(data)
                else:
                    found[Name.of(f"{path}/{member.name}")] = np.array(Image.open(io.BytesIO(data)))
    assert [name.number for name in found] == list(range(400))
    assert len(broken) == 2
    by_number = {name.number: (name, pixels) for name, pixels in found.items()}
    for name, pixels in found.items():
        assert (name.change is not None) == is_copy(name.number)
        if name.change:
            original, shown = by_number[name.number - BEFORE]
            assert (original.photograph, original.kind) == (name.photograph, name.kind)
            change = CHANGES[name.change](Image.fromarray(shown))
            # both were compressed once more
            assert np.abs(np.array(change.convert("RGB"), float) - pixels).mean() < 4
    first = min(tmp_path.iterdir()).read_bytes()
    min(tmp_path.iterdir()).unlink()
    make_collection(tmp_path, bundled_photographs()[:3], 400)
    assert min(tmp_path.iterdir()).read_bytes() == first
