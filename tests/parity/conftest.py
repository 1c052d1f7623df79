import json
import random

import pytest


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> list[str]:
    """Overrides for a corpus of short documents, of which several fall into one sequence."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(7)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(1, 6))) for _ in range(60)]
    texts = [" ".join(draw.choices(words, k=draw.randint(1, 12))) for _ in range(900)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return ["data=files", f"data.files=[{folder}/text.jsonl]", f"data.cache_dir={folder}/cache", "tokenizer=bytes"]
