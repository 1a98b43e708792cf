"""The picture in the README: the same held-out prompts and noise, before and after RL.

One prompt of a tag, two of the large ones: the first whose drawing was wrong before. A drawing that
is still wrong afterwards stays in. Right drawings carry a filled dot, wrong ones an open one.

    python benchmarks/demo_picture.py [runs/demo] [docs/images/demo.png]
"""

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

SIDE, GAP, LEFT, TEXT = 128, 14, 70, 54
INK, PAPER = (40, 40, 46), (255, 255, 255)


def rows(run: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "samples" / name / "samples.jsonl").open()]


def chosen(before: list[dict[str, Any]]) -> list[int]:
    picked: list[int] = []
    for tag in dict.fromkeys(row["tag"] for row in before):
        wrong = [i for i, row in enumerate(before) if row["tag"] == tag and not row["correct"]]
        picked += wrong[:2] if tag in ("position", "color_attr") else wrong[:1]
    return picked


def main() -> None:
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    out = Path(sys.argv[2] if len(sys.argv) > 2 else "docs/images/demo.png")
    sets = {name: rows(run, name) for name in ("before", "after")}
    picked = chosen(sets["before"])
    width = LEFT + len(picked) * (SIDE + GAP)
    page = Image.new("RGB", (width, 2 * (SIDE + GAP) + TEXT), PAPER)
    draw = ImageDraw.Draw(page)
    label, small = ImageFont.load_default(17), ImageFont.load_default(13)
    for line, (name, found) in enumerate(sets.items()):
        top = GAP // 2 + line * (SIDE + GAP)
        draw.text((4, top + SIDE // 2 - 10), name, INK, label)
        for column, i in enumerate(picked):
            left = LEFT + column * (SIDE + GAP)
            picture = Image.open(run / "samples" / name / found[i]["file"])
            page.paste(picture.resize((SIDE, SIDE), Image.Resampling.NEAREST), (left, top))
            draw.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), outline=(200, 200, 205))
            dot = (left + SIDE - 14, top + 5, left + SIDE - 5, top + 14)
            draw.ellipse(dot, fill=INK if found[i]["correct"] else PAPER, outline=INK, width=2)
    for column, i in enumerate(picked):
        words = textwrap.fill(sets["before"][i]["prompt"].removeprefix("a photo of "), 19)
        draw.multiline_text((LEFT + column * (SIDE + GAP), 2 * (SIDE + GAP)), words, INK, small)
    out.parent.mkdir(parents=True, exist_ok=True)
    page.save(out)
    print(out)


if __name__ == "__main__":
    main()
