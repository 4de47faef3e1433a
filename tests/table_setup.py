"""What the tests of tables share: a small collection."""

from PIL import Image

from bdg_fast.data.images import bundled_photographs


def make_photos(folder):
    """Eleven small photographs, two of which are copies of two others in JPEG, in two folders."""
    (folder / "more").mkdir()
    for number, path in enumerate(bundled_photographs()[:9]):
        photo = Image.open(path).crop((20, 20, 116, 100 + number))
        photo.save(folder / ("more" if number % 2 else "") / f"{path.stem}.png")
        if number < 2:
            photo.save(folder / f"{path.stem}.jpg", quality=95)
    return folder
