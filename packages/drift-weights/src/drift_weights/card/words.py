"""What the cards of all data sets say alike."""

from __future__ import annotations

SUMMARY = """**{what}, for training a language model to correct itself by supervised fine-tuning
([DRIFT](https://arxiv.org/abs/2605.31455)).** {how} The weight says how much a dialogue counts against the
others of its problem: most for a right answer early, least for a wrong one that only repeats itself."""

SAMPLED = """A frozen model answered each problem several times; a verifier judged every answer, and after a
wrong one the model was told so and tried again."""

LOGGED = "The answers come from a log, which says of each whether it is right, or what it earned."

GROUP_AND_ESS = """A group is all samples of one problem from one policy in one round. ESS, (Σw)²/Σw², is
the number of equally weighted rows that a group is worth: between 1 and its size."""

SELECTIONS = {
    "trajectories": "whole dialogues, not yet weighed",
    "sft-5turn": "the last answer of every dialogue, each with weight 1",
    "star-2turn": "answers that were right at the second turn, each with weight 1",
    "rft": "right answers, each with weight 1",
    "resampled": "answers drawn by their weight, so that each row left has weight 1",
}
"""All but `drift`, the last answer of every dialogue with its weight, which the page is about."""

_COMMON = (
    ("prompt_id, round, policy, sample", "the key; the first three name the group"),
    ("response_spans", "where in the token ids the answers stand, or null"),
    ("logprobs, tokenizer", "of the sampled tokens, and the fingerprint of the tokenizer, or null"),
)
COLUMNS = {
    "weighted": (
        ("prompt", "the whole history before the last answer, as messages"),
        ("completion", "the last answer, one assistant message: what is trained on"),
        ("weight", "w, how much it counts; never null"),
        ("return", "R, what w is made of"),
        ("solved", "whether the last answer is right"),
        ("length", "L, the turns of the dialogue"),
        ("unique_answers, counted", "E, the distinct answers, and how many turns E speaks about"),
        ("penalty", "added to R; 0 unless a log brings one"),
        ("group_size", "K, the rows of its group before any selection"),
        ("finish_reason", "`stop`, or `length` where the token limit cut the answer"),
        ("input_ids", "prompt and completion as they were sampled, or null"),
        *_COMMON,
    ),
    "trajectories": (
        ("prompt, target", "the problem as messages, and the right answer where it is known"),
        ("turns", "each turn's response, the answer read from it, verdict, finish reason and feedback"),
        ("max_turns, ended", "the turn budget; `solved`, `budget`, `context` or `error`"),
        ("metadata", "a JSON object"),
        ("token_ids", "the last prompt and the last response as they were sampled, or null"),
        *_COMMON,
    ),
}

FORMULA = """## Where the weight comes from

```text
R = solved · γ^(L−1) − λ · (1 − E / counted) + penalty     return of a dialogue (eq. 12)
w = exp(R / β) / mean of exp(R / β) over its group         weight (eq. 13)
```

A right answer earns 1, times γ for every turn before it; answers that repeat each other cost up to λ. The
exponential turns returns into weights, the more sharply the smaller β is, and the division makes them 1 on
average over the answers to one problem. All that enters is in the data, so β, γ and λ can be changed
without sampling again: `drift-weights reweight my-data other --beta 0.2`. Where a log brought returns of
its own, `return` holds those; in a selection other than `drift` every weight is 1."""

GROUPS = """Only a mixed group tells right from wrong. In a group that is all right, weights favour early
answers; in one that is all wrong, they only disfavour repetition. Coverage is the share of groups with a
success."""

LIMITS = """## Limits

- **Short dialogues with a clear verdict.** The method is meant for a few attempts at a problem that can be
  checked, and one fixed sentence of feedback. Open-ended conversation, preferences and long plans are
  outside of it.
- **Only what was sampled.** A frozen policy was asked once. Weights can lift what it did, never what it
  did not do; where no attempt succeeded, nothing in the data shows how.
- **Wrong answers can weigh much.** In a group without a success the penalty for repetition alone decides,
  and a wrong answer that differs from the others may count many times. `drift-weights reweight --all-wrong
  drop` leaves such groups out.
- **Few rows may carry a group.** A mean ESS near 1 says that most rows hardly count; a larger β spreads the
  weight.
- **Right means what the verifier took for right.** What it accepts in error is imitated, and what it cannot
  read counts as wrong.
- **Made for one policy.** Weights are relative to the answers of the policy that was sampled; another model
  would have drawn others."""

CITATION = """## Citation

```bibtex
@misc{drift2026,
  title         = {{DRIFT}: Decoupled Rollouts and Importance-Weighted Fine-Tuning
                   for Efficient Multi-Turn Optimization},
  author        = {Mu, Jian and Lin, Tianyi and Qin, Chengwei and Dai, Zhongxiang and Shu, Yao},
  year          = {2026},
  eprint        = {2605.31455},
  archivePrefix = {arXiv},
  url           = {https://arxiv.org/abs/2605.31455}
}
```"""

TRUST = """## Can I trust these files?

`drift.json` vouches for every shard, with its rows, bytes and sha256, and says how the data were made.
`drift-weights pull`, as above, checks all of it before you see a row.

This page was written by drift-weights {version}, data format {format}.

<!-- What stands between two comments such as those around this is written anew when the data are published
again, unless you edited it. Remove it with its two comments, and it stays away. -->"""

_LOAD = """## Use it

{load}

{advice} Without a config's name you get the default. To have its files, each checked against its sha256:

{pull}
"""

_TRAIN = """
### Train with the weights

```yaml
# train.yaml; run: drift-train fit --config train.yaml
model:
  model: {model}
  learning_rate: 5.0e-6  # yours to choose
data:
  path: {path}{revision}
```
"""

_TRL_ROWS = """
```python
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

rows = Dataset.from_json("ROWS.jsonl")
args = SFTConfig(output_dir="out", max_length=None)  # the default length may cut the answer off
SFTTrainer({model}, args=args, train_dataset=rows).train()
```"""

_TRL_WEIGHTED = """
### With TRL

**Stock TRL drops the column `weight` without a word**: `SFTTrainer` runs, and imitates right and wrong
answers alike. Either draw rows by weight, so that those left count the same,

```sh
drift-weights resample my-data drawn --seed 0
drift-weights export drawn drawn.jsonl --to trl
```
"""

_TRL_BY_LOSS = """

or keep every row and give TRL a collator and a loss that use the weight: drift's `docs/trl.md` has both."""

_TRL_ONES = """
### With TRL

Every weight of the default config is 1, so nothing is lost where TRL drops the column:

```sh
drift-weights export my-data rows.jsonl --to trl
```
"""

_WEIGH = """
These are whole dialogues. Weights are made from them without a GPU, and as often as you like:

```sh
drift-weights reweight my-data weighted --beta 0.1
drift-train fit --model.model {model} --model.learning_rate 5e-6 --data.path weighted
```

A trainer that knows no weights, such as stock TRL, takes rows drawn by them:
`drift-weights resample weighted drawn --seed 0`."""

USE = {
    "weighted": _LOAD + _TRAIN + _TRL_WEIGHTED + _TRL_ROWS.replace("ROWS", "drawn") + _TRL_BY_LOSS,
    "ones": _LOAD + _TRAIN + _TRL_ONES + _TRL_ROWS.replace("ROWS", "rows"),
    "trajectories": _LOAD + _WEIGH,
}
"""By kind of the default config; `ones` is weighted turns that all have weight 1."""
