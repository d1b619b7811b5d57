"""The tokenizers of the bundled worlds: nearly every word is one token."""

from collections.abc import Sequence


def train_tokenizer_on(corpus: Sequence[str], positions: int, *more: str):
    """Byte-level BPE of at most 2,000 tokens, padded on the left: a fast tokenizer of transformers.

    Args:
        positions: of the model, its longest input.
        more: special tokens beside ``<pad>`` and ``</s>``.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, min_frequency=2, special_tokens=["<pad>", "</s>", *more],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    bpe.train_from_iterator(corpus, trainer)
    special = {"additional_special_tokens": list(more)} if more else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", eos_token="</s>", padding_side="left",
        model_max_length=positions, clean_up_tokenization_spaces=False, **special,
    )  # fmt: skip
