"""The documentation: the site builds and fetches nothing, its pictures and tables are current, its code runs."""

import importlib.util
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bdg_fast import UNet, UNetConfig
from bdg_fast.cli import main
from bdg_fast.data.images import bundled_photographs

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = ("index.md", "concepts.md", *(f"howto/{path.name}" for path in sorted((DOCS / "howto").glob("*.md"))))
BLOCK = re.compile(r'^```(\w*)(?: title="(.*?)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
TINY = [
    "network={width: 8, multipliers: [1]}", "encoder.angles=2", "encoder.scales=[1]", "encoder.width=16",
    "validation.steps=1", "validation.crop=16", "log.tensorboard=false",
    *(f"stages.{name}.{key}" for name in ("generation", "bridging", "restoration") for key in ("steps=1", "crop=16")),
    *(f"stages.{name}.{key}" for name in ("generation", "bridging", "restoration") for key in ("warmup=0", "batch=2")),
]  # fmt: skip


def module(name):
    """One of docs/*.py, which are in no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for name in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(name)
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder))  # a warning is an error
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    return folder


class Fetched(HTMLParser):
    """What a browser gets for a page by itself."""

    def __init__(self, page):
        super().__init__()
        self.found, self.mermaid = [], False
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.mermaid |= "mermaid" in (attributes.get("class") or "")  # drawn by a script from elsewhere
        if tag == "link" and attributes.get("rel") not in ("prev", "next", "canonical"):
            self.found.append(attributes["href"])
        elif tag in ("script", "img", "source", "iframe", "video", "audio", "object"):
            self.found += [attributes[name] for name in ("src", "srcset", "data") if attributes.get(name)]


def test_pages_fetch_nothing_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert {page.relative_to(site).as_posix() for page in pages} >= {name.replace(".md", ".html") for name in PAGES}
    for page in pages:
        fetched = Fetched(page)
        assert fetched.found and not fetched.mermaid
        for address in fetched.found:
            assert not re.match(r"(\w+:)?//", address), (page.name, address)
            if page.name != "404.html":
                assert (page.parent / address.partition("?")[0]).is_file(), (page.name, address)
    for style in site.rglob("*.css"):
        assert not re.search(r"""(url\(|@import)\s*["']?(https?:)?//""", style.read_text(encoding="utf-8")), style.name


def test_the_reference_shows_docstrings(site):
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (site / "reference").glob("*.html")}
    assert 'id="bdg_fast.mas_glcm"' in pages["matrices"]
    assert "Multi-angle multi-scale gray-level co-occurrence matrix" in pages["matrices"]
    for name, page in pages.items():
        for left in (":func:", ":class:", ":data:", ":meth:", "``", "====="):
            assert left not in page, name


def test_measurements_are_those_of_the_results(site):
    page = (site / "performance.html").read_text(encoding="utf-8")
    for path in (ROOT / "benchmarks/results").glob("*.json"):
        assert path.name in page
    assert "<td>0.5543</td>" in page  # a row of a list
    assert "<td>3.287</td>" in page  # one that a name leads to


def test_tables_of_any_results():
    pytest.importorskip("mkdocs")
    hooks = module("hooks")
    content = {
        "device": "A GPU", "versions": {"torch": "2.15"}, "copy_bytes_per_second": 3e12, "left_out": ["c"],
        "glcm": [{"case": "a", "triton": {"ms": 0.123456}, "ratio": None}, {"case": "b", "error": "no | <such>"}],
        "groups": {"one": {"ours": {"median": 2.0}, "theirs": {"median": 4}}},
    }  # fmt: skip
    text = hooks.section("gpu.json", content)
    assert "device: A GPU; copy MB per second: 3,000,000; left out: c; torch: 2.15" in text
    assert "| a | 0.1235 |  |" in text and "| b |  | no \\| &lt;such&gt; |" in text
    assert "### one\n\n|  | median |\n|---|---|\n| ours | 2 |\n| theirs | 4 |" in text


def test_committed_pictures_are_those_that_the_code_draws(tmp_path):
    pytest.importorskip("matplotlib")
    pictures = module("make_pictures")
    pictures.main(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(pictures.PICTURES)
    for made in tmp_path.iterdir():
        committed = DOCS / "images" / made.name
        assert committed.stat().st_size < 150_000
        one, other = (np.asarray(Image.open(path).convert("RGB"), np.float32) for path in (made, committed))
        assert one.shape == other.shape and np.abs(one - other).mean() < 8, made.name  # fonts and colours differ a bit


def test_links_work_where_the_repository_is_shown():
    for page in (ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md")):
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert "://" in link or (page.parent / link).exists(), (page.name, link)


def blocks(page):
    """Language, title and text of a page's blocks of code."""
    return BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What pages speak of: photographs, a scan and its region, a checkpoint, settings."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for path in bundled_photographs()[:4]:
        photo = Image.open(path).crop((60, 60, 124, 108))
        photo.save(f"photos/{path.stem}.png")
    photo.save("photo.jpg")
    photo.convert("L").save("scan.png")
    Image.fromarray(np.pad(np.full((20, 30), 255, np.uint8), ((9, 19), (20, 14)))).save("region.png")
    if importlib.util.find_spec("av"):
        import av

        with av.open("clip.mp4", "w") as file:
            stream = file.add_stream("libx264", rate=25, width=64, height=48, pix_fmt="yuv420p")
            for packet in (*stream.encode(av.VideoFrame.from_image(photo)), *stream.encode(None)):
                file.mux(packet)
    torch.manual_seed(0)
    unet = UNet(UNetConfig(width=8, multipliers=(1,)))
    torch.nn.init.normal_(unet.final.norm1.weight, mean=1)  # so that it counts as trained
    unet.save_pretrained("model")
    Path("configs").symlink_to(ROOT / "configs")
    for _, title, text in blocks("howto/train.md"):
        if title:
            Path(title).write_text(text)


def run(line):
    """A line of a terminal: our command in this process, trained for three steps; others not."""
    words = shlex.split(line, comments=True)
    if "bdg_fast.cli" in words:  # several processes
        words = ["bdg-fast", *words[words.index("bdg_fast.cli") + 1 :], "--check"]
    if words[:1] != ["bdg-fast"]:
        return
    if words[1] == "train" and "--check" not in words:
        words += ["--check"] if "configs/demo.yaml" in words else TINY
    assert main(words[1:]) == 0, line


WRITTEN = {
    "index.md": "restored/cat.png",
    "howto/restore.md": "restored/cat_compare.png",
    "howto/latent.md": "large_compare.png",
    "howto/video.md": "again.mp4",
    "howto/glcm.md": "features.csv",
    "howto/train.md": "runs/mine/network/model.safetensors",
}


@pytest.mark.filterwarnings("ignore:unet is not trained")
@pytest.mark.parametrize("page", PAGES)
def test_code_of_pages_runs(folder, page, capsys):
    if "skimage" in (DOCS / page).read_text(encoding="utf-8"):
        pytest.importorskip("skimage")
    if "howto/train" in page or "multi" in page or "index" in page:
        pytest.importorskip("yaml")
    if "latent" in page:
        pytest.importorskip("diffusers")
        pytest.importorskip("yaml")
    if "video" in page:
        pytest.importorskip("av")
    names = {}
    for language, _, text in blocks(page):
        if language == "python":
            exec(compile(text, page, "exec"), names)
        elif not language:
            for line in text.splitlines():
                run(line)
    assert Path(WRITTEN.get(page, "photos")).exists()
