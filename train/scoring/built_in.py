"""Tasks that need no download: questions about source code, made from the held-out text of a run by a seeded generator.

brackets      which bracket closes what was opened at least twenty characters earlier: ) ] or }
indentation   how far the next line is indented, where no block begins
imports       which name is imported from a module
names         which function a docstring describes

Two runs with the same held-out text get the same questions, whatever their seeds and layouts.
"""

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice, zip_longest

from common.errors import UserError
from train.data.shards import Shards
from train.scoring.tasks import Question, Task, read_tasks

QUESTIONS = 200
"""Questions of a task, at most."""

_FEWEST = 20  # with fewer, the standard error is above a tenth
_MOST_DOCUMENTS = 400
_MOST_TOKENS = 8192
_CONTEXT_CHARACTERS = 400
_FEWEST_BETWEEN = 20
_CLOSING = {"(": ")", "[": "]", "{": "}"}

_STRING_OR_COMMENT = re.compile(
    r"(?P<quotes>\"\"\"|''').*?(?:(?P=quotes)|\Z)|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|#[^\n]*", re.DOTALL
)
_IMPORT = re.compile(r"^ *from ([\w.]+) import (\w{3,})((?:, \w+)*)$", re.MULTILINE)
_DOCUMENTED = re.compile(r"^ *def ([a-z]\w{3,})\([^)]*\)[^:\n]*:\n +\"\"\"([A-Z][^\n\"]{15,200}?)(?:\n|\"\"\")", re.MULTILINE)

Found = tuple[str, Question]
"""A question and its kind: a task has equally many of each kind, so that no choice is better than the others by itself."""


def make_tasks(names: Sequence[str], shards: Shards) -> list[Task]:
    """Every task of `eval.tasks`, files and built-in ones.

    Raises:
        UserError: as `read_tasks` does, or the held-out text has too few questions of a kind.
    """
    from_files = read_tasks(task_files(names))
    built_in = [name for name in names if name in BUILT_IN]
    texts = _held_out(shards) if built_in else []
    tasks = [*from_files, *(make_task(name, texts) for name in built_in)]
    if len({task.name for task in tasks}) < len(tasks):
        raise UserError(f"eval.tasks: two tasks have one name among {', '.join(task.name for task in tasks)}; rename a file")
    return tasks


def task_files(names: Iterable[str]) -> list[str]:
    """Those of `eval.tasks` that are files."""
    return [name for name in names if name not in BUILT_IN]


def make_task(name: str, texts: Sequence[str]) -> Task:
    """A built-in task from texts.

    Raises:
        UserError: they have too few questions.
    """
    generator = random.Random(f"foretrain {name}")  # a text as a seed is hashed by SHA-512, the same on every machine
    kinds: dict[str, list[list[Question]]] = defaultdict(list)
    for found in BUILT_IN[name](texts, generator):
        of_text: dict[str, list[Question]] = defaultdict(list)
        for kind, question in found:
            of_text[kind].append(question)
        for kind, of_kind in of_text.items():
            kinds[kind].append(generator.sample(of_kind, len(of_kind)))
    # One question of each text, then a second, ...
    drawn = [[*_in_turns(kinds[kind])] for kind in sorted(kinds)]
    fewest = min((len(of_kind) for of_kind in drawn), default=0)
    questions = tuple(islice(_in_turns(of_kind[:fewest] for of_kind in drawn), QUESTIONS))
    if len(questions) < _FEWEST:
        raise UserError(
            f"eval.tasks: the held-out text has {len(questions)} questions for '{name}', {_FEWEST} are needed; it asks about "
            "Python code: type eval.tasks=[] or files of questions, or raise data.validation_fraction"
        )
    return Task(name, questions)


def _in_turns(lists: Iterable[list[Question]]) -> Iterator[Question]:
    return (question for turn in zip_longest(*lists) for question in turn if question is not None)


def _held_out(shards: Shards) -> list[str]:
    """The beginnings of the validation set's documents, of a random choice of them where there are many."""
    stream, tokenizer = shards.validation, shards.tokenizer()
    starts, ends = stream.documents_between(0, stream.documents)
    numbers = random.Random("foretrain documents").sample(range(len(starts)), min(len(starts), _MOST_DOCUMENTS))
    texts = []
    for number in numbers:
        start, end = int(starts[number]), int(ends[number]) - 1  # without the end-of-text token
        tokens = stream.read(start, min(end, start + _MOST_TOKENS)).tolist()
        # A character that the cut has divided decodes to U+FFFD.
        texts.append(tokenizer.decode(tokens, skip_special_tokens=False).rstrip("\N{REPLACEMENT CHARACTER}"))
    return texts


def _brackets(texts: Sequence[str], generator: random.Random) -> Iterator[list[Found]]:
    for text in texts:
        code, opened, found = _code(text), list[int](), list[Found]()
        for match in re.finditer(r"[()\[\]{}]", code):
            if match[0] in _CLOSING:
                opened.append(match.start())
            elif not opened or _CLOSING[code[opened[-1]]] != match[0]:
                opened.clear()  # the text is no Python here
            else:
                between = match.start() - opened.pop()
                if _FEWEST_BETWEEN <= between < _CONTEXT_CHARACTERS:
                    found.append((match[0], _question(text, match.start(), match[0], list(")]}"), generator)))
        yield found


def _indentation(texts: Sequence[str], generator: random.Random) -> Iterator[list[Found]]:
    """Half of the lines are indented as the one before, half less."""
    for text in texts:
        found: list[Found] = []
        before, depth, position = 0, 0, 0
        opens_block = True  # a text that begins inside a block has no line before its first
        for line, code in zip(text.split("\n"), _code(text).split("\n"), strict=True):
            content = line.lstrip(" ")
            indent = len(line) - len(content)
            if code.strip() and depth == 0:
                if not opens_block and before >= 4 and indent in {before, before - 4, before - 8}:
                    choices = [" " * width + content for width in (before, before - 4, before - 8) if width >= 0]
                    kind = "same" if indent == before else "less"
                    found.append((kind, _question(text, position, line, choices, generator)))
                before, opens_block = indent, code.rstrip().endswith(":")
            depth = max(0, depth + len(re.findall(r"[(\[{]", code)) - len(re.findall(r"[)\]}]", code)))
            opens_block = opens_block or (depth == 0 and code.rstrip().endswith(":"))
            position += len(line) + 1
        yield found


def _imports(texts: Sequence[str], generator: random.Random) -> Iterator[list[Found]]:
    """Of several names the first. The wrong choices are names that the texts import from other modules."""
    of_module: dict[str, set[str]] = defaultdict(set)
    for text in texts:
        for match in _IMPORT.finditer(text):
            of_module[match[1]].update([match[2], *match[3].split(", ")[1:]])
    names = sorted(set(chain.from_iterable(of_module.values())))
    for text in texts:
        found = []
        for match in _IMPORT.finditer(text):
            others = [name for name in names if name not in of_module[match[1]]]
            if len(others) >= 3:
                choices = [match[2], *generator.sample(others, 3)]
                found.append(("", _question(text, match.start(2), match[2], choices, generator)))
        yield found


def _names(texts: Sequence[str], generator: random.Random) -> Iterator[list[Found]]:
    """The docstring's first line stands before the name, as a comment. The wrong choices are other functions' names."""
    names = sorted({match[1] for text in texts for match in _DOCUMENTED.finditer(text)})
    for text in texts:
        found = []
        for match in _DOCUMENTED.finditer(text):
            others = [name for name in names if name != match[1]]
            if len(others) >= 3:
                before = f"# {match[2].strip()}\ndef "
                choices = [f"{name}(" for name in [match[1], *generator.sample(others, 3)]]
                found.append(("", _question(before, len(before), f"{match[1]}(", choices, generator)))
        yield found


BUILT_IN: dict[str, Callable[[Sequence[str], random.Random], Iterator[list[Found]]]] = {
    "brackets": _brackets,
    "indentation": _indentation,
    "imports": _imports,
    "names": _names,
}
"""For every built-in task, what finds the questions of each text."""


def _question(text: str, position: int, right: str, choices: list[str], generator: random.Random) -> Question:
    """What stands before `position`, from the beginning of a line, and the choices in random order."""
    start = max(0, position - _CONTEXT_CHARACTERS)
    if start:
        start = min(text.find("\n", start) + 1 or start, position)
    shuffled = generator.sample(choices, len(choices))
    return Question(text[start:position], tuple(shuffled), shuffled.index(right))


def _code(text: str) -> str:
    """The text with blanks instead of strings and comments, character by character."""
    return _STRING_OR_COMMENT.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
