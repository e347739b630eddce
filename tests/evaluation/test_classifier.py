"""A classifier's opinion of texts: a label by its name, whatever the batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import DistilBertConfig, DistilBertForSequenceClassification
from words import word_tokenizer

from gru_fast.evaluation.classifier import clean_probabilities, load_classifier

TEXTS = ["one two three", "two", "", "three three three three one", "one " * 600]


@pytest.fixture(scope="module")
def classifier_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text classifier of four labels, in the order of the one that is used by default."""
    folder = tmp_path_factory.mktemp("classifier")
    tokenizer = word_tokenizer(
        TEXTS, bos=True, pad_token="</s>", model_input_names=["input_ids", "attention_mask"], model_max_length=512
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        dim=8,
        hidden_dim=8,
        n_layers=1,
        n_heads=1,
        pad_token_id=1,
        id2label=dict(enumerate(["clean", "mild gibberish", "noise", "word salad"])),
    )
    DistilBertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_clean_is_a_label_and_not_a_number(classifier_folder: Path, batch_size: int) -> None:
    classifier, tokenizer = load_classifier(str(classifier_folder), "cpu")
    assert not classifier.training
    found = clean_probabilities(classifier, tokenizer, TEXTS, batch_size=batch_size)
    with torch.no_grad():
        for text, prob in zip(TEXTS, found, strict=True):
            ids = torch.tensor([tokenizer(text)["input_ids"][:512]])
            assert prob == pytest.approx(float(classifier(input_ids=ids).logits.softmax(-1)[0, 0]), abs=1e-6)
    classifier.config.id2label = {0: "LABEL_0", 1: "noise", 2: "Clean", 3: "word salad"}
    moved = clean_probabilities(classifier, tokenizer, TEXTS[:2], batch_size=batch_size)
    assert moved != pytest.approx(found[:2])


def test_only_the_first_tokens_are_read(classifier_folder: Path) -> None:
    classifier, tokenizer = load_classifier(str(classifier_folder), "cpu")
    for matrix in (classifier.pre_classifier.weight, classifier.classifier.weight):
        matrix.data.mul_(8)  # a small random model says nearly the same of all texts
    first = clean_probabilities(classifier, tokenizer, ["one two", "three"], batch_size=2)
    longer = ["one two three three", "three"]
    assert clean_probabilities(classifier, tokenizer, longer, batch_size=2, max_tokens=3) == pytest.approx(first)
    assert clean_probabilities(classifier, tokenizer, longer, batch_size=2) != pytest.approx(first)


def test_a_classifier_of_other_labels_is_refused(classifier_folder: Path) -> None:
    classifier, tokenizer = load_classifier(str(classifier_folder), "cpu")
    classifier.config.id2label = {0: "positive", 1: "negative"}
    with pytest.raises(ValueError, match='expected a classifier with a label "clean", got positive, negative'):
        clean_probabilities(classifier, tokenizer, TEXTS, batch_size=2)


def test_a_classifier_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"gibberish_model: cannot get .*none \(.*give --gibberish-model a folder"
    ):
        load_classifier(str(tmp_path / "none"), "cpu")
