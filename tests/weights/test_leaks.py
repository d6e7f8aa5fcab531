"""Secrets are found wherever they stand, ordinary text is not, and nothing that was found is shown."""

from __future__ import annotations

import base64
import json
import os
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from hashlib import md5, sha1, sha256
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift_weights.folder import read_manifest, write_folder
from drift_weights.leaks import Leak, leaks_in_batch, leaks_in_json, leaks_in_text, private_in_json
from drift_weights.schema import to_table
from drift_weights.secret_shapes import MARKS, SHAPES
from made_up_secrets import ALNUM, HEX, LETTERS, MAKERS, Draw, Made, made_up
from rows import trajectory

PROVIDERS = sorted(MAKERS)
BEFORE = st.sampled_from(
    ["", "\n", " ", "Let x = 3. ", "Schlüssel: ", "数", '"', "`", "(", "=", "$\\frac12$ ", "|"]
)
AFTER = st.sampled_from(["", "\n", " ", " is it.", ", and", "。", '"', "`", ")", ";", " $x$", "|"])
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

Wrap = Callable[[str], Any]
NESTINGS: dict[str, tuple[pa.DataType, Wrap, str]] = {
    "string": (pa.string(), lambda text: text, ""),
    "large string": (pa.large_string(), lambda text: text, ""),
    "string view": (pa.string_view(), lambda text: text, ""),
    "bytes": (pa.binary(), lambda text: text.encode(), ""),
    "bytes that are no text": (pa.large_binary(), lambda text: b"\xff\xfe " + text.encode() + b" \x80", ""),
    "binary view": (pa.binary_view(), lambda text: text.encode(), ""),
    "dictionary": (pa.dictionary(pa.int8(), pa.string()), lambda text: text, ""),
    "list": (pa.list_(pa.string()), lambda text: ["x", None, text], "[2]"),
    "large list": (pa.large_list(pa.large_string()), lambda text: [text], "[0]"),
    "list of two": (pa.list_(pa.string(), 2), lambda text: ["x", text], "[1]"),
    "list view": (pa.list_view(pa.string()), lambda text: ["x", text], "[1]"),
    "struct": (pa.struct([("a", pa.string()), ("b", pa.string())]), lambda text: {"b": text}, ".b"),
    "messages": (MESSAGES, lambda text: [{"role": "user"}, None, {"content": text}], "[2].content"),
    "map": (pa.map_(pa.string(), pa.string()), lambda text: [("k", None), ("l", text)], "[1].value"),
    "key of a map": (pa.map_(pa.string(), pa.int8()), lambda text: [(text, 1)], "[0].key"),
    "deep": (
        pa.struct([("a", pa.list_(pa.map_(pa.string(), MESSAGES)))]),
        lambda text: {"a": [None, [], [("k", [{"role": text}])]]},
        ".a[2][0].value[0].role",
    ),
}


def column(nesting: str, text: str, *, row: int, rows: int) -> tuple[pa.Array, str]:
    """A column with the text in one row, nothing and ordinary text in the others, cut from a longer one."""
    kind, wrap, path = NESTINGS[nesting]
    values = [None if number % 3 == 1 else wrap(f"ordinary {number}") for number in range(rows)]
    values[row] = wrap(text)
    return pa.array([wrap("before"), None, *values, None], kind).slice(2, rows), path


def unseen(secret: str, leaks: list[Leak]) -> bool:
    """Whether no eight characters of the secret stand in what is said."""
    said = repr(leaks)
    return not any(secret[at : at + 8] in said for at in range(len(secret) - 7))


@pytest.mark.parametrize("provider", PROVIDERS)
@settings(max_examples=5)
@given(data=st.data())
def test_a_secret_is_found_in_any_column_and_its_row_and_field_are_named(
    provider: str, data: st.DataObject
) -> None:
    made = data.draw(made_up(provider))
    before, after = data.draw(BEFORE), data.draw(AFTER)
    nesting = data.draw(st.sampled_from(sorted(NESTINGS)))
    rows = data.draw(st.integers(1, 9))
    row, first = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, 10**9))
    array, path = column(nesting, f"{before}{made.text}{after}", row=row, rows=rows)
    numbers = pa.array(range(rows))
    batch = pa.record_batch({"weight": numbers, "text": array})
    leaks = leaks_in_batch(batch, first, "data/part-00000.parquet")
    assert [leak.place for leak in leaks] == [f"data/part-00000.parquet, row {first + row}, text{path}"]
    assert unseen(made.secret, leaks)


@pytest.mark.parametrize("provider", PROVIDERS)
@settings(max_examples=5)
@given(data=st.data())
def test_a_secret_is_found_in_a_text_and_its_line_is_named(provider: str, data: st.DataObject) -> None:
    made = data.draw(made_up(provider))
    lines = data.draw(st.lists(st.sampled_from(["", "# Title", "A line.", "| a | b |"]), max_size=5))
    before, after = data.draw(BEFORE), data.draw(AFTER)
    text = "".join(f"{line}\n" for line in lines) + f"{before}{made.text}{after}\nend"
    leaks = leaks_in_text(text, "README.md")
    # Some keys stand below a line or two of their own.
    at = text[: text.index(made.secret[:20])].count("\n") + 1
    (leak,) = leaks
    line = int(leak.place.removeprefix("README.md, line "))
    assert at - made.text.count("\n") <= line <= at
    assert unseen(made.secret, leaks)


@pytest.mark.parametrize("provider", PROVIDERS)
@settings(max_examples=5)
@given(data=st.data())
def test_a_secret_is_found_in_json_as_a_value_and_as_a_key(provider: str, data: st.DataObject) -> None:
    made = data.draw(made_up(provider))
    value = {
        "rows": 3,
        "source": {"manifest": [None, {"origin": made.text}]},
        "a": {made.text: {"b": [made.text]}},
    }
    leaks = leaks_in_json(value, "drift.json")
    assert leaks[0].place == "drift.json, source.manifest[1].origin"
    places = {leak.place.replace("drift.json, ", "") for leak in leaks[1:]}
    assert len(places) == 2
    (key,) = (place for place in places if not place.endswith(".b[0]"))
    assert places == {key, f"{key}.b[0]"}
    assert unseen(made.secret, leaks)


@given(
    made=st.sampled_from(["Hugging Face", "OpenAI project", "GitHub", "Azure signature", "JWT"]).flatmap(
        made_up
    )
)
def test_a_secret_is_found_behind_the_escapes_of_json_and_of_addresses(made: Made) -> None:
    texts = [
        json.dumps({"log": f"first\n{made.text}\tlast"}),
        json.dumps(json.dumps({"log": f"first\n{made.text}"})),
        f"https://example.org/?{urllib.parse.urlencode({'next': 'x=' + made.text}, safe='%')}",
        f"a\\u0026{made.text}",
    ]
    for text in texts:
        assert leaks_in_text(text, "x"), text


@pytest.mark.parametrize(
    ("name", "length", "alphabet"),
    [
        ("aws_secret_access_key", 40, ALNUM + "+/"),
        ("wandb_api_key", 40, HEX),
        ("apiKey", 32, ALNUM),
        ("auth_token", 48, ALNUM),
    ],
)
def test_a_secret_is_known_by_the_name_that_it_stands_at(name: str, length: int, alphabet: str) -> None:
    secret = Draw(5)(length, alphabet)
    struct = pa.array([{name: "x"}, {name: secret}])
    batch = pa.record_batch({name: pa.array([secret, None]), "s": struct, "id": pa.array([secret, ""])})
    leaks = [*leaks_in_batch(batch, 0, "p"), *leaks_in_json({"env": {name: secret}, "id": secret}, "m")]
    assert [leak.place for leak in leaks] == [f"p, row 0, {name}", f"p, row 1, s.{name}", f"m, env.{name}"]
    assert unseen(secret, leaks)


@given(first=made_up("Hugging Face"), second=made_up("Anthropic"), third=made_up("Stripe"))
def test_every_secret_is_told_and_each_once(first: Made, second: Made, third: Made) -> None:
    header = f"Authorization: Bearer {second.text}"
    text = f"{third.text} {first.text}\n{first.text},{header}"
    kinds = [leak.what for leak in leaks_in_text(text, "x")]
    assert kinds == ["a Stripe key", *["a Hugging Face token"] * 2, "an Anthropic key"]
    batch = pa.record_batch({"a": [text, "", first.text], "b": [second.text, "", ""]})
    places = [leak.place for leak in leaks_in_batch(batch, 0, "p")]
    assert places == ["p, row 0, a"] * 4 + ["p, row 2, a", "p, row 0, b"]


def test_run_lengths_and_extension_types_are_looked_into() -> None:
    made = MAKERS["GitHub"](Draw(1)).text
    runs = pc.run_end_encode(pa.array(["x", "x", made]))
    spoken = pa.ExtensionArray.from_storage(pa.json_(), pa.array(["{}", None, json.dumps([made])]))
    batch = pa.record_batch({"runs": runs, "spoken": spoken})
    assert [leak.place for leak in leaks_in_batch(batch, 5, "p")] == ["p, row 7, runs", "p, row 7, spoken"]


def test_a_dictionary_is_looked_at_once_and_every_row_that_holds_the_secret_named() -> None:
    made = MAKERS["GitHub"](Draw(2)).text
    array = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 1]), pa.array(["x", made]))
    leaks = leaks_in_batch(pa.record_batch({"d": array}), 0, "p")
    assert [leak.place for leak in leaks] == ["p, row 1, d", "p, row 3, d"]


def test_names_and_metadata_of_columns_are_looked_at_with_the_first_rows_only() -> None:
    a, b, c, d = (MAKERS["Groq"](Draw(seed)).text for seed in range(4))
    inner = pa.field("x", pa.list_(pa.struct([pa.field(b, pa.int8())])), metadata={"note": c})
    schema = pa.schema([pa.field(a, pa.int8()), inner], metadata={"pandas": json.dumps({"k": d})})
    batch = pa.RecordBatch.from_pylist([{}], schema=schema)
    leaks = leaks_in_batch(batch, 0, "p")
    assert [leak.what for leak in leaks] == ["a Groq key"] * 4
    assert {leak.place for leak in leaks} == {"p, names and metadata of the columns"}
    assert leaks_in_batch(batch, 1, "p") == []


def test_a_secret_in_a_columns_name_is_not_told_with_its_values() -> None:
    name, value = (MAKERS["Groq"](Draw(seed)) for seed in range(2))
    leaks = leaks_in_batch(pa.record_batch({name.text: [value.text]}), 7, "p")
    assert [leak.place for leak in leaks] == [f"p, row 7, {name.text[:5]}…"]


def test_text_that_is_no_text_is_looked_through() -> None:
    made = MAKERS["Hugging Face"](Draw(3)).text
    broken = pa.array([b"\xff\xc3(" + made.encode() + b"\xed\xa0\x80"], pa.binary()).view(pa.string())
    assert len(leaks_in_batch(pa.record_batch({"a": broken}), 0, "p")) == 1
    assert len(leaks_in_json({"\ud800": "\udfff" + made}, "m")) == 1
    assert len(leaks_in_text("\ud800" + made, "t")) == 1


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.what} {shape.form[:12]}")
def test_every_shape_is_one_that_a_test_makes(shape: Any) -> None:
    """No form is there that no made-up secret has."""
    drawn = (MAKERS[provider](Draw(seed)).text for provider in PROVIDERS for seed in range(20))
    assert any(shape.pattern.search(text) for text in drawn)


PLACEHOLDERS = [
    "hf_xxx",
    "hf_" + "x" * 34,
    "hf_" + "XXXX" * 9,
    "hf_your_token_here_and_nowhere_else_please",
    "hf_" + "abcdefghijklmnopqrstuvwxyzabcdefgh",
    "sk-...",
    "sk-" + "1234567890abcdef" * 3,
    "sk-proj-" + "x" * 60,
    "sk-ant-api03-" + "." * 10,
    "sk-ant-api03-" + "A" * 95,
    "AKIA",
    "AKIA" + "IOSFODNN7EXAMPLE",
    "aws_secret_access_key = " + "wJalrXUtnFEMI/K7MDENG/" + "bPxRfiCYEXAMPLEKEY",
    "ghp_" + "0123456789" * 4,
    "ghp_" + "a" * 36,
    "xoxb-your-slack-token",
    "https://hooks.slack.com/services/T00000000/B00000000/" + "X" * 24,
    "glpat-" + "x" * 20,
    "AIza" + "Sy" + "x" * 33,
    "Authorization: Bearer <token>",
    "Authorization: Bearer $TOKEN",
    "Authorization: Bearer your-access-token-goes-here-please",
    "Authorization: Bearer YourAccessTokenGoesHerePleaseReplaceIt",
    "api_key = 'your-api-key-goes-here-please-replace-it-first'",
    "api_key=getTheApiKeyFromEnvironmentVariableOrConfigFile()",
    "API_KEY = SOME_CONSTANT_THAT_IS_DEFINED_ELSEWHERE_IN_HERE",
    "password: " + "*" * 40,
    "https://user:password@example.org",
    "https://user:pass@example.org/x",
    "https://{user}:{password}@example.org",
    "https://$USER:$PASS@example.org",
    "https://<user>:<password>@example.org",
    "https://user:****@example.org",
    "https://user:%s@example.org",
    "https://example.org:8080/@name",
    "docker://ubuntu:22.04@sha256:" + sha256(b"x").hexdigest(),
    "-----BEGIN " + "RSA PRIVATE KEY-----\n...\n-----END RSA PRIVATE KEY-----",
    "-----BEGIN " + "PRIVATE KEY-----\nyour key here\n-----END PRIVATE KEY-----",
    "-----BEGIN PUBLIC KEY-----\n" + base64.b64encode(bytes(range(90))).decode(),
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lIiwiaWF0IjoxNTE2"
    + "MjM5MDIyfQ."
    + "x" * 43,
]


@pytest.mark.parametrize("text", PLACEHOLDERS)
def test_a_placeholder_is_no_secret(text: str) -> None:
    assert leaks_in_text(f"Set {text} first.", "x") == []


@pytest.mark.parametrize(
    "provider",
    ["Hugging Face", "Anthropic", "AWS id", "GitHub", "Stripe", "Groq", "Twilio", "Databricks", "JWT"],
)
@given(data=st.data())
def test_what_stands_inside_a_longer_word_is_no_secret(provider: str, data: st.DataObject) -> None:
    made = data.draw(made_up(provider))
    word = data.draw(st.text(LETTERS, min_size=1, max_size=9))
    assert leaks_in_text(f"{word}{made.text}", "x") == []


@pytest.mark.parametrize("provider", ["Hugging Face", "AWS id", "Twilio", "Databricks", "Replicate"])
def test_what_is_too_long_or_too_short_is_no_secret(provider: str) -> None:
    text = MAKERS[provider](Draw(4)).text
    assert leaks_in_text(text, "x")
    assert leaks_in_text(f"{text}{Draw(5)(60)}", "x") == []
    assert leaks_in_text(text[:-9], "x") == []


def maths(random: Random) -> Iterator[str]:
    """Solutions, formulas and answers."""
    a, b, c = (random.randint(-999, 999) for _ in range(3))
    yield f"We have {a} * {b} = {a * b}, and/or {a}/{b}; then x_{{{c}}} = {a / (b or 1):.12f}."
    yield rf"\[ \int_{{{a}}}^{{{b}}} \frac{{x^{{{c}}}}}{{\sqrt{{x^2+{abs(c)}}}}}\,dx = \boxed{{{a}}} \]"
    yield rf"$f:\mathbb{{R}}\to\mathbb{{R}},\ f(x)={a}x^{{2}}-{b}x+{c}$ \\ \hline\n \&{a}&{b}\\"
    yield f"<think>{a}+{b}={a + b}</think>\n<answer>{a + b}</answer>"
    yield f"digits {random.getrandbits(400)} and 0x{random.getrandbits(256):x}, 1//{abs(a)}"
    yield f"|sk-{a}| task-{b} risk-{c} hf_{a} AKIA SG.{a}.{b} npm_{a} fw_{b}"


def code(random: Random) -> Iterator[str]:
    """Source, configuration, addresses, hashes and identifiers."""
    words = ["get", "Token", "From", "Hub", "Config", "Model", "Attention", "Block", "load", "All"]
    camel = "".join(random.choices(words, k=9))
    snake = "_".join(random.choices(words, k=9)).lower()
    noise = random.randbytes(48)
    yield f"from huggingface_hub import hf_hub_download, hf_{snake}\nsk-learn; import sklearn as sk"
    yield f"def {snake}(self, api_key: str = os.environ['API_KEY'], token=self.{snake}) -> {camel}: ..."
    yield f'api_key={camel}Or{camel}, "token": "{snake}", password: {snake}, fw_{camel[:28]}'
    yield f"My{camel}Services.Module{camel[0]}.{camel}{camel}: N{camel}.Config.{camel}Handler"
    commit = sha1(noise).hexdigest()
    yield f"sha256:{sha256(noise).hexdigest()} md5={md5(noise).hexdigest()} commit {commit}"
    yield f"cache-key-{md5(noise).hexdigest()} laws of keys {sha1(noise).hexdigest()} aws s3 ls"
    yield f"git+https://github.com/wandb/wandb@{commit} # wandb.init(id='{noise.hex()[:8]}')"
    yield f"{uuid.UUID(bytes=noise[:16])} {noise.hex()} 00-{noise[:16].hex()}-{noise[16:24].hex()}-01"
    yield base64.b64encode(noise * 3).decode()
    yield f"https://example.org:8443/a/{noise[:9].hex()}?q={a_word(random)}&sigma=2#at@here a@example.org"
    yield f"data:image/png;base64,{base64.b64encode(noise).decode()} {random.getrandbits(40)}:{camel}"
    yield json.dumps({"token_ids": [random.randint(0, 10**5)], "prompt_id": sha256(noise).hexdigest()})
    yield f"s3://bucket/{snake}/part-{random.randint(0, 99999):05d}.parquet pkg-us1 {snake}-us2"
    yield f"v1.{camel}.{snake}"


def a_word(random: Random) -> str:
    return "".join(random.choices(LETTERS, k=random.randint(1, 12)))


def ordinary(number: int) -> list[str]:
    """Different texts of all of these kinds."""
    random = Random(20)
    found: list[str] = []
    while len(found) < number:
        found += [*maths(random), *code(random)]
    return found[:number]


def test_no_ordinary_text_is_a_secret() -> None:
    texts = ordinary(20_000)
    batch = pa.record_batch(
        {"completion": pa.array([[{"role": "user", "content": x}] for x in texts], MESSAGES)}
    )
    assert leaks_in_batch(batch, 0, "p") == []
    assert leaks_in_json(texts, "m") == []
    assert leaks_in_json({text: number for number, text in enumerate(texts[:2000])}, "m") == []
    assert leaks_in_text("\n".join(texts), "t") == []


@settings(max_examples=200)
@given(st.text(), st.text(st.characters(codec="ascii")))
def test_no_text_whatever_is_a_secret_or_an_error(text: str, ascii_text: str) -> None:
    assert leaks_in_text(text + ascii_text, "x") == []
    assert leaks_in_json([text, {ascii_text: text}], "x") == []


def test_ordinary_text_is_looked_through_in_one_fast_pass() -> None:
    """RE2 falls back to a simulation a hundred times slower where the marks outgrow its automaton."""
    texts = pa.array([text.encode() for text in ordinary(40_000)], pa.large_binary())
    seconds = []
    for _ in range(3):
        before = time.process_time()
        pc.match_substring_regex(texts, MARKS)
        seconds.append(time.process_time() - before)
    assert texts.nbytes / min(seconds) > 25e6


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_mark_of_a_shape_is_found_wherever_its_form_is(provider: str) -> None:
    texts = pa.array([MAKERS[provider](Draw(seed)).text.encode() for seed in range(300)], pa.large_binary())
    for shape in SHAPES:
        formed = pc.match_substring_regex(texts, shape.form)
        marked = pc.match_substring_regex(texts, shape.mark)
        assert pc.all(pc.or_(pc.invert(formed), marked)).as_py(), shape.what


DATA = os.environ.get("DRIFT_DATA")


@pytest.mark.skipif(DATA is None, reason="DRIFT_DATA is not set: no real logs here")
def test_real_data_hold_no_secret() -> None:
    files = sorted(path for path in Path(str(DATA)).rglob("*") if path.is_file())
    assert len(files) > 5
    for file in files:
        if file.suffix == ".parquet":
            first = 0
            for batch in pq.ParquetFile(file).iter_batches(2048):
                assert leaks_in_batch(batch, first, str(file)) == []
                first += batch.num_rows
        else:
            assert leaks_in_text(file.read_text(encoding="utf-8"), str(file)) == []


def private(value: Any, **options: Any) -> list[Leak]:
    options = {"user": "lovelace", "home": "/home/lovelace"} | options
    return private_in_json(value, "drift.json", **options)


@pytest.mark.parametrize(
    "path",
    [
        "/home/byron/x",
        "/home/byron",
        "/Users/byron/Library",
        "/root/.cache/x",
        "/mnt/disk/model",
        "/tmp/x",
        "/data/runs/3",
        "/lustre/a/b",
        " /work/x",
        "trained from /scratch/run7/last.ckpt on Monday",
        "--model=/mnt/models/qwen",
        '{"path": "/opt/models/qwen"}',
        "node7:/home/byron/run",
        "see net/home/byron",
        "C:\\models\\qwen",
        "c:/models/qwen",
        "D:\\",
        "from C:\\Users\\byron\\x in a {template}",
        "from D:\\stuff\\run 7\\x",
        "E:/Users/byron",
        "C:\\\\Users\\\\byron",
        "\\\\server\\share\\x",
        "//server/share",
        "~",
        "~/models",
        "~byron/models",
        "~\\models",
        "cd ~/models",
        "file:///etc/passwd",
        "FILE://host/x",
        "model file:///srv/x",
    ],
)
def test_a_path_of_a_machine_is_private(path: str) -> None:
    value = {"rows": 3, "source": {"manifest": {"origin": [{"model": path}]}}}
    place = "drift.json, source.manifest.origin[0].model"
    assert [(leak.place, leak.what) for leak in private(value)] == [(place, "an absolute path")]
    assert [leak.what for leak in private({"sha256": {path: "x"}})] == ["an absolute path"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "and/or",
        "1/2",
        "/ 3",
        "/answer",
        "</answer>",
        "</think></answer>",
        "Your answer is wrong. Think again, and put it into <answer></answer>.",
        "Turn {turn}: State: {problem}\nYou have {left} actions left / {total}.",
        "\\boxed{1/2} or \\frac{a}{b} / c",
        "$f:\\mathbb{R}\\to\\mathbb{R}$ and $T:\\Omega\\to X$",
        "a \\\\ b \\\\ \\hline",
        "x ~ 3, ~5, a~b, ~x",
        "about ~10/20",
        "org/name",
        "data/part-00000.parquet",
        "rollouts/run-3",
        "../rollouts",
        "https://example.org/home/x",
        "https://example.org/Users/x, http://localhost:8000/v1/chat",
        "s3://bucket/home/x",
        "profile:/x",
        "hf://datasets/org/name",
        "Qwen/Qwen2.5-7B-Instruct",
        "rate: 3/4; 5/6/7",
    ],
)
def test_what_only_looks_like_a_path_is_not_private(text: str) -> None:
    assert private({"prompt": text, text: 1}) == []


@pytest.mark.parametrize(
    "text",
    [
        "lovelace",
        "Lovelace",
        "by lovelace",
        "lovelace/model",
        "run_lovelace_3",
        "lovelace@host",
        "-lovelace-",
    ],
)
def test_the_users_name_is_private_as_a_whole_word(text: str) -> None:
    assert [(leak.place, leak.what) for leak in private({"a": [text]})] == [
        ("drift.json, a[0]", "a user name")
    ]
    assert private({"a": [f"x{text}y"]}, user="nobody", home="/") == []


@pytest.mark.parametrize("text", ["lovelaces", "unlovelace", "love lace", "lovelace1"])
def test_a_longer_word_is_not_the_users_name(text: str) -> None:
    assert private({"a": text, text: 1}) == []


def test_names_that_are_nobodys_own_too_short_or_known_are_not_looked_for() -> None:
    texts = {"a": "root user ubuntu admin runner", "b": "al", "c": "lovelace/data"}
    for user in ("root", "user", "ubuntu", "admin", "runner", "al", ""):
        assert private(texts, user=user, home=f"/home/{user}") == []
    assert private(texts, known={"Lovelace"}) == []
    assert len(private(texts)) == 1


def test_the_home_folders_name_counts_and_the_home_folder_is_found_under_any_root() -> None:
    value = {
        "a": "of ada",
        "b": "in //x:/u3/people/ada2/run",
        "c": "x=/u3/people/ada/run",
        "d": "u3/people/ada_",
    }
    found = private(value, user="x1", home="/u3/people/ada/")
    assert [(leak.place[-1], leak.what) for leak in found] == [
        ("a", "a user name"),
        ("c", "an absolute path"),
        ("d", "a user name"),
    ]
    found = private({"a": "C:/Users/ada", "b": "ada"}, user="", home="C:\\Users\\ada")
    assert [leak.what for leak in found] == ["an absolute path", "a user name"]


def test_a_path_that_is_known_by_its_user_still_is_a_path() -> None:
    assert [leak.what for leak in private({"a": "/home/lovelace/x"}, known={"lovelace"})] == [
        "an absolute path"
    ]


def test_our_own_manifests_are_not_private(tmp_path: Path) -> None:
    told = {"rollout": {"policy": "p", "prompt": "{problem} </answer> 1/2"}, "source": {"path": "rollouts"}}
    folder = write_folder(tmp_path / "x", to_table([trajectory("g", 0, ["1"])]), "trajectories", told)
    manifest = read_manifest(folder)
    assert private(manifest) == leaks_in_json(manifest, "drift.json") == []
