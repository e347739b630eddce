"""The options of `gru-fast forget`: the documents, what is to be kept, how it is measured; and of the training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gru_fast.unlearn import methods
from gru_fast.unlearn.config import UnlearnConfig, raise_all, setting

SELF, NONE = "self", "none"  # of --retain


@dataclass
class ForgetOptions:
    """What to forget, what to keep, and how both are measured.

    Raises:
        ValueError: options that cannot be, all at once.
    """

    forget: list[str] | None = field(
        default=None,
        metadata={
            "help": "the documents to forget: files (.txt, .md, .pdf, .docx; .jsonl, .json, .csv, .parquet with a "
            "document a row), folders, globs, or org/name:config:split on the hub"
        },
    )
    # Not | None: the word none is a choice here.
    retain: list[str] = field(
        default_factory=lambda: [SELF],
        metadata={
            "help": "text that is to be kept, in the same forms; self: text that the model writes itself (the "
            "default); none: forget without any, by TRU"
        },
    )
    holdout: list[str] | None = field(
        default=None,
        metadata={
            "help": "text like that to forget that the model has never seen: what it knows of this is the level to "
            "come down to. By default text that the model has just written"
        },
    )
    neutral: list[str] | None = field(
        default=None,
        metadata={
            "help": "text of all kinds, by whose perplexity it is seen what is kept, besides some of --retain that is "
            "not trained on"
        },
    )
    columns: dict[str, str] | None = field(
        default=None,
        metadata={"help": "where fields of rows have other names: question=frage answer=antwort"},
    )
    max_length: int = setting(256, "tokens of a piece; longer documents are cut, with overlap")
    keep: float = setting(
        0.95, "share of the quality that must stay: of the probability per token of text that is kept; in (0, 1]"
    )
    patience: int = setting(
        8,
        "looks in a row at which too little is kept, after which it ends: it may come back, and what was trained "
        "longer is better mixed",
    )
    self_texts: int = setting(96, "with --retain self: texts that the model writes")
    self_length: int = setting(96, "tokens of such a text, at most")
    held_out: float = setting(0.25, "share of --retain that is not trained on, but measured")
    quick_pieces: int = setting(32, "pieces of each set that are looked at during training, at most")
    generate: int = setting(32, "pieces that the model is to continue before and after, at most")
    prefix: int = setting(32, "tokens of a piece that it is given for that, at most half of it")
    length: int = setting(48, "tokens that it is to write")
    resolution: float = setting(0.02, "how finely the model is mixed with the original at the end (UWC)")
    eval_batch_size: int = setting(8, "rows at a time where the model is measured")
    text: bool = setting(
        True, "keep texts in the report: what was given, what comes next, what is written. --no-text: measures alone"
    )
    keep_delta: bool = setting(
        False, "keep the original's bits as difference to the new model, for gru-fast restore (delta.safetensors)"
    )
    also_keep_forgotten: bool = setting(
        False,
        "on a model that is itself a run: what its earlier requests took out is trained on as well, to be pushed down "
        "as far as it comes back; takes a share of every step",
    )
    attack: bool = setting(False, "attack the result, as gru-fast attack does, and put what came back into the report")
    attacks: list[str] | None = field(
        default=None, metadata={"help": "with --attack: some of quantize, relearn, sample, extract; by default all"}
    )
    attack_options: dict[str, Any] | None = field(
        default=None,
        metadata={"help": "with --attack: options of gru-fast attack, such as samples=4 relearn_steps=[1,10]"},
    )
    dry_run: bool = setting(False, "say what is known at all, what would conflict, and what it would cost; then stop")

    def __post_init__(self) -> None:
        problems = []
        if not self.forget:
            problems.append("forget: expected documents, got none; give --forget")
        for name, value in (("keep", self.keep), ("resolution", self.resolution)):
            if not 0 < value <= 1:
                problems.append(f"{name}: expected a share in (0, 1], such as 0.95, got {value:g}")
        if not 0 < self.held_out < 1:
            problems.append(f"held_out: expected a share between 0 and 1, such as 0.25, got {self.held_out:g}")
        for name in (
            "max_length",
            "self_texts",
            "self_length",
            "quick_pieces",
            "generate",
            "patience",
            "prefix",
            "length",
            "eval_batch_size",
        ):
            least = {"max_length": 8, "self_texts": 16, "self_length": 16, "generate": 0}.get(name, 1)
            if getattr(self, name) < least:
                problems.append(f"{name}: expected a whole number of at least {least}, got {getattr(self, name)}")
        if self.retain and len(self.retain) > 1 and {SELF, NONE} & {*self.retain}:
            problems.append(f"retain: expected files, or {SELF} or {NONE} alone, got {', '.join(self.retain)}")
        problems += [
            f"{name}: there is no attack without --attack; give it too, or leave this out"
            for name in ("attacks", "attack_options")
            if getattr(self, name) and not self.attack
        ]
        raise_all(problems)

    @property
    def writes_itself(self) -> bool:
        """Whether the model writes the text to keep."""
        return self.retain in ([], [SELF])


@dataclass
class ForgetConfig(UnlearnConfig):
    """The training: as of gru-fast unlearn, with NPO+GD, GRU and other defaults.

    GRU computes the retain gradient anyway, so that the retain loss of NPO+GD costs nothing beside it. A step takes 8
    rows and as many to keep. It ends when the documents are forgotten or --keep would break, at the latest after
    ``max_steps``.
    """

    method: str = setting("npo_gd", "unlearning objective", tuple(methods.names()))
    rectify: bool = setting(True, "rectify the unlearning gradient (GRU)")
    learning_rate: float | None = setting(None, "by default it is searched for: see docs/forget.md")  # type: ignore[assignment]
    max_steps: int = setting(150, "most steps")
    eval_steps: float | None = setting(5, "steps from one look at the model to the next")
    save_steps: float = setting(50, "steps from one checkpoint to the next")
    save_total_limit: int | None = setting(1, "checkpoints that are kept")
    weight_decay: float = setting(0.0, "weight decay: 0, since what is not to be forgotten is to stay")
    per_device_train_batch_size: int = setting(4, "rows to forget at a time, and as many to keep")
    gradient_accumulation_steps: int = setting(2, "how often, for a step")

    def __post_init__(self) -> None:
        if isinstance(self.eval_steps, (int, float)) and self.eval_steps < 1:
            raise ValueError(f"eval_steps: expected a whole number of at least 1, got {self.eval_steps}")
        if self.max_steps < 1:
            raise ValueError(f"max_steps: expected a whole number of at least 1, got {self.max_steps}")
        searched = self.learning_rate is None
        if searched:
            self.learning_rate = 0.0  # what transformers checks must be a number
        super().__post_init__()
        if searched:
            self.learning_rate = None

    def _unlearn_errors(self) -> list[str]:
        errors = super()._unlearn_errors()
        if not errors and self.make_method().hidden_states:
            errors.append(f"method: {self.method} changes a layer's states, not the probability of text; take another")
        if not errors and "idk" in self.make_method().parts:
            errors.append(
                f'method: {self.method} teaches "I do not know" as an answer, which texts have not; take another'
            )
        if self.eval_strategy != "no":
            errors.append("eval_strategy: expected no, since the model is looked at every --eval-steps anyway")
        return errors
