"""WeightedDataModule: a path of weighted turns → steps for the trainer."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig

from drift_train.attention import why_not_packed
from drift_train.encode import Encoded, Example, TooLong, encode
from drift_train.fields import Supervise
from drift_train.held_out import split
from drift_train.layout import StepBatch, step_batch
from drift_train.pack import BatchPlan, Order, Weighting
from drift_train.pruning import check_min_weight, prune
from drift_train.rows import holds_text, names_tokenizer, read_rows
from drift_train.steps import HeldOutSteps, TrainSteps
from drift_weights.folder import is_folder
from drift_weights.manifest import read_manifest
from drift_weights.names import check_model
from drift_weights.pulling import located, pinned

BATCH_SIZE = 128
"""Examples of an optimizer step (D.2)."""
MICRO_TOKENS = 16_384

_log = logging.getLogger(__name__)


class WeightedDataModule(LightningDataModule):
    """Weighted turns from a folder, a file or a table, as whole optimizer steps.

    Args:
        path: a WEIGHTED folder, one Parquet or JSONL file with `weight` and either token ids or
            `prompt` and `completion`, or org/name of a data set on the Hub.
        model: folder or Hub id of the policy: its vocabulary, context length and tokenizer.
        model_revision: of the Hub id.
        batch_size: examples of an optimizer step, over all devices, ≥ 1 (D.2).
        micro_tokens: most tokens of one forward pass, padding included, ≥ 1.
        order: `rows` of an epoch are shuffled one by one, or `groups`, whose rows follow on each other and
            share the arithmetic of what they begin with.
        weighting: `loss`: w multiplies the loss (the paper); `resample`: rows are drawn by w
            (ours); `none`: w = 1.
        seed: of the order and of resampling, ≥ 0.
        val_share: share of the prompts held out, in [0, 1), by a hash of prompt_id.
        supervise: `terminal` turns (the paper) or `all`.
        too_long: `refuse` rows over the limit, `drop` and name them, or `truncate` their prompts from the
            front; supervised tokens are never cut.
        max_length: most tokens of a row; null for the model's context length.
        min_weight: rows with w below it stay out of the forward passes, not out of N; null for none.
        reencode: render rows with ids of another tokenizer anew from their text; else they are refused.
        revision: of a data set on the Hub: a tag or a commit.
        subset: of a data set on the Hub; null for its default.
        trust_remote_code: run code that comes with the model.
    """

    def __init__(
        self,
        path: str,
        model: str,
        model_revision: str | None = None,
        batch_size: int = BATCH_SIZE,
        micro_tokens: int = MICRO_TOKENS,
        weighting: Weighting = "loss",
        seed: int = 0,
        val_share: float = 0.0,
        supervise: Supervise = "terminal",
        too_long: TooLong = "refuse",
        max_length: int | None = None,
        min_weight: float | None = None,
        reencode: bool = False,
        revision: str | None = None,
        subset: str | None = None,
        trust_remote_code: bool = False,
        order: Order = "rows",
    ) -> None:
        super().__init__()
        if not 0 <= val_share < 1:
            raise ValueError(f"val_share must lie in [0, 1), got {val_share}")
        check_min_weight(min_weight, weighting)
        self.path = path
        self.model = model
        self.model_revision = model_revision
        self.batch_size = batch_size
        self.micro_tokens = micro_tokens
        self.weighting = weighting
        self.order = order
        self.seed = seed
        self.val_share = val_share
        self.supervise = supervise
        self.too_long = too_long
        self.max_length = max_length
        self.min_weight = min_weight
        self.reencode = reencode
        self.revision = revision
        self.subset = subset
        self.trust_remote_code = trust_remote_code
        self._manifest: dict[str, Any] | None = None
        self._table: pa.Table | None = None
        self.packed = False
        self._train: list[Example] = []
        self._held_out: list[Example] = []

    @classmethod
    def from_table(cls, table: pa.Table, model: str, **settings: Any) -> Self:
        """A data module over a table in memory; `settings` as for the class."""
        data = cls("the table", model, **settings)
        data._table = table
        return data

    def setup(self, stage: str) -> None:
        """Read, encode and split, once.

        Raises:
            ValueError: bad rows, or a split that leaves a side empty.
            FileNotFoundError: no such path, and no revision of a data set on the Hub.
            HubError: the Hub refused or did not answer.
        """
        if self._train:
            return
        self._encoding = encoded = self._encoded()
        for did in encoded.changes():
            _warn(f"{self.path}: {did}")
        self._train, self._held_out = split(encoded.examples, self.val_share)
        if not self._held_out and stage == "validate":
            raise ValueError("nothing is held out to validate on; set data.val_share")
        if not self._held_out and self.trainer is not None:
            # Else Lightning asks whether an empty loader was the intention.
            self.trainer.limit_val_batches = 0
        # Refused here rather than at the first step.
        self._plan = BatchPlan(
            self._train,
            batch_size=self.batch_size,
            seed=self.seed,
            weighting=self.weighting,
            order=self.order,
        )
        self._pruning = prune(self._train, self.min_weight)
        if self.trainer is not None and stage == "fit":
            if self.min_weight is not None:
                _warn(str(self._pruning))
            self._count_epochs(self.trainer)

    def steps_of(self, epochs: int) -> int:
        """Optimizer steps in which every example came up `epochs` times, rounded up."""
        return -(-self._plan.examples_of(epochs) // self.batch_size)

    def about(self) -> dict[str, Any]:
        """Where the examples are from and what was taken of them, as JSON, for model cards."""
        manifest = self._manifest
        hub = {} if manifest is None else manifest.get("hub") or {}
        settings = ("weighting", "order", "supervise", "batch_size", "seed", "val_share", "min_weight")
        return {
            "path": hub.get("repo") or Path(self.path).name,
            "revision": hub.get("commit"),
            "asked": self.revision or hub.get("revision"),
            "subset": hub.get("subset"),
            "manifest": manifest,
            "examples": len(self._train),
            "prompts": len({example.prompt_id for example in self._train}),
            "held_out": len(self._held_out),
            "too_long": len(self._encoding.too_long),
            "truncated": len(self._encoding.truncated),
            "reencoded": len(self._encoding.reencoded),
            **{name: getattr(self, name) for name in settings},
        }

    def train_dataloader(self) -> TrainSteps:
        """The run's steps from the trainer's own on; a pure function of (seed, step)."""
        if self.trainer is None:
            raise RuntimeError("the steps of a run are counted by a trainer; give it this data module")
        return TrainSteps(self.share, self.trainer, self._plan, self._train, self._pruning)

    def val_dataloader(self) -> HeldOutSteps:
        """The held-out examples, in table order, with their weights (1 under `none`)."""
        weight_N = np.array([example.weight for example in self._held_out])
        if self.weighting == "none":
            weight_N = np.ones_like(weight_N)
        return HeldOutSteps(self.share, self._held_out, weight_N, self.batch_size)

    def state_dict(self) -> dict[str, Any]:
        """What decides the steps of a run, so that a resume on other data is refused."""
        names = ("batch_size", "weighting", "order", "seed", "val_share", "supervise", "min_weight")
        return {name: getattr(self, name) for name in names} | {"examples": _digest(self._train)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to go on with other steps than the checkpoint's.

        Raises:
            ValueError: a setting or the rows differ.
        """
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            return
        for name, found in self.state_dict().items():
            wanted = state_dict.get(name)
            if wanted == found:
                continue
            if name == "examples":
                raise ValueError(
                    f"{self.path}: not the rows that the checkpoint was trained on; resume with those"
                )
            raise ValueError(
                f"data.{name} is {found}, the checkpoint was trained with {wanted}; set it to that"
            )

    def share(
        self,
        examples: Sequence[Example],
        weight_N: NDArray[np.float64],
        indices: NDArray[np.int64],
        step: int = 0,
    ) -> StepBatch:
        """This rank's share of a step."""
        trainer = self.trainer
        rank = 0 if trainer is None else trainer.global_rank
        draws = np.random.SeedSequence((self.seed, step, rank))
        return step_batch(
            examples,
            weight_N,
            indices,
            micro_tokens=self.micro_tokens,
            rank=rank,
            world_size=1 if trainer is None else trainer.world_size,
            packed=self.packed,
            seed=int(draws.generate_state(1, np.uint64)[0] >> np.uint64(1)),
        )

    def _count_epochs(self, trainer: Trainer) -> None:
        """Give a run that is counted in epochs its number of steps, before a schedule asks for it."""
        if trainer.max_steps != -1:
            return
        if trainer.max_epochs is None or trainer.max_epochs < 1:
            raise ValueError("set trainer.max_steps, or trainer.max_epochs with trainer.max_steps -1")
        trainer.fit_loop.epoch_loop.max_steps = self.steps_of(trainer.max_epochs)

    def _encoded(self) -> Encoded:
        if self._table is None:
            path = self._located()
            table, self._manifest = read_rows(path), _manifest_of(path)
        else:
            table = self._table
        whole = AutoConfig.from_pretrained(
            check_model(self.model), revision=self.model_revision, trust_remote_code=self.trust_remote_code
        )
        self.packed = self._packs(whole)
        config = whole.get_text_config()
        context = getattr(config, "max_position_embeddings", None)
        limits = [limit for limit in (self.max_length, context) if limit is not None]
        return encode(
            table,
            vocab_size=config.vocab_size,
            tokenizer=self._tokenizer(table),
            max_length=min(limits, default=None),
            supervise=self.supervise,
            too_long=self.too_long,
            reencode=self.reencode,
            source=self.path,
        )

    def _packs(self, config: PretrainedConfig) -> bool:
        reason = why_not_packed(config)
        if self.trust_remote_code and getattr(config, "auto_map", None):
            reason = "its code is not transformers' own"
        if reason is not None:
            _warn(f"{self.model}: rows are padded, not packed, because {reason}")
        return reason is None

    def _located(self) -> Path:
        """The rows' path on this machine; its first process fetches what the Hub holds."""
        trainer, path, revision = self.trainer, Path(self.path), self.revision
        if trainer is None:
            return located(path, revision, self.subset, say=_warn)
        # A branch may move between the questions of two processes: all take what the first one found.
        found = pinned(path, revision) if trainer.is_global_zero else None
        revision = trainer.strategy.broadcast(found)
        if trainer.local_rank != 0:
            trainer.strategy.barrier()
        here = located(path, revision, self.subset, say=_warn)
        if trainer.local_rank == 0:
            trainer.strategy.barrier()
        return here

    def _tokenizer(self, table: pa.Table) -> Any:
        """The model's, if text is to be rendered with it or the rows' ids are to be held against it."""
        text, folder = holds_text(table), Path(self.model)
        if not text and not names_tokenizer(table):
            return None
        if not text and not self.reencode and folder.is_dir() and not any(folder.glob("tokenizer*")):
            _warn(f"{self.model} holds no tokenizer; that the rows' ids are of its model is not checked")
            return None
        return AutoTokenizer.from_pretrained(
            self.model, revision=self.model_revision, trust_remote_code=self.trust_remote_code
        )


def _manifest_of(path: Path) -> dict[str, Any] | None:
    """What a folder of drift data says of itself; its list of files is left out."""
    if not is_folder(path):
        return None
    return {name: value for name, value in read_manifest(path).items() if name != "shards"}


def _digest(examples: Sequence[Example]) -> str:
    """sha256 over token ids, spans, weights and prompts, in order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(np.asarray(example.input_ids, np.int64).tobytes())
        digest.update(repr((example.spans, float(example.weight), example.group, example.sample)).encode())
    return digest.hexdigest()


@rank_zero_only
def _warn(message: str) -> None:
    _log.warning(message)
