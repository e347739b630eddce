#!/usr/bin/env bash
# transformers 5.24.0: AutoTokenizer leaves out what tokenizer.json says of how text is cut up, where the class has rules of
# its own; which class it is hangs on config.json too, which is no file of the tokenizer's.
#
# Guess: tokenizer.json is the whole tokenizer. The same tokens from it by tokenizers, transformers 4.57.6 and 5.24.0.
# Seen:  of a byte-level BPE that cuts numbers into three digits at most and makes all letters small, 4.57.6 gives what the file
#        says, whatever class tokenizer_config.json names. 5.24.0 does so for LlamaTokenizer; for GPT2Tokenizer, Qwen2Tokenizer
#        and GPTNeoXTokenizer it takes vocabulary and merges, and the class's own normalizer and pre-tokenizer: other tokens for
#        numbers and capitals, no warning. With a config.json of an OLMo 2 beside them the same files are read whole. The
#        tokenizer.json that save_pretrained() then writes has the class's rules. OLMo 2 and 3's tokenizers, without their
#        config.json, are of that kind (allenai/open-instruct issue 1896, transformers 5.4.0).
#
# What it means here: whenever a tokenizer is loaded, gru_fast/models/tokenizer_file.py cuts some texts up by the file too, and
# warns where that comes out otherwise: a model would unlearn and be evaluated on tokens that it has not learned from
# (docs/numerics.md).
#
# Needs a package index and some 300 MB in a temporary folder. Exit status 0: as described; 1: it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for release in 4.57.6 5.24.0; do
  python3 -m venv "$work/$release"
  "$work/$release/bin/pip" install --quiet --disable-pip-version-check transformers=="$release"
done
cat >"$work/write.py" <<'PROGRAM'
import json
import sys
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

tokenizer = Tokenizer(models.BPE())
tokenizer.normalizer = normalizers.Lowercase()
cut = pre_tokenizers.Split(Regex(r"\p{N}{1,3}|\s?\p{L}+|\s|[^\p{L}\p{N}\s]+"), "isolated")
tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
tokenizer.decoder = decoders.ByteLevel()
text = ["in 1984 she was 19, and wrote 345 books by 2024"] * 9
alphabet = pre_tokenizers.ByteLevel.alphabet()
tokenizer.train_from_iterator(text, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["<s>"]))
for name in ("LlamaTokenizer", "GPT2Tokenizer", "Qwen2Tokenizer", "GPTNeoXTokenizer", "GPT2Tokenizer of an olmo2"):
    folder = Path(sys.argv[1], name)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": name.split()[0], "bos_token": "<s>", "eos_token": "<s>", "unk_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if name.endswith("olmo2"):
        (folder / "config.json").write_text('{"model_type": "olmo2"}')
PROGRAM
cat >"$work/read.py" <<'PROGRAM'
import json
import sys
from pathlib import Path

import transformers
from tokenizers import Tokenizer

TEXT = "In 1984 She wrote 1234 books"
found = {}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    asked = transformers.AutoTokenizer.from_pretrained(folder)
    ids = asked(TEXT, add_special_tokens=False)["input_ids"]
    by_file = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT, add_special_tokens=False).ids
    found[folder.name] = ids == by_file
    asked.save_pretrained(sys.argv[3])
    written = Tokenizer.from_file(f"{sys.argv[3]}/tokenizer.json").encode(TEXT, add_special_tokens=False).ids
    if written != ids:
        raise SystemExit(f"{folder.name}: what was saved is not what was loaded")
    tokens = " ".join(asked.convert_ids_to_tokens(ids)).replace("Ġ", "_")
    print(f"{transformers.__version__}, {folder.name:<25} {'as the file' if ids == by_file else 'otherwise':<11}  {tokens}")
Path(sys.argv[2]).write_text(json.dumps(found))
PROGRAM
"$work/5.24.0/bin/python" "$work/write.py" "$work/tokenizers" >/dev/null
for release in 4.57.6 5.24.0; do
  HF_HUB_OFFLINE=1 "$work/$release/bin/python" "$work/read.py" "$work/tokenizers" "$work/$release.json" "$work/saved" 2>/dev/null
done
"$work/5.24.0/bin/python" - "$work" <<'PROGRAM'
import json
import sys
from pathlib import Path

old, new = (json.loads(Path(sys.argv[1], f"{release}.json").read_text()) for release in ("4.57.6", "5.24.0"))
as_the_file = {name for name, same in new.items() if same}
sys.exit(not all(old.values()) or as_the_file != {"LlamaTokenizer", "GPT2Tokenizer of an olmo2"})
PROGRAM
