"""A corpus of random letters, for runs whose text does not matter."""

import random
from pathlib import Path


def corpus_of_letters(folder: Path, lines: int) -> list[str]:
    """The overrides of a run on it, byte by byte. It is written into `folder` the first time."""
    path = folder / "text.txt"
    if not path.exists():
        draw = random.Random(5)
        path.write_text("".join("".join(draw.choices("abcdefgh ", k=60)) + "\n" for _ in range(lines)))
    return ["data=files", f"data.files=[{path}]", "tokenizer=bytes", f"data.cache_dir={folder}/cache"]
