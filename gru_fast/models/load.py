"""Models and tokenizers by name: from the hub, a folder, a GGUF file, or a run folder, with or without LoRA."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gru_fast.models.adapters import base_of, is_adapter, quiet_peft, untie, with_lora
from gru_fast.models.files import check_files, check_readable
from gru_fast.runs.messages import first_line, in_short

if TYPE_CHECKING:
    import torch

    from gru_fast.data.templates import Template


def _option(default: Any, text: str, choices: tuple[Any, ...] = ()) -> Any:
    return field(default=default, metadata={"help": text} | ({"choices": choices} if choices else {}))


@dataclass
class ModelOptions:
    """Which model, in what form.

    Raises:
        ValueError: options that cannot be, all at once.
    """

    model: str = field(metadata={"help": "a model on the hub, a folder with one, a run folder, or a file.gguf"})
    base_model: str | None = _option(None, "of an adapter, the model it is for, if not where it says itself")
    tokenizer: str | None = _option(None, "where the tokenizer is, if not with the model; as --model")
    template: str | None = _option(
        None, "words around question and answer (gru-fast ls); by default the model's run's, else by its tokenizer"
    )
    template_options: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "variables of the tokenizer's chat template, such as enable_thinking=false; by default the model's "
            "run's"
        },
    )
    dtype: str = _option(
        "float32",
        "dtype of the weights. float32 keeps the small steps of unlearning, which 16 bits round away; for speed add "
        "--bf16, which computes in 16 bits",
        ("float32", "bfloat16", "float16", "auto"),
    )
    attn_implementation: str | None = _option(None, "eager, sdpa, flash_attention_2, ...; by default the model's")
    revision: str | None = _option(None, "branch, tag or commit on the hub")
    trust_remote_code: bool = _option(False, "run code that comes with the model")
    use_peft: bool = _option(False, "train a LoRA adapter, not the model itself")
    lora_r: int = _option(8, "LoRA: rank")
    lora_alpha: int = _option(32, "LoRA: the adapter's output is scaled by alpha / r")
    lora_dropout: float = _option(0.05, "LoRA: dropout before the adapter")
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "LoRA: names of modules; by default all linear ones but the head"}
    )

    def __post_init__(self) -> None:
        problems = []
        if not self.model:
            problems.append("model: expected a name or path, got nothing; give --model")
        if self.lora_r < 1:
            problems.append(f"lora_r: expected a whole number of at least 1, got {self.lora_r}")
        if not 0 <= self.lora_dropout < 1:
            problems.append(f"lora_dropout: expected a number in [0, 1), got {self.lora_dropout}")
        if problems:
            raise ValueError("; ".join(problems))


def load_model(options: ModelOptions, *, train: bool = False) -> Any:
    """A causal language model, on the CPU and in eval mode.

    An adapter that is found in a run folder is merged into its base model. So is the model before the next unlearning,
    and with ``use_peft`` the next adapter goes on top: without it, the model is what it was before.

    Args:
        train: made ready to train: a new LoRA adapter where ``use_peft`` asks for one, no cache of keys and values.

    Raises:
        FileNotFoundError: no such model, or a run that has not finished.
        ValueError: weights that do not belong to the configuration beside them, or an adapter of another model.
    """
    model = _load(options)
    if not train:
        return model.eval()
    model.config.use_cache = False
    if not options.use_peft:
        return model
    return with_lora(
        model,
        r=options.lora_r,
        alpha=options.lora_alpha,
        dropout=options.lora_dropout,
        targets=options.lora_target_modules or None,
    )


def load_tokenizer(options: ModelOptions) -> Any:
    """The tokenizer of a model, padding on the right; one without padding token gets EOS for it.

    Raises:
        FileNotFoundError: no such model, or no tokenizer with it.
    """
    from transformers import AutoTokenizer

    from gru_fast.data.templates import ensure_pad_token

    name, folder = next(
        (name, folder)
        for name, folder in lineage(options.tokenizer or options.model, options.base_model)
        if folder is None or not is_adapter(folder) or (folder / "tokenizer_config.json").is_file()
    )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            **_where(name, folder), revision=options.revision or "main", trust_remote_code=options.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        where = f"none in {folder}; give --tokenizer" if folder else f'"{name}" is no folder here, nor on the hub'
        raise FileNotFoundError(f"tokenizer: {where} ({in_short(error)})") from error
    if not tokenizer("a")["input_ids"]:
        # Where a model has no tokenizer files, transformers may make an empty one of the model's kind.
        raise FileNotFoundError(f"tokenizer: none to be had from {name} (it knows no token); give --tokenizer")
    tokenizer.padding_side = "right"
    ensure_pad_token(tokenizer)
    return tokenizer


def load_template(options: ModelOptions, tokenizer: Any) -> Template:
    """The prompt template: the one asked for, else that of the run the model is from, else by the tokenizer."""
    from gru_fast.data.templates import resolve_template

    of_run = template_of_run(config_of(options.model), options.template)
    variables = of_run.get("template_options") if options.template_options is None else options.template_options
    return resolve_template(options.template or of_run.get("template"), tokenizer, variables)


def template_of_run(config: Mapping[str, Any], chosen: str | None = None) -> dict[str, Any]:
    """``template`` and ``template_options`` of a run's configuration; nothing where another template is ``chosen``."""
    if chosen not in (None, config.get("template")):
        return {}
    return {name: config[name] for name in ("template", "template_options") if config.get(name)}


def config_of(model: str) -> dict[str, Any]:
    """The configuration of the run that a model is of, or a checkpoint of it; empty if it is of none.

    Its ``output_dir`` is where the run lies now.
    """
    from gru_fast.runs.folder import is_run, read_config

    folder = find(model)
    if folder is None:
        return {}
    # A checkpoint-N lies in the folder of its run.
    run = next((path for path in (folder, folder.resolve().parent) if is_run(path)), None)
    return {**read_config(run), "output_dir": str(run)} if run else {}


def device_of(name: str | None) -> torch.device:
    """The device of this name; None: the accelerator, if there is one here (not only in torch's build), else the CPU.

    Raises:
        ValueError: no such device here.
    """
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    try:
        device = torch.device(name or accelerator or "cpu")
        torch.empty(1, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:  # torch has no one error for it
        here = "cpu" if accelerator is None else f"cpu or {accelerator.type}"
        reason = first_line(error)
        raise ValueError(f'device: expected one that is here, such as {here}, got "{name}" ({reason})') from None
    return device


def find(name: str) -> Path | None:
    """The folder or GGUF file that ``name`` is, None if it can only be a name on the hub.

    Raises:
        FileNotFoundError: neither, or a folder without a model.
    """
    from gru_fast.runs.checkpoint import last_checkpoint
    from gru_fast.runs.folder import is_run

    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "config.json").is_file() or is_adapter(path):
            return path
        hint = "it has no config.json"
        if is_run(path):
            checkpoint = last_checkpoint(path)
            hint = "its run has not finished; --resume it" + (f", or give {checkpoint}" if checkpoint else "")
        raise FileNotFoundError(f"model: {path} has no model in it: {hint}")
    if path.is_file():
        if path.suffix != ".gguf":
            raise ValueError(f"model: {path} is a file; expected a folder as save_pretrained makes it, or a file.gguf")
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.suffix == ".gguf":
        raise FileNotFoundError(f"model: no folder or file {path}")
    return None


def lineage(name: str, base_model: str | None = None) -> Iterator[tuple[str, Path | None]]:
    """A model and, of an adapter, what it lies on, down to the first that is none; each with what :func:`find` gives.

    Args:
        base_model: what the first is an adapter of, in place of what it says itself.

    Raises:
        FileNotFoundError: one that is not there. ValueError: one whose files cannot be read, or that lies on itself.
    """
    found, seen = find(name), set[Path]()
    while True:
        if found is not None and found.is_dir():
            check_readable(found)
        yield name, found
        if found is None or not is_adapter(found):
            return
        seen.add(found.resolve())
        name, base_model, above = base_of(found, base_model), None, found
        try:
            found = find(name)
        except FileNotFoundError as error:
            raise _no_base(above, name, error) from error
        if found is not None and found.resolve() in seen:
            raise ValueError(f"model: the base models of {found} lead back to it; say which it is with --base-model")


def _no_base(adapter: Path | None, base: str, error: Exception) -> FileNotFoundError:
    return FileNotFoundError(
        f"model: {adapter} is an adapter of {base}, which is not to be had: {error}; if it has moved, give --base-model"
    )


def configuration(name: str, found: Path | None, options: ModelOptions) -> Any:
    """What transformers reads of a model before its weights; ``name`` and ``found`` as :func:`lineage` gives them."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(
        **_where(name, found), revision=options.revision or "main", trust_remote_code=options.trust_remote_code
    )


def _where(name: str, found: Path | None) -> dict[str, Any]:
    """The arguments of `from_pretrained` that say where."""
    if found is not None and found.is_file():
        return {"pretrained_model_name_or_path": str(found.parent), "gguf_file": found.name}
    return {"pretrained_model_name_or_path": str(found or name)}


def _load(options: ModelOptions) -> Any:
    """The model with all adapters that it has merged into it."""
    *adapters, (name, found) = lineage(options.model, options.base_model)
    if options.base_model and not adapters:
        raise ValueError(
            f"base_model: {name} is no adapter (it has no adapter_config.json), and needs no other model; leave it out"
        )
    for _, folder in (*adapters, (name, found)):
        if folder is not None and folder.is_dir():
            check_files(folder)
    try:
        model = _pretrained(name, found, options)
    except FileNotFoundError as error:
        if adapters:
            raise _no_base(adapters[-1][1], name, error) from error
        raise
    if found is not None and found.is_file():
        _as_dequantized(model)
    for adapter, folder in reversed(adapters):
        model, name, found = _merged(model, name, folder), adapter, folder
    if found is not None:
        # Where an adapter on top of it will look for its base; transformers would name the folder of a GGUF file.
        model.name_or_path = model.config._name_or_path = str(found.resolve())
    return model


def _as_dequantized(model: Any) -> None:
    """Drops the marks of a GGUF file's quantization: the weights have been expanded, and can be trained and saved."""
    model.is_quantized = False
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _pretrained(name: str, found: Path | None, options: ModelOptions) -> Any:
    from transformers import AutoModelForCausalLM

    settings: dict[str, Any] = {"dtype": options.dtype, "trust_remote_code": options.trust_remote_code}
    if options.attn_implementation:
        settings["attn_implementation"] = options.attn_implementation
    if found is None:
        settings["revision"] = options.revision or "main"
    try:
        with _quiet():
            model, info = AutoModelForCausalLM.from_pretrained(
                **_where(name, found), output_loading_info=True, ignore_mismatched_sizes=True, **settings
            )
    except OSError as error:
        where = f"in {found}" if found else f'"{name}" is no folder here, and the hub did not give it'
        raise FileNotFoundError(f"model: {where}: {in_short(error)}") from error
    except ValueError as error:
        if "Unrecognized configuration class" in str(error):  # the names of all 200 others follow
            raise ValueError(f"model: {name} {_why_not_causal(name, found, options)}") from error
        raise ValueError(f"model: {name}: {in_short(error)}") from error
    _check_loaded(name, info)
    _check_direction(name, model)
    return model


def _why_not_causal(name: str, found: Path | None, options: ModelOptions) -> str:
    """What a model is that ``AutoModelForCausalLM`` does not know."""
    config = configuration(name, found, options)
    kind = config.model_type
    if hasattr(config, "vision_config"):
        return (
            f"is of {kind}, a model of images and text that transformers does not load as a causal language model; "
            "expected one of text, or a family whose text it does (Gemma 3, Llama 4)"
        )
    return f"is of {kind}, which is no causal language model to transformers; expected one, such as llama or qwen3"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' report on weights that do not fit: :func:`_check_loaded` says it in one line."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _check_direction(name: str, model: Any) -> None:
    """Refuses an encoder, whose tokens see those that come after them: it would score an answer knowing it."""
    import torch

    if getattr(model.config, "is_decoder", None) is not False:  # of families that have both kinds, and of GPT-NeoX
        return
    with torch.no_grad():
        first, other = (model.eval()(input_ids=torch.tensor([[0, token]])).logits[0, 0] for token in (1, 2))
    if not torch.allclose(first, other, rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"model: {name} is an encoder ({model.config.model_type}), whose tokens see those after them; expected a "
            'causal language model. If it is one, "is_decoder" is true in its config.json'
        )


def _check_loaded(name: str, info: Mapping[str, Any]) -> None:
    """Refuses weights that leave some of the model at random values, which transformers lets pass with a warning."""
    # A mismatched entry is (name, shape in the file, shape in the model), or the name alone.
    wrong = [entry if isinstance(entry, str) else entry[0] for entry in info["mismatched_keys"]]
    for problem, keys in (("have another shape", wrong), ("are missing", info["missing_keys"])):
        if keys:
            raise ValueError(
                f"model: the weights in {name} are of another model than its config.json: {len(keys)} {problem}, "
                f"{min(keys)} among them"
            )
    unused = info["unexpected_keys"]
    if unused:
        warnings.warn(
            f"model: {len(unused)} of the weights in {name} have no place in the model that its config.json describes "
            f"and are not used, {min(unused)} among them",
            stacklevel=2,
        )


def _merged(model: Any, name: str, adapter: Path | None) -> Any:
    """The model called ``name`` with what an adapter adds."""
    from peft import PeftModel

    try:
        with quiet_peft():
            adapted = PeftModel.from_pretrained(model, str(adapter))
        untie(adapted)
        return adapted.merge_and_unload()
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"model: the adapter in {adapter} does not fit {name}: {in_short(error)}") from error
