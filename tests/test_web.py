"""What the web page takes and refuses, and whose files are whose; test_web_browser.py has a browser use it."""

import io
import os
import re
import socket
import sys
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from bdg_fast import Restorer, UNet, UNetConfig
from bdg_fast.cli import main
from bdg_fast.data.images import bundled_photographs
from bdg_fast.web import Limits, serve
from bdg_fast.web.pictures import Refused, open_upload, restored_name, write_png, write_preview
from bdg_fast.web.sessions import Sessions

RNG = np.random.default_rng(0)
PHOTO = bundled_photographs()[0]


def noise(*shape, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max, shape, dtype)


def save(path, image, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize(
    ("name", "image", "told"),
    [
        ("a.png", Image.fromarray(noise(9, 7, 3)), ""),
        ("gray.pgm", Image.fromarray(noise(9, 7)), ""),
        ("deep.png", Image.fromarray(noise(9, 7, dtype=np.uint16)), ""),
        ("clear.webp", Image.fromarray(noise(9, 7, 4)), ""),
        ("palette.gif", Image.fromarray(noise(9, 7)).convert("P"), ""),
        ("inks.jpg", Image.fromarray(noise(9, 7, 3)).convert("CMYK"), "CMYK"),
        ("two.bmp", Image.fromarray(noise(9, 7)).convert("1"), ""),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)
def test_pictures_of_any_kind_are_taken_and_shown(name, image, told, tmp_path):
    opened, notes = open_upload(save(tmp_path / name, image), Limits())
    assert opened.size == (7, 9)
    assert told in " ".join(notes) and bool(told) == bool(notes)
    write_preview(opened, tmp_path / "preview.jpg")
    write_png(opened if opened.mode != "CMYK" else opened.convert("RGB"), tmp_path / "whole.png")
    assert Image.open(tmp_path / "preview.jpg").size == Image.open(tmp_path / "whole.png").size == (7, 9)


def test_an_animation_is_its_first_frame(tmp_path):
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (10, 200)]
    path = save(tmp_path / "moving.webp", frames[0], save_all=True, append_images=frames[1:], lossless=True)
    opened, notes = open_upload(path, Limits())
    assert np.array(opened).max() < 50 and "first" in notes[0]


def test_what_is_shown_is_upright_and_small(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    path = save(tmp_path / "large.jpg", Image.new("RGB", (3000, 1500)), exif=exif)
    opened, _ = open_upload(path, Limits())
    write_preview(opened, tmp_path / "preview.jpg")
    assert Image.open(tmp_path / "preview.jpg").size == (1024, 2048)


def chunk(kind, data):
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def bomb(width, height):
    """A PNG file of a few bytes that claims to have many pixels."""
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def floating():
    file = io.BytesIO()
    Image.fromarray(np.ones((4, 4), np.float32)).save(file, "TIFF")
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"hello", "no picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "no picture"),  # Ghostscript is not run
        (PHOTO.read_bytes()[:9000], "damaged or incomplete"),
        (bomb(6000, 4000), "6000 × 4000 pixels, 24.0 megapixels, where 12 are taken"),
        (bomb(60_000, 60_000), "far too large"),
        (bomb(40, 40), "damaged"),
        (floating(), "floating"),
        (bytes(3 << 20), "too large: at most 2 MB"),
    ],
    ids=["empty", "text", "svg", "eps", "cut", "large", "bomb", "hollow", "floating", "heavy"],
)
def test_bad_uploads_are_told_why(data, message, tmp_path):
    path = tmp_path / "upload.png"
    path.write_bytes(data)
    with pytest.raises(Refused, match=re.escape(message)) as refused:
        open_upload(path, Limits(megabytes=2))
    assert str(tmp_path) not in str(refused.value)  # where files lie is nobody's business


def test_sizes_are_known_before_anything_is_decoded(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", Image.fromarray(noise(90, 70, 3)))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    with pytest.raises(Refused, match="too large"):
        open_upload(path, Limits(megapixels=0.001))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("photo.jpg", "photo_restored.png"),
        ("Ferien am Meer (2).jpeg", "Ferien_am_Meer_2_restored.png"),
        ("zürich.png", "zürich_restored.png"),
        ("../../etc/passwd", "passwd_restored.png"),
        ('";\r\nSet-Cookie: a=b.png', "Set-Cookie_a_b_restored.png"),
        ("....png", "picture_restored.png"),
        ("a" * 300 + ".png", "a" * 48 + "_restored.png"),
    ],
)
def test_names_of_downloads_are_plain(name, expected):
    assert restored_name(name) == expected


def test_limits_are_checked():
    with pytest.raises(ValueError, match="seconds must be positive and finite, got 0"):
        Limits(seconds=0)
    with pytest.raises(ValueError, match="megapixels must be at most 80, got 90"):
        Limits(megapixels=90)


def test_files_belong_to_sessions(tmp_path):
    sessions = Sessions(tmp_path)
    mine, other = sessions.new(), sessions.new()
    made = sessions.new_path(mine, "after.jpg")
    made.write_bytes(b"12345")
    assert sessions.owns(mine, made) and not sessions.owns(other, made)
    assert mine not in str(made)  # an address does not tell the secret
    sent = tmp_path / "deadbeef" / "photo.jpg"
    sent.parent.mkdir()
    sent.write_bytes(b"1")
    assert not sessions.owns(mine, sent)
    sessions.uploaded(mine, sent)
    assert sessions.owns(mine, sent) and not sessions.owns(other, sent)
    assert sessions.owns(mine, made.parent / ".." / made.parent.name / made.name)
    stranger = sessions.new_path(other, "x")
    around = os.path.relpath(stranger, made.parent)
    for path in (made.parent / around, tmp_path, tmp_path.parent, tmp_path / "a\0b", tmp_path / ("a" * 5000)):
        assert not sessions.owns(mine, path), path
    assert sessions.size() == 6


def test_old_files_go(tmp_path):
    sessions = Sessions(tmp_path)
    secret = sessions.new()
    old, new = (sessions.new_path(secret, name) for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"1")
    sessions.uploaded(secret, old)
    for path in (old, old.parent):
        os.utime(path, (time.time() - 100,) * 2)
    sessions.sweep(50)
    assert not old.exists() and new.exists()
    sessions.sweep(-50)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    unet = UNet(UNetConfig(width=8, multipliers=(1, 1)))
    torch.nn.init.normal_(unet.final.norm1.weight, mean=1)  # not fresh
    unet.save_pretrained(folder)
    return folder


@pytest.fixture
def visit(checkpoint, tmp_path):
    """A page, a visitor's request, and a picture that the visitor sent."""
    pytest.importorskip("gradio")
    from bdg_fast.web.guard import COOKIE
    from bdg_fast.web.page import Page

    sessions = Sessions(tmp_path)
    secret = sessions.new()
    request = SimpleNamespace(headers={"cookie": f"{COOKIE}={secret}"}, session_hash="tab")
    picture = save(tmp_path / "my photo.png", Image.fromarray(noise(40, 60, 3)))
    sessions.uploaded(secret, picture)

    def page(analyse=None, **limits):
        return Page(Restorer.from_pretrained(checkpoint, device="cpu"), analyse, sessions, Limits(**limits))

    return SimpleNamespace(page=page, request=request, picture=str(picture), sessions=sessions, secret=secret)


def silent(*_, **__):
    pass


def test_a_picture_is_restored_with_progress(visit, checkpoint):
    seen = []
    told, pictures, download = visit.page().restore(visit.picture, visit.request, lambda now, **_: seen.append(now))
    assert "Restored in" in told and 'role="status"' in told
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    whole = Image.open(download["value"])
    assert whole.format == "PNG" and download["value"].endswith("/my_photo_restored.png")
    restorer = Restorer.from_pretrained(checkpoint, device="cpu")
    assert np.array_equal(np.array(whole), np.array(restorer(Image.open(visit.picture))))
    assert [Image.open(path).size for path in pictures] == [(60, 40)] * 2
    for path in (*pictures, download["value"]):
        assert visit.sessions.owns(visit.secret, Path(path))


def test_jobs_end_at_the_time_limit(visit):
    page = visit.page(seconds=1e-6)
    told, pictures, download = page.restore(visit.picture, visit.request, silent)
    assert "0 of 3 parts were done" in told and 'role="alert"' in told
    assert pictures is None and download["value"] is None


def test_jobs_end_when_they_are_stopped(visit):
    page, other = visit.page(), SimpleNamespace(session_hash="another tab")
    stops = iter([other, visit.request, visit.request, visit.request])
    seen = []

    def progress(now, **_):
        seen.append(now)
        page.stop(next(stops))

    page.begin(visit.request)
    told, pictures, _ = page.restore(visit.picture, visit.request, progress)
    assert "as you asked" in told and pictures is None
    assert seen == [(0, 3), (1, 3)]  # another tab's click changes nothing
    page.end(visit.picture, visit.request)
    page.stop(visit.request)  # nothing is there to be stopped
    page.begin(visit.request)
    assert "Restored" in page.restore(visit.picture, visit.request, silent)[0]
    page.begin(visit.request)
    page.stop(visit.request)  # while it waits for others
    assert "as you asked" in page.restore(visit.picture, visit.request, silent)[0]


def test_files_of_others_are_refused_whatever_a_request_names(visit, tmp_path):
    page = visit.page()
    strange = save(tmp_path / "strange.png", Image.fromarray(noise(8, 8, 3)))
    for path in (str(strange), str(PHOTO), "/etc/passwd", "", None):
        assert "file is gone" in page.look(path, visit.request)[0]
        assert "file is gone" in page.restore(path, visit.request, silent)[0]


def test_a_report_is_told_and_its_failure_stops_nothing(visit):
    kinds = (("noise <b>", 0.75), ("blur", 0.25))
    report = SimpleNamespace(candidates=kinds, summary=lambda: "Noise, sigma 25 & more.")
    told, preview, shown, start, *_ = visit.page(lambda image: report).look(visit.picture, visit.request)
    assert "60 × 40 pixels" in told and preview["visible"] and start["interactive"]
    assert "Noise, sigma 25 &amp; more." in shown["value"] and "75%" in shown["value"]
    assert "noise &lt;b&gt;" in shown["value"] and "<b>" not in shown["value"]

    told, _, shown, start, *_ = visit.page(lambda image: 1 / 0).look(visit.picture, visit.request)
    assert "no report" in shown["value"] and start["interactive"] and "Ready" in told


def test_failures_of_the_network_are_told_without_details(visit, monkeypatch):
    page = visit.page()
    monkeypatch.setattr(page.restorer, "restore", lambda *_: 1 / 0)
    told, *_ = page.restore(visit.picture, visit.request, silent)
    assert "could not be restored" in told and "division" not in told


def test_bad_arguments_are_named(capsys, checkpoint, monkeypatch):
    pytest.importorskip("gradio")
    assert main(["demo", "--web", "--checkpoint", str(checkpoint / "none")]) == 2
    assert main(["demo", str(PHOTO), "--web", "--checkpoint", str(checkpoint)]) == 2
    assert "IMAGE goes without --web" in capsys.readouterr().err
    assert main(["demo", "--web", "--checkpoint", str(checkpoint), "--time-limit", "0"]) == 2
    assert "--time-limit must be positive and finite, got 0" in capsys.readouterr().err
    assert main(["demo", "--web", "--checkpoint", str(checkpoint), "--port", "99999"]) == 2
    assert "port must be between 0 and 65535, got 99999" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["demo", "--web", "--checkpoint", str(checkpoint), "--port", port]) == 2
        assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'bdg-fast[web]'")):
        serve(None)
