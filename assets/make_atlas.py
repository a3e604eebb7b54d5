"""Makes assets/atlas.png: the 16 sprites of the embedded world, 14x14 RGBA each, in a 4x4 grid.

Run from the repository root (needs npm and network access, a minute):

    python3 -m venv /tmp/atlas && /tmp/atlas/bin/pip install pillow==11.3.0
    /tmp/atlas/bin/python assets/make_atlas.py

Art: Twemoji (CC-BY 4.0) as packed in npm `emoji-datasource-twitter` 16.0.0, folder img/twitter/64. Each emoji is cropped
to its ink, box-filtered with premultiplied alpha so that its longer side is 14 px, and centered. The order is that of
`Object` in crates/elbow-world/src/object.rs, row by row; a trained model depends on it.
"""

import hashlib
import io
import pathlib
import subprocess
import tarfile
import tempfile

from PIL import Image

PACKAGE = "emoji-datasource-twitter@16.0.0"
SHA256 = "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877"
SIDE = 14
COLUMNS = 4
CODE_POINTS = {
    "airplane": "2708-fe0f",
    "apple": "1f34e",
    "bicycle": "1f6b2",
    "bird": "1f426",
    "boat": "26f5",
    "car": "1f697",
    "carrot": "1f955",
    "cat": "1f431",
    "chair": "1fa91",
    "clock": "23f0",
    "elephant": "1f418",
    "giraffe": "1f992",
    "pizza": "1f355",
    "tv": "1f4fa",
    "umbrella": "2602-fe0f",
    "wine glass": "1f377",
}


def emoji_files() -> dict[str, bytes]:
    """The PNG bytes of each object, from the pinned package."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (archive,) = pathlib.Path(folder).glob("*.tgz")
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        assert digest == SHA256, f"{PACKAGE}: sha256 {digest}, expected {SHA256}"
        with tarfile.open(archive) as tar:
            member = "package/img/twitter/64/{}.png"
            return {name: tar.extractfile(member.format(code)).read() for name, code in CODE_POINTS.items()}


def sprite(png: bytes) -> Image.Image:
    """Crops to the ink and shrinks to 14x14 RGBA, centered."""
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    image = image.crop(image.getchannel("A").point(lambda a: 255 if a > 16 else 0).getbbox())
    scale = SIDE / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    small = image.convert("RGBa").resize(size, Image.Resampling.BOX).convert("RGBA")
    tile = Image.new("RGBA", (SIDE, SIDE))
    tile.paste(small, ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return tile


def main() -> None:
    """Writes the atlas next to this script."""
    files = emoji_files()
    atlas = Image.new("RGBA", (COLUMNS * SIDE, -(-len(files) // COLUMNS) * SIDE))
    for i, png in enumerate(files.values()):
        atlas.paste(sprite(png), (i % COLUMNS * SIDE, i // COLUMNS * SIDE))
    atlas.save(pathlib.Path(__file__).with_name("atlas.png"), optimize=True)


main()
