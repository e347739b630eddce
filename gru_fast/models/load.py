"""Models and tokenizers by name: from the hub, a folder, a GGUF file, or a run folder, with or without LoRA."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gru_fast.models.adapters import base_of, is_adapter, quiet_peft, untie, with_lora
from gru_fast.models.files import check_files, check_readable
from gru_fast.models.four_bit import (
    NO_ADAPTER,
    NOT_ZERO_3,
    QUANT_TYPES,
    dequantized,
    is_four_bit,
    keep_differentiable,
    quantization,
)
from gru_fast.models.tokenizer_file import file_of, warn_if_otherwise
from gru_fast.runs.messages import first_line, in_short

if TYPE_CHECKING:
    import torch

    from gru_fast.data.templates import Template


def _option(default: Any, text: str, choices: tuple[Any, ...] = ()) -> Any:
    return field(default=default, metadata={"help": text} | ({"choices": choices} if choices else {}))


COMPUTE_DTYPES = ("float32", "bfloat16", "float16")
OF_ADAPTERS = ("use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")  # that are trained
OF_4_BITS = ("load_in_4bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype")


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
        (*COMPUTE_DTYPES, "auto"),
    )
    attn_implementation: str | None = _option(None, "eager, sdpa, flash_attention_2, ...; by default the model's")
    revision: str | None = _option(None, "branch, tag or commit on the hub")
    trust_remote_code: bool = _option(False, "run code that comes with the model")
    load_in_4bit: bool = _option(
        False,
        "hold the linear layers but the head in 4 bits (bitsandbytes); trained is an adapter beside them (QLoRA): "
        "--use-peft. An adapter is put on them as it is, not merged",
    )
    bnb_4bit_quant_type: str = _option("nf4", "4 bits: the number format", QUANT_TYPES)
    bnb_4bit_use_double_quant: bool = _option(True, "4 bits: hold their scales in 8 bits, 0.4 bits a weight less")
    bnb_4bit_compute_dtype: str | None = _option(
        None, "4 bits: dtype that they are expanded to and computed in; by default --dtype", (None, *COMPUTE_DTYPES)
    )
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
        if self.load_in_4bit and self.model.endswith(".gguf"):
            problems.append(
                f"load_in_4bit: {self.model} is a GGUF file, which transformers expands; give the model's own folder, "
                "or leave it out"
            )
        if problems:
            raise ValueError("; ".join(problems))


def check_training(options: ModelOptions) -> None:
    """Refuses what cannot be trained, before anything is loaded.

    Raises:
        ValueError: 4 bits without an adapter to train, or with one below it.
    """
    if not options.load_in_4bit:
        return
    if not options.use_peft:
        raise ValueError(NO_ADAPTER)
    found = find(options.model)
    if found is not None and is_adapter(found):
        raise ValueError(
            f"load_in_4bit: {options.model} is an adapter, and a new one would go on what it gives merged, which 4 "
            f"bits round away; write that with gru-fast merge --model {options.model} and train on it in full "
            "(docs/larger-models.md says what 4 bits leave of it), or leave it out"
        )


def load_merged(options: ModelOptions, *, into_4bit: bool = False, rounded_from: str | None = None) -> Any:
    """An adapter, merged into the model that it is for; on the CPU, in eval mode and without 4 bits.

    Args:
        into_4bit: into the values that 4 bits of the model stand for, which the adapter was trained beside, in place of
            those that the model has. Which 4 bits, ``options`` say; :func:`four_bit_of_run` knows.
        rounded_from: with ``into_4bit``, the dtype that the model is loaded in before it is rounded to 4 bits: from
            another one than the training's they are partly others. By default ``options.dtype``, which the result has.

    Raises:
        ValueError: no adapter, or what :func:`load_model` refuses.
    """
    found = find(options.model)
    if found is None or not is_adapter(found):
        raise ValueError(f"model: {options.model} is no adapter (it has no adapter_config.json): nothing to merge")
    if not into_4bit:
        return _load(replace(options, load_in_4bit=False)).eval()
    wanted = _dtype(options.dtype, *list(lineage(options.model, options.base_model))[-1], options)
    return _load(replace(options, load_in_4bit=True, dtype=rounded_from or options.dtype), expand_to=wanted).eval()


def load_model(options: ModelOptions, *, train: bool = False, device: str | torch.device = "cpu") -> Any:
    """A causal language model in eval mode, on the CPU.

    An adapter that is found in a run folder is merged into its base model. So is the model before the next unlearning,
    and with ``use_peft`` the next adapter goes on top: without it, the model is what it was before. On a base in 4 bits
    an adapter is put on top as it is: merged, it would be rounded to 4 bits.

    Args:
        train: made ready to train: a new LoRA adapter where ``use_peft`` asks for one, no cache of keys and values.
        device: where a model in 4 bits is to be, on which it is quantized too; no other is put there.

    Raises:
        FileNotFoundError: no such model, or a run that has not finished.
        ImportError: 4 bits without bitsandbytes.
        ValueError: weights that do not belong to the configuration beside them, an adapter of another model, or what
            :func:`check_training` refuses.
    """
    if train:
        check_training(options)
    model = _load(options, str(device))
    if not train:
        return model.eval()
    model.config.use_cache = False
    if is_four_bit(model) and not options.use_peft:  # as it was saved
        raise ValueError(NO_ADAPTER)
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

    A warning where it does not do what its file says (:mod:`gru_fast.models.tokenizer_file`).

    Raises:
        FileNotFoundError: no such model, or no tokenizer with it.
    """
    from transformers import AutoTokenizer

    from gru_fast.data.templates import ensure_pad_token

    name, folder = _place_of_tokenizer(options)
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
    warn_if_otherwise(tokenizer, file_of(name, folder, options.revision or "main"))
    tokenizer.padding_side = "right"
    ensure_pad_token(tokenizer)
    return tokenizer


def _place_of_tokenizer(options: ModelOptions) -> tuple[str, Path | None]:
    """What :func:`find` gives of the first of a model and those that it lies on that has a tokenizer.

    A folder for ``options.tokenizer`` needs no model in it.
    """
    given = Path(options.tokenizer or "").expanduser()
    if options.tokenizer and (given / "tokenizer_config.json").is_file():
        return options.tokenizer, given
    return next(
        (name, folder)
        for name, folder in lineage(options.tokenizer or options.model, options.base_model)
        if folder is None or not is_adapter(folder) or (folder / "tokenizer_config.json").is_file()
    )


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


def four_bit_of_run(model: str, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The options of 4 bits under which an adapter was trained, dtype among them; nothing of any other model.

    The dtype says what was rounded to 4 bits: from float32 and from bfloat16 they are not quite the same.

    Args:
        config: of its run; by default :func:`config_of`.
    """
    found = find(model)
    if found is None or not is_adapter(found):
        return {}
    config = config_of(model) if config is None else config
    if not config.get("load_in_4bit"):
        return {}
    return {name: config[name] for name in (*OF_4_BITS, "dtype") if name in config}


def _load(options: ModelOptions, device: str = "cpu", *, expand_to: Any = None) -> Any:
    """The model with all adapters that it has merged into it. 4 bits become what they stand for, in ``expand_to``."""
    *adapters, (name, found) = _with_files(options)
    try:
        model = _pretrained(name, found, options, device)
    except FileNotFoundError as error:
        if adapters:
            raise _no_base(adapters[-1][1], name, error) from error
        raise
    if found is not None and found.is_file():
        _as_expanded(model)
    if is_four_bit(model) and expand_to is not None:
        model = dequantized(model).to(expand_to)
    if is_four_bit(model):
        return _in_four_bits(model, name, adapters)
    for adapter, folder in reversed(adapters):
        model, name, found = _merged(model, name, folder), adapter, folder
    if found is not None:
        # Where an adapter on top of it will look for its base; transformers would name the folder of a GGUF file.
        model.name_or_path = model.config._name_or_path = str(found.resolve())
    return model


def _with_files(options: ModelOptions) -> list[tuple[str, Path | None]]:
    """The :func:`lineage` of a model, whose files have been looked at."""
    *adapters, (name, found) = lineage(options.model, options.base_model)
    if options.base_model and not adapters:
        raise ValueError(
            f"base_model: {name} is no adapter (it has no adapter_config.json), and needs no other model; leave it out"
        )
    for _, folder in (*adapters, (name, found)):
        if folder is not None and folder.is_dir():
            check_files(folder)
    return [*adapters, (name, found)]


def _as_expanded(model: Any) -> None:
    """Drops the marks of a GGUF file's quantization: the weights have been expanded, and can be trained and saved."""
    model.is_quantized = False
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _in_four_bits(model: Any, name: str, adapters: list[tuple[str, Path | None]]) -> Any:
    """A model in 4 bits with its adapter on top, if there is one."""
    keep_differentiable(model)
    if len(adapters) > 1:
        raise ValueError(
            f"load_in_4bit: {adapters[0][0]} is an adapter on an adapter, {adapters[1][0]}, which would have to be "
            "merged into 4 bits; leave it out"
        )
    return _adapted(model, name, adapters[0][1]) if adapters else model


def _pretrained(name: str, found: Path | None, options: ModelOptions, device: str) -> Any:
    from transformers import AutoModelForCausalLM

    settings: dict[str, Any] = {"dtype": options.dtype, "trust_remote_code": options.trust_remote_code}
    if options.attn_implementation:
        settings["attn_implementation"] = options.attn_implementation
    if found is None:
        settings["revision"] = options.revision or "main"
    if options.load_in_4bit:
        from transformers.integrations import is_deepspeed_zero3_enabled

        if is_deepspeed_zero3_enabled():
            raise ValueError(NOT_ZERO_3)
        settings["quantization_config"] = quantization(
            options.bnb_4bit_quant_type,
            options.bnb_4bit_use_double_quant,
            _dtype(options.bnb_4bit_compute_dtype or options.dtype, name, found, options),
        )
        settings["device_map"] = {"": device}
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


def _dtype(wanted: str, name: str, found: Path | None, options: ModelOptions) -> Any:
    """That of torch; "auto": the one the model called ``name`` has."""
    import torch

    return configuration(name, found, options).dtype if wanted == "auto" else getattr(torch, wanted)


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
    adapted = _adapted(model, name, adapter)
    untie(adapted)
    return adapted.merge_and_unload()


def _adapted(model: Any, name: str, adapter: Path | None) -> Any:
    """The model called ``name`` with an adapter on top."""
    from peft import PeftModel

    try:
        with quiet_peft():
            return PeftModel.from_pretrained(model, str(adapter))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"model: the adapter in {adapter} does not fit {name}: {in_short(error)}") from error
