"""The logs that benchmarks/weights.py weighs, and the weight that every row of them must get.

python weights_data.py KIND ROWS FOLDER     KIND is one of KINDS; each file is made once and kept

A wide row is a trajectory as people keep it, `messages` and all (one key a line here, and shortened):

    {"prompt_id": "5d41…64 hex", "round": 1, "policy": "9a8c…64 hex", "sample": 7, "correct": 1,
     "length": 2, "unique": 2, "messages": [{"role": "user", "content": "…"}, …]}

A narrow row has only what weights need: prompt_id, correct, length, unique. Everything is a function of a
seed and the row's number, so any size is made in pieces, and only the order of rows is held; groups are
consecutive numbers, so the weight of a row is known without grouping anything. Suffix legend: N rows,
G groups of K rows.
"""

from __future__ import annotations

import functools
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

KINDS = ("wide-parquet", "wide-jsonl", "narrow-contiguous", "narrow-shuffled")
K = 16
SEED = 2605
BETA, GAMMA, LAM = 0.1, 0.9, 0.5
MAX_TURNS = 5
ROUNDS = 2
"""Each prompt of the wide log is sampled in this many rounds, by another policy in each."""
NEARBY = 256
"""A wide row stands within this many places of its group: workers finish in about the order they began."""
WIDE_ROW_GROUP = 20_000
"""About 60 MB before compression."""
CHUNK = 1 << 20
FEEDBACK = "Your previous answer is wrong. Look for the mistake, and try again."

Columns = dict[str, NDArray[Any]]


def source_file(folder: Path, kind: str, rows: int) -> Path:
    """Where a log lies; its true weights lie beside it, in the order of its rows."""
    return folder / f"{kind}-{rows}.{'jsonl' if kind == 'wide-jsonl' else 'parquet'}"


def truth_file(source: Path) -> Path:
    """The weights of `source`, a float64 a row."""
    return source.with_suffix(".npy")


def make(kind: str, rows: int, folder: Path) -> Path:
    """Make a log and its weights unless they are there; whole groups only."""
    if rows < 1 or rows % K:
        raise ValueError(f"rows must be a multiple of {K} (whole groups), got {rows}")
    source = source_file(folder, kind, rows)
    if source.is_file():
        return source
    folder.mkdir(parents=True, exist_ok=True)
    order_N = _order(kind, rows)
    np.save(truth_file(source), true_weights(rows)[order_N])
    scratch = source.with_suffix(".making")
    if kind == "wide-jsonl":
        _write_jsonl(scratch, order_N)
    else:
        _write_parquet(scratch, order_N, wide=kind == "wide-parquet")
    scratch.rename(source)
    return source


def outcomes(number_N: NDArray[np.int64]) -> Columns:
    """Verdict, turns and distinct answers of the rows with these numbers, by luck and the prompt's own."""
    luck_N, group_luck_N = _uniform(number_N, 1), _uniform(number_N // K, 2)
    solved_at_N = np.ceil(np.log1p(-luck_N) / np.log1p(-0.02 - 0.6 * group_luck_N)).astype(np.int64)
    length_N = np.clip(solved_at_N, 1, MAX_TURNS)
    unique_N = 1 + np.floor(_uniform(number_N, 3) * length_N).astype(np.int64)
    return {"correct": (solved_at_N <= MAX_TURNS).astype(np.int64), "length": length_N, "unique": unique_N}


def true_weights(rows: int) -> NDArray[np.float64]:
    """Eqs. 12 and 13 for the rows with the numbers below `rows`; K consecutive ones are a group."""
    weight_N = np.empty(rows)
    for start in range(0, rows, CHUNK):
        found = outcomes(np.arange(start, min(start + CHUNK, rows)))
        return_N = found["correct"] * GAMMA ** (found["length"] - 1.0)
        return_N -= LAM * (1.0 - found["unique"] / found["length"])
        return_GK = return_N.reshape(-1, K)
        tilt_GK = np.exp((return_GK - return_GK.max(axis=1, keepdims=True)) / BETA)
        weight_N[start : start + CHUNK] = (tilt_GK / tilt_GK.mean(axis=1, keepdims=True)).ravel()
    return weight_N


def _order(kind: str, rows: int) -> NDArray[np.int64]:
    """The number of the row at each place of the file."""
    random = np.random.default_rng(SEED)
    number_N: NDArray[np.int64] = np.arange(rows)
    if kind == "narrow-shuffled":
        random.shuffle(number_N)
    elif kind.startswith("wide"):
        number_N = np.argsort(number_N + random.uniform(0.0, NEARBY, rows), kind="stable")
    return number_N


def _parts(order_N: NDArray[np.int64], size: int = CHUNK) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(order_N), size):
        yield order_N[start : start + size]


def _write_parquet(path: Path, order_N: NDArray[np.int64], *, wide: bool) -> None:
    rows = _wide_rows if wide else _narrow_rows
    tables = (rows(part_N) for part_N in _parts(order_N, WIDE_ROW_GROUP if wide else CHUNK))
    first = next(tables)
    with pq.ParquetWriter(path, first.schema) as writer:
        for table in itertools.chain([first], tables):
            writer.write_table(table)


def _write_jsonl(path: Path, order_N: NDArray[np.int64]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as out:
        for part_N in _parts(order_N, WIDE_ROW_GROUP):
            for row in _wide_rows(part_N).to_pylist():
                out.write(json.dumps(row, ensure_ascii=False) + "\n")


def _narrow_rows(number_N: NDArray[np.int64]) -> pa.Table:
    return pa.table({"prompt_id": _hex(number_N // K, 10), **outcomes(number_N)})


def _wide_rows(number_N: NDArray[np.int64]) -> pa.Table:
    group_N = number_N // K
    round_N = group_N % ROUNDS
    found = outcomes(number_N)
    columns = {
        "prompt_id": _hex(group_N // ROUNDS, 10),
        "round": round_N,
        "policy": _hex(round_N, 20),
        "sample": number_N % K,
        **found,
    }
    messages = [
        _messages(prompt, number, length)
        for prompt, number, length in zip(
            (group_N // ROUNDS).tolist(), number_N.tolist(), found["length"].tolist(), strict=True
        )
    ]
    role_and_content = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    return pa.table({**columns, "messages": pa.array(messages, role_and_content)})


def _messages(prompt: int, number: int, length: int) -> list[dict[str, str]]:
    """A dialogue of `length` turns: the prompt is its group's, the responses are its own."""
    found = [{"role": "user", "content": _text(-1 - prompt, 250, 750)}]
    for turn in range(length):
        if turn:
            found.append({"role": "user", "content": FEEDBACK})
        response = _text(number * MAX_TURNS + turn, 300, 1200)
        answer = f"\n\n<answer>\\boxed{{{number % 97 + turn}}}</answer>"
        found.append({"role": "assistant", "content": response + answer})
    return found


def _text(seed: int, least: int, most: int) -> str:
    """A stretch of the prose, another one for each seed."""
    mixed = int(mix(np.array([seed]).astype(np.uint64) ^ np.uint64(SEED))[0])
    prose = _prose()
    start = mixed % (len(prose) - most)
    return prose[start : start + least + (mixed >> 32) % (most - least)]


@functools.cache
def _prose() -> str:
    """Words of a made-up language with natural frequencies, and the signs that mathematics is full of."""
    words, random = 1_000_000, np.random.default_rng(SEED)
    first = ["b", "d", "h", "k", "l", "m", "n", "p", "pr", "r", "s", "st", "t", "v", "w"]
    sounds = itertools.product(first, ["a", "e", "i", "o", "ou", "u"], ["", "", "l", "n", "r", "s", "y"])
    syllables = ["".join(sound) for sound in sounds]
    parts = random.choice(np.array(syllables), (50_000, 3)).tolist()
    lengths = random.integers(1, 4, len(parts)).tolist()
    lexicon = ["".join(part[:length]) for part, length in zip(parts, lengths, strict=True)]
    signs = ["\\frac{1}{2}", "x_1", "≤", "=", "β", '"so"', "3.75", "(mod 7)", "\\sqrt{n}", "$", "142857"]
    frequency = 1 / (np.arange(len(lexicon)) + 100)  # flat enough that Snappy halves it
    chosen = random.choice(np.array(lexicon), words, p=frequency / frequency.sum())
    places = random.choice(words, words // 6, replace=False)
    marked = chosen.astype(object)
    marked[places] = random.choice(np.array(signs), len(places))
    ends = random.choice(words, words // 12, replace=False)
    marked[ends] += random.choice(np.array([".", ",", ".\n", ";\n\n"]), len(ends)).astype(object)
    return " ".join(marked)


def _uniform(number_N: NDArray[np.int64], stream: int) -> NDArray[np.float64]:
    """In [0, 1), a function of the number and the stream alone."""
    mixed_N = mix(mix(number_N.astype(np.uint64)) + np.uint64(SEED + stream))
    return np.asarray((mixed_N >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


def _hex(number_N: NDArray[np.int64], stream: int) -> pa.Array:
    """64 hexadecimal digits, a function of the number and the stream alone."""
    words = [mix(mix(number_N.astype(np.uint64)) + np.uint64(SEED + stream + part)) for part in range(4)]
    byte_NB = np.stack(words, axis=1).view(np.uint8).reshape(len(number_N), 32)
    digit_ND = np.stack([byte_NB >> 4, byte_NB & 15], axis=2).reshape(len(number_N), 64)
    text_N = np.frombuffer(b"0123456789abcdef", np.uint8)[digit_ND]
    flat = pa.py_buffer(np.ascontiguousarray(text_N))
    ends = pa.py_buffer(np.arange(0, 64 * (len(number_N) + 1), 64, dtype=np.int32))
    return pa.StringArray.from_buffers(len(number_N), ends, flat)


def mix(word_N: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Steele, Lea and Flood's SplitMix64 finaliser: a bijection that spreads every bit over all."""
    word_N = word_N + np.uint64(0x9E3779B97F4A7C15)
    word_N = (word_N ^ (word_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word_N = (word_N ^ (word_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word_N ^ (word_N >> np.uint64(31))


if __name__ == "__main__":
    print(make(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))
