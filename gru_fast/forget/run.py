"""One request from beginning to end. Every stage leaves a file; a run that was stopped goes on after the last of them.

before.json           the model as it was: all measures, and the level that the documents are to come down to
rate.json             the learning rate that was found
progress.jsonl        a look at the model every few steps
work/                 what was trained, until the run is complete
after.json            all measures of the result, on the same texts
manifest.json, report.html, report.md, run.json
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gru_fast import runs
from gru_fast.data.hashes import joined_hash
from gru_fast.data.self_written import describe
from gru_fast.data.sequences import content_hash
from gru_fast.evaluation.asking import Scorer
from gru_fast.forget import delta, earlier, manifest, rate
from gru_fast.forget.edge import mixed, to_the_edge
from gru_fast.forget.exam import Findings, Look, Standard, examine, look
from gru_fast.forget.level import Level
from gru_fast.forget.options import ForgetConfig, ForgetOptions
from gru_fast.forget.request import Documents, Request, make
from gru_fast.forget.watch import BEST, REMOVED, Point, Watch, put_weights, read_points, weights_of
from gru_fast.models.limits import padding_id
from gru_fast.models.load import ModelOptions, load_model
from gru_fast.runs.processes import here, on_first
from gru_fast.unlearn.task_vector import TaskVector, load_tensors, save_tensors

BEFORE, AFTER, RATE, WORK = "before.json", "after.json", "rate.json", "work"
_LAST, _VECTOR = "last.safetensors", "task_vector.safetensors"  # in WORK
_STRENGTHS = tuple(2.0**power for power in range(-1, 11))  # of a TRU vector; the paper's are 0.5 to 1
UNKNOWN = "unknown"  # nothing was known of the documents: there is nothing to forget


@dataclass(frozen=True)
class Outcome:
    """What came of a request.

    Args:
        verdict: "removed", "not removed", or "unknown": the model did not know the documents.
        reason: why the training ended: "removed", "keep", "steps"; "tru" where a vector was subtracted; empty where
            there was nothing to do.
        before, after: all measures; the same where nothing was trained.
        level: of text never seen.
        kept: the share that is left, of the whole texts.
        points: looks in training; ``edge``: mixtures of the last model with the original.
        chosen: the model that was taken.
        still_known: documents that are known after, with the measures that say so.
        never_known: documents that were not known before.
        facts: for run.json.
    """

    verdict: str
    reason: str
    before: Findings
    after: Findings
    level: Level
    kept: float
    points: list[Point]
    edge: list[Point]
    chosen: Point | None
    still_known: Mapping[str, Any]
    never_known: list[str]
    facts: dict[str, Any]


def row_hashes(request: Request, salt: str) -> dict[str, str]:
    """The salt, and a salted hash of the rows of each set."""
    texts = request.texts
    sets = {"forget": request.forget, "retain": request.retain, texts.unseen_source: texts.unseen}
    sets |= {"earlier requests": request.again} if request.again else {}
    sets |= {f"{name} (measured)": some for name, some in texts.kept.items()}
    hashes = {
        name: joined_hash([salt, *(content_hash(piece.row) for piece in some)], 16) for name, some in sets.items()
    }
    return {"salt": salt, **hashes}


def check_rows(request: Request, then: Mapping[str, str], file: Path) -> None:
    """Raises ValueError where a run would go on with other rows than it began with. ``then``: :func:`row_hashes`."""
    now = row_hashes(request, then["salt"])
    others = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    if others:
        raise ValueError(
            f"{', '.join(others)}: the texts are others than when this run began ({file}); put them back, or begin "
            "anew with --overwrite-output-dir"
        )


class Run:
    """A request in its run folder.

    Args:
        instances: the options: of the model, of the request, of the training.
        documents: see :func:`gru_fast.forget.request.read`.
        model, tokenizer, template: the model ready to train, as it was before.
        checkpoint: where the training goes on.
    """

    def __init__(
        self,
        instances: tuple[ModelOptions, ForgetOptions, ForgetConfig],
        documents: Documents,
        model: Any,
        tokenizer: Any,
        template: Any,
        checkpoint: Path | None = None,
    ) -> None:
        self.of_model, self.options, self.config = instances
        self.documents = documents
        self.tokenizer = tokenizer
        self.template = template
        self.checkpoint = checkpoint
        self.folder = Path(self.config.output_dir)
        self.model = model.to(self.config.device)
        self.scorer = Scorer(
            self.model, tokenizer, padding_id(model, tokenizer), batch_size=self.options.eval_batch_size
        )
        self.shown = here()[0] == 0
        self.trainer: Any = None  # made where something is trained by it

    def run(self) -> Outcome:
        """All stages; nothing is complete before the caller has written run.json."""
        self.request = make(
            self.documents,
            self.options,
            self.model,
            self.tokenizer,
            self.template,
            self.folder,
            shown=self.shown,
        )
        if self.request.written:
            self.say(f"texts of its own: {describe(self.request.written)}")
        if self.options.also_keep_forgotten:
            self._keep_forgotten()
        self.quick = self.request.texts.some(self.options.quick_pieces)
        before, self.level = self._before()
        self.standard = Standard(self.level, before.perplexities)
        judged = self.level.judge(before.forget)
        self.say(self.level.rule())
        never = [each.document for each in before.forget if each.document not in judged.known]
        self._say_before(before, never)
        if judged.removed:
            return self._outcome(UNKNOWN, "", before, before, [], None, never, {})
        facts, reason = self._trained(before) if self.request.retain else self._subtracted()
        edge, chosen = self._edge(reason)
        self._save()
        after = self._after()
        if self.options.keep_delta:
            on_first(lambda: delta.save(self.folder, self._original(), self.model))
        verdict = REMOVED if self.standard.judge(after).removed else "not removed"
        return self._outcome(verdict, reason, before, after, edge, chosen, never, facts)

    def earlier(self) -> list[dict[str, Any]]:
        """What is left of the requests that the model went through before; measured on the model as it is now."""
        requests = manifest.earlier(self.of_model.model)
        found = earlier.measured(self.scorer, self.template, requests, keep_text=self.options.text)
        for each in found:
            self.say(f"earlier request {each['run']}: {each['now']}")
        return found

    def _keep_forgotten(self) -> None:
        """Adds the rows of earlier requests to those that are trained on."""
        self.request.again, lacking = earlier.rows(
            manifest.earlier(self.of_model.model),
            self.documents.retain,
            self.tokenizer,
            self.template,
            keep_text=self.options.text,
        )
        self.say(
            f"kept forgotten: {len({piece.document for piece in self.request.again})} documents of earlier requests"
        )
        for each in lacking:
            self.say(f"  not kept forgotten: {each}")

    def finish(self) -> None:
        """Removes what was kept for going on; with it the trainer's hashes of the rows, which have no salt."""
        from gru_fast.unlearn.trainer import REFERENCE_LOG_PROBS

        if here()[0] == 0:
            (self.folder / REFERENCE_LOG_PROBS).unlink(missing_ok=True)
            shutil.rmtree(self.folder / WORK, ignore_errors=True)
            for checkpoint in self.folder.glob("checkpoint-*"):
                shutil.rmtree(checkpoint)

    def say(self, text: str) -> None:
        if self.shown:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()

    # ---- before and after --------------------------------------------------------------------------------------------

    def _examine(self) -> Findings:
        options = self.options
        return examine(
            self.scorer,
            self.request.texts,
            prefix=options.prefix,
            length=options.length,
            generate=options.generate,
            keep_text=options.text,
        )

    def _before(self) -> tuple[Findings, Level]:
        file = self.folder / BEFORE
        content = on_first(lambda: runs.read_json(file) if file.is_file() else None)
        if content is None:
            content = {
                **self._examine().to_json(),
                "model": on_first(self._identity),
                "rows": on_first(lambda: row_hashes(self.request, manifest.new_salt())),
            }
            on_first(lambda: runs.write_json(file, content))
        check_rows(self.request, content["rows"], file)
        self.identity = content["model"]
        found = Findings.from_json(content)
        return found, Level.of(self.request.texts.unseen_source, found.unseen)

    def _identity(self) -> dict[str, Any]:
        """Hashes of the model as it was. (A new LoRA adapter, of random numbers, is no part of it.)"""
        is_lora = hasattr(self.model, "peft_config")
        return {
            "files": manifest.files_of(self.of_model.model),
            "weights": None if is_lora else manifest.weights_hash(self.model),
        }

    def _after(self) -> Findings:
        found = self._examine()
        on_first(lambda: runs.write_json(self.folder / AFTER, found.to_json()))
        return found

    def _say_before(self, before: Findings, never: list[str]) -> None:
        count = len(before.forget)
        self.say(f"known: {count - len(never)} of {count} documents")
        for name in never[:10]:
            self.say(f"  {self.level.says_unknown}: {name}")
        if len(never) > 10:
            self.say(f"  and {len(never) - 10} more")

    # ---- training ----------------------------------------------------------------------------------------------------

    def _trained(self, before: Findings) -> tuple[dict[str, Any], str]:
        """Trains, or puts back what was trained before a stop; the model is then the last one."""
        from gru_fast.unlearn import UnlearnTrainer

        self._tuned(before)
        rows = self.config.per_device_train_batch_size * self.config.gradient_accumulation_steps
        self.trainer = UnlearnTrainer(
            self.model,
            self.config,
            train_dataset=self.request.dataset(rows * self.config.world_size, self.config.seed),
            processing_class=self.tokenizer,
        )
        work = self.folder / WORK
        done = on_first(lambda: runs.read_json(work / "trained.json") if (work / "trained.json").is_file() else None)
        if done is not None:
            put_weights(self.model, load_tensors(work / _LAST)[0])
            return done["facts"], done["reason"]
        watch = self._watch()
        self.trainer.add_callback(watch)
        facts = runs.trained(self.trainer, self.checkpoint)
        facts |= {"learning_rate": self.config.learning_rate, "method_options": self.config.method_options}
        self.trainer.save_state()

        def keep() -> None:
            save_tensors(work / _LAST, weights_of(self.model), {})
            if watch.best is not None and watch.best_weights and watch.reason != REMOVED:
                save_tensors(self.folder / BEST, watch.best_weights, watch.best.to_json())
            runs.write_json(work / "trained.json", {"facts": facts, "reason": watch.reason})

        on_first(keep)
        return facts, watch.reason

    def _subtracted(self) -> tuple[dict[str, Any], str]:
        """Without text to keep: the model minus its TRU vector, as far as it takes; the edge is found later."""
        from gru_fast.unlearn import tru
        from gru_fast.unlearn.task_vector_options import TaskVectorOptions

        file = self.folder / WORK / _VECTOR
        options = TaskVectorOptions(
            learning_rate=self.config.learning_rate,
            rows_at_a_time=self.config.per_device_train_batch_size,
            bf16=self.config.bf16,
            gradient_checkpointing=self.config.gradient_checkpointing,
            seed=self.config.seed,
            save_minutes=1.0,
        )
        if not on_first(file.is_file):
            rows = [piece.row for piece in self.request.forget]
            pad = self.scorer.pad_token_id
            state = self.folder / WORK / "tru"
            found = tru.rectified(self.model, rows, options, pad_token_id=pad, state=state, progress=self.shown)
            on_first(lambda: found.save(file))
        vector = TaskVector.load(file)
        device = next(self.model.parameters()).device
        with vector.subtracted(self.model.to("cpu")) as set_strength:
            strength = self._too_strong(set_strength, device)
            weights = weights_of(self.model)
        put_weights(self.model.to(device), weights)
        about: dict[str, Any] = {name: vector.about[name] for name in ("units", "steps") if name in vector.about}
        return {"learning_rate": options.learning_rate, "strength": strength, **about}, "tru"

    def _too_strong(self, set_strength: Callable[[float], None], device: Any) -> float:
        """Subtracts the vector with growing strength, until the documents are removed or too little is kept."""
        for strength in _STRENGTHS:
            set_strength(strength)
            point = self._look_on(device, strength)
            self.say(f"strength {strength:g}: {point}")
            if point.removed or point.kept < self.options.keep:
                break
        return strength

    def _look_on(self, device: Any, strength: float) -> Point:
        """A look at the model, which lies on the CPU before and after."""
        self.model.to(device)
        try:
            return self._look(int(strength), 1.0)
        finally:
            self.model.to("cpu")

    def _save(self) -> None:
        """The model in the run folder; every process must call it."""
        if self.trainer is not None:
            runs.save_model(self.trainer)
        elif self.shown:
            self.model.save_pretrained(self.folder)
            self.tokenizer.save_pretrained(self.folder)

    def _watch(self) -> Watch:
        quick = look(self.scorer, dataclasses.replace(self.quick, forget=self.quick.forget[:1]))
        return Watch(
            self.scorer,
            self.quick,
            self.request.texts,
            Standard(self.level, quick.perplexities),
            keep=self.options.keep,
            patience=self.options.patience,
            eval_steps=int(self.config.eval_steps or 1),
            folder=self.folder,
            advance=lambda point: self.say(f"step {point.step:>4}: {point}"),
        )

    def _tuned(self, before: Findings) -> None:
        """Fills in the learning rate, and NPO's beta, where they were not given."""
        file = self.folder / RATE
        content = on_first(lambda: runs.read_json(file) if file.is_file() else None)
        if content is None:
            found = (
                rate.search(self.scorer, self.request, self.quick, self.level, self.config, self.options.keep)
                if self.config.learning_rate is None
                else rate.Found(self.config.learning_rate, "as it was given", [])
            )
            content = {**found.to_json(), **rate.npo(before.forget, self.request, self.level)}
            on_first(lambda: runs.write_json(file, content))
            self.say(f"learning rate: {content['learning_rate']:.2g}, {content['why']}")
        self.config.learning_rate = float(content["learning_rate"])
        if self.config.method.startswith("npo"):
            names = [each.name for each in dataclasses.fields(self.config.make_method())]
            own: dict[str, Any] = {name: content[name] for name in ("beta", "retain_weight") if name in names}
            self.config.method_options = {**own, **(self.config.method_options or {})}
        self.config.method_options = dataclasses.asdict(self.config.make_method())

    # ---- the edge ----------------------------------------------------------------------------------------------------

    def _edge(self, reason: str) -> tuple[list[Point], Point]:
        """Sets the model to what is to be taken: the strongest removal that keeps the share."""
        step = max((point.step for point in read_points(self.folder)), default=0)
        chosen = self._look(step, 1.0)
        edge: list[Point] = []
        if chosen.kept < self.options.keep:
            with mixed(self.model, self._original) as set_alpha:
                chosen, edge = to_the_edge(
                    set_alpha, partial(self._look, step), self.options.keep, self.options.resolution
                )
        best, other = self.folder / BEST, None
        if reason != REMOVED and best.is_file():
            mixture = weights_of(self.model)
            put_weights(self.model, load_tensors(best)[0])
            other = self._look(int(load_tensors(best)[1]["step"]), 1.0)
            if other.kept >= self.options.keep and other.strength > chosen.strength:
                chosen = other
            else:
                put_weights(self.model, mixture)
        if any(chosen is point for point in edge):
            self.say(f"mixed with the original to the edge: {chosen.alpha:.1%} of the change: {chosen}")
        elif chosen is other:
            self.say(f"taken: step {chosen.step}: {chosen}")
        return edge, chosen

    def _look(self, step: int, alpha: float) -> Point:
        found: Look = look(self.scorer, self.request.texts)
        return Point.of(step, found, self.standard, self.standard.judge(found), alpha)

    def _original(self) -> Any:
        return load_model(self.of_model)

    # ---- the end -----------------------------------------------------------------------------------------------------

    def _outcome(
        self,
        verdict: str,
        reason: str,
        before: Findings,
        after: Findings,
        edge: list[Point],
        chosen: Point | None,
        never: list[str],
        facts: dict[str, Any],
    ) -> Outcome:
        return Outcome(
            verdict=verdict,
            reason=reason,
            before=before,
            after=after,
            level=self.level,
            kept=self.standard.kept(after.perplexities),
            points=read_points(self.folder) if reason else [],
            edge=edge,
            chosen=chosen,
            still_known=dict(self.level.judge(after.forget).known),
            never_known=never,
            facts=facts,
        )
