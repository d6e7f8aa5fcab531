"""Where problems come from: named sources, CSV as text, folders, and each kind of mistake in them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drift_rollout.problem_sources import SOURCES, after_hashes, last_boxed
from drift_rollout.problems import ProblemSet, load_problems
from drift_rollout.prompts import PromptTemplate

BARE = PromptTemplate(system=None, user="{problem}")


def golds(found: ProblemSet) -> dict[str | None, str | None]:
    return {problem.question: problem.target for problem in found.problems}


def written(path: Path, content: str, *, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("solution", "gold"),
    [
        (r"so \boxed{7}.", "7"),
        (r"\boxed{1} is no good, \boxed{2} is", "2"),
        (r"$\boxed{\frac{1}{\sqrt{2}}}$ it is", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.} and {more}", r"\left\{ x \right."),
        (r"\boxed{a \\ {b}}", r"a \\ {b}"),
        (r"\boxed {3}", "3"),
        (r"we get $\boxed 2$. Done, for $5.", "2"),
        (r"\fbox{4}", "4"),
        ("\\boxed{\n 5 }", "5"),
        (r"\boxedsign{1} \boxed{6}", "6"),
    ],
)
def test_the_gold_of_math_is_in_its_last_box(solution: str, gold: str) -> None:
    assert last_boxed(solution) == gold


@pytest.mark.parametrize(
    ("solution", "says"),
    [
        ("it is 7", "no \\boxed"),
        (r"\boxed{} primes", "holds nothing"),
        (r"\boxed{1} or \boxed{ }", "holds nothing"),
        (r"\boxed{\frac{1}{2}", "not closed"),
        (r"\boxed{\}", "not closed"),
        (r"\boxed 2 and no end of it", "holds nothing"),
        (r"\boxedsign{1}", "no \\boxed"),
    ],
)
def test_a_solution_without_a_box_has_no_gold(solution: str, says: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the parameter says which)
        last_boxed(solution)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("so\n#### 72", "72"),
        ("#### 1,234,000", "1234000"),
        ("#### 1\n#### -3.5", "-3.5"),
        ("####.5 ", ".5"),
    ],
)
def test_the_gold_of_gsm8k_is_the_number_behind_the_last_hashes(answer: str, gold: str) -> None:
    assert after_hashes(answer) == gold


@pytest.mark.parametrize("answer", ["72", "#### ", "#### about 3", "#### 1\n####"])
def test_gsm8k_without_a_number_is_refused(answer: str) -> None:
    with pytest.raises(ValueError, match="no '####' with a number"):
        after_hashes(answer)


def test_every_source_has_columns_of_its_own_and_takes_others(tmp_path: Path) -> None:
    rows = {
        "table": {"problem": "q?", "answer": "7"},
        "metamath-math": {"type": "MATH_SV", "query": "q?", "response": "The answer is: 7"},
        "math": {"problem": "q?", "solution": r"\boxed{7}"},
        "gsm8k": {"question": "q?", "answer": "#### 7"},
    }
    assert rows.keys() == SOURCES.keys()
    for source, row in rows.items():
        path = written(tmp_path / "p.jsonl", json.dumps(row))
        assert golds(load_problems(path, BARE, source=source)) == {"q?": "7"}
        form = SOURCES[source]
        renamed = {{form.question: "Q", form.answer: "A"}.get(name, name): row[name] for name in row}
        path = written(tmp_path / "p.jsonl", json.dumps(renamed))
        assert golds(load_problems(path, BARE, source=source, question="Q", answer="A")) == {"q?": "7"}
    with pytest.raises(ValueError, match="source 'maths' is none of table, metamath-math, math, gsm8k"):
        load_problems(path, BARE, source="maths")  # type: ignore[arg-type]


def test_rows_without_a_gold_are_refused_or_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"problem": "a?", "solution": r"\boxed{}"}, {"problem": "b?", "solution": r"\boxed{2}"}]
    path = written(tmp_path / "p.jsonl", "\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=r"p.jsonl, row 0: field 'solution': .*--on_no_gold drop"):
        load_problems(path, BARE, source="math")
    found = load_problems(path, BARE, source="math", on_no_gold="drop")
    assert golds(found) == {"b?": "2"}
    assert found.counts == {"count": 1, "repeated": 0, "without_gold": 1}
    assert str(found) == "1 problems (1 rows without a gold are left out)"
    assert any("row 0" in note for note in found.notes)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_dot_leads_into_an_object(tmp_path: Path, suffix: str) -> None:
    row = {"truth": {"said": {"q": "q?"}, "solution": r"\boxed{7}"}, "other": 1}
    path = tmp_path / f"p.{suffix}"
    if suffix == "jsonl":
        written(path, json.dumps(row))
    else:
        pq.write_table(pa.Table.from_pylist([row]), path)
    names = {"question": "truth.said.q", "answer": "truth.solution"}
    assert golds(load_problems(path, BARE, source="math", **names)) == {"q?": "7"}
    with pytest.raises(
        ValueError, match=r"'truth.q' is missing or empty; it has \[.*'truth.said.q', 'truth.s"
    ):
        load_problems(path, BARE, question="truth.q", answer="truth.solution")
    with pytest.raises(ValueError, match=r"'truth.said' is no text but a dict, with \['truth.said.q'\]"):
        load_problems(path, BARE, question="truth.said", answer="truth.solution")


def test_a_column_that_a_parquet_file_lacks_is_told_with_all_that_it_has(tmp_path: Path) -> None:
    pq.write_table(pa.table({"problem": ["a?"], "gold": ["1"], "level": [1]}), tmp_path / "p.parquet")
    with pytest.raises(ValueError, match=r"p.parquet, row 0: .*'answer' .*\['gold', 'level', 'problem'\]"):
        load_problems(tmp_path / "p.parquet", BARE)


def test_a_name_with_a_dot_is_a_name_first(tmp_path: Path) -> None:
    row = {"a.b": "q?", "a": {"b": "no"}, "answer": 1}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "p.parquet")
    assert golds(load_problems(tmp_path / "p.parquet", BARE, question="a.b")) == {"q?": "1"}


@pytest.mark.parametrize("value", [["1", "2"], {"x": 1}])
def test_a_gold_that_is_no_text_is_refused(tmp_path: Path, value: object) -> None:
    path = written(tmp_path / "p.jsonl", json.dumps({"problem": "q?", "answer": value}))
    with pytest.raises(ValueError, match=r"p.jsonl, row 0: field 'answer' is no text"):
        load_problems(path, BARE)


def test_an_ending_that_is_no_part_of_the_question_is_dropped(tmp_path: Path) -> None:
    path = written(tmp_path / "p.jsonl", '{"problem": "a? Think.\\n", "answer": 1}')
    assert golds(load_problems(path, BARE, drop_ending=" Think.")) == {"a?": "1"}
    for text in ("a?", "Think."):
        path = written(tmp_path / "p.jsonl", json.dumps({"problem": text, "answer": 1}))
        with pytest.raises(ValueError, match=r"row 0: field 'problem' does not end in ' Think.'"):
            load_problems(path, BARE, drop_ending=" Think.")


def test_golds_of_a_csv_stay_what_they_are(tmp_path: Path) -> None:
    """A byte order mark, quoted line ends, commas and quotes; no number is made of a text."""
    golds_as_text = ["007", "1e3", "1/2", "1.0", "NA", "true", " 5 ", "1,000"]
    lines = "".join(f'"line one,\r\n""two"" {n}?","{gold}"\r\n' for n, gold in enumerate(golds_as_text))
    path = written(tmp_path / "p.csv", "problem,answer\r\n" + lines, encoding="utf-8-sig")
    found = load_problems(path, BARE)
    assert golds(found) == {f'line one,\r\n"two" {n}?': gold for n, gold in enumerate(golds_as_text)}
    assert found.problems[3].place == f"{path}, row 3"


@pytest.mark.parametrize(
    ("delimiter", "suffix"), [(";", "csv"), ("\t", "csv"), ("\t", "tsv"), (",", "csv")]
)
def test_the_header_tells_the_delimiter(tmp_path: Path, delimiter: str, suffix: str) -> None:
    rows = (("id", "answer", "problem"), ("1", "x", "a, b; c"), ("2", "y", "d"))
    lines = [delimiter.join(f'"{value}"' for value in row) for row in rows]
    path = written(tmp_path / f"p.{suffix}", "\n".join(lines) + "\n\n")
    assert golds(load_problems(path, BARE)) == {"a, b; c": "x", "d": "y"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("problem,answer\na,1\nb\n", "p.csv, line 3: 1 fields under 2 columns"),
        ("problem,answer\na,1\nb,2,3\n", "p.csv, line 3: 3 fields under 2 columns"),
        ('problem,answer\na,"1\n', "p.csv, line 2: no valid CSV"),
        ('problem,answer\n"a"b,1\n', "p.csv, line 2: no valid CSV"),
        ("problem,problem\na,1\n", "p.csv has several columns 'problem'"),
        ("problem,gold\na,1\n", r"p.csv, row 0: field 'answer' is missing or empty; it has \['gold', 'pro"),
        ("problem,answer\na,1\nb,\n", "p.csv, row 1: field 'answer' is missing or empty"),
        ("problem,answer\n", "p.csv holds no problem"),
        ("", "p.csv holds no problem"),
        ("problem,answer\n" + "x" * 200_000 + ",1\n", "p.csv, line 2: no valid CSV"),
    ],
)
def test_a_broken_csv_is_refused_by_line(tmp_path: Path, content: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        load_problems(written(tmp_path / "p.csv", content), BARE)


def test_a_csv_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "p.csv", "problem,answer\né?,1\n", encoding="latin-1")
    with pytest.raises(ValueError, match=r"p.csv is no UTF-8 .*; save it as UTF-8"):
        load_problems(path, BARE)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"problem": "a"', r"p.json: not valid JSON .*name it .jsonl"),
        ('{"problem": "a", "answer": 1}\n{"problem": "b", "answer": 2}', "name it .jsonl"),
        ('[{"problem": "a", "answer": 1}, 2]', "p.json, row 1: expected a JSON object, got int"),
        ("7", "p.json, row 0: expected a JSON object, got int"),
        ("[]", "p.json holds no problem"),
    ],
)
def test_a_broken_json_file_is_refused(tmp_path: Path, content: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        load_problems(written(tmp_path / "p.json", content), BARE)


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path) -> None:
    one = '{"problem": "a?", "answer": 1}'
    for name, content in (("p.json", f"[{one}]"), ("p.jsonl", one), ("p.csv", "problem,answer\na?,1\n")):
        path = written(tmp_path / name, content, encoding="utf-8-sig")
        assert golds(load_problems(path, BARE)) == {"a?": "1"}


def test_rows_without_a_type_are_no_metamath(tmp_path: Path) -> None:
    path = written(tmp_path / "p.jsonl", '{"query": "a?", "response": "The answer is: 1"}')
    with pytest.raises(ValueError, match=r"row 0: field 'type' is missing .*--source table takes all"):
        load_problems(path, BARE, source="metamath-math")


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"p.txt: expected a file ending in .jsonl"):
        load_problems(written(tmp_path / "p.txt", "1+1?"), BARE)
    with pytest.raises(FileNotFoundError, match=r"nothing.jsonl does not exist"):
        load_problems(tmp_path / "nothing.jsonl", BARE)
    path = written(tmp_path / "p.csv", "problem,answer\na,1\n")
    with pytest.raises(ValueError, match="is a file; only a folder or a Hub data set has a subset"):
        load_problems(path, BARE, subset="main")
    assert load_problems(path, BARE, revision="v1").notes == (
        f"took {path} as it is here, not the Hub's data set of that name",
    )


def test_a_folder_gives_the_split_that_is_asked_for(tmp_path: Path) -> None:
    """MATH as its authors hand it out: one JSON object a file, in folders of split and subject."""
    for name, gold in (("train/algebra/1", 1), ("train/geometry/2", 2), ("test/algebra/1", 3)):
        solution = json.dumps({"problem": f"{name}?", "solution": rf"\boxed{{{gold}}}"})
        written(tmp_path / f"{name}.json", solution)
    found = load_problems(tmp_path, BARE, source="math")
    assert golds(found) == {"train/algebra/1?": "1", "train/geometry/2?": "2"}
    assert found.problems[0].place == f"{tmp_path / 'train' / 'algebra' / '1.json'}, row 0"
    assert golds(load_problems(tmp_path, BARE, source="math", split="test")) == {"test/algebra/1?": "3"}
    with pytest.raises(ValueError, match="no split 'dev', but test, train; name one by --problems_split"):
        load_problems(tmp_path, BARE, source="math", split="dev")
    written(tmp_path / "README.md", "---\nconfigs: [\n---\n")
    with pytest.raises(ValueError, match=r"the block on top of its README.md is no YAML"):
        load_problems(tmp_path, BARE, source="math")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="doesn't contain any data files"):
        load_problems(tmp_path / "empty", BARE)


def test_the_origin_of_a_folder_changes_with_its_files(tmp_path: Path) -> None:
    written(tmp_path / "here" / "a.csv", "problem,answer\na,1\n")
    first = load_problems(tmp_path / "here", BARE).origin
    assert first["name"] == "here"
    assert str(tmp_path) not in str(first)
    assert load_problems(tmp_path / "here", BARE).origin == first
    written(tmp_path / "here" / "a.csv", "problem,answer\na,2\n")
    assert load_problems(tmp_path / "here", BARE).origin["sha256"] != first["sha256"]


def test_a_file_needs_no_client_of_the_hub(tmp_path: Path) -> None:
    """They take seconds to import."""
    path = written(tmp_path / "p.csv", "problem,answer\na,1\n")
    script = (
        "import sys\nfrom pathlib import Path\nfrom drift_rollout import PromptTemplate, load_problems\n"
        f"load_problems(Path({str(path)!r}), PromptTemplate(user='{{problem}}'))\n"
        "print([name for name in ('datasets', 'huggingface_hub', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


DATA = os.environ.get("DRIFT_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="DRIFT_DATA is not set")
ENDING = "Let's think step by step and output the final answer within \\boxed{}."


@needs_data
def test_all_of_gsm8k_has_golds_of_digits() -> None:
    for file, count in (("train", 7473), ("test", 1319)):
        found = load_problems(Path(str(DATA)) / "gsm8k" / f"{file}.jsonl", BARE, source="gsm8k")
        assert len(found.problems) + found.repeated == count
        assert all(float(problem.target or "x") == int(problem.target or "x") for problem in found.problems)


@needs_data
def test_math_train_is_read_but_for_the_solutions_with_an_empty_box() -> None:
    path, truth = Path(str(DATA)) / "math_train" / "train.parquet", "reward_model.ground_truth"
    found = load_problems(
        path,
        BARE,
        source="math",
        question=f"{truth}.question",
        answer=f"{truth}.solution",
        drop_ending=ENDING,
        on_no_gold="drop",
    )
    rows = [row["reward_model"]["ground_truth"] for row in pq.read_table(path).to_pylist()]
    empty = sum("\\boxed{}" in row["solution"] for row in rows)
    assert len(found.problems) + found.repeated + empty == len(rows)
    assert found.without_gold == empty
    assert not any(ENDING in str(problem.question) for problem in found.problems)
    solutions = {row["question"].removesuffix(ENDING).rstrip(): row["solution"] for row in rows}
    assert all(str(p.target) in solutions[str(p.question)] for p in found.problems)


@needs_data
@pytest.mark.parametrize("subject", ["abstract_algebra", "anatomy"])
def test_mmlu_redux_is_read_with_either_delimiter(subject: str) -> None:
    path = Path(str(DATA)) / "mmlu_redux" / f"mmlu_{subject}.csv"
    found = load_problems(path, BARE, question="question")
    assert len(found.problems) + found.repeated == 100
    assert {problem.target for problem in found.problems} == set("0123")
