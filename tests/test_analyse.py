"""Reports: what they say of photographs that nothing was learned from, of any type and size, and of strange inputs."""

import io
import json
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from bdg_fast import fingerprint
from bdg_fast.analysis import KINDS, UNITS, Analyser, Report, plot_report
from bdg_fast.analysis.analyser import SHIPPED, matrices_of, project, windows_of
from bdg_fast.data.degrade import RANGES, degrade
from bdg_fast.data.images import as_unit_rgb, bundled_photographs, read_image
from bdg_fast.texture import PROPS
from benchmarks.analysis_scores import table_of_fixed

FLOOR, KIND_FLOOR, LEVEL_CEILING = 0.85, 0.8, 0.15
"""Of accuracy over all and within a kind but clean, and of the levels' mean error as a share of the range."""
PHOTOGRAPHS = [as_unit_rgb(read_image(path)) for path in bundled_photographs()]


@pytest.fixture(scope="module")
def analyser() -> Analyser:
    return Analyser.from_pretrained()


def degraded(photograph: torch.Tensor, kind: str, share: float, seed: int = 0) -> torch.Tensor:
    """As 8 bits hold it, uint8 `[3, H, W]`."""
    low, high = RANGES[kind]
    out = degrade(photograph[None], kind, low + share * (high - low), torch.tensor([seed]))
    return out[0].mul(255).round().to(torch.uint8)


@pytest.fixture(scope="module")
def reports(analyser) -> list[tuple[str, float, Report]]:
    """Kind, share of the level's range and report of every bundled photograph in every kind."""
    return [
        (kind, share, analyser(degraded(photograph, kind, share, place)))
        for place, (photograph, share) in enumerate(zip(PHOTOGRAPHS, 4 * (0.2, 0.5, 0.8), strict=False))
        for kind in KINDS
    ]


def test_kinds_are_found(reports):
    right = [report.kind == kind for kind, _, report in reports]
    assert sum(right) / len(right) >= FLOOR
    for kind in KINDS[1:]:
        own = [report.kind == kind for name, _, report in reports if name == kind]
        assert sum(own) / len(own) >= KIND_FLOOR, kind


def test_levels_are_found(reports):
    errors = []
    for kind, share, report in reports:
        assert (report.level is None) == (report.kind not in UNITS)
        if report.kind == kind and report.level is not None:
            low, high = RANGES[kind]
            assert low <= report.level <= high
            errors.append(abs((report.level - low) / (high - low) - share))
    assert np.mean(errors) <= LEVEL_CEILING


def test_known_pictures_are_seldom_unknown(reports):
    assert sum(report.kind == "unknown" for _, _, report in reports) <= 0.05 * len(reports)


def test_confidence_is_as_often_right(reports):
    told = [(report.confidence, report.kind == kind) for kind, _, report in reports if report.kind != "unknown"]
    assert abs(np.mean([confidence for confidence, _ in told]) - np.mean([right for _, right in told])) <= 0.08


def test_report_is_consistent(reports):
    for _, _, report in reports:
        kinds, shares = zip(*report.candidates, strict=True)
        assert sorted(kinds) == sorted(KINDS)
        assert list(shares) == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1)
        assert 0 <= report.confidence <= 1
        assert (report.kind == "unknown") == (report.distance > report.threshold)
        assert report.unit == UNITS.get(report.kind, "")
        assert list(report.features) == [*PROPS, *(f"residual_{name}" for name in PROPS)]


def test_report_is_frozen_and_json(reports):
    _, _, report = reports[3]
    with pytest.raises(FrozenInstanceError):
        report.kind = "clean"
    plain = json.loads(json.dumps(report.as_dict()))
    assert plain["kind"] == report.kind
    assert plain["candidates"][0] == {"kind": report.candidates[0][0], "probability": report.candidates[0][1]}
    assert plain["features"] == report.features


def test_strange_pictures_are_unknown(analyser):
    rng = np.random.default_rng(0)
    chess = np.kron(np.indices((16, 16)).sum(0) % 2, np.ones((16, 16))).astype(np.uint8) * 255
    noise = rng.integers(0, 2, (256, 256), np.uint8) * 255
    flat = np.full((100, 120, 3), 99, np.uint8)
    for image in (chess, noise, flat):
        report = analyser(image)
        assert report.kind == "unknown"
        assert report.level is None
        assert "Unlike" in report.summary()


def test_types_of_image_agree(analyser, tmp_path):
    pixels = degraded(PHOTOGRAPHS[0], "noise", 0.5)
    array = pixels.permute(1, 2, 0).numpy()
    file = tmp_path / "noise.png"
    Image.fromarray(array).save(file)
    expected = analyser(pixels)
    alpha = np.concatenate((array, np.full_like(array[:, :, :1], 7)), 2)
    # what floating pixels have below 8 bits does not count
    floating = (array.astype(np.float32) + 0.2) / 255
    for image in (array, Image.fromarray(array), file, pixels[None], alpha, floating, array.astype(np.uint16) * 257):
        assert analyser(image) == expected


def test_a_report_rests_on_the_public_fingerprint(analyser):
    pixels = degraded(PHOTOGRAPHS[2], "blur", 0.5)
    gray, residual = analyser.matrices(pixels)
    joined = torch.cat([0.15 * torch.nn.functional.normalize(gray.flatten() ** 0.25, dim=0),
                        torch.nn.functional.normalize(residual.flatten() ** 0.25, dim=0)])  # fmt: skip
    assert torch.allclose(joined, fingerprint(pixels[None])[0], atol=1e-6)


@pytest.mark.parametrize("shape", [(32, 32), (64, 200), (200, 40), (700, 900), (3000, 400), (90, 9000)])
def test_any_size(analyser, shape):
    image = np.random.default_rng(0).integers(0, 2, shape, np.uint8) * 255
    assert analyser(image).kind == "unknown"


@pytest.mark.parametrize(
    ("shape", "windows"), [((768, 768), 1), ((769, 768), 9), ((700, 2000), 10), ((2000, 700), 10), ((100, 9000), 28)]
)
def test_windows_spread_over_large_pictures(shape, windows):
    image = torch.arange(shape[0] * shape[1]).view(1, *shape)
    found = windows_of(image)
    assert len(found) == windows
    if windows > 1:
        assert found.shape[2:] == (min(shape[0], 256), 256)
        # symmetric about the middle, but for a row or column where sides do not divide
        assert abs(float(found.double().mean()) - float(image.double().mean())) < shape[1]


def test_several_shapes_of_one_photograph_agree(analyser):
    """A larger picture (here of mirrored copies) is told like the photograph."""
    photograph = PHOTOGRAPHS[6]
    wide = torch.cat((photograph, photograph.flip(2), photograph, photograph.flip(2)), 2)
    large = torch.cat((wide, wide.flip(1), wide), 1)  # 768 x 1024: windows
    for kind in ("noise", "jpeg", "lowlight"):
        found = [analyser(degraded(image, kind, 0.6)) for image in (photograph, photograph[:, :150], wide, large)]
        assert {report.kind for report in found} == {kind}
        low, high = RANGES[kind]
        assert np.ptp([report.level for report in found]) < 0.15 * (high - low)


@pytest.mark.parametrize(
    ("image", "error", "told"),
    [
        (np.zeros((31, 200, 3), np.uint8), ValueError, "at least 32 x 32 pixels, got 200 x 31"),
        (torch.zeros(2, 3, 64, 64), ValueError, "one picture, got a batch of 2"),
        (np.zeros((64, 64, 3), np.int64), TypeError, "uint8, uint16 or floating"),
        (7, TypeError, "image must be"),
    ],
)
def test_bad_images_are_refused(analyser, image, error, told):
    with pytest.raises(error, match=told):
        analyser(image)


def test_only_an_index_is_loaded(tmp_path):
    with pytest.raises(FileNotFoundError, match="path must name"):
        Analyser.from_pretrained(tmp_path / "missing.safetensors")
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, other)
    with pytest.raises(ValueError, match="must be an index"):
        Analyser.from_pretrained(other)
    other.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="must be a safetensors file"):
        Analyser.from_pretrained(other)
    tensors = load_file(SHIPPED)
    settings = {"kinds": list(KINDS), "thresholds": [1] * len(KINDS), "temperature": 1}
    with pytest.raises(ValueError, match="'mean'"):
        Analyser({name: value for name, value in tensors.items() if name != "mean"}, settings)
    with pytest.raises(ValueError, match="network"):
        Analyser({name: value for name, value in tensors.items() if not name.startswith("network.kind")}, settings)
    with pytest.raises(ValueError, match="fit together"):
        Analyser({**tensors, "index": tensors["index"][:, 1:]}, settings)
    with pytest.raises(ValueError, match="kinds"):
        Analyser(tensors, {**settings, "kinds": ["clean"]})


def test_shipped_files_are_small_and_say_what_they_are():
    files = list(SHIPPED.parent.iterdir())
    assert {file.name for file in files} == {"README.md", SHIPPED.name}
    assert sum(file.stat().st_size for file in files) <= 1_000_000


def test_fixed_inputs_give_what_the_card_says(analyser):
    card = (SHIPPED.parent / "README.md").read_text(encoding="utf-8")
    expected, found = ([row.split(" | ") for row in text.splitlines() if row.startswith("| ")]
                       for text in (card[card.index("| photograph |") :], table_of_fixed(analyser)))  # fmt: skip
    assert len(found) == 17
    for then, now in zip(expected, found, strict=True):
        assert now[:3] == then[:3]
        for a, b in zip(now[3:], then[3:], strict=True):
            assert a == b or float(a.rstrip(" |")) == pytest.approx(float(b.rstrip(" |")), rel=0.02, abs=0.02)


def test_projection_keeps_distances_short():
    torch.manual_seed(0)
    a, b = torch.rand(2, 20, 50)
    axes = torch.linalg.qr(torch.rand(50, 5)).Q
    projected = torch.cdist(project(a, torch.zeros(50), axes), project(b, torch.zeros(50), axes))
    assert (projected <= torch.cdist(a, b) + 1e-5).all()


@pytest.mark.parametrize("share", [0.5, None])
def test_report_is_drawn(analyser, tmp_path, share):
    pytest.importorskip("matplotlib")
    image = (
        degraded(PHOTOGRAPHS[0], "rain", share) if share else torch.randint(0, 256, (3, 900, 900), dtype=torch.uint8)
    )
    report = analyser(image)
    file = tmp_path / "report.png"
    plot_report(image, report, file)
    memory = io.BytesIO()
    plot_report(image, report, memory, matrices=matrices_of(image))
    with Image.open(file) as drawn, Image.open(memory) as again:
        assert drawn.size == again.size
        assert np.array_equal(np.array(drawn), np.array(again))
        assert np.array(drawn.convert("L")).std() > 10
